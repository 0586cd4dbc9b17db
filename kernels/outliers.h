/* outliers.h - describes the few weights of a matrix that are kept beside its codes.
 *
 * Owns      nothing; a view points into bytes that somebody else maps or allocates.
 * Borrows   those bytes until the view is dropped.
 * Thread    any.
 * Fails     outliers_parse() with -EBADMSG naming the field; the rest never.
 * Cost      parsing O(rows + entries); finding a row O(row).
 *
 * The layout of a block is written down in engine/CHECKPOINT.md. An entry holds what its weight
 * has beyond the value of its code, so that the whole matrix is the sum of both parts: planes
 * cannot hold a zero, and leaving a code's value out of their product would take a second look at
 * every one of them. */
#ifndef KERNELS_OUTLIERS_H
#define KERNELS_OUTLIERS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;

enum {
    OUTLIERS_HEADER_BYTES = 64,
    OUTLIERS_ALIGN = 64,      /* of the block */
    OUTLIERS_MAX_ROW = 65535, /* entries of a row */
    OUTLIERS_MAX_SHARE = 5    /* per cent of a matrix */
};

struct outliers_view {
    int rows, cols;
    bool whole;             /* whole columns: values are (rows, n), there are no counts */
    uint32_t n;             /* entries; or columns */
    size_t total;           /* bytes of the block */
    const uint16_t *counts; /* (rows) entries of each row */
    const void *columns;    /* (n) rising within a row; uint16_t, or uint32_t past 65536 columns */
    const uint16_t *values; /* (n) fp16 */
};

/* Bytes of the block: of n entries, or of n whole columns. */
size_t outliers_bytes(int rows, int cols, uint32_t n);
size_t outliers_whole_bytes(int rows, int cols, uint32_t n);

/* Reads a block's header and checks it, the sizes, every count and column and that values are
 * finite. bytes must be 64-byte aligned and stay while ret is used. */
int outliers_parse(struct outliers_view *ret, const void *bytes, size_t n_bytes, struct error *err);

/* Writes the header into a zeroed block of outliers_bytes() and points ret at its sections,
 * which the caller then fills (cast the const away: the block is the caller's). */
void outliers_format(struct outliers_view *ret, void *block, int rows, int cols, uint32_t n);

/* The same of whole columns. */
void outliers_format_whole(struct outliers_view *ret, void *block, int rows, int cols, uint32_t n);

/* The place of a row's first entry; not of whole columns. */
uint32_t outliers_first(const struct outliers_view *v, int row);

uint32_t outliers_column(const struct outliers_view *v, uint32_t entry);
void outliers_put_column(const struct outliers_view *v, uint32_t entry, uint32_t column);

/* out: (cols) one row of the codes' values, to which the row's entries are added. */
void outliers_add_row(const struct outliers_view *v, int row, float *out);

#endif
