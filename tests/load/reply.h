/* reply.h - reads HTTP/1.1 answers as they arrive, piece by piece.
 *
 * Owns      nothing.
 * Borrows   the callback's argument for as long as it is fed.
 * Thread    one.
 * Fails     with -EPROTO on bytes that are no answer, or an answer's head above its buffer.
 * Cost      no allocation; body bytes are handed on where they lie.
 *
 * After reply_feed() returned 1 the fields describe a complete answer; reply_reset() makes it
 * ready for the connection's next one. */
#ifndef TESTS_LOAD_REPLY_H
#define TESTS_LOAD_REPLY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum reply_state {
    REPLY_HEAD,
    REPLY_BODY,
    REPLY_CHUNK_SIZE,
    REPLY_CHUNK,
    REPLY_CHUNK_END,
    REPLY_TRAILER,
    REPLY_COMPLETE
};

struct reply {
    void (*body)(void *arg, const char *bytes, size_t n);
    void *arg;

    int status;      /* 0 before the head is there */
    bool stream;     /* text/event-stream */
    bool close;      /* the connection ends with it */
    int retry_after; /* seconds, -1 = not said */
    char id[72];     /* X-Request-Id */

    enum reply_state state;
    bool chunked;
    uint64_t left; /* bytes of the body or the chunk */
    size_t n_line; /* of line: a head, a chunk's size or a trailer */
    char line[2048];
};

void reply_reset(struct reply *r); /* keeps body and arg */

/* 1: the answer is complete, and *ret_used bytes belong to it; 0: more is needed. */
int reply_feed(struct reply *r, const char *bytes, size_t n, size_t *ret_used);

#endif
