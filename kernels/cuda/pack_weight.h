/* pack_weight.h - turns matrices as checkpoints hold them into what products read.
 *
 * Owns      nothing.
 * Borrows   device memory during the launch.
 * Thread    the back end's.
 * Fails     each returns its launch's code.
 * Cost      a pass over the matrix on the device. */
#ifndef KERNELS_CUDA_PACK_WEIGHT_H
#define KERNELS_CUDA_PACK_WEIGHT_H

#include "kernels/cuda/gpu.h"
#include "kernels/cuda/layout.h"

/* A binary-coded matrix whose sections lie on the device; see kernels/weights.h. */
struct coded_matrix {
    const uint32_t *planes;
    const uint8_t *q, *p, *shape;
    const uint16_t *alpha, *beta;
    int rows, cols, bits, group, n_groups;
    int scale_bits, bias_bits, shape_bits, q_stride, p_stride, idx_stride;
    int shapes; /* levels go by group */
};

/* data: tiles * pairs * 32 * compact_words() words. */
cudaError_t pack_compact(uint32_t *data, const struct coded_matrix *m, cudaStream_t stream);

/* data: tiles * chunks * 32 * planes_words() words; params: tiles * chunks * (8 / steps) * 16 *
 * param_words() words. */
cudaError_t pack_planes(uint32_t *data, uint32_t *params, const struct coded_matrix *m, int steps,
                        cudaStream_t stream);

/* data: tiles * chunks * 32 * 32 words. */
cudaError_t pack_halves(uint32_t *data, const uint16_t *src, int rows, int cols,
                        cudaStream_t stream);

#endif
