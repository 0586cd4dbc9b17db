#include "kernels/cuda/elementwise.h"

#include "kernels/cuda/plain.h"
#include "kernels/cuda/ptx.h"

enum { THREADS = 256 };

static dim3 blocks_for(size_t n) {
    size_t blocks = (n + THREADS - 1) / THREADS;
    return dim3((unsigned)(blocks < 4096 ? blocks : 4096));
}

static __device__ __forceinline__ float table_value(const void *table, int type, size_t i) {
    if (type == PLAIN_F32) return static_cast<const float *>(table)[i];
    uint32_t h = static_cast<const uint16_t *>(table)[i];
    return type == PLAIN_F16 ? from_half(h) : __int_as_float((int)(h << 16));
}

static __global__ void __launch_bounds__(THREADS) embed_kernel(struct embed_args a) {
    kernel_begin();
    size_t row = (size_t)(a.ids[blockIdx.x] + a.offset) * (size_t)a.cols;
    float *dst = a.dst + (size_t)blockIdx.x * (size_t)a.cols;
    for (int i = (int)threadIdx.x; i < a.cols; i += THREADS) {
        float v = __fmul_rn(table_value(a.table, a.type, row + (size_t)i), a.scale);
        dst[i] = a.accumulate ? dst[i] + v : v;
    }
}

cudaError_t embed_run(const struct embed_args *args, int n, cudaStream_t stream) {
    return gpu_launch(embed_kernel, dim3((unsigned)n), THREADS, 0, stream, *args);
}

/* In double: a float's angle is off by whole turns at long contexts. */
static __global__ void __launch_bounds__(THREADS)
    angles_kernel(float *angles, const int32_t *positions, const double *inv_freq, int n_freq,
                  float scale, int n) {
    kernel_begin();
    int i = (int)(blockIdx.x * THREADS + threadIdx.x);
    if (i >= n * n_freq) return;
    int token = i / n_freq, f = i % n_freq;
    double sine, cosine;
    sincos((double)positions[token] * inv_freq[f], &sine, &cosine);
    float *row = angles + (size_t)token * 2 * (size_t)n_freq;
    row[f] = (float)(cosine * (double)scale);
    row[f + n_freq] = (float)(sine * (double)scale);
}

cudaError_t rope_angles(float *angles, const int32_t *positions, const double *inv_freq, int n_freq,
                        float scale, int n, cudaStream_t stream) {
    dim3 grid((unsigned)((n * n_freq + THREADS - 1) / THREADS));
    return gpu_launch(angles_kernel, grid, THREADS, 0, stream, angles, positions, inv_freq, n_freq,
                      scale, n);
}

static __global__ void __launch_bounds__(THREADS)
    rope_kernel(float *x, const float *angles, int n_heads, int head_dim, int n_freq) {
    kernel_begin();
    const float *row = angles + (size_t)blockIdx.x * 2 * (size_t)n_freq;
    x += (size_t)blockIdx.x * (size_t)n_heads * (size_t)head_dim;
    for (int i = (int)threadIdx.x; i < n_heads * n_freq; i += THREADS) {
        int f = i % n_freq;
        float *at = x + (size_t)(i / n_freq) * (size_t)head_dim + f;
        float a = at[0], b = at[n_freq], c = row[f], s = row[f + n_freq];
        at[0] = fmaf(a, c, -b * s);
        at[n_freq] = fmaf(b, c, a * s);
    }
}

cudaError_t rope_run(float *x, const float *angles, int n_heads, int head_dim, int n_freq, int n,
                     cudaStream_t stream) {
    return gpu_launch(rope_kernel, dim3((unsigned)n), THREADS, 0, stream, x, angles, n_heads,
                      head_dim, n_freq);
}

static __global__ void __launch_bounds__(THREADS)
    add_kernel(float *dst, const float *src, size_t n) {
    kernel_begin();
    for (size_t i = blockIdx.x * (size_t)THREADS + threadIdx.x; i < n;
         i += (size_t)gridDim.x * THREADS)
        dst[i] += src[i];
}

cudaError_t add_run(float *dst, const float *src, size_t n, cudaStream_t stream) {
    return gpu_launch(add_kernel, blocks_for(n), THREADS, 0, stream, dst, src, n);
}

static __global__ void __launch_bounds__(THREADS)
    gather_kernel(float *dst, const float *src, const int32_t *rows, int width) {
    kernel_begin();
    src += (size_t)rows[blockIdx.x] * (size_t)width;
    dst += (size_t)blockIdx.x * (size_t)width;
    for (int i = (int)threadIdx.x; i < width; i += THREADS) dst[i] = src[i];
}

cudaError_t gather_run(float *dst, const float *src, const int32_t *rows, int n_rows, int width,
                       cudaStream_t stream) {
    return gpu_launch(gather_kernel, dim3((unsigned)n_rows), THREADS, 0, stream, dst, src, rows,
                      width);
}
