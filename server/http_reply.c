#include "server/http.h"

#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "server/api/api_error.h"
#include "server/http_parts.h"
#include "server/log.h"
#include "server/loop.h"

static const int64_t STALL_NS = 30 * INT64_C(1000000000); /* a reader that takes nothing */
static const int64_t PING_NS = 15 * INT64_C(1000000000);  /* proxies cut silence after 50 s */

/* Of clients without chunks; with them it is the connection's own memory that is filled. */
enum { STREAM_BLOCK = 4 << 10 };

void http_tell_left(struct http_exchange *x) {
    void (*left)(void *keeper) = x->left;
    x->left = NULL;
    x->pressure = NULL;
    if (left) left(x->keeper);
}

void http_resume(struct http_exchange *x) {
    if (!x->suspended) return;
    x->suspended = false;
    MHD_resume_connection(x->connection);
}

void http_suspend(struct http_exchange *x) {
    x->suspended = true;
    MHD_suspend_connection(x->connection);
    loop_watch_start(x->socket->watch);
}

void http_abort(struct http_exchange *x) {
    x->gone = true;
    /* The library closes a connection only of its own accord; this makes its socket fail. */
    shutdown(x->socket->wire.fd, SHUT_RDWR);
    http_resume(x);
}

const char *http_get(const struct http_exchange *x, const char *name) {
    return MHD_lookup_connection_value(x->connection, MHD_HEADER_KIND, name);
}

void http_client(const struct http_exchange *x, char *ret, size_t size) {
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(x->connection, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
    const struct sockaddr *address = info ? info->client_addr : NULL;
    snprintf(ret, size, "%s", x->http->unix_socket.inode ? "unix" : "");
    if (!address || (address->sa_family != AF_INET && address->sa_family != AF_INET6)) return;
    socklen_t n =
        address->sa_family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
    if (getnameinfo(address, n, ret, (socklen_t)size, NULL, 0, NI_NUMERICHOST)) ret[0] = 0;
}

/* -- Answers ------------------------------------------------------------------------------- */

void http_free_headers(struct http_exchange *x) {
    while (x->n_headers > 0) free(x->headers[--x->n_headers].value);
}

void http_header(struct http_exchange *x, const char *name, const char *value) {
    char *copy = x->n_headers < HTTP_MAX_HEADERS ? strdup(value) : NULL;
    if (!copy) return; /* an answer without it is better than none */
    x->headers[x->n_headers++] = (struct http_header){name, copy};
}

/* The star is for browsers that know it, and means nothing where cookies go along. */
static const char exposed[] =
    "*, Allow, Retry-After, Server-Timing, WWW-Authenticate, X-Ignored-Params, X-Request-Id, "
    "openai-processing-ms, retry-after-ms, x-should-retry, x-ratelimit-limit-requests, "
    "x-ratelimit-limit-tokens, x-ratelimit-remaining-requests, x-ratelimit-remaining-tokens, "
    "x-ratelimit-reset-requests, x-ratelimit-reset-tokens";

static void add_headers(struct http_exchange *x, struct MHD_Response *response, const char *type) {
    if (type) MHD_add_response_header(response, "Content-Type", type);
    MHD_add_response_header(response, "X-Request-Id", x->request_id);
    MHD_add_response_header(response, "X-Content-Type-Options", "nosniff");
    for (int i = 0; i < x->n_headers; i++)
        MHD_add_response_header(response, x->headers[i].name, x->headers[i].value);
    http_free_headers(x);
    if (x->http->cors) {
        MHD_add_response_header(response, "Access-Control-Allow-Origin", x->http->cors);
        MHD_add_response_header(response, "Access-Control-Expose-Headers", exposed);
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
    http_release_body(x);
    http_resume(x);
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

/* The first is HTTP's and has seconds, the others are those of OpenAI's clients. */
static void add_retry(struct http_exchange *x, const struct api_error *e) {
    char value[24];
    int64_t ms =
        e->retry_ns ? (e->retry_ns + 999999) / 1000000 : (int64_t)api_error_retry(e->kind) * 1000;
    if (e->retry == API_RETRY_NEVER) {
        http_header(x, "x-should-retry", "false");
    } else if (ms) {
        snprintf(value, sizeof value, "%lld", (long long)(ms + 999) / 1000);
        http_header(x, "Retry-After", value);
        snprintf(value, sizeof value, "%lld", (long long)ms);
        http_header(x, "retry-after-ms", value);
        http_header(x, "x-should-retry", "true");
    }
}

void http_reply_error(struct http_exchange *x, const struct api_error *e) {
    struct text body = {0};
    if (x->status || x->gone) return;
    add_retry(x, e);
    api_error_render(&body, e);
    http_reply(x, api_error_status(e->kind), "application/json", &body);
}

static void press(struct http_exchange *x, bool high) {
    x->pressed = high;
    if (x->pressure) x->pressure(x->keeper, high);
}

static void count_queue(struct http_exchange *x) {
    struct http *h = x->http;
    size_t n = x->out.n - x->out_at;
    h->n_queued += n - x->n_queued; /* modulo the size of size_t, both ways */
    x->n_queued = n;
}

void http_release_queue(struct http_exchange *x) {
    x->http->n_queued -= x->n_queued;
    x->n_queued = 0;
}

/* After an error from here libmicrohttpd forgets the connection until those before it have timed
 * out, and it counts among the open ones. When the end of the stream cannot be sent, it goes. */
static ssize_t end_of_gone(const struct http_exchange *x) {
    shutdown(x->socket->wire.fd, SHUT_RDWR);
    return MHD_CONTENT_READER_END_OF_STREAM;
}

/* Copies all that is queued, as each call becomes one chunk and one send. */
static ssize_t read_stream(void *arg, uint64_t position, char *dst, size_t size) {
    (void)position;
    struct http_exchange *x = arg;
    if (x->gone) return end_of_gone(x);
    size_t n = x->out.n - x->out_at;
    if (n > size) n = size;
    if (n) {
        memcpy(dst, x->out.data + x->out_at, n);
        x->out_at += n;
        x->progress_ns = loop_now_ns();
        if (x->pressed && x->out.n - x->out_at < HTTP_QUEUE_HIGH / 4) press(x, false);
        if (x->out_at == x->out.n) {
            x->out_at = 0;
            text_clear(&x->out);
        }
        count_queue(x);
        return (ssize_t)n;
    }
    if (x->ended) return MHD_CONTENT_READER_END_OF_STREAM;
    http_suspend(x);
    return 0;
}

void http_stream_open(struct http_exchange *x) {
    if (x->status || x->gone) return;
    x->streaming = true;
    x->progress_ns = loop_now_ns();
    http_header(x, "Cache-Control", "no-cache");
    http_header(x, "X-Accel-Buffering", "no");
    answer(x, 200, "text/event-stream",
           MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, STREAM_BLOCK, read_stream, x, NULL));
}

static void cut_off(struct http_exchange *x, const char *why) {
    log_line(LOG_WARN, "id=%s %s: connection closed", x->request_id, why);
    http_abort(x);
    http_tell_left(x);
}

/* All streams share a budget: over it the one that holds most goes. */
static void relieve(struct http *h) {
    struct http_exchange *most = NULL;
    if (!h->max_streams || h->n_queued <= h->max_streams) return;
    for (struct http_exchange *x = h->first; x; x = x->next)
        if (!x->gone && (!most || x->n_queued > most->n_queued)) most = x;
    if (!most) return;
    http_release_queue(most);
    text_deinit(&most->out);
    most->out_at = 0;
    cut_off(most, "it holds most of what all slow readers may");
}

/* From where on a stream's choices rest. */
static size_t high_mark(const struct http *h) {
    bool scarce = h->max_streams && h->n_queued > h->max_streams / 2;
    return scarce ? HTTP_QUEUE_HIGH / 16 : HTTP_QUEUE_HIGH;
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
    count_queue(x);
    relieve(x->http);
    if (x->gone) return;
    if (!x->pressed && x->n_queued > high_mark(x->http)) press(x, true);
    /* Drop what was read, so that the queue's memory is bounded by what was not. */
    if (x->out_at > HTTP_QUEUE_LIMIT / 4) {
        memmove(x->out.data, x->out.data + x->out_at, x->out.n - x->out_at);
        x->out.n -= x->out_at;
        x->out_at = 0;
    }
    http_resume(x);
}

void http_stream_end(struct http_exchange *x) {
    x->ended = true;
    http_stream_flush(x);
}

void http_tick(struct http *h, int64_t now_ns) {
    struct http_exchange *next;
    http_wire_tick(&h->wires, now_ns);
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
