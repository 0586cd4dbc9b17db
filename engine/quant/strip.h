/* strip.h - carries a strip of rows through quantization, one row per lane.
 *
 * Owns      its buffers until strip_free().
 * Borrows   the factor, H, the view and the group map until strip_free().
 * Thread    one per strip; strips of different rows of one block may run in parallel.
 * Fails     strip_new() with -ENOMEM.
 * Cost      loading and storing O(cols) per row; see each function.
 *
 * Buffers of weights are (cols, GPTQ_LANES) in processing order. Lanes past the last row hold
 * weights and levels of 0. What is stored in the block is always what the levels were made of. */
#ifndef ENGINE_QUANT_STRIP_H
#define ENGINE_QUANT_STRIP_H

#include <stdint.h>

#include "engine/quant/gptq.h"
#include "kernels/weights.h"

struct outlier_set;

struct strip_problem {
    const struct gptq_factor *factor;
    const float *h;      /* (n, n) damped, processing order */
    const int *group_of; /* (n) group of the k-th processed column */
    struct bcq_view view;
    const struct outlier_set *outliers; /* kept exact; NULL without */
};

struct strip {
    const struct strip_problem *p;
    int row, n_rows, n, n_groups, n_levels;
    float *w, *q, *d;   /* weights, their rounded values, scratch (q - w after strip_loss()) */
    uint8_t *rank;      /* which level of its group q is */
    uint8_t *code;      /* the code of that level, where strip_codes() has put it */
    float *values;      /* (n_groups, n_levels, GPTQ_LANES) rising */
    uint8_t *codes;     /* the same shape: the code of each level */
    uint8_t *row_codes; /* (n) natural order, for storing */
    uint8_t *exact;     /* (n, GPTQ_LANES) outliers, whose q is any value; NULL without */
};

int strip_new(struct strip **ret, const struct strip_problem *p, struct error *err);
void strip_free(struct strip *s); /* NULL is allowed */

/* Takes rows row .. row + n_rows - 1 of w: (rows, n), natural order. */
void strip_load(struct strip *s, const float *w, int row, int n_rows);

/* Reads the levels of every group from the block. */
void strip_levels(struct strip *s);

/* q, rank: the nearest level to each weight; or what the column loop makes. */
void strip_nearest(struct strip *s);
void strip_loop(struct strip *s);

/* code from rank; and after the block's parameters have changed: levels anew, rank and q from
 * code. */
void strip_codes(struct strip *s);
void strip_from_codes(struct strip *s);

/* The value of the level that q of the k-th processed column has or, of an outlier, is next to. */
float strip_level(const struct strip *s, int k, int lane);

/* Writes code into the block. */
void strip_store(struct strip *s);

/* Takes over codes (n_rows, n), natural order, that were made elsewhere. */
void strip_take_codes(struct strip *s, const uint8_t *codes);

/* ret: (GPTQ_LANES) x^T H x of every lane, x: (n, GPTQ_LANES). Uses d. n^2 multiply-adds a row. */
void strip_form(struct strip *s, const float *x, double *ret);

/* The same of q - w. */
void strip_loss(struct strip *s, double *ret);

#endif
