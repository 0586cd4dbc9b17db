/* http_guard.h - judges every byte of a connection's requests before a lenient parser sees it.
 *
 * Owns      nothing; struct http_guard is a member of the connection.
 * Borrows   the bytes during the call.
 * Thread    any; pure.
 * Fails     into the guard: fault says what is wrong, and it stays.
 * Cost      O(bytes) of heads and chunk lines; bodies are skipped.
 *
 * It follows RFC 9112 and takes less than it allows where two readers could differ: CRLF only,
 * no folded lines, no space around names, one Content-Length or the one coding "chunked", one
 * Host. It knows where each message ends, so it judges all requests of a connection, pipelined
 * ones too. */
#ifndef SERVER_HTTP_GUARD_H
#define SERVER_HTTP_GUARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "server/api/api_error.h"

enum {
    HTTP_GUARD_MAX_HEAD = 16 << 10, /* bytes of request line and fields; trailers, too */
    HTTP_GUARD_MAX_TARGET = 8 << 10,
    HTTP_GUARD_MAX_FIELDS = 100,
    HTTP_GUARD_MAX_METHOD = 32
};

enum http_guard_part {
    HTTP_GUARD_BETWEEN, /* no byte of a request yet */
    HTTP_GUARD_HEAD,
    HTTP_GUARD_BODY
};

struct http_guard {
    int state, next; /* next: the state after a line's end */
    int n_head, n_fields, n_parts;
    uint64_t n_messages; /* begun */
    int field, n_hosts, n_lengths, n_codings;
    int at;      /* in a word that is compared */
    bool first;  /* the version is HTTP/1.0 */
    bool odd;    /* the coding is not "chunked" */
    bool digits; /* the length or chunk size has one */
    char name[20];
    uint64_t left; /* of the body or chunk */
    const char *fault;
    enum api_error_kind kind; /* of the fault */
};

/* Judges n bytes. Returns how many may go on: n, or, with a fault, those before the message
 * that has it (when it is in a head), or before the fault itself (when it is in a body). */
size_t http_guard_feed(struct http_guard *g, const char *bytes, size_t n);

enum http_guard_part http_guard_part(const struct http_guard *g);

#endif
