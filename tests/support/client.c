#include "tests/support/client.h"

#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MAX_FLAGS = 32, PATIENCE_S = 20 };

static pid_t spawn(const char *const *flags, int to_fd, int from_fd, const char *port) {
    const char *argv[MAX_FLAGS + 4] = {"serve"};
    int n = 1;
    if (port) {
        argv[n++] = "--port";
        argv[n++] = port;
    }
    for (; flags && *flags && n < MAX_FLAGS + 3; flags++) argv[n++] = *flags;
    const char *program = getenv("GPTQT_FAKE_SERVE");
    if (!program) cr_skip_test("GPTQT_FAKE_SERVE names no program");
    pid_t pid = fork();
    cr_assert(pid >= 0, "fork: %s", strerror(errno));
    if (pid > 0) return pid;
    dup2(to_fd, from_fd);
    execv(program, (char *const *)argv);
    _exit(127);
}

struct client_server client_start(const char *const *flags) {
    struct client_server s = {0};
    int ends[2];
    char line[256];
    cr_assert(pipe(ends) == 0);
    s.pid = spawn(flags, ends[1], STDOUT_FILENO, "0");
    close(ends[1]);
    FILE *in = fdopen(ends[0], "r");
    cr_assert(in && fgets(line, sizeof line, in), "the server did not start");
    fclose(in);
    const char *colon = strrchr(line, ':');
    cr_assert(colon, "the server said '%s'", line);
    s.port = atoi(colon + 1);
    return s;
}

static struct sockaddr_in loopback(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static int free_port(void) {
    struct sockaddr_in address = loopback(0);
    socklen_t n = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    cr_assert(bind(fd, (struct sockaddr *)&address, n) == 0);
    cr_assert(getsockname(fd, (struct sockaddr *)&address, &n) == 0);
    close(fd);
    return ntohs(address.sin_port);
}

struct client_server client_start_early(const char *const *flags) {
    char port[16];
    struct client_server s = {.port = free_port()};
    struct sockaddr_in address = loopback(s.port);
    snprintf(port, sizeof port, "%d", s.port);
    s.pid = spawn(flags, STDERR_FILENO, STDOUT_FILENO, port);
    for (time_t end = time(NULL) + PATIENCE_S;;) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        bool open = connect(fd, (struct sockaddr *)&address, sizeof address) == 0;
        close(fd);
        if (open) return s;
        cr_assert(time(NULL) < end && waitpid(s.pid, NULL, WNOHANG) == 0, "the server is gone");
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
}

int client_wait(struct client_server s) {
    int status;
    cr_assert(waitpid(s.pid, &status, 0) == s.pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

void client_stop(struct client_server s) {
    kill(s.pid, SIGTERM);
    int status = client_wait(s);
    cr_assert(status == 0, "the server ended with %d", status);
}

int client_run(const char *const *flags, char *text, size_t size) {
    int ends[2];
    size_t n = 0;
    cr_assert(pipe(ends) == 0);
    struct client_server s = {.pid = spawn(flags, ends[1], STDERR_FILENO, NULL)};
    close(ends[1]);
    for (ssize_t got; n < size - 1 && (got = read(ends[0], text + n, size - 1 - n)) > 0;)
        n += (size_t)got;
    text[n] = 0;
    close(ends[0]);
    return client_wait(s);
}

/* -- Connections --------------------------------------------------------------------------- */

static struct client connect_to(struct client_server s, int receive_buffer) {
    struct client c = {.fd = socket(AF_INET, SOCK_STREAM, 0)};
    struct sockaddr_in address = loopback(s.port);
    struct timeval patience = {.tv_sec = PATIENCE_S};
    cr_assert(c.fd >= 0);
    if (receive_buffer)
        setsockopt(c.fd, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof receive_buffer);
    setsockopt(c.fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(c.fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    cr_assert(connect(c.fd, (struct sockaddr *)&address, sizeof address) == 0, "connect: %s",
              strerror(errno));
    return c;
}

struct client client_open(struct client_server s) {
    return connect_to(s, 0);
}

struct client client_open_small(struct client_server s) {
    return connect_to(s, 4096);
}

void client_close(struct client *c) {
    close(c->fd);
    free(c->data);
    *c = (struct client){.fd = -1};
}

/* A server that refuses early may close while we write: then the answer is what counts. */
static void send_bytes(struct client *c, const char *bytes, size_t n) {
    while (n > 0) {
        ssize_t sent = send(c->fd, bytes, n, MSG_NOSIGNAL);
        if (sent < 0 && (errno == EPIPE || errno == ECONNRESET)) return;
        cr_assert(sent > 0, "send: %s", strerror(errno));
        bytes += sent;
        n -= (size_t)sent;
    }
}

void client_send(struct client *c, const char *bytes) { send_bytes(c, bytes, strlen(bytes)); }

/* Two strings a request: the replay on real engines (api/backends.py) reads them. */
static void record(const char *method, const char *path, const char *body) {
    const char *name = getenv("GPTQT_CLIENT_RECORD");
    if (!name) return;
    FILE *out = fopen(name, "a");
    cr_assert(out && fprintf(out, "%s %s%c%s%c", method, path, 0, body, 0) > 0);
    cr_assert(fclose(out) == 0);
}

void client_post(struct client *c, const char *path, const char *body) {
    char head[256];
    record("POST", path, body);
    snprintf(head, sizeof head,
             "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
             "Content-Length: %zu\r\n\r\n",
             path, strlen(body));
    client_send(c, head);
    client_send(c, body);
}

void client_get(struct client *c, const char *path) {
    char head[256];
    record("GET", path, "");
    snprintf(head, sizeof head, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path);
    client_send(c, head);
}

/* False at the end. */
static bool receive(struct client *c) {
    if (c->eof) return false;
    if (c->size - c->n < 4096) {
        c->size = c->size ? c->size * 2 : 16384;
        c->data = realloc(c->data, c->size);
        cr_assert(c->data);
    }
    ssize_t got = recv(c->fd, c->data + c->n, c->size - c->n - 1, 0);
    cr_assert(got >= 0 || errno == ECONNRESET, "recv: %s; so far: %s", strerror(errno),
              c->n ? c->data : "");
    c->eof = got <= 0;
    if (got > 0) c->n += (size_t)got;
    c->data[c->n] = 0;
    return got > 0;
}

const char *client_expect(struct client *c, const char *needle) {
    for (;;) {
        const char *found = c->n ? strstr(c->data, needle) : NULL;
        if (found || !receive(c)) return found;
    }
}

static void take(struct client *c, size_t n) {
    memmove(c->data, c->data + n, c->n - n + 1);
    c->n -= n;
}

static void need(struct client *c, size_t n) {
    while (c->n < n && receive(c)) {
    }
    cr_assert(c->n >= n, "the answer ends early: %s", c->n ? c->data : "");
}

static const char *find_header(const char *head, const char *name) {
    size_t n = strlen(name);
    for (const char *line = strstr(head, "\r\n"); line; line = strstr(line, "\r\n")) {
        line += 2;
        if (!strncasecmp(line, name, n) && line[n] == ':') return line + n + 1;
    }
    return NULL;
}

static void read_chunks(struct client *c, struct client_reply *r) {
    for (;;) {
        const char *line_end = client_expect(c, "\r\n");
        cr_assert(line_end, "the chunks end early");
        size_t at = (size_t)(line_end - c->data) + 2;
        size_t n = strtoul(c->data, NULL, 16);
        need(c, at + n + 2);
        r->body = realloc(r->body, r->n + n + 1);
        memcpy(r->body + r->n, c->data + at, n);
        r->n += n;
        r->body[r->n] = 0;
        take(c, at + n + 2);
        if (n == 0) return;
    }
}

struct client_reply client_reply(struct client *c) {
    struct client_reply r = {0};
    const char *end = client_expect(c, "\r\n\r\n");
    cr_assert(end, "no answer: %s", c->n ? c->data : "");
    size_t n = (size_t)(end - c->data) + 4;
    r.head = strndup(c->data, n);
    take(c, n);
    cr_assert(sscanf(r.head, "HTTP/1.1 %d", &r.status) == 1, "answer: %s", r.head);
    r.body = strdup("");
    const char *length = find_header(r.head, "Content-Length");
    if (find_header(r.head, "Transfer-Encoding")) {
        read_chunks(c, &r);
    } else if (length) {
        r.n = strtoul(length, NULL, 10);
        need(c, r.n);
        free(r.body);
        r.body = strndup(c->data ? c->data : "", r.n);
        if (r.n) take(c, r.n);
    }
    return r;
}

void client_reply_free(struct client_reply *r) {
    free(r->head);
    free(r->body);
    *r = (struct client_reply){0};
}

struct client_reply client_call(struct client_server s, const char *path, const char *body) {
    struct client c = client_open(s);
    if (body)
        client_post(&c, path, body);
    else
        client_get(&c, path);
    struct client_reply r = client_reply(&c);
    client_close(&c);
    return r;
}

json_t *client_json(struct client_server s, const char *path, const char *body, int status) {
    struct client_reply r = client_call(s, path, body);
    json_error_t why;
    cr_assert(r.status == status, "%s: status %d, expected %d: %s", body ? body : path, r.status,
              status, r.body);
    json_t *root = json_loads(r.body, 0, &why);
    cr_assert(root, "%s: %s", r.body, why.text);
    client_reply_free(&r);
    return root;
}

const json_t *client_at(const json_t *root, const char *path) {
    char name[64];
    while (root && *path) {
        size_t n = strcspn(path, ".");
        snprintf(name, sizeof name, "%.*s", (int)n, path);
        root = json_is_array(root) ? json_array_get(root, strtoul(name, NULL, 10))
                                   : json_object_get(root, name);
        path += n + (path[n] == '.');
    }
    return root;
}

const char *client_string(const json_t *root, const char *path) {
    const char *string = json_string_value(client_at(root, path));
    return string ? string : "";
}

void client_until(struct client_server s, const char *name, int value) {
    char line[96];
    time_t end = time(NULL) + PATIENCE_S;
    snprintf(line, sizeof line, "\n%s ", name);
    for (int seen = -1; seen < value;) {
        struct client_reply r = client_call(s, "/metrics", NULL);
        const char *found = strstr(r.body, line);
        cr_assert(found, "no metric %s", name);
        seen = atoi(found + strlen(line));
        cr_assert(seen >= value || time(NULL) < end, "%s stays at %d, not %d", name, seen, value);
        client_reply_free(&r);
    }
}
