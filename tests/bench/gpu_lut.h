/* gpu_lut.h - products with bit planes the way of LUT-GEMM, to compare with ours.
 *
 * Owns      nothing.
 * Borrows   device memory during the launch.
 * Thread    one.
 * Fails     returns the launches' code.
 * Cost      every 8 inputs a table of 256 sums, for GPU_LUT_ROWS rows each; one look-up for 8 weights of
 *           a plane; every weight read once.
 *
 * From the paper (Park et al., arXiv 2206.09557, section 3): keys of 8 signs, tables in shared
 * memory, a block for a tile of inputs by many rows. Changed: partial sums of tiles go to memory and are
 * added in order where its kernels add atomically, so that a result can be checked; tables and sums are
 * fp32; a bias for each group, which our weights have. One token, as there. */
#ifndef TESTS_BENCH_GPU_LUT_H
#define TESTS_BENCH_GPU_LUT_H

#include "kernels/cuda/gpu.h"

enum { GPU_LUT_GROUP = 128, GPU_LUT_ROWS = 2048, GPU_LUT_MAX_BITS = 4 };

struct gpu_lut_matrix {
    /* (n_groups, 4, bits, rows): of 32 inputs, bit j is that of input j. A warp's lanes have rows that are
     * neighbours. */
    const uint32_t *planes;
    const uint16_t *params; /* (n_groups, bits + 1, rows) fp16: alphas, bias */
    int rows, n_groups, bits;
};

static inline size_t gpu_lut_plane_words(int rows, int n_groups, int bits) {
    return (size_t)n_groups * 4 * (size_t)bits * (size_t)rows;
}
static inline size_t gpu_lut_params(int rows, int n_groups, int bits) {
    return (size_t)n_groups * (size_t)(bits + 1) * (size_t)rows;
}

/* y (rows) = W x (n_groups * GPU_LUT_GROUP). parts: scratch, (n_groups, rows). */
cudaError_t gpu_lut_run(const struct gpu_lut_matrix *m, const float *x, float *parts, float *y,
                        cudaStream_t stream);

#endif
