/* prescan.h - measures a JSON text before a parser allocates for it.
 *
 * Owns      nothing; ids are the caller's.
 * Borrows   the text during the call; a seed above INT64_MAX and token ids are blanked in it.
 * Thread    any.
 * Fails     -E2BIG over a limit, -ERANGE an integer that 64 bits do not hold; key then names
 *           the member of the top-level object it was met in ("" outside of one).
 * Cost      one pass; no allocation but for token ids.
 *
 * jansson turns 3 bytes of text into up to 240 of heap and refuses a whole document for one
 * unsigned 64-bit integer. After this pass memory is bounded by the limits, and such a seed,
 * which clients do send, is accepted. Texts that are not JSON may pass: the parser refuses
 * them afterwards. */
#ifndef SERVER_PRESCAN_H
#define SERVER_PRESCAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;

struct prescan_limits {
    int max_depth;         /* of arrays and objects in each other */
    size_t max_containers; /* arrays and objects */
    size_t max_values;     /* everything else, keys included */
    const char *ids;       /* the top-level member whose token ids are taken out; NULL = none */
};

struct prescan {
    bool has_seed; /* "seed" was above INT64_MAX; 0 stands in its place in the text */
    uint64_t seed;
    int32_t *ids; /* (n_ids) the caller's, after a failure, too; [0] stands in their place */
    size_t n_ids;
    char key[64]; /* the top-level member where scanning ended */
};

int prescan_json(struct prescan *ret, char *text, size_t n, const struct prescan_limits *limits,
                 struct error *err);

#endif
