/* Brings x into the form that products take it in: halves, two columns for a token. */
#include "kernels/cuda/pack_input.h"

#include "kernels/cuda/ptx.h"

enum { THREADS = 256, TOP = 13 /* the largest |x| of a token lies in [2^13, 2^14) */ };

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

static __device__ __forceinline__ float sum_of_16(const float *x, int cols, int k, float scale) {
    float s = 0;
    for (int i = k; i < k + 16 && i < cols; i++) s += x[i] * scale;
    return s;
}

/* Eight inputs of a lane: pair of steps and lane say which. */
static __device__ void pack_eight(uint32_t high[4], uint32_t low[4], const float *x, int cols,
                                  float scale, enum pack_order order, int chunk, int pair, int t) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int s = 2 * pair + i / 2, r = i % 2;
        uint32_t h[2], l[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int k = chunk * CHUNK + 2 * r + half +
                    (order == PACK_SPREAD ? 16 * s + 4 * t : 32 * t + 4 * s);
            float v = k < cols ? x[k] * scale : 0;
            /* The power of two of the bit that the weight is, see planes.cu. */
            if (order == PACK_SPREAD) v *= power_of_two(-((2 * s + r) & 7));
            split(v, &h[half], &l[half]);
        }
        high[i] = h[0] | h[1] << 16;
        low[i] = l[0] | l[1] << 16;
    }
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
    for (int i = (int)threadIdx.x; i < chunks * 16; i += THREADS) {
        int t = i % 4, pair = i / 4 % 4, chunk = i / 16;
        uint32_t high[4], low[4];
        pack_eight(high, low, x, have, scale, order, chunk, pair, t);
        uint4 *at =
            to.columns + ((size_t)(chunk * 4 + pair) * (size_t)n_cols + 2 * (size_t)token) * 4 + t;
        at[0] = uint4{high[0], high[1], high[2], high[3]};
        at[4] = uint4{low[0], low[1], low[2], low[3]};
    }
    if (order == PACK_OWNED) {
        for (int i = (int)threadIdx.x; i < chunks * 2; i += THREADS) {
            /* The chunks come in pairs; lane t has groups 2t and 2t + 1 of both. */
            int t = i % 4, pair = i / 4;
            uint32_t high[2], low[2];
            if (pair * 2 >= chunks) break;
            for (int c = 0; c < 2; c++) {
                uint32_t h[2], l[2];
                int k = (pair * 2 + c) * CHUNK + 32 * t;
                for (int half = 0; half < 2; half++)
                    split(sum_of_16(x, have, k + 16 * half, scale) * 0.0625f, &h[half], &l[half]);
                high[c] = h[0] | h[1] << 16;
                low[c] = l[0] | l[1] << 16;
            }
            uint2 *at = to.group_cols + ((size_t)pair * (size_t)n_cols + 2 * (size_t)token) * 4 + t;
            at[0] = uint2{high[0], high[1]};
            at[4] = uint2{low[0], low[1]};
        }
    } else if (token < n) {
        size_t real = (size_t)chunks_of(cols) * (size_t)n;
        for (int chunk = (int)threadIdx.x; chunk < chunks_of(cols); chunk += THREADS) {
            float s[8];
            for (int i = 0; i < 8; i++) {
                s[i] = sum_of_16(x, have, chunk * CHUNK + 16 * i, scale);
                to.sums[(size_t)(chunk * 8 + i) * (size_t)n + token] = s[i];
            }
            float *up = to.sums + 8 * real;
            for (int width = 4; width; width /= 2) {
                for (int i = 0; i < width; i++) {
                    s[i] = s[2 * i] + s[2 * i + 1];
                    up[(size_t)(chunk * width + i) * (size_t)n + token] = s[i];
                }
                up += (size_t)width * real;
            }
        }
    }
}

cudaError_t pack_input(const struct input_room *to, const float *x, int cols, int n,
                       enum pack_order order, cudaStream_t stream) {
    return gpu_launch(pack_kernel, dim3((unsigned)to->n_cols / 2), THREADS, 0, stream, *to, x, cols,
                      n, order);
}
