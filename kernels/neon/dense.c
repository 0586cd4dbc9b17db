#include <arm_neon.h>
#include <stddef.h>
#include <string.h>

#include "kernels/neon/math.h"
#include "kernels/neon/neon.h"
#include "kernels/ops.h"

/* Packed form: panels of 16 rows, k by k, in their stored type. Every output is one chain of
 * multiply-adds over k = 0, 1, 2..., whichever way it is computed: a token's result is the same
 * bits alone and in a batch.
 *
 * One token: two panels side by side make eight chains, which hide the latency of an addition.
 * More: 4 tokens x 16 rows of sums in registers. */
enum { ROWS = NEON_PANEL, TOKENS = 4 };

#define INLINE static inline __attribute__((always_inline))

static size_t panel_bytes(enum dtype type, int cols) {
    return (size_t)cols * ROWS * dtype_size(type);
}

static size_t pack_bytes(enum dtype type, int rows, int cols) {
    return ((size_t)rows + ROWS - 1) / ROWS * panel_bytes(type, cols);
}

/* Transposes row by row; size is a constant in each use. */
INLINE void pack_panel(char *dst, const char *src, int n_rows, size_t cols, size_t size) {
    for (int r = 0; r < n_rows; r++)
        for (size_t k = 0; k < cols; k++)
            memcpy(dst + (k * ROWS + (size_t)r) * size, src + ((size_t)r * cols + k) * size, size);
}

static void pack(void *dst, enum dtype type, const void *src, int rows, int cols, int b0, int b1) {
    for (int b = b0; b < b1; b++) {
        int r0 = b * ROWS, n_rows = rows - r0 < ROWS ? rows - r0 : ROWS;
        char *to = (char *)dst + (size_t)b * panel_bytes(type, cols);
        const char *from = (const char *)src + (size_t)r0 * (size_t)cols * dtype_size(type);
        if (type == DTYPE_F32)
            pack_panel(to, from, n_rows, (size_t)cols, 4);
        else
            pack_panel(to, from, n_rows, (size_t)cols, 2);
    }
}

/* Four weights from index i of the packed form. */
INLINE float32x4_t load(enum dtype type, const char *w, size_t i) {
    if (type == DTYPE_F32) return vld1q_f32((const float *)(const void *)w + i);
    uint16x4_t v = vld1_u16((const uint16_t *)(const void *)w + i);
    if (type == DTYPE_F16) return vcvt_f32_f16(vreinterpret_f16_u16(v));
    return vreinterpretq_f32_u32(vshll_n_u16(v, 16));
}

struct call {
    float *y;
    size_t ldy;
    const char *packed;
    int rows, cols;
    const float *x;
    size_t ldx;
    int n, b0, b1;
};

/* n_panels panels from block b against n tokens from t; both are constants in each use. */
INLINE void tile(const struct call *c, enum dtype type, int b, int t, int n_panels, int n) {
    const size_t panel = panel_bytes(type, c->cols), step = ROWS * dtype_size(type);
    const char *w = c->packed + (size_t)b * panel;
    float32x4_t sum[2 * TOKENS][4];
#pragma GCC unroll 8
    for (int i = 0; i < n_panels * n; i++)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) sum[i][j] = vdupq_n_f32(0);
    for (int k = 0; k < c->cols; k++, w += step) {
#pragma GCC unroll 2
        for (int p = 0; p < n_panels; p++) {
            float32x4_t v[4];
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) v[j] = load(type, w + (size_t)p * panel, 4 * (size_t)j);
#pragma GCC unroll 4
            for (int i = 0; i < n; i++) {
                const float x = c->x[(size_t)(t + i) * c->ldx + (size_t)k];
#pragma GCC unroll 4
                for (int j = 0; j < 4; j++)
                    sum[p * n + i][j] = vfmaq_n_f32(sum[p * n + i][j], v[j], x);
            }
        }
    }
    for (int p = 0; p < n_panels; p++)
        for (int i = 0; i < n; i++) {
            int r0 = (b + p) * ROWS;
            neon_store_rows(c->y + (size_t)(t + i) * c->ldy + r0, sum[p * n + i], c->rows - r0);
        }
}

INLINE void mul_type(const struct call *c, enum dtype type) {
    int b = c->b0;
    for (; c->n == 1 && b + 2 <= c->b1; b += 2) tile(c, type, b, 0, 2, 1);
    for (; b < c->b1; b++) {
        int t = 0;
        for (; t + TOKENS <= c->n; t += TOKENS) tile(c, type, b, t, 1, TOKENS);
        for (; t < c->n; t++) tile(c, type, b, t, 1, 1);
    }
}

static void mul(float *y, size_t ldy, const void *packed, enum dtype type, int rows, int cols,
                const float *x, size_t ldx, int n, int b0, int b1) {
    const struct call call = {y, ldy, packed, rows, cols, x, ldx, n, b0, b1};
    if (type == DTYPE_F32)
        mul_type(&call, DTYPE_F32);
    else if (type == DTYPE_F16)
        mul_type(&call, DTYPE_F16);
    else
        mul_type(&call, DTYPE_BF16);
}

void neon_dense_init(struct dense_ops *dense) {
    *dense =
        (struct dense_ops){.row_block = ROWS, .pack_bytes = pack_bytes, .pack = pack, .mul = mul};
}
