/* pack.h - writes group parameters and codes into a binary-coded block.
 *
 * Owns      nothing.
 * Borrows   the block that the view points into, and writes it.
 * Thread    any; rows are independent.
 * Fails     never; values beyond fp16 become its largest.
 * Cost      O(groups) or O(cols) per row.
 *
 * Parameters are rounded here, before any column loop, so that the loop's feedback makes up for the
 * rounding too. Levels are what bcq_group_params() gives back: what the kernels will use. */
#ifndef ENGINE_QUANT_PACK_H
#define ENGINE_QUANT_PACK_H

#include <stdint.h>

#include "kernels/weights.h"

/* A group before rounding. Compact kinds use shape and scale, the free kind alpha. */
struct pack_group {
    int shape; /* row of the shapes given beside it */
    float scale, bias;
    float alpha[BCQ_MAX_BITS]; /* at least 0, rising */
};

/* Values are scale * (sum of d_i over set bits) + offset, seen from the middle of the levels. */
void pack_group_set(struct pack_group *ret, const uint8_t *shapes, int bits, int shape, float scale,
                    float bias);

/* groups: (n_groups); shapes: (n, bits). Of a compact block all groups have the same shape. Sets
 * the row's super-scales so that the largest scale and bias of the row get the largest codes. */
void pack_row(const struct bcq_view *view, int row, const struct pack_group *groups,
              const uint8_t *shapes);

/* A compact row's super-scales and its one shape, as they are to be stored; shape: (bits). */
void pack_supers(const struct bcq_view *view, int row, float scale, float bias,
                 const uint8_t *shape);

/* Multiplies the scales of a compact row by factor, in the super-scale. */
void pack_stretch(const struct bcq_view *view, int row, float factor);

/* The table of a BCQ_COMPACT_GROUP block: (n_shapes, bits). */
void pack_shape_table(const struct bcq_view *view, const uint8_t *shapes);

/* Levels of a group in rising order, values[l * stride], and the code of each, codes[l * stride].
 * Equal levels all have the lowest of their codes. */
void pack_levels(const struct bcq_view *view, int row, int group, float *values, uint8_t *codes,
                 int stride);

/* The value of every code of a group: (2^bits). */
void pack_values(const struct bcq_view *view, int row, int group, float *values);

/* codes: (cols); bit i of a code is plane i. */
void pack_codes(const struct bcq_view *view, int row, const uint8_t *codes);

/* One group's parameters of a compact or free block, already in stored form. */
void pack_compact(const struct bcq_view *view, int row, int group, unsigned q, int p);
void pack_shape(const struct bcq_view *view, int row, int group, int shape);
void pack_free(const struct bcq_view *view, int row, int group, const float *alpha, float bias);

#endif
