#include "kernels/cuda/top.h"

#include "kernels/cuda/rank.cuh"

enum { THREADS = 256, SPAN = BACKEND_SPAN, TOP = BACKEND_TOP };

/* One step of a bitonic sort: pairs `half` apart, in falling and rising order by turns of `size`. */
static __device__ __forceinline__ void sort_step(uint64_t *ranks, int n, int size, int half) {
    for (int i = (int)threadIdx.x; i < n / 2; i += THREADS) {
        int low = 2 * i - (i & (half - 1)), high = low + half;
        uint64_t a = ranks[low], b = ranks[high];
        if ((a < b) == !(low & size)) {
            ranks[low] = b;
            ranks[high] = a;
        }
    }
    block_sync();
}

/* Of each two sorted runs of TOP the better half, sorted again. */
static __device__ __forceinline__ void halve(uint64_t *ranks, int count) {
    uint64_t most[SPAN / 2 / THREADS];
    int t = (int)threadIdx.x;
#pragma unroll
    for (int k = 0; k < SPAN / 2 / THREADS; k++) {
        int i = t + k * THREADS, low = 2 * i - (i & (TOP - 1));
        if (i >= count / 2) continue;
        most[k] = ranks[low] > ranks[low + TOP] ? ranks[low] : ranks[low + TOP];
    }
    block_sync();
#pragma unroll
    for (int k = 0; k < SPAN / 2 / THREADS; k++)
        if (t + k * THREADS < count / 2) ranks[t + k * THREADS] = most[k];
    block_sync();
    for (int half = TOP / 2; half; half /= 2) sort_step(ranks, count / 2, TOP, half);
}

/* The best TOP of a span, of logits or of what an earlier launch left of them: a block for each span and row. */
static __global__ void __launch_bounds__(THREADS)
    top_kernel(uint64_t *to, const uint64_t *from, const float *x, int n) {
    SHARED_ARRAY(uint64_t, ranks, SPAN);
    int t = (int)threadIdx.x, first = (int)blockIdx.x * SPAN;
    size_t row = (size_t)blockIdx.y * (size_t)n;
    kernel_begin();
    for (int i = t; i < SPAN; i += THREADS) {
        int at = first + i;
        uint64_t left = at < n && from ? from[row + (size_t)at] : 0;
        ranks[i] = at < n && x ? rank_of(x[row + (size_t)at], at) : left;
    }
    block_sync();
    for (int size = 2; size <= TOP; size *= 2)
        for (int half = size / 2; half; half /= 2) sort_step(ranks, SPAN, size, half);
    for (int count = SPAN; count > TOP; count /= 2) halve(ranks, count);
    to += ((size_t)blockIdx.y * gridDim.x + blockIdx.x) * TOP;
    for (int i = t; i < TOP; i += THREADS) to[i] = ranks[i];
}

cudaError_t top_ranks(uint64_t *const rooms[2], const uint64_t **ret, const float *x, int n_rows,
                      int width, cudaStream_t stream) {
    const uint64_t *from = NULL;
    cudaError_t code = cudaSuccess;
    int n = width;
    for (int turn = 0; code == cudaSuccess && (turn == 0 || n > TOP); turn++) {
        int spans = backend_spans(n);
        uint64_t *to = rooms[turn % 2];
        code = gpu_launch(top_kernel, dim3((unsigned)spans, (unsigned)n_rows), THREADS, 0, stream,
                          to, from, x, n);
        from = to;
        x = NULL;
        n = spans * TOP;
    }
    *ret = from;
    return code;
}

/* e^y for y <= 0 in units of 2^-40, cut to whole ones, by instructions that round alike everywhere.
 * y = k ln 2 + r with ln 2 in two parts, of which the first times k is exact; e^r by the Cephes library's
 * polynomial, to 2^-22. */
static __device__ __forceinline__ uint64_t exponential(float y) {
    if (!(y > -28)) return 0;
    float k = rintf(__fmul_rn(y, 1.44269504f));
    float r = fmaf(k, 2.12194440e-4f, fmaf(k, -0.693359375f, y));
    float sum = fmaf(1.9875691500e-4f, r, 1.3981999507e-3f);
    sum = fmaf(sum, r, 8.3334519073e-3f);
    sum = fmaf(sum, r, 4.1665795894e-2f);
    sum = fmaf(sum, r, 1.6666665459e-1f);
    sum = fmaf(sum, r, 5.0000001201e-1f);
    sum = fmaf(__fmul_rn(r, r), sum, r) + 1;
    /* From 0.5 on, a float is a whole number of 2^-24. */
    return (uint64_t)(uint32_t)(sum * 16777216.0f) << (BACKEND_SUM_BITS - 24) >> (int)-k;
}

static __global__ void __launch_bounds__(THREADS)
    sum_kernel(uint64_t *sums, const float *x, const uint64_t *ranks, const float *temperatures,
               int width) {
    SHARED_ARRAY(uint64_t, all, THREADS);
    int t = (int)threadIdx.x, first = (int)blockIdx.x * SPAN;
    int end = width - first < SPAN ? width : first + SPAN;
    uint64_t mine = 0;
    kernel_begin();
    float most = value_of(ranks[(size_t)blockIdx.y * TOP]), heat = temperatures[blockIdx.y];
    x += (size_t)blockIdx.y * (size_t)width;
    for (int i = first + t; i < end; i += THREADS) mine += exponential((tame(x[i]) - most) / heat);
    all[t] = mine;
    for (int half = THREADS / 2; half; half /= 2) {
        block_sync();
        if (t < half) all[t] += all[t + half];
    }
    if (t == 0) sums[(size_t)blockIdx.y * gridDim.x + blockIdx.x] = all[0];
}

cudaError_t top_sums(uint64_t *sums, const float *x, const uint64_t *ranks,
                     const float *temperatures, int n_rows, int width, cudaStream_t stream) {
    dim3 grid((unsigned)backend_spans(width), (unsigned)n_rows);
    return gpu_launch(sum_kernel, grid, THREADS, 0, stream, sums, x, ranks, temperatures, width);
}
