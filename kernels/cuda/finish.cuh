/* finish.cuh - the last steps of a product: bias, activation, residual.
 *
 * Owns      nothing.
 * Borrows   its arguments.
 * Thread    a kernel's.
 * Fails     never.
 * Cost      a few operations for each result. */
#ifndef KERNELS_CUDA_FINISH_CUH
#define KERNELS_CUDA_FINISH_CUH

#include "kernels/cuda/beside.h"

static __device__ __forceinline__ float activate(float v, int act) {
    if (act == 1) return v < 0 ? 0 : v;
    if (act == 2) {
        float u = 0.79788456080286536f * (v + 0.044715f * v * v * v);
        return v / (1 + expf(-2 * u));
    }
    return v;
}

static __device__ __forceinline__ void finish(const struct product_end &end, int token, int row,
                                              float v) {
    size_t at = (size_t)token * (size_t)end.rows + (size_t)row;
    if (end.from) v += end.from[at];
    if (end.bias) v += end.bias[row];
    v = activate(v, end.act);
    end.dst[at] = end.accumulate ? end.dst[at] + v : v;
}

#endif
