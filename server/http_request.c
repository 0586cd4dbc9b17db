#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "server/api/api_error.h"
#include "server/http_parts.h"
#include "server/loop.h"

enum { SHORT_BODY = 64 << 10 };

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

static void free_exchange(struct http_exchange *x) {
    if (x->response) MHD_destroy_response(x->response);
    http_free_headers(x);
    text_deinit(&x->body);
    text_deinit(&x->out);
    free(x);
}

void http_set_id(struct http *h, struct http_exchange *x, const char *given) {
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

static void check_headers(struct http_exchange *x) {
    struct http *h = x->http;
    const char *length = http_get(x, MHD_HTTP_HEADER_CONTENT_LENGTH);
    http_set_id(h, x, http_get(x, "X-Request-Id"));
    if (length && strtoull(length, NULL, 10) > h->max_body)
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

/* A short body that is on its way is read before it is refused, so that the connection goes on and
 * the answer is not lost in a reset. */
static bool is_short(const struct http_exchange *x) {
    const char *length = http_get(x, MHD_HTTP_HEADER_CONTENT_LENGTH);
    if (!length || http_get(x, MHD_HTTP_HEADER_EXPECT)) return false;
    return !x->close && strtoull(length, NULL, 10) <= SHORT_BODY;
}

/* Proxies may be asked with a whole URL, and RFC 9112 has every server take one. */
static const char *path_of(const char *url) {
    size_t scheme = !strncasecmp(url, "http://", 7) ? 7 : !strncasecmp(url, "https://", 8) ? 8 : 0;
    if (!scheme) return url;
    const char *path = strchr(url + scheme, '/');
    return path ? path : "/";
}

static enum MHD_Result begin(struct http *h, struct MHD_Connection *connection, const char *url,
                             const char *method, void **ctx) {
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
    snprintf(x->path, sizeof x->path, "%s", path_of(url));
    link_exchange(h, x);
    *ctx = x;
    check_headers(x);
    if (x->gone) return MHD_NO;
    return x->response && may_skip_body(x) && !is_short(x) ? queue_answer(x) : MHD_YES;
}

void http_release_body(struct http_exchange *x) {
    x->http->n_uploads -= x->n_held;
    x->n_held = 0;
}

/* All bodies share a budget, however many clients there are. */
static bool hold(struct http_exchange *x, size_t n) {
    struct http *h = x->http;
    if (n > h->max_uploads - h->n_uploads) {
        refuse(x, API_ERROR_MEMORY, "the bodies of all requests take too much memory");
        text_deinit(&x->body);
        return false;
    }
    h->n_uploads += n;
    x->n_held += n;
    return true;
}

static enum MHD_Result collect(struct http_exchange *x, const char *bytes, size_t *n) {
    x->n_received += *n;
    if (x->n_received <= x->http->max_body) {
        if (!x->status && hold(x, *n)) text_add(&x->body, bytes, *n);
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
    http_suspend(x);
    return MHD_YES;
}

enum MHD_Result http_request(void *arg, struct MHD_Connection *connection, const char *url,
                             const char *method, const char *version, const char *bytes, size_t *n,
                             void **ctx) {
    (void)version;
    if (!*ctx) return begin(arg, connection, url, method, ctx);
    return *n ? collect(*ctx, bytes, n) : finish(*ctx);
}

void http_completed(void *arg, struct MHD_Connection *connection, void **ctx,
                    enum MHD_RequestTerminationCode why) {
    struct http *h = arg;
    struct http_exchange *x = *ctx;
    (void)connection;
    if (!x) return;
    *ctx = NULL;
    if (why != MHD_REQUEST_TERMINATED_COMPLETED_OK) x->gone = true;
    http_tell_left(x);
    loop_watch_stop(x->socket->watch);
    x->socket->exchange = NULL;
    if (x->dispatched) h->n_active--;
    http_release_body(x);
    http_release_queue(x);
    h->hooks.done(h->hooks.arg, x);
    unlink_exchange(h, x);
    free_exchange(x);
}
