/* Products by ordinary instructions: for matrices that no other form takes. A warp has a row; lane l
 * takes inputs l, l + 32, ... in order, and the lanes' sums meet in a fixed tree, whatever the
 * number of tokens. */
#include "kernels/cuda/plain.h"

#include "kernels/cuda/product.cuh"

enum { TOKENS = 8, ROWS_PER_BLOCK = 8 };

static __device__ __forceinline__ float bfloat_value(uint32_t h) {
    return __int_as_float((int)(h << 16));
}

static __device__ __forceinline__ float dense_weight(const void *data, int type, size_t i) {
    if (type == PLAIN_F32) return static_cast<const float *>(data)[i];
    uint32_t h = static_cast<const uint16_t *>(data)[i];
    return type == PLAIN_F16 ? from_half(h) : bfloat_value(h);
}

/* Word (row, plane, k / 32) of the planes, then alphas and beta. */
static __device__ __forceinline__ float coded_weight(const struct plain_matrix &m, int row, int k) {
    size_t words = ((size_t)m.cols + 31) / 32;
    const float *param = m.params + ((size_t)row * (size_t)m.n_groups + (size_t)(k / m.group)) *
                                        (size_t)(m.bits + 1);
    float w = param[m.bits];
    const uint32_t *plane =
        static_cast<const uint32_t *>(m.data) + (size_t)row * (size_t)m.bits * words + k / 32;
    for (int i = 0; i < m.bits; i++)
        w += plane[(size_t)i * words] >> k % 32 & 1u ? param[i] : -param[i];
    return w;
}

static __global__ void __launch_bounds__(ROWS_PER_BLOCK * 32)
    plain_kernel(struct plain_matrix m, struct product p, const float *x, int n) {
    kernel_begin();
    int row = (int)blockIdx.x * ROWS_PER_BLOCK + (int)threadIdx.x / 32;
    int lane = (int)threadIdx.x % 32, first = (int)blockIdx.y * TOKENS;
    bool works = row < p.rows;
    float sum[TOKENS];
    for (int t = 0; t < TOKENS; t++) sum[t] = 0;
    for (int k = lane; works && k < m.cols; k += 32) {
        float w = m.type == PLAIN_CODED
                      ? coded_weight(m, row, k)
                      : dense_weight(m.data, m.type, (size_t)row * (size_t)m.cols + (size_t)k);
#pragma unroll
        for (int t = 0; t < TOKENS; t++)
            if (first + t < n)
                sum[t] = fmaf(w, x[(size_t)(first + t) * (size_t)m.cols + (size_t)k], sum[t]);
    }
#pragma unroll
    for (int t = 0; t < TOKENS; t++) {
        float v = sum[t];
        for (int step = 16; step; step /= 2) v += warp_xor(v, step);
        if (works && lane == t) put(p, n, row, first + t, v);
    }
}

cudaError_t plain_run(const struct plain_matrix *m, const struct product *p, const float *x, int n,
                      cudaStream_t stream) {
    dim3 grid((unsigned)((p->rows + ROWS_PER_BLOCK - 1) / ROWS_PER_BLOCK),
              (unsigned)((n + TOKENS - 1) / TOKENS));
    return gpu_launch(plain_kernel, grid, ROWS_PER_BLOCK * 32, 0, stream, *m, *p, x, n);
}
