#include "server/http.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/error.h"
#include "server/api/api_error.h"
#include "server/http_parts.h"
#include "server/http_socket.h"
#include "server/log.h"
#include "server/loop.h"

enum {
    IDLE_SECONDS = 120, /* above proxies' usual 60, so they close first */
    RESERVE = 16        /* connections past the limit that still get an answer */
};

/* -- Connections --------------------------------------------------------------------------- */

static void on_left(void *arg) {
    struct http_socket *socket = arg;
    struct http_exchange *x = socket->exchange;
    /* A faulty message behind this one has closed our own side for reading. */
    if (!x || http_wire_is_faulty(&socket->wire)) return;
    x->gone = true;
    http_tell_left(x);
    http_resume(x);
}

/* An answer that libmicrohttpd knows nothing of, as it has not seen the request. */
static void write_refusal(struct http_wire *w, struct http_exchange *x, const struct api_error *e) {
    struct text body = {0}, answer = {0};
    api_error_render(&body, e);
    text_addf(&answer,
              "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n"
              "X-Request-Id: %s\r\nConnection: close\r\n\r\n",
              x->status, MHD_get_reason_phrase_for((unsigned)x->status), body.n, x->request_id);
    text_add(&answer, body.data ? body.data : "", body.n);
    if (!body.failed && !answer.failed) http_wire_send(w, answer.data, answer.n);
    text_deinit(&body);
    text_deinit(&answer);
}

static void on_refused(struct http_wire *w, enum api_error_kind kind, const char *text) {
    struct http_socket *socket = (struct http_socket *)(void *)w; /* its first member */
    struct http *h = socket->http;
    struct http_exchange *x = socket->exchange, unread = {0};
    struct api_error e;
    if (x && x->status && !x->response) return; /* an answer is being written */
    api_error_set(&e, kind, NULL, "%s", text);
    if (!x) {
        x = &unread;
        x->http = h;
        x->socket = socket;
        x->connection = socket->connection;
        x->route = -1;
        x->queue_ns = x->first_ns = -1;
        x->start_ns = w->since_ns;
        snprintf(x->method, sizeof x->method, "-");
        snprintf(x->path, sizeof x->path, "-");
        http_set_id(h, x, NULL);
    }
    x->status = api_error_status(kind);
    x->ended = true; /* nobody left: it is we who end it */
    write_refusal(w, x, &e);
    if (x == &unread) h->hooks.done(h->hooks.arg, x);
}

static void *session_of(struct MHD_Connection *connection) {
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_GNUTLS_SESSION);
    return info ? info->tls_session : NULL;
}

static void open_socket(struct http *h, struct MHD_Connection *connection, void **ctx) {
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    struct http_socket *socket = info ? calloc(1, sizeof *socket) : NULL;
    if (!socket) return;
    int fd = info->connect_fd;
    socket->http = h;
    socket->connection = connection;
    if (http_wire_open(&socket->wire, &h->wires, fd, session_of(connection)) < 0) {
        free(socket);
        return;
    }
    *ctx = socket;
    http_socket_tune(fd);
    if (loop_watch_new(&socket->watch, h->loop, fd, on_left, socket) < 0) socket->watch = NULL;
}

static void on_connection(void *arg, struct MHD_Connection *connection, void **ctx,
                          enum MHD_ConnectionNotificationCode what) {
    struct http *h = arg;
    if (what == MHD_CONNECTION_NOTIFY_STARTED) {
        h->n_connections++;
        open_socket(h, connection, ctx);
        return;
    }
    h->n_connections--;
    struct http_socket *socket = *ctx;
    if (!socket) return;
    loop_watch_free(socket->watch);
    http_wire_close(&socket->wire);
    free(socket);
    *ctx = NULL;
}

/* Paths stay as they were sent, as the router must tell an escaped slash from a real one. */
static size_t keep_escapes(void *arg, struct MHD_Connection *connection, char *text) {
    (void)arg;
    (void)connection;
    return strlen(text);
}

static void on_log(void *arg, const char *format, va_list args)
    __attribute__((format(printf, 2, 0)));

static void on_log(void *arg, const char *format, va_list args) {
    (void)arg;
    char line[512];
    vsnprintf(line, sizeof line, format, args);
    size_t n = strlen(line);
    if (n && line[n - 1] == '\n') line[n - 1] = 0;
    log_line(LOG_DEBUG, "http: %s", line);
}

/* -- Opening ------------------------------------------------------------------------------- */

static int start(struct http *h, int fd, const struct http_options *options, struct error *err) {
    unsigned flags = MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG;
    const struct MHD_OptionItem tls[] = {
        {MHD_OPTION_HTTPS_MEM_CERT, 0, h->tls.certificate},
        {MHD_OPTION_HTTPS_MEM_KEY, 0, h->tls.key},
        {MHD_OPTION_HTTPS_PRIORITIES, 0, (void *)HTTP_TLS_PRIORITIES},
        {MHD_OPTION_END, 0, NULL},
    };
    if (h->tls.certificate) flags |= MHD_USE_TLS;
    h->daemon = MHD_start_daemon(
        flags, 0, NULL, NULL, http_request, h, MHD_OPTION_EXTERNAL_LOGGER, on_log, h,
        MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_UNESCAPE_CALLBACK, keep_escapes, NULL,
        MHD_OPTION_CONNECTION_LIMIT, options->max_connections + RESERVE,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)HTTP_CONNECTION_MEMORY,
        MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)IDLE_SECONDS, MHD_OPTION_NOTIFY_COMPLETED,
        http_completed, h, MHD_OPTION_NOTIFY_CONNECTION, on_connection, h,
        MHD_OPTION_SIGPIPE_HANDLED_BY_APP, 1, MHD_OPTION_ARRAY,
        h->tls.certificate ? tls : &tls[sizeof tls / sizeof *tls - 1], MHD_OPTION_END);
    if (!h->daemon) return error_set(err, -EIO, "libmicrohttpd does not start");
    return 0;
}

static int listen_on(struct http *h, int *fd, const struct http_options *o, struct error *err) {
    if (!o->unix_socket) return http_socket_listen(fd, &h->port, o->host, o->port, err);
    return http_socket_listen_unix(fd, &h->unix_socket, o->unix_socket, o->unix_mode, err);
}

int http_open(struct http **ret, struct loop *loop, const struct http_options *options,
              const struct http_hooks *hooks, struct error *err) {
    int fd = -1, r = 0;
    struct http *h = calloc(1, sizeof *h);
    if (!h) return error_set(err, -ENOMEM, "http: out of memory");
    h->loop = loop;
    h->hooks = *hooks;
    h->max_body = options->max_body;
    h->max_uploads = options->max_uploads;
    h->max_streams = options->max_streams;
    h->cors = options->cors;
    h->wires = (struct http_wires){
        .head_ns = options->head_ns, .body_ns = options->body_ns, .refuse = on_refused};
    r = http_tls_open(&h->tls, options->tls_certificate, options->tls_key, err);
    if (r < 0) goto fail;
    r = listen_on(h, &fd, options, err);
    if (r < 0) goto fail;
    r = start(h, fd, options, err);
    if (r < 0) {
        http_socket_close(fd);
        goto fail;
    }
    r = loop_attach(loop, h->daemon, err);
    if (r < 0) goto fail;
    *ret = h;
    return 0;
fail:
    http_close(h);
    return r;
}

void http_close(struct http *h) {
    if (!h) return;
    if (h->daemon) {
        /* Stopping with a suspended connection is an error of use. */
        for (struct http_exchange *x = h->first; x; x = x->next) http_abort(x);
        MHD_run(h->daemon);
        MHD_stop_daemon(h->daemon);
    }
    http_socket_remove_unix(&h->unix_socket);
    http_tls_close(&h->tls);
    free(h);
}

int http_port(const struct http *h) { return h->port; }

int http_connections(const struct http *h) { return h->n_connections; }

size_t http_queued(const struct http *h) { return h->n_queued; }

size_t http_uploads(const struct http *h) { return h->n_uploads; }

int http_active(const struct http *h) { return h->n_active; }
