/* Brings x into the form that products take it in: halves, two columns for a token. */
#include "kernels/cuda/pack_input.h"

#include "kernels/cuda/ptx.h"

enum { THREADS = 1024, TOP = 13 /* the largest |x| of a token lies in [2^13, 2^14) */ };

static __device__ __forceinline__ float power_of_two(int e) {
    return __int_as_float((e + 127) << 23);
}

/* The power of two that x is multiplied with. NaN and infinity leave x as it is: the token's
 * results will not be finite either way. */
static __device__ __forceinline__ int scale_of(float largest) {
    int e = (__float_as_int(largest) >> 23 & 255) - 127;
    if (e == 128 || largest == 0) return 0;
    return TOP - e < 126 ? TOP - e : 126;
}

/* As fmaxf() but for NaN, which wins. */
static __device__ __forceinline__ float larger(float a, float b) { return b <= a ? a : b; }

static __device__ float largest_of(const float *x, int cols) {
    SHARED_ARRAY(float, each, THREADS / 32);
    float largest = 0;
    for (int k = (int)threadIdx.x; k < cols; k += THREADS) largest = larger(largest, fabsf(x[k]));
    for (int step = 16; step; step /= 2) largest = larger(largest, warp_xor(largest, step));
    if (threadIdx.x % 32 == 0) each[threadIdx.x / 32] = largest;
    block_sync();
    for (int i = 0; i < THREADS / 32; i++) largest = larger(largest, each[i]);
    return largest;
}

static __device__ __forceinline__ void split(float v, uint32_t *high, uint32_t *low) {
    *high = to_half(v);
    *low = to_half(v - from_half(*high));
}

/* Eight inputs of a lane: pair of steps and lane say which. sums: of the first and last four. */
static __device__ __forceinline__ void pack_eight(uint32_t high[4], uint32_t low[4], float sums[2],
                                                  const float *x, int cols, float scale,
                                                  enum pack_order order, int chunk, int pair,
                                                  int t) {
    sums[0] = sums[1] = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int s = 2 * pair + i / 2, r = i % 2;
        uint32_t h[2], l[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int k = chunk * CHUNK + 2 * r + half +
                    (order == PACK_SPREAD ? 16 * s + 4 * t : 32 * t + 4 * s);
            float v = k < cols ? x[k] * scale : 0;
            sums[i / 2] += v;
            /* The power of two of the bit that the weight is, see planes.cu. */
            if (order == PACK_SPREAD) v *= power_of_two(-((2 * s + r) & 7));
            split(v, &h[half], &l[half]);
        }
        high[i] = h[0] | h[1] << 16;
        low[i] = l[0] | l[1] << 16;
    }
}

/* The sum of the group of 16 that lanes of pairs 2 i and 2 i + 1 share, for the product with p. */
static __device__ __forceinline__ void put_owned_sum(const struct input_room &to, float sum,
                                                     int chunk, int pair, int t, int token) {
    uint32_t high, low;
    sum += warp_xor(sum, 4);
    if (pair % 2) return;
    split(sum * 0.0625f, &high, &low);
    uint2 *at =
        to.group_cols + ((size_t)(chunk / 2) * (size_t)to.n_cols + 2 * (size_t)token) * 4 + t;
    int half = chunk % 2 * 2 + pair / 2;
    reinterpret_cast<uint16_t *>(at)[half] = (uint16_t)high;
    reinterpret_cast<uint16_t *>(at + 4)[half] = (uint16_t)low;
}

/* Sums of 16, 32, 64 and 128 inputs; token -1: none, but the lane takes part. */
static __device__ __forceinline__ void put_spread_sums(const struct input_room &to,
                                                       const float sums[2], int chunk, int pair,
                                                       int t, int token, int n, int chunks) {
    float s[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        s[i] = sums[i];
        s[i] += warp_xor(s[i], 1);
        s[i] += warp_xor(s[i], 2);
    }
    float of_32 = s[0] + s[1];
    float of_64 = of_32 + warp_xor(of_32, 4);
    float of_128 = of_64 + warp_xor(of_64, 8);
    if (t != 0 || token < 0 || chunk >= chunks) return;
    size_t real = (size_t)chunks * (size_t)n, at = (size_t)token;
    float *up = to.sums;
    up[(size_t)(chunk * 8 + 2 * pair) * (size_t)n + at] = s[0];
    up[(size_t)(chunk * 8 + 2 * pair + 1) * (size_t)n + at] = s[1];
    up[8 * real + (size_t)(chunk * 4 + pair) * (size_t)n + at] = of_32;
    if (pair % 2 == 0) up[12 * real + (size_t)(chunk * 2 + pair / 2) * (size_t)n + at] = of_64;
    if (pair == 0) up[14 * real + (size_t)chunk * (size_t)n + at] = of_128;
}

static __global__ void __launch_bounds__(THREADS)
    pack_kernel(struct input_room to, const float *x, int cols, int n, enum pack_order order) {
    kernel_begin();
    int token = (int)blockIdx.x, n_cols = to.n_cols, chunks = (int)pack_chunks(cols);
    int have = token < n ? cols : 0; /* past the batch: columns of zeros */
    x += (size_t)(token < n ? token : 0) * (size_t)cols;
    int e = scale_of(largest_of(x, have));
    float scale = power_of_two(e);
    if (threadIdx.x == 0 && token < n) to.unscale[token] = power_of_two(-e);
    /* Whole warps take part: chunks come in pairs, 32 threads for each. */
    for (int i = (int)threadIdx.x; i < chunks * 16; i += THREADS) {
        int t = i % 4, pair = i / 4 % 4, chunk = i / 16;
        uint32_t high[4], low[4];
        float sums[2];
        pack_eight(high, low, sums, x, have, scale, order, chunk, pair, t);
        uint4 *at =
            to.columns + ((size_t)(chunk * 4 + pair) * (size_t)n_cols + 2 * (size_t)token) * 4 + t;
        at[0] = uint4{high[0], high[1], high[2], high[3]};
        at[4] = uint4{low[0], low[1], low[2], low[3]};
        if (order == PACK_OWNED)
            put_owned_sum(to, sums[0] + sums[1], chunk, pair, t, token);
        else
            put_spread_sums(to, sums, chunk, pair, t, token < n ? token : -1, n, chunks_of(cols));
    }
}

cudaError_t pack_input(const struct input_room *to, const float *x, int cols, int n,
                       enum pack_order order, cudaStream_t stream) {
    return gpu_launch(pack_kernel, dim3((unsigned)to->n_cols / 2), THREADS, 0, stream, *to, x, cols,
                      n, order);
}
