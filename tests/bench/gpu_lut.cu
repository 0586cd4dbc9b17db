#include "tests/bench/gpu_lut.h"

#include "kernels/cuda/ptx.h"

enum { THREADS = 256, KEYS = GPU_LUT_GROUP / 8, ENTRIES = 256, HALF_ENTRIES = 16 };

/* Entry e of half h of a key: the sum of its four inputs, each with its bit's sign. */
static __device__ __forceinline__ float quad(const float *x, int e) {
    float sum = 0;
#pragma unroll
    for (int j = 0; j < 4; j++) sum += e >> j & 1 ? x[j] : -x[j];
    return sum;
}

/* The tables of a tile: halves of 16 entries first, an entry of 256 is the sum of one of each. */
static __device__ void make_tables(float *table, float *half, float *x, float *total,
                                   const float *from) {
    int t = (int)threadIdx.x;
    if (t < GPU_LUT_GROUP) x[t] = from[t];
    block_sync();
    for (int i = t; i < KEYS * 2 * HALF_ENTRIES; i += THREADS)
        half[i] = quad(x + i / HALF_ENTRIES * 4, i % HALF_ENTRIES);
    if (t == 0) {
        float sum = 0;
        for (int k = 0; k < GPU_LUT_GROUP; k++) sum += x[k];
        *total = sum;
    }
    block_sync();
    for (int key = 0; key < KEYS; key++) {
        const float *low = half + key * 2 * HALF_ENTRIES;
        table[key * ENTRIES + t] = low[t % HALF_ENTRIES] + low[HALF_ENTRIES + t / HALF_ENTRIES];
    }
    block_sync();
}

template <int BITS>
static __device__ __forceinline__ float row_part(const struct gpu_lut_matrix &m, int row, int group,
                                                 const float *table, float total) {
    const size_t rows = (size_t)m.rows;
    const uint32_t *word = m.planes + (size_t)group * 4 * BITS * rows + (size_t)row;
    const uint16_t *param = m.params + (size_t)group * (BITS + 1) * rows + (size_t)row;
    uint32_t keys[4 * BITS];
#pragma unroll
    for (int i = 0; i < 4 * BITS; i++) keys[i] = load_once(word + (size_t)i * rows);
    float y = from_half(param[BITS * rows]) * total;
#pragma unroll
    for (int plane = 0; plane < BITS; plane++) {
        float sum = 0;
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int byte = 0; byte < 4; byte++)
                sum += table[(4 * i + byte) * ENTRIES +
                             (int)(keys[i * BITS + plane] >> 8 * byte & 255u)];
        y = fmaf(from_half(param[(size_t)plane * rows]), sum, y);
    }
    return y;
}

/* A block has GPU_LUT_ROWS rows of one group of inputs. */
template <int BITS>
static __global__ void __launch_bounds__(THREADS)
    lut_kernel(struct gpu_lut_matrix m, const float *x, float *parts) {
    SHARED_ARRAY(float, table, KEYS *ENTRIES);
    SHARED_ARRAY(float, half, KEYS * 2 * HALF_ENTRIES);
    SHARED_ARRAY(float, inputs, GPU_LUT_GROUP);
    SHARED_ARRAY(float, total, 1);
    kernel_begin();
    int group = (int)blockIdx.y, first = (int)blockIdx.x * GPU_LUT_ROWS;
    make_tables(table, half, inputs, total, x + (size_t)group * GPU_LUT_GROUP);
    for (int row = first + (int)threadIdx.x; row < first + GPU_LUT_ROWS && row < m.rows;
         row += THREADS)
        parts[(size_t)group * (size_t)m.rows + (size_t)row] =
            row_part<BITS>(m, row, group, table, *total);
}

static __global__ void __launch_bounds__(THREADS)
    add_kernel(const float *parts, float *y, int rows, int n_groups) {
    kernel_begin();
    int row = (int)(blockIdx.x * THREADS + threadIdx.x);
    if (row >= rows) return;
    float sum = 0;
    for (int g = 0; g < n_groups; g++) sum += parts[(size_t)g * (size_t)rows + (size_t)row];
    y[row] = sum;
}

cudaError_t gpu_lut_run(const struct gpu_lut_matrix *m, const float *x, float *parts, float *y,
                        cudaStream_t stream) {
    static void (*const kernels[])(struct gpu_lut_matrix, const float *, float *) = {
        lut_kernel<1>, lut_kernel<2>, lut_kernel<3>, lut_kernel<4>};
    dim3 grid((unsigned)((m->rows + GPU_LUT_ROWS - 1) / GPU_LUT_ROWS), (unsigned)m->n_groups);
    cudaError_t code = gpu_launch(kernels[m->bits - 1], grid, THREADS, 0, stream, *m, x, parts);
    if (code != cudaSuccess) return code;
    return gpu_launch(add_kernel, dim3((unsigned)((m->rows + THREADS - 1) / THREADS)), THREADS, 0,
                      stream, static_cast<const float *>(parts), y, m->rows, m->n_groups);
}
