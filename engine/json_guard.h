/* json_guard.h - parses untrusted JSON with jansson inside limits of depth and size.
 *
 * Owns      nothing; the caller owns the value and drops it with json_decref().
 * Borrows   the text during the call.
 * Thread    any.
 * Fails     -EBADMSG (not JSON, duplicate keys), -E2BIG (over a limit), -ENOMEM.
 * Cost      one pass over the text before jansson sees it.
 *
 * jansson turns 3 bytes of text into up to 240 of heap. The pass counts nesting and elements
 * first, so memory is at most the text's size plus about 200 bytes for each allowed element. */
#ifndef ENGINE_JSON_GUARD_H
#define ENGINE_JSON_GUARD_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

struct error;

struct json_guard_limits {
    int max_depth;    /* of arrays and objects in each other */
    size_t max_items; /* values and keys in the whole text, about */
    bool allow_nul;   /* strings may hold U+0000; else they are refused */
};

/* The text is one object or array; what says in messages whose text it is ("config.json"). */
int json_guard_parse(json_t **ret, const void *text, size_t n,
                     const struct json_guard_limits *limits, const char *what, struct error *err);

#endif
