#define _GNU_SOURCE /* memmem */

#include "tests/load/events.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { LARGEST = 1 << 20 };

static void tell(struct events *e, const char *block, size_t n) {
    const char *end = block + n;
    for (const char *line = block; line < end;) {
        const char *stop = memchr(line, '\n', (size_t)(end - line));
        if (!stop) stop = end;
        if (stop - line >= 6 && !memcmp(line, "data: ", 6))
            e->event(e->arg, line + 6, (size_t)(stop - line) - 6);
        line = stop + 1;
    }
}

static int keep(struct events *e, const char *bytes, size_t n) {
    if (e->n + n > LARGEST) return -EMSGSIZE;
    if (e->n + n > e->size) {
        size_t size = 2 * (e->n + n);
        char *rest = realloc(e->rest, size);
        if (!rest) return -ENOMEM;
        e->rest = rest;
        e->size = size;
    }
    memcpy(e->rest + e->n, bytes, n);
    e->n += n;
    return 0;
}

int events_feed(struct events *e, const char *bytes, size_t n) {
    if (e->n) {
        /* All into one place: this is the rare case of an event that a read cut in two. */
        int r = keep(e, bytes, n);
        if (r < 0) return r;
        bytes = e->rest;
        n = e->n;
    }
    const char *at = bytes, *end = bytes + n, *stop;
    while (at < end && (stop = memmem(at, (size_t)(end - at), "\n\n", 2))) {
        tell(e, at, (size_t)(stop - at));
        at = stop + 2;
    }
    size_t left = (size_t)(end - at);
    if (e->n) {
        memmove(e->rest, at, left);
        e->n = left;
        return 0;
    }
    return left ? keep(e, at, left) : 0;
}

void events_reset(struct events *e) { e->n = 0; }

void events_deinit(struct events *e) {
    free(e->rest);
    e->rest = NULL;
    e->n = e->size = 0;
}
