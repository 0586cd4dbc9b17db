/* top.h - rows of logits in short.
 *
 * Owns      nothing.
 * Borrows   its arguments until the launches have run.
 * Thread    the back end's.
 * Fails     with what a launch says.
 * Cost      two passes over the rows, spread over the device. */
#ifndef KERNELS_CUDA_TOP_H
#define KERNELS_CUDA_TOP_H

#include "kernels/cuda/gpu.h"

extern "C" {
#include "kernels/backend.h"
}

/* Two of these bytes hold what is sorted on the way. */
static inline size_t top_bytes(int n_rows, int width) {
    return (size_t)n_rows * (size_t)backend_spans(width) * BACKEND_TOP * sizeof(uint64_t);
}

/* rooms: two of top_bytes(); *ret is the one that has (n_rows, BACKEND_TOP) ranks of x (n_rows, width), as
 * backend_top() says. */
cudaError_t top_ranks(uint64_t *const rooms[2], const uint64_t **ret, const float *x, int n_rows,
                      int width, cudaStream_t stream);
/* sums: (n_rows, backend_spans(width)). */
cudaError_t top_sums(uint64_t *sums, const float *x, const uint64_t *ranks,
                     const float *temperatures, int n_rows, int width, cudaStream_t stream);

#endif
