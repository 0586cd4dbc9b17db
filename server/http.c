#include "server/http.h"

#include <errno.h>
#include <microhttpd.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

#include "kernels/error.h"
#include "server/api/api_error.h"
#include "server/http_socket.h"
#include "server/log.h"
#include "server/loop.h"

/* DESIGN. libmicrohttpd calls on_request() for the headers, for each piece of body, and once
 * more at the body's end; it calls on_request() again whenever a connection resumes without an
 * answer. A connection is suspended in two places only, at the end of on_request() and of
 * read_stream(), and both run only after an earlier resume has been taken up; so a suspension
 * never cancels a resume, and a queue cannot fill between the look at it and the suspension,
 * because everything here is one thread. */

enum {
    CONNECTION_MEMORY = 32 << 10, /* of headers, and the largest chunk of a stream */
    IDLE_SECONDS = 120,           /* above proxies' usual 60, so they close first */
    RESERVE = 16                  /* connections past the limit that still get an answer */
};

static const int64_t STALL_NS = 30 * INT64_C(1000000000); /* a reader that takes nothing */
static const int64_t PING_NS = 15 * INT64_C(1000000000);  /* proxies cut silence after 50 s */

struct http {
    struct MHD_Daemon *daemon;
    struct loop *loop;
    struct http_hooks hooks;
    size_t max_body;
    const char *cors;
    int port, n_connections, n_active;
    uint64_t serial; /* of request ids */
    struct http_exchange *first;
};

struct http_socket { /* a connection */
    int fd;
    struct loop_watch *watch; /* NULL when there was no memory */
    struct http_exchange *exchange;
};

/* -- Exchanges ----------------------------------------------------------------------------- */

static void link_exchange(struct http *h, struct http_exchange *x) {
    x->next = h->first;
    if (h->first) h->first->prev = x;
    h->first = x;
}

static void unlink_exchange(struct http *h, struct http_exchange *x) {
    if (x->prev)
        x->prev->next = x->next;
    else
        h->first = x->next;
    if (x->next) x->next->prev = x->prev;
}

static void tell_left(struct http_exchange *x) {
    void (*left)(void *keeper) = x->left;
    x->left = NULL;
    if (left) left(x->keeper);
}

static void resume(struct http_exchange *x) {
    if (!x->suspended) return;
    x->suspended = false;
    MHD_resume_connection(x->connection);
}

static void suspend(struct http_exchange *x) {
    x->suspended = true;
    MHD_suspend_connection(x->connection);
    loop_watch_start(x->socket->watch);
}

static void on_left(void *arg) {
    struct http_socket *socket = arg;
    struct http_exchange *x = socket->exchange;
    if (!x) return;
    x->gone = true;
    tell_left(x);
    resume(x);
}

void http_abort(struct http_exchange *x) {
    x->gone = true;
    /* The library closes a connection only of its own accord; this makes its socket fail. */
    shutdown(x->socket->fd, SHUT_RDWR);
    resume(x);
}

static void free_exchange(struct http_exchange *x) {
    if (x->response) MHD_destroy_response(x->response);
    text_deinit(&x->body);
    text_deinit(&x->out);
    free(x);
}

const char *http_get(const struct http_exchange *x, const char *name) {
    return MHD_lookup_connection_value(x->connection, MHD_HEADER_KIND, name);
}

void http_client(const struct http_exchange *x, char *ret, size_t size) {
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(x->connection, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
    const struct sockaddr *address = info ? info->client_addr : NULL;
    ret[0] = 0;
    if (!address || (address->sa_family != AF_INET && address->sa_family != AF_INET6)) return;
    socklen_t n =
        address->sa_family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
    if (getnameinfo(address, n, ret, (socklen_t)size, NULL, 0, NI_NUMERICHOST)) ret[0] = 0;
}

/* -- Answers ------------------------------------------------------------------------------- */

void http_header(struct http_exchange *x, const char *name, const char *value) {
    if (x->n_headers == HTTP_MAX_HEADERS) return;
    struct http_header *header = &x->headers[x->n_headers++];
    header->name = name;
    snprintf(header->value, sizeof header->value, "%s", value);
}

static void add_headers(struct http_exchange *x, struct MHD_Response *response, const char *type) {
    if (type) MHD_add_response_header(response, "Content-Type", type);
    MHD_add_response_header(response, "X-Request-Id", x->request_id);
    MHD_add_response_header(response, "X-Content-Type-Options", "nosniff");
    for (int i = 0; i < x->n_headers; i++)
        MHD_add_response_header(response, x->headers[i].name, x->headers[i].value);
    if (x->http->cors) {
        MHD_add_response_header(response, "Access-Control-Allow-Origin", x->http->cors);
        MHD_add_response_header(response, "Access-Control-Expose-Headers", "X-Request-Id");
        MHD_add_response_header(response, "Vary", "Origin");
    }
    if (x->close) MHD_add_response_header(response, "Connection", "close");
}

static void answer(struct http_exchange *x, int status, const char *type,
                   struct MHD_Response *response) {
    if (!response) {
        http_abort(x);
        return;
    }
    add_headers(x, response, type);
    x->status = status;
    x->response = response;
    resume(x);
}

void http_reply(struct http_exchange *x, int status, const char *type, struct text *body) {
    size_t n = 0;
    if (x->status || x->gone) {
        text_deinit(body);
        return;
    }
    char *bytes = text_take(body, &n);
    struct MHD_Response *response =
        bytes ? MHD_create_response_from_buffer(n, bytes, MHD_RESPMEM_MUST_FREE) : NULL;
    if (!response) free(bytes);
    answer(x, status, type, response);
}

void http_reply_static(struct http_exchange *x, int status, const char *type, const void *bytes,
                       size_t n) {
    if (x->status || x->gone) return;
    answer(x, status, type,
           MHD_create_response_from_buffer(n, (void *)bytes, MHD_RESPMEM_PERSISTENT));
}

void http_reply_error(struct http_exchange *x, const struct api_error *e) {
    struct text body = {0};
    int retry = api_error_retry(e->kind);
    if (x->status || x->gone) return;
    if (retry) {
        char seconds[16];
        snprintf(seconds, sizeof seconds, "%d", retry);
        http_header(x, "Retry-After", seconds);
    }
    api_error_render(&body, e);
    http_reply(x, api_error_status(e->kind), "application/json", &body);
}

/* Copies all that is queued, as each call becomes one chunk and one send. */
static ssize_t read_stream(void *arg, uint64_t position, char *dst, size_t size) {
    (void)position;
    struct http_exchange *x = arg;
    if (x->gone) return MHD_CONTENT_READER_END_WITH_ERROR;
    size_t n = x->out.n - x->out_at;
    if (n > size) n = size;
    if (n) {
        memcpy(dst, x->out.data + x->out_at, n);
        x->out_at += n;
        x->progress_ns = loop_now_ns();
        if (x->out_at == x->out.n) {
            x->out_at = 0;
            text_clear(&x->out);
        }
        return (ssize_t)n;
    }
    if (x->ended) return MHD_CONTENT_READER_END_OF_STREAM;
    suspend(x);
    return 0;
}

void http_stream_open(struct http_exchange *x) {
    if (x->status || x->gone) return;
    x->streaming = true;
    x->progress_ns = loop_now_ns();
    http_header(x, "Cache-Control", "no-cache");
    http_header(x, "X-Accel-Buffering", "no");
    answer(x, 200, "text/event-stream",
           MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, CONNECTION_MEMORY / 2, read_stream,
                                             x, NULL));
}

static void cut_off(struct http_exchange *x, const char *why) {
    log_line(LOG_WARN, "id=%s %s: connection closed", x->request_id, why);
    http_abort(x);
    tell_left(x);
}

void http_stream_flush(struct http_exchange *x) {
    if (x->gone) return;
    if (x->out.failed) {
        cut_off(x, "out of memory for the stream");
        return;
    }
    if (x->out.n - x->out_at > HTTP_QUEUE_LIMIT) {
        cut_off(x, "the client reads too slowly");
        return;
    }
    /* Drop what was read, so that the queue's memory is bounded by what was not. */
    if (x->out_at > HTTP_QUEUE_LIMIT / 4) {
        memmove(x->out.data, x->out.data + x->out_at, x->out.n - x->out_at);
        x->out.n -= x->out_at;
        x->out_at = 0;
    }
    resume(x);
}

void http_stream_end(struct http_exchange *x) {
    x->ended = true;
    http_stream_flush(x);
}

void http_tick(struct http *h, int64_t now_ns) {
    struct http_exchange *next;
    for (struct http_exchange *x = h->first; x; x = next) {
        next = x->next;
        if (!x->streaming || x->gone) continue;
        bool unread = x->out_at < x->out.n;
        int64_t silence = now_ns - x->progress_ns;
        if (unread && silence > STALL_NS) {
            cut_off(x, "the client has stopped reading");
        } else if (!unread && !x->ended && silence > PING_NS) {
            text_adds(&x->out, ": still working\n\n");
            http_stream_flush(x);
        }
    }
}

/* -- Requests ------------------------------------------------------------------------------ */

struct header_scan {
    int n_length, n_coding, n_host;
    const char *coding, *length, *id;
};

static enum MHD_Result scan_header(void *arg, enum MHD_ValueKind kind, const char *key,
                                   const char *value) {
    (void)kind;
    struct header_scan *scan = arg;
    if (!strcasecmp(key, "Content-Length")) {
        scan->n_length++;
        scan->length = value;
    } else if (!strcasecmp(key, "Transfer-Encoding")) {
        scan->n_coding++;
        scan->coding = value;
    } else if (!strcasecmp(key, "Host")) {
        scan->n_host++;
    } else if (!strcasecmp(key, "X-Request-Id")) {
        scan->id = value;
    }
    return MHD_YES;
}

/* NULL, or what makes the message readable in two ways. */
static const char *find_trap(const struct header_scan *scan, const char *version) {
    if (scan->n_length && scan->n_coding)
        return "Content-Length and Transfer-Encoding in one request";
    if (scan->n_length > 1) return "more than one Content-Length";
    if (scan->n_coding > 1) return "more than one Transfer-Encoding";
    if (scan->n_coding && (!scan->coding || strcasecmp(scan->coding, "chunked") != 0))
        return "the only Transfer-Encoding is 'chunked'";
    if (scan->length && !scan->length[strspn(scan->length, "0123456789")]) {
        if (!*scan->length) return "empty Content-Length";
    } else if (scan->n_length) {
        return "Content-Length is not a number";
    }
    if (scan->n_host > 1) return "more than one Host";
    if (!scan->n_host && !strcmp(version, "HTTP/1.1")) return "no Host";
    return NULL;
}

static void set_request_id(struct http *h, struct http_exchange *x, const char *given) {
    static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                  "0123456789-_.:";
    size_t n = given ? strspn(given, allowed) : 0;
    if (n > 0 && n <= HTTP_MAX_ID && !given[n])
        memcpy(x->request_id, given, n + 1);
    else
        snprintf(x->request_id, sizeof x->request_id, "req-%llx-%llx",
                 (unsigned long long)x->start_ns, (unsigned long long)++h->serial);
}

static void refuse(struct http_exchange *x, enum api_error_kind kind, const char *text) {
    struct api_error e;
    api_error_set(&e, kind, NULL, "%s", text);
    x->close = true;
    http_reply_error(x, &e);
}

static void refuse_size(struct http_exchange *x) {
    char line[96];
    snprintf(line, sizeof line, "the body is larger than %zu bytes", x->http->max_body);
    refuse(x, API_ERROR_TOO_LARGE, line);
}

static void check_headers(struct http_exchange *x, const char *version) {
    struct http *h = x->http;
    struct header_scan scan = {0};
    MHD_get_connection_values(x->connection, MHD_HEADER_KIND, scan_header, &scan);
    set_request_id(h, x, scan.id);
    const char *trap = find_trap(&scan, version);
    if (trap)
        refuse(x, API_ERROR_PROTOCOL, trap);
    else if (scan.length && strtoull(scan.length, NULL, 10) > h->max_body)
        refuse_size(x);
    else
        h->hooks.admit(h->hooks.arg, x);
}

static enum MHD_Result queue_answer(struct http_exchange *x) {
    struct MHD_Response *response = x->response;
    x->response = NULL;
    enum MHD_Result r = MHD_queue_response(x->connection, (unsigned)x->status, response);
    MHD_destroy_response(response);
    return r;
}

/* An answer that is ready before the body makes libmicrohttpd ignore the body and close, but
 * for these methods only; with others it would take the body for the next request. */
static bool may_skip_body(const struct http_exchange *x) {
    return !strcmp(x->method, "POST") || !strcmp(x->method, "PUT");
}

static enum MHD_Result begin(struct http *h, struct MHD_Connection *connection, const char *url,
                             const char *method, const char *version, void **ctx) {
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    if (!info || !info->socket_context) return MHD_NO;
    struct http_exchange *x = calloc(1, sizeof *x);
    if (!x) return MHD_NO;
    x->http = h;
    x->connection = connection;
    x->socket = info->socket_context;
    x->socket->exchange = x;
    x->route = -1;
    x->queue_ns = x->first_ns = -1;
    x->start_ns = loop_now_ns();
    snprintf(x->method, sizeof x->method, "%s", method);
    snprintf(x->path, sizeof x->path, "%s", url);
    link_exchange(h, x);
    *ctx = x;
    check_headers(x, version);
    if (x->gone) return MHD_NO;
    return x->response && may_skip_body(x) ? queue_answer(x) : MHD_YES;
}

static enum MHD_Result collect(struct http_exchange *x, const char *bytes, size_t *n) {
    x->n_received += *n;
    if (x->n_received <= x->http->max_body) {
        if (!x->status) text_add(&x->body, bytes, *n);
    } else {
        if (!x->status) refuse_size(x);
        text_deinit(&x->body);
        /* Read on a little, so that a client which writes first still sees the answer. */
        if (x->n_received / 4 > x->http->max_body) return MHD_NO;
    }
    *n = 0;
    return MHD_YES;
}

static enum MHD_Result finish(struct http_exchange *x) {
    if (x->gone) return MHD_NO;
    if (x->response) return queue_answer(x);
    if (x->status) return MHD_YES;
    if (!x->dispatched) {
        x->dispatched = true;
        x->http->n_active++;
        if (x->body.failed)
            refuse(x, API_ERROR_MEMORY, "out of memory");
        else
            x->http->hooks.handle(x->http->hooks.arg, x);
        if (x->gone) return MHD_NO;
        if (x->response) return queue_answer(x);
    }
    suspend(x);
    return MHD_YES;
}

static enum MHD_Result on_request(void *arg, struct MHD_Connection *connection, const char *url,
                                  const char *method, const char *version, const char *bytes,
                                  size_t *n, void **ctx) {
    if (!*ctx) return begin(arg, connection, url, method, version, ctx);
    return *n ? collect(*ctx, bytes, n) : finish(*ctx);
}

static void on_completed(void *arg, struct MHD_Connection *connection, void **ctx,
                         enum MHD_RequestTerminationCode why) {
    struct http *h = arg;
    struct http_exchange *x = *ctx;
    (void)connection;
    if (!x) return;
    *ctx = NULL;
    if (why != MHD_REQUEST_TERMINATED_COMPLETED_OK) x->gone = true;
    tell_left(x);
    loop_watch_stop(x->socket->watch);
    x->socket->exchange = NULL;
    if (x->dispatched) h->n_active--;
    h->hooks.done(h->hooks.arg, x);
    unlink_exchange(h, x);
    free_exchange(x);
}

static void open_socket(struct http *h, struct MHD_Connection *connection, void **ctx) {
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    struct http_socket *socket = info ? calloc(1, sizeof *socket) : NULL;
    if (!socket) return;
    *ctx = socket;
    socket->fd = info->connect_fd;
    http_socket_tune(socket->fd);
    if (loop_watch_new(&socket->watch, h->loop, socket->fd, on_left, socket) < 0)
        socket->watch = NULL;
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
    h->daemon = MHD_start_daemon(
        MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG, 0, NULL, NULL, on_request, h,
        MHD_OPTION_EXTERNAL_LOGGER, on_log, h, MHD_OPTION_LISTEN_SOCKET, fd,
        MHD_OPTION_UNESCAPE_CALLBACK, keep_escapes, NULL, MHD_OPTION_CONNECTION_LIMIT,
        options->max_connections + RESERVE, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
        (size_t)CONNECTION_MEMORY, MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)IDLE_SECONDS,
        MHD_OPTION_NOTIFY_COMPLETED, on_completed, h, MHD_OPTION_NOTIFY_CONNECTION, on_connection,
        h, MHD_OPTION_SIGPIPE_HANDLED_BY_APP, 1, MHD_OPTION_END);
    if (!h->daemon) return error_set(err, -EIO, "libmicrohttpd does not start");
    return 0;
}

int http_open(struct http **ret, struct loop *loop, const struct http_options *options,
              const struct http_hooks *hooks, struct error *err) {
    int fd = -1, r = 0;
    struct http *h = calloc(1, sizeof *h);
    if (!h) return error_set(err, -ENOMEM, "http: out of memory");
    h->loop = loop;
    h->hooks = *hooks;
    h->max_body = options->max_body;
    h->cors = options->cors;
    r = http_socket_listen(&fd, &h->port, options->host, options->port, err);
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
    free(h);
}

int http_port(const struct http *h) { return h->port; }

int http_connections(const struct http *h) { return h->n_connections; }

int http_active(const struct http *h) { return h->n_active; }
