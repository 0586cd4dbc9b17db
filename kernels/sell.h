/* sell.h - packs outliers in the layout that the products of every level read.
 *
 * Owns      nothing.
 * Borrows   the view during the call.
 * Thread    any; blocks are independent.
 * Fails     never.
 * Cost      a pass over the entries.
 *
 * Sixteen rows are a block: step s of it holds the s-th entry of each of its rows side by side (a
 * sliced ELLPACK). A level that gathers gets full vectors and no loop of two or three rounds per
 * row, whose end no processor foresees. Rows with fewer entries than their block's longest are
 * filled with the value 0 at column 0. Of whole columns a step holds one column's values for all
 * rows of the block: nothing is gathered, the input is one number for all. */
#ifndef KERNELS_SELL_H
#define KERNELS_SELL_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/outliers.h"

enum { SELL_ROWS = 16 };

/* The packed bytes: this, then starts, columns and values at their offsets. */
struct sell {
    int32_t rows, is_wide;
    int32_t whole; /* columns is (steps of a block) uint32_t: a step is a column of the matrix */
    size_t columns, values;
    uint32_t starts[]; /* (blocks + 1) first step of each block */
};

static inline int sell_blocks(int rows) { return (rows + SELL_ROWS - 1) / SELL_ROWS; }

static inline const void *sell_columns(const struct sell *s) {
    return (const char *)s + s->columns; /* (steps, SELL_ROWS) uint16_t, or uint32_t if is_wide */
}

static inline const uint16_t *sell_values(const struct sell *s) {
    return (const uint16_t *)(const void *)((const char *)s + s->values); /* the same, fp16 */
}

size_t sell_bytes(const struct outliers_view *v);

/* dst: sell_bytes() of zeroed memory, aligned to 64. */
void sell_pack(void *dst, const struct outliers_view *v);

#endif
