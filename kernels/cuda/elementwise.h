/* elementwise.h - the small operations: lookups, rotations, sums, copies of rows.
 *
 * Owns      nothing.
 * Borrows   device memory during the launch.
 * Thread    the back end's.
 * Fails     each returns its launch's code.
 * Cost      a pass over the activations. */
#ifndef KERNELS_CUDA_ELEMENTWISE_H
#define KERNELS_CUDA_ELEMENTWISE_H

#include "kernels/cuda/gpu.h"

struct embed_args {
    float *dst;        /* (n, cols) */
    const void *table; /* (rows, cols) of type */
    const int32_t *ids;
    int type, cols, offset, accumulate;
    float scale;
};
cudaError_t embed_run(const struct embed_args *args, int n, cudaStream_t stream);

/* angles: (n, 2, n_freq): cosines, sines; made by rope_angles(). */
cudaError_t rope_angles(float *angles, const int32_t *positions, const double *inv_freq, int n_freq,
                        float scale, int n, cudaStream_t stream);
cudaError_t rope_run(float *x, const float *angles, int n_heads, int head_dim, int n_freq, int n,
                     cudaStream_t stream);

cudaError_t add_run(float *dst, const float *src, size_t n, cudaStream_t stream);
cudaError_t gather_run(float *dst, const float *src, const int32_t *rows, int n_rows, int width,
                       cudaStream_t stream);

#endif
