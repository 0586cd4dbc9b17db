#include "kernels/ref/ref.h"

#include <string.h>

#include "kernels/float16.h"
#include "kernels/ops.h"

enum { ROW_BLOCK = 16 };

static size_t pack_bytes(enum dtype type, int rows, int cols) {
    return (size_t)rows * (size_t)cols * dtype_size(type);
}

static int last_row(int rows, int b1) { return b1 * ROW_BLOCK < rows ? b1 * ROW_BLOCK : rows; }

static void pack(void *dst, enum dtype type, const void *src, int rows, int cols, int b0, int b1) {
    size_t row = (size_t)cols * dtype_size(type), first = (size_t)b0 * ROW_BLOCK;
    size_t n = (size_t)last_row(rows, b1) - first;
    memcpy((char *)dst + first * row, (const char *)src + first * row, n * row);
}

static double element(enum dtype type, const void *data, size_t i) {
    if (type == DTYPE_F32) return (double)((const float *)data)[i];
    uint16_t v = ((const uint16_t *)data)[i];
    return (double)(type == DTYPE_F16 ? f16_to_f32(v) : bf16_to_f32(v));
}

static void mul(float *y, size_t ldy, const void *packed, enum dtype type, int rows, int cols,
                const float *x, size_t ldx, int n, int b0, int b1) {
    for (int r = b0 * ROW_BLOCK; r < last_row(rows, b1); r++) {
        for (int t = 0; t < n; t++) {
            double sum = 0;
            for (int k = 0; k < cols; k++)
                sum += element(type, packed, (size_t)r * (size_t)cols + (size_t)k) *
                       (double)x[(size_t)t * ldx + (size_t)k];
            y[(size_t)t * ldy + (size_t)r] = (float)sum;
        }
    }
}

void ref_dense_init(struct dense_ops *dense) {
    *dense = (struct dense_ops){
        .row_block = ROW_BLOCK, .pack_bytes = pack_bytes, .pack = pack, .mul = mul};
}
