/* outliers.h - keeps the few weights of a matrix that codes serve worst in fp16 beside them.
 *
 * Owns      struct outlier_set until outlier_set_free(), a block until its caller frees it.
 * Borrows   weights and strips during the call.
 * Thread    outlier_set_new() and outlier_block() one; the rest any, for strips of different rows.
 * Fails     -ENOMEM.
 * Cost      choosing is three passes over the matrix.
 *
 * SqueezeLLM (arXiv 2306.07629, section 4.2) keeps outlying and sensitive weights in a sparse
 * matrix; here both are one measure, h_j (w - mean of the group)^2: what rounding the weight to its
 * group's middle would cost. They are chosen before the codebooks, which then span what is left,
 * and have no weight there. In the column loop they take whatever value the feedback of earlier
 * columns has moved them to, so that they end errors instead of passing them on. */
#ifndef ENGINE_QUANT_OUTLIERS_H
#define ENGINE_QUANT_OUTLIERS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/outliers.h"

struct error;
struct strip;

struct outlier_set {
    int rows, cols, group;
    bool whole; /* every row has the same columns */
    uint32_t n;
    uint32_t *starts;  /* (rows + 1) */
    uint32_t *columns; /* (n) rising within a row */
    float *values;     /* (n) what is stored: beyond the code's value */
};

/* Picks percent of the weights, or of the columns as a whole: those whose scores add up to most (QUIK,
 * arXiv 2310.09259, section 3.2, goes by the largest inputs alone). Ties by place. w: (rows, cols); h: (cols) weights of the columns,
 * 0 where no input ever was. */
int outlier_set_new(struct outlier_set **ret, const float *w, const double *h, int rows, int cols,
                    int group, double percent, bool whole, struct error *err);
void outlier_set_free(struct outlier_set *set); /* NULL is allowed */

/* Makes n_rows rows from row on harmless for a search: outliers get their group's mean and no
 * weight. rows, weights: (n_rows, cols). */
void outlier_blank(struct outlier_set *set, int row, int n_rows, float *rows, float *weights);

/* Marks the strip's outliers: exact is (n, GPTQ_LANES) in processing order. */
void outlier_mark(const struct outlier_set *set, const struct strip *s, uint8_t *exact);

/* Rounds the strip's outliers to what is stored beside their codes; q follows. */
void outlier_take(struct outlier_set *set, struct strip *s);

/* The stored block of n_bytes, 64-byte aligned. */
int outlier_block(const struct outlier_set *set, void **ret, size_t *ret_n,
                  struct outliers_view *view, struct error *err);

#endif
