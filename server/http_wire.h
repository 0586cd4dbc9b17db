/* http_wire.h - stands between sockets and libmicrohttpd: what it reads has been judged before.
 *
 * Owns      the table of connections, one for the process.
 * Borrows   connections from http_wire_open() to http_wire_close().
 * Thread    the loop's.
 * Fails     opening with -ENOMEM; judging into an answer of its own.
 * Cost      O(bytes) of heads; one look-up for each read.
 *
 * libmicrohttpd 0.9.75 reads leniently, answers its own errors in HTML and has no hook for
 * either. So this program has a recv() and a gnutls_record_recv() of its own, which libraries
 * are linked to before the C library's and GnuTLS's. For sockets that are not open here they are
 * the originals. When a request is refused, the refuse hook writes an answer, the connection is
 * shut for writing, and what still comes is thrown away for a while, so that a client which is
 * writing sees the answer and no reset. */
#ifndef SERVER_HTTP_WIRE_H
#define SERVER_HTTP_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "server/api/api_error.h"
#include "server/http_guard.h"

struct http_wire;

struct http_wires {
    struct http_wire *unfinished; /* in the middle of a message, or refused */
    int64_t head_ns, body_ns;     /* how long a head or a body may take; 0 = for ever */
    void (*refuse)(struct http_wire *w, enum api_error_kind kind, const char *text);
};

struct http_wire {
    struct http_wires *wires;
    int fd;
    void *session; /* of TLS; NULL without */
    struct http_guard guard;
    int64_t since_ns; /* when the present head or body began, or the refusal */
    bool linked, refused;
    size_t n_dropped;
    struct http_wire *prev, *next;
};

int http_wire_open(struct http_wire *w, struct http_wires *wires, int fd, void *session);
void http_wire_close(struct http_wire *w);

/* A fault has been found, whether it has been answered or not. */
bool http_wire_is_faulty(const struct http_wire *w);

/* Sends a few bytes, past libmicrohttpd. */
void http_wire_send(struct http_wire *w, const char *bytes, size_t n);

/* Refuses what takes too long; ends refused connections whose clients do not. */
void http_wire_tick(struct http_wires *wires, int64_t now_ns);

#endif
