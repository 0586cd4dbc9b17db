/* A block has a token, its row in shared memory. Three stages of the transform at a time are done in registers, so
 * that the block meets once for them; a small matrix between segments, where there is one, is applied on the way out. */
#include "kernels/cuda/finish.cuh"

enum { THREADS = 512 };

static __device__ __forceinline__ float with_sign(const struct rotate_matrix &r, int i, float v) {
    return r.signs[i / 32] >> i % 32 & 1u ? -v : v;
}

/* The stages of half, 2 half, .. R / 2 half: R elements at a distance of half become R others. */
template <int R> static __device__ __forceinline__ void stages(float *row, int n, int half) {
    for (int i = (int)threadIdx.x; i < n / R; i += THREADS) {
        int at = i / half * half * R + i % half;
        float v[R];
#pragma unroll
        for (int j = 0; j < R; j++) v[j] = row[rotate_place(at + j * half)];
#pragma unroll
        for (int step = 1; step < R; step *= 2)
#pragma unroll
            for (int j = 0; j < R; j++)
                if (!(j & step)) {
                    float a = v[j], b = v[j + step];
                    v[j] = a + b;
                    v[j + step] = a - b;
                }
#pragma unroll
        for (int j = 0; j < R; j++) row[rotate_place(at + j * half)] = v[j];
    }
    block_sync();
}

static __device__ void transform(float *row, int n, int length) {
    int half = 1;
    for (; half * 8 <= length; half *= 8) stages<8>(row, n, half);
    if (half * 4 == length) stages<4>(row, n, half);
    if (half * 2 == length) stages<2>(row, n, half);
}

/* Element i of the row after the small matrix. */
template <bool BACK>
static __device__ __forceinline__ float mixed(const struct rotate_matrix &r, const float *row,
                                              int i) {
    if (r.order == 1) return row[rotate_place(i)];
    int a = i / r.length, at = i % r.length;
    float sum = 0;
    for (int c = 0; c < r.order; c++)
        sum = fmaf(r.basis[BACK ? c * r.order + a : a * r.order + c],
                   row[rotate_place(c * r.length + at)], sum);
    return sum;
}

template <bool BACK>
static __global__ void __launch_bounds__(THREADS)
    rotate_kernel(struct rotate_matrix r, struct product_end end, const float *x) {
    SHARED_DYNAMIC(float, row);
    kernel_begin();
    int token = (int)blockIdx.x;
    x += (size_t)token * (size_t)r.n;
    for (int i = (int)threadIdx.x; i < r.n; i += THREADS)
        row[rotate_place(i)] = (BACK ? x[i] : with_sign(r, i, x[i])) * r.scale;
    block_sync();
    transform(row, r.n, r.length);
    for (int i = (int)threadIdx.x; i < r.n; i += THREADS) {
        float v = mixed<BACK>(r, row, i);
        finish(end, token, i, BACK ? with_sign(r, i, v) : v);
    }
}

cudaError_t rotate_run(const struct rotate_matrix *r, bool back, const struct product_end *end,
                       const float *x, int n, cudaStream_t stream) {
    return gpu_launch(back ? rotate_kernel<true> : rotate_kernel<false>, dim3((unsigned)n), THREADS,
                      rotate_shared(r->n), stream, *r, *end, x);
}
