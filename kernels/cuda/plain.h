/* plain.h - products with matrices as checkpoints hold them.
 *
 * Owns      nothing.
 * Borrows   device memory during the launch.
 * Thread    the back end's.
 * Fails     returns the launch's code.
 * Cost      reads the matrix once for 8 tokens; bound by arithmetic when it is coded. */
#ifndef KERNELS_CUDA_PLAIN_H
#define KERNELS_CUDA_PLAIN_H

#include "kernels/cuda/product.h"

enum plain_type { PLAIN_F32, PLAIN_F16, PLAIN_BF16, PLAIN_CODED };

struct plain_matrix {
    const void *data;    /* dense: (rows, cols); CODED: planes, (rows, bits, words) */
    const float *params; /* CODED: (rows, n_groups, bits + 1): alphas, beta */
    int type, cols, bits, group, n_groups;
};

/* p: dst, bias, rows, act, accumulate. x: (n, cols). */
cudaError_t plain_run(const struct plain_matrix *m, const struct product *p, const float *x, int n,
                      cudaStream_t stream);

#endif
