/* packed.h - stores a compact block with its scales and biases as numbers of pyramid vectors.
 *
 * Owns      struct packed_view: the expanded fields, until packed_close(); a packed block is its
 *           caller's.
 * Borrows   the block's bytes, which the view keeps pointing into.
 * Thread    any.
 * Fails     -EBADMSG naming what is wrong with a packed block; packed_make(): -ENOTSUP (a free
 *           block has no small integers), -ERANGE (packing would not save); -ENOMEM.
 * Cost      a table of counts, and for each field some sums of numbers of at most 448 bits.
 *
 * Only q and p change form; planes are used where they lie. What comes back is the block's fields
 * to the bit, so kernels know nothing of it. The form: engine/CHECKPOINT.md. */
#ifndef ENGINE_PACKED_H
#define ENGINE_PACKED_H

#include <stdbool.h>
#include <stddef.h>

#include "kernels/weights.h"

struct error;

/* Whether the bytes claim to be a packed block. */
bool packed_is(const void *bytes, size_t n_bytes);

struct packed_view {
    struct bcq_view bcq;
    void *fields; /* q and p */
};

int packed_open(struct packed_view *ret, const void *bytes, size_t n_bytes, struct error *err);
void packed_close(struct packed_view *v); /* zeroed is allowed */

/* ret: *ret_n bytes, fewer than block has, 64-byte aligned. block is one that bcq_format() made. */
int packed_make(void **ret, size_t *ret_n, const struct bcq_view *view, const void *block,
                struct error *err);

#endif
