#include "kernels/cuda/best.h"

#include "kernels/cuda/rank.cuh"

enum { THREADS = 256 };

static __global__ void __launch_bounds__(THREADS)
    best_kernel(int32_t *ids, const float *x, int width) {
    SHARED_ARRAY(uint64_t, most, THREADS);
    int t = (int)threadIdx.x;
    uint64_t mine = 0;
    kernel_begin();
    x += (size_t)blockIdx.x * (size_t)width;
    for (int i = t; i < width; i += THREADS) {
        uint64_t other = rank_of(x[i], i);
        mine = other > mine ? other : mine;
    }
    most[t] = mine;
    for (int half = THREADS / 2; half; half /= 2) {
        block_sync();
        if (t < half && most[t + half] > most[t]) most[t] = most[t + half];
    }
    if (t == 0) ids[blockIdx.x] = (int32_t) ~(uint32_t)most[0];
}

cudaError_t best_run(int32_t *ids, const float *x, int n_rows, int width, cudaStream_t stream) {
    return gpu_launch(best_kernel, dim3((unsigned)n_rows), THREADS, 0, stream, ids, x, width);
}
