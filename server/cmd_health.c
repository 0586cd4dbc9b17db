#define _DEFAULT_SOURCE /* struct timeval's options */

#include <argp.h>
#include <errno.h>
#include <gnutls/gnutls.h>
#include <netdb.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "kernels/error.h"
#include "server/cli.h"
#include "server/commands.h"

static const char name[] = "gptqt health";

enum { DEFAULT_PORT = 8080, TIMEOUT_S = 5, MAX_ANSWER = 8192 };

struct args {
    const char *host, *socket, *path;
    int port;
    bool tls;
};

enum { OPT_HOST = 256, OPT_PORT, OPT_SOCKET, OPT_TLS };

static const struct argp_option options[] = {
    {"host", OPT_HOST, "ADDRESS", 0, "Where the server listens (GPTQT_HOST, or 127.0.0.1)", 0},
    {"port", OPT_PORT, "N", 0, "Its port (GPTQT_PORT, or 8080)", 0},
    {"unix-socket", OPT_SOCKET, "PATH", 0, "Its Unix socket (GPTQT_UNIX_SOCKET)", 0},
    {"tls", OPT_TLS, NULL, 0, "It speaks TLS (where GPTQT_TLS_CERT is set)", 0},
    {0},
};

static error_t parse(int key, char *value, struct argp_state *state) {
    struct args *args = state->input;
    struct error err;
    switch (key) {
    case OPT_HOST:
        args->host = value;
        args->socket = NULL;
        return 0;
    case OPT_PORT:
        args->socket = NULL;
        if (cli_int(&args->port, "--port", value, 1, 65535, &err) < 0)
            argp_error(state, "%s", err.text);
        return 0;
    case OPT_SOCKET:
        args->socket = value;
        return 0;
    case OPT_TLS:
        args->tls = true;
        return 0;
    case ARGP_KEY_ARG:
        if (args->path) argp_error(state, "one PATH only");
        if (value[0] != '/' || strpbrk(value, " \r\n"))
            argp_error(state, "PATH is one like /health/live");
        args->path = value;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp argp = {
    options,
    parse,
    "[PATH]",
    "Asks a running server for PATH (default /health): status 0 when it answers 200, else 1. The "
    "variables of `gptqt serve` are its defaults, so that a container needs no arguments.",
    NULL,
    NULL,
    NULL};

static int defaults(struct args *args, struct error *err) {
    const char *host = getenv("GPTQT_HOST"), *port = getenv("GPTQT_PORT"),
               *path = getenv("GPTQT_UNIX_SOCKET"), *cert = getenv("GPTQT_TLS_CERT");
    *args = (struct args){.host = host && *host ? host : "127.0.0.1",
                          .socket = path && *path ? path : NULL,
                          .port = DEFAULT_PORT,
                          .tls = cert && *cert};
    if (!port || !*port) return 0;
    return cli_int(&args->port, "GPTQT_PORT", port, 1, 65535, err);
}

static int connect_to(int family, int type, const struct sockaddr *address, socklen_t size) {
    struct timeval limit = {.tv_sec = TIMEOUT_S};
    int fd = socket(family, type, 0);
    if (fd < 0) return -errno;
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit); /* of connect(), too */
    if (connect(fd, address, size) == 0) return fd;
    int code = errno == EINPROGRESS ? -ETIMEDOUT : -errno;
    close(fd);
    return code;
}

static int connect_unix(const char *path, struct error *err) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path)
        return error_set(err, -EINVAL, "--unix-socket: longer than %zu bytes",
                         sizeof address.sun_path - 1);
    memcpy(address.sun_path, path, strlen(path));
    int fd = connect_to(AF_UNIX, SOCK_STREAM, (struct sockaddr *)&address, sizeof address);
    return fd < 0 ? error_set(err, fd, "%s: %s", path, strerror(-fd)) : fd;
}

/* A server on 0.0.0.0 or :: needs no translation: Linux takes both for the loopback here. */
static int connect_host(const char *host, int port, struct error *err) {
    char service[16];
    snprintf(service, sizeof service, "%d", port);
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *list;
    int r = getaddrinfo(host, service, &hints, &list);
    if (r) return error_set(err, -EADDRNOTAVAIL, "%.128s: %s", host, gai_strerror(r));
    int fd = -EADDRNOTAVAIL;
    for (struct addrinfo *a = list; a && fd < 0; a = a->ai_next)
        fd = connect_to(a->ai_family, a->ai_socktype, a->ai_addr, a->ai_addrlen);
    freeaddrinfo(list);
    return fd < 0 ? error_set(err, fd, "%.128s port %d: %s", host, port, strerror(-fd)) : fd;
}

/* A connection, through TLS when tls is not NULL. */
struct line {
    int fd;
    gnutls_session_t tls;
};

/* The certificate is not judged: it names the outside, and this asks the same machine. */
static int start_tls(struct line *line, gnutls_certificate_credentials_t trust, struct error *err) {
    int r = gnutls_init(&line->tls, GNUTLS_CLIENT);
    if (r == 0) r = gnutls_set_default_priority(line->tls);
    if (r == 0) r = gnutls_credentials_set(line->tls, GNUTLS_CRD_CERTIFICATE, trust);
    if (r == 0) {
        gnutls_transport_set_int(line->tls, line->fd);
        do r = gnutls_handshake(line->tls);
        while (r == GNUTLS_E_INTERRUPTED);
    }
    return r < 0 ? error_set(err, -EPROTO, "TLS: %s", gnutls_strerror(r)) : 0;
}

static ssize_t line_send(struct line *line, const char *text, size_t n) {
    return line->tls ? gnutls_record_send(line->tls, text, n)
                     : send(line->fd, text, n, MSG_NOSIGNAL);
}

static ssize_t line_receive(struct line *line, char *to, size_t n) {
    ssize_t got;
    if (line->tls) {
        do got = gnutls_record_recv(line->tls, to, n);
        while (got == GNUTLS_E_INTERRUPTED);
        return got == GNUTLS_E_PREMATURE_TERMINATION ? 0 : got;
    }
    do got = recv(line->fd, to, n, 0);
    while (got < 0 && errno == EINTR);
    return got;
}

static int exchange(struct line *line, const char *path, char *answer, size_t size,
                    struct error *err) {
    char ask[512];
    int n = snprintf(ask, sizeof ask,
                     "GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", path);
    if (n >= (int)sizeof ask) return error_set(err, -EINVAL, "PATH is too long");
    if (line_send(line, ask, (size_t)n) != n) return error_set(err, -EIO, "cannot send");
    size_t have = 0;
    while (have + 1 < size) {
        ssize_t got = line_receive(line, answer + have, size - 1 - have);
        if (got < 0) return error_set(err, -EIO, "no answer within %d s", TIMEOUT_S);
        if (got == 0) break;
        have += (size_t)got;
    }
    answer[have] = 0;
    return 0;
}

static int ask(int fd, const struct args *args, char *answer, size_t size, struct error *err) {
    struct line line = {.fd = fd};
    gnutls_certificate_credentials_t trust = NULL;
    int r = 0;
    if (args->tls && gnutls_certificate_allocate_credentials(&trust) < 0)
        return error_set(err, -ENOMEM, "out of memory");
    if (args->tls) r = start_tls(&line, trust, err);
    if (r == 0) r = exchange(&line, args->path ? args->path : "/health", answer, size, err);
    if (line.tls) gnutls_deinit(line.tls);
    if (trust) gnutls_certificate_free_credentials(trust);
    return r;
}

static int judge(const char *answer, struct error *err) {
    const char *body = strstr(answer, "\r\n\r\n");
    if (strncmp(answer, "HTTP/1.1 ", 9) || !body)
        return error_set(err, -EPROTO, "the answer is no HTTP; does the server use TLS (--tls)?");
    if (body[4]) printf("%s\n", body + 4);
    if (strncmp(answer + 9, "200", 3) == 0) return 0;
    return error_set(err, -EAGAIN, "status %.3s", answer + 9);
}

int cmd_health(int argc, char **argv) {
    struct args args;
    struct error err;
    char answer[MAX_ANSWER];
    if (defaults(&args, &err) < 0) return cli_end(CLI_USAGE, name, &err);
    argp_parse(&argp, argc, argv, 0, NULL, &args);
    int fd =
        args.socket ? connect_unix(args.socket, &err) : connect_host(args.host, args.port, &err);
    if (fd < 0) return cli_end(CLI_FAILED, name, &err);
    int r = ask(fd, &args, answer, sizeof answer, &err);
    close(fd);
    if (r == 0) r = judge(answer, &err);
    return r < 0 ? cli_end(CLI_FAILED, name, &err) : 0;
}
