/* best.h - the best of a row of logits.
 *
 * Owns      nothing.
 * Borrows   its arguments until the launch has run.
 * Thread    the back end's.
 * Fails     with what the launch says.
 * Cost      one pass over the rows. */
#ifndef KERNELS_CUDA_BEST_H
#define KERNELS_CUDA_BEST_H

#include "kernels/cuda/gpu.h"

/* ids: (n_rows), of x (n_rows, width), as backend_best() says. */
cudaError_t best_run(int32_t *ids, const float *x, int n_rows, int width, cudaStream_t stream);

#endif
