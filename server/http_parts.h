/* http_parts.h - what the files that carry requests and answers share; no one else includes it.
 *
 * Owns      struct http: the daemon, its connections and exchanges.
 * Borrows   the loop and the hooks' argument.
 * Thread    the loop's.
 * Fails     never.
 * Cost      O(1).
 *
 * http.c has the daemon and its connections, http_request.c what comes in, http_reply.c what
 * goes out. http_wire.h stands between the sockets and libmicrohttpd. */
#ifndef SERVER_HTTP_PARTS_H
#define SERVER_HTTP_PARTS_H

#include <microhttpd.h>
#include <stddef.h>
#include <stdint.h>

#include "server/http.h"
#include "server/http_socket.h"
#include "server/http_tls.h"
#include "server/http_wire.h"

enum {
    HTTP_CONNECTION_MEMORY = 32 << 10 /* of headers, and twice the largest chunk of a stream */
};

struct http {
    struct MHD_Daemon *daemon;
    struct loop *loop;
    struct http_hooks hooks;
    struct http_wires wires;
    struct http_tls tls;
    struct http_unix unix_socket;
    size_t max_body, max_uploads, n_uploads, max_streams, n_queued;
    const char *cors;
    int port, n_connections, n_active;
    uint64_t serial; /* of request ids */
    struct http_exchange *first;
};

struct http_socket { /* a connection */
    struct http_wire wire;
    struct http *http;
    struct MHD_Connection *connection;
    struct loop_watch *watch; /* NULL when there was no memory */
    struct http_exchange *exchange;
};

/* DESIGN. libmicrohttpd calls http_request() for the headers, for each piece of body, and once
 * more at the body's end; it calls it again whenever a connection resumes without an answer. A
 * connection is suspended in two places only, at the end of http_request() and of the reader of
 * streams, and both run only after an earlier resume has been taken up; so a suspension never
 * cancels a resume, and a queue cannot fill between the look at it and the suspension, because
 * everything here is one thread. */
void http_suspend(struct http_exchange *x);
void http_resume(struct http_exchange *x);
void http_tell_left(struct http_exchange *x);

void http_free_headers(struct http_exchange *x);

/* Its body's bytes are others' again. */
void http_release_body(struct http_exchange *x);
void http_release_queue(struct http_exchange *x);

/* The client's id when it is harmless, else one of our own. */
void http_set_id(struct http *h, struct http_exchange *x, const char *given);

/* libmicrohttpd's callbacks; arg is the struct http. */
enum MHD_Result http_request(void *arg, struct MHD_Connection *connection, const char *url,
                             const char *method, const char *version, const char *bytes, size_t *n,
                             void **ctx);
void http_completed(void *arg, struct MHD_Connection *connection, void **ctx,
                    enum MHD_RequestTerminationCode why);

#endif
