/* http.h - carries requests to handlers and answers to sockets.
 *
 * Owns      the daemon, its connections, and every exchange until its done hook has returned.
 * Borrows   the loop and the hooks' argument until http_close().
 * Thread    the loop's.
 * Fails     opening with a negative errno. An answer that cannot be built closes its connection.
 * Cost      O(bytes); a stream costs one resume for all text added in a turn.
 *
 * One exchange is one request with its answer. A handler answers at once, or keeps the exchange
 * and answers later; meanwhile the connection is suspended and its peer watched. The left hook
 * tells the keeper that the exchange is about to go: it is called at most once, and the
 * exchange must not be touched after it. What two readers could understand differently,
 * and what takes too long to come, is refused before a handler sees it, see http_wire.h. */
#ifndef SERVER_HTTP_H
#define SERVER_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "server/text.h"

struct MHD_Connection;
struct MHD_Daemon;
struct MHD_Response;
struct api_error;
struct error;
struct http;
struct loop;

enum {
    HTTP_MAX_HEADERS = 20,
    HTTP_MAX_ID = 64,
    HTTP_QUEUE_HIGH = 256 << 10, /* unread bytes of a stream: its keeper is told, */
    HTTP_QUEUE_LIMIT = 1 << 20   /* or the client is too slow */
};

struct http_header {
    const char *name; /* static */
    char *value;      /* the exchange's */
};

struct http_exchange {
    /* For handlers. */
    char method[16], path[256]; /* cut when longer */
    char request_id[HTTP_MAX_ID + 1];
    int route; /* the hooks'; -1 at first */
    struct text body;
    int64_t start_ns;
    int status;                          /* 0 until answered */
    int n_prompt, n_cached, n_generated; /* for the log, as the next four: */
    int64_t queue_ns, first_ns;          /* since start_ns, until the first step and text; -1 */
    const char *finish;                  /* static */
    char key[64];                        /* name of the API key; "" = none */
    int tenant;                          /* see tenants.h */
    bool close;                          /* the connection ends with this answer */
    void (*left)(void *keeper);
    /* The reader is slow: true; it has caught up: false. NULL: the keeper does not care. */
    void (*pressure)(void *keeper, bool high);
    void *keeper;

    /* http.c's own. */
    struct http *http;
    struct http_socket *socket;
    struct MHD_Connection *connection;
    struct MHD_Response *response; /* to be queued */
    struct http_header headers[HTTP_MAX_HEADERS];
    int n_headers;
    struct text out;                   /* of a stream */
    size_t out_at, n_received, n_held; /* held: of the budget for bodies, */
    size_t n_queued;                   /* and of that for streams */
    int64_t progress_ns;               /* when the stream moved last */
    bool dispatched, suspended, streaming, ended, gone, pressed;
    struct http_exchange *prev, *next;
};

struct http_hooks {
    /* Headers are in: find the route, or answer with an error. */
    void (*admit)(void *arg, struct http_exchange *x);
    /* The body is in: answer, or keep the exchange. */
    void (*handle)(void *arg, struct http_exchange *x);
    /* The exchange ends: log, count. */
    void (*done)(void *arg, const struct http_exchange *x);
    void *arg;
};

struct http_options {
    const char *host;
    int port;
    const char *unix_socket;               /* a path, in place of host and port; NULL */
    int unix_mode;                         /* permissions of that */
    const char *tls_certificate, *tls_key; /* files, or both NULL */
    unsigned max_connections;
    size_t max_body;
    size_t max_uploads;       /* bytes of all bodies that are not answered yet */
    size_t max_streams;       /* bytes of all streams that are not read yet; 0 = no limit */
    const char *cors;         /* origin, or NULL */
    int64_t head_ns, body_ns; /* how long a request's parts may take to come; 0 = for ever */
};

int http_open(struct http **ret, struct loop *loop, const struct http_options *options,
              const struct http_hooks *hooks, struct error *err);
void http_close(struct http *h); /* closes what is open; NULL is allowed */

int http_port(const struct http *h);        /* the one in use */
int http_connections(const struct http *h); /* open sockets */
size_t http_uploads(const struct http *h);  /* bytes of bodies that are not answered */
size_t http_queued(const struct http *h);   /* bytes of streams that are not read */
int http_active(const struct http *h);      /* exchanges with a handler and unfinished */

/* Slow readers are cut off, silent streams get a comment. */
void http_tick(struct http *h, int64_t now_ns);

/* The client's address in numbers; "" when there is none. */
void http_client(const struct http_exchange *x, char *ret, size_t size);

/* A header's value, borrowed until the exchange ends; NULL when absent. */
const char *http_get(const struct http_exchange *x, const char *name);

/* Adds a header to the answer that follows; name is static. */
void http_header(struct http_exchange *x, const char *name, const char *value);

/* Answers; takes the body's bytes. The first answer counts, later ones are dropped. */
void http_reply(struct http_exchange *x, int status, const char *type, struct text *body);
void http_reply_static(struct http_exchange *x, int status, const char *type, const void *bytes,
                       size_t n);
void http_reply_error(struct http_exchange *x, const struct api_error *e);

/* Answers with an event stream. Add events to x->out, then flush. */
void http_stream_open(struct http_exchange *x);
void http_stream_flush(struct http_exchange *x); /* may call left */
void http_stream_end(struct http_exchange *x);

/* Closes the connection without an answer, or in the middle of one. */
void http_abort(struct http_exchange *x);

#endif
