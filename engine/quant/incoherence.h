/* incoherence.h - turns a matrix and its inputs' second moments by random orthogonal matrices.
 *
 * Owns      struct incoherence until incoherence_free(), a block until its caller frees it.
 * Borrows   weights and moments during the call.
 * Thread    any; work is spread over n_threads.
 * Fails     -ENOTSUP (a size with a large odd factor), -ENOMEM.
 * Cost      n^2 (log n + order) in fp64 for moments, once per input; rows * n for each matrix.
 *
 * QuIP (arXiv 2307.13304, section 4) with randomised Hadamard matrices (QuIP#, 2402.04396, section
 * 3): quantized is W' = U W V^T under H' = V H V^T, where no weight and no input stands out; the
 * loss of W' under H' is that of W under H. Turning outputs as well costs a second pass at run time
 * and spreads what stands out along a column. The signs depend on the size alone, so that matrices
 * with one input share its rotation, and equal input gives equal bytes. */
#ifndef ENGINE_QUANT_INCOHERENCE_H
#define ENGINE_QUANT_INCOHERENCE_H

#include <stddef.h>

#include "kernels/rotation.h"

struct error;

struct incoherence {
    struct rotation_plan plan;
    uint32_t *signs;
};

int incoherence_new(struct incoherence **ret, int n, struct error *err);
void incoherence_free(struct incoherence *v); /* NULL is allowed */

/* h: (n, n) symmetric, becomes V h V^T. */
int incoherence_moments(const struct incoherence *v, double *h, int n_threads, struct error *err);

/* dst: (rows, n of v) = U src V^T; u NULL: = src V^T. */
int incoherence_weights(const struct incoherence *v, const struct incoherence *u, float *dst,
                        const float *src, int rows, int n_threads, struct error *err);

/* The stored block of n_bytes, 64-byte aligned. */
int incoherence_block(const struct incoherence *v, const struct incoherence *u, int rows,
                      void **ret, size_t *ret_n, struct rotation_view *view, struct error *err);

#endif
