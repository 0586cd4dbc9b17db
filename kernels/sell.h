/* sell.h - outliers in the layout that the products of every level read.
 *
 * Owns      nothing.
 * Borrows   the view during the call.
 * Thread    any; blocks are independent.
 * Fails     never.
 * Cost      a pass over the entries, for each SELL_TOKENS tokens of a product.
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

/* What a step's columns are: two or four bytes for each row, or one for all rows. */
enum sell_form { SELL_NARROW, SELL_WIDE, SELL_WHOLE };

enum { SELL_TOKENS = 4 /* that share each reading of columns and values */ };

/* How a level adds a block's products: to y, the first row of the block, for those of the n_rows rows
 * from there on that are the block's. n: 1 or SELL_TOKENS; n and form are constants in it. */
typedef void sell_block(float *y, size_t ldy, const struct sell *s, const float *x, size_t ldx,
                        int n, int block, int n_rows, enum sell_form form);

#define SELL_INLINE static inline __attribute__((always_inline))

SELL_INLINE void sell_add_form(float *y, size_t ldy, const struct sell *s, const float *x,
                               size_t ldx, int n, int r0, int r1, enum sell_form form,
                               sell_block *add) {
    for (int b = r0 / SELL_ROWS; b * SELL_ROWS < r1; b++) {
        int t = 0, row = b * SELL_ROWS;
        if (s->starts[b] == s->starts[b + 1]) continue;
        for (; t + SELL_TOKENS <= n; t += SELL_TOKENS)
            add(y + (size_t)t * ldy + row, ldy, s, x + (size_t)t * ldx, ldx, SELL_TOKENS, b,
                r1 - row, form);
        for (; t < n; t++)
            add(y + (size_t)t * ldy + row, ldy, s, x + (size_t)t * ldx, ldx, 1, b, r1 - row, form);
    }
}

/* struct ops.outliers_add, by blocks. */
SELL_INLINE void sell_add(float *y, size_t ldy, const struct sell *s, const float *x, size_t ldx,
                          int n, int r0, int r1, sell_block *add) {
    if (s->whole)
        sell_add_form(y, ldy, s, x, ldx, n, r0, r1, SELL_WHOLE, add);
    else if (s->is_wide)
        sell_add_form(y, ldy, s, x, ldx, n, r0, r1, SELL_WIDE, add);
    else
        sell_add_form(y, ldy, s, x, ldx, n, r0, r1, SELL_NARROW, add);
}

size_t sell_bytes(const struct outliers_view *v);

/* dst: sell_bytes() of zeroed memory, aligned to 64. */
void sell_pack(void *dst, const struct outliers_view *v);

#endif
