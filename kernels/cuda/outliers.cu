/* A thread has a row, sixteen neighbours a block of kernels/sell.h, whose steps they read side by side. Inputs are
 * gathered from where the product's packing has just read them. */
#include "kernels/cuda/finish.cuh"
#include "kernels/cuda/ptx.h"

extern "C" {
#include "kernels/sell.h"
}

enum { THREADS = 128, TOKENS = 4 /* that share each reading of columns and values */ };

template <int FORM>
static __device__ __forceinline__ uint32_t column_at(const struct outliers_matrix &m, uint32_t step,
                                                     uint32_t first, size_t at) {
    if (FORM == SELL_WHOLE) return static_cast<const uint32_t *>(m.columns)[step - first];
    if (FORM == SELL_WIDE) return static_cast<const uint32_t *>(m.columns)[at];
    return static_cast<const uint16_t *>(m.columns)[at];
}

template <int FORM>
static __global__ void __launch_bounds__(THREADS, 8)
    outliers_kernel(struct outliers_matrix m, struct product_end end, const float *x, int cols,
                    int n) {
    kernel_begin();
    int row = (int)(blockIdx.x * THREADS + threadIdx.x), token = (int)blockIdx.y * TOKENS;
    if (row >= end.rows) return;
    uint32_t first = m.starts[row / SELL_ROWS], last = m.starts[row / SELL_ROWS + 1];
    float sum[TOKENS];
#pragma unroll
    for (int t = 0; t < TOKENS; t++) sum[t] = 0;
    for (uint32_t step = first; step < last; step++) {
        size_t at = (size_t)step * SELL_ROWS + (size_t)(row % SELL_ROWS);
        const float *input = x + (size_t)token * (size_t)cols + column_at<FORM>(m, step, first, at);
        float value = from_half(m.values[at]);
#pragma unroll
        for (int t = 0; t < TOKENS; t++)
            if (token + t < n) sum[t] = fmaf(value, input[(size_t)t * (size_t)cols], sum[t]);
    }
#pragma unroll
    for (int t = 0; t < TOKENS; t++)
        if (token + t < n) finish(end, token + t, row, sum[t]);
}

cudaError_t outliers_run(const struct outliers_matrix *m, const struct product_end *end,
                         const float *x, int cols, int n, cudaStream_t stream) {
    static void (*const kernels[])(struct outliers_matrix, struct product_end, const float *, int,
                                   int) = {outliers_kernel<SELL_NARROW>, outliers_kernel<SELL_WIDE>,
                                           outliers_kernel<SELL_WHOLE>};
    dim3 grid((unsigned)((end->rows + THREADS - 1) / THREADS),
              (unsigned)((n + TOKENS - 1) / TOKENS));
    return gpu_launch(kernels[m->form], grid, THREADS, 0, stream, *m, *end, x, cols, n);
}
