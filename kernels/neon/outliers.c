/* Sums of sixteen rows in four registers: columns and values of a step are read once for up to four
 * tokens, whose inputs are gathered one by one. Rows past the last of the matrix have no entries and
 * are left alone. */
#include <arm_neon.h>
#include <stdbool.h>

#include "kernels/neon/math.h"
#include "kernels/neon/neon.h"
#include "kernels/ops.h"
#include "kernels/sell.h"

enum { LANES = 4, VECTORS = SELL_ROWS / LANES };

NEON_INLINE uint32_t column_at(const void *columns, size_t at, bool wide) {
    return wide ? ((const uint32_t *)columns)[at] : ((const uint16_t *)columns)[at];
}

/* x at the columns of four rows, the first of which is the at-th of all. */
NEON_INLINE float32x4_t gather(const float *x, const void *columns, size_t at, bool wide) {
    float32x4_t v = vld1q_dup_f32(x + column_at(columns, at, wide));
    v = vld1q_lane_f32(x + column_at(columns, at + 1, wide), v, 1);
    v = vld1q_lane_f32(x + column_at(columns, at + 2, wide), v, 2);
    return vld1q_lane_f32(x + column_at(columns, at + 3, wide), v, 3);
}

/* y += sum in the first n_rows of a block, all if there are more. */
NEON_INLINE void add_rows(float *y, const float32x4_t sum[VECTORS], int n_rows) {
    if (n_rows >= SELL_ROWS) {
        NEON_UNROLL for (int k = 0; k < VECTORS; k++)
            vst1q_f32(y + k * LANES, vaddq_f32(vld1q_f32(y + k * LANES), sum[k]));
        return;
    }
    float rows[SELL_ROWS];
    NEON_UNROLL for (int k = 0; k < VECTORS; k++) vst1q_f32(rows + k * LANES, sum[k]);
    for (int r = 0; r < n_rows; r++) y[r] += rows[r];
}

NEON_INLINE void add_block(float *y, size_t ldy, const struct sell *s, const float *x, size_t ldx,
                           int n, int block, int n_rows, enum sell_form form) {
    const void *columns = sell_columns(s);
    float32x4_t sum[SELL_TOKENS][VECTORS];
    NEON_UNROLL for (int t = 0; t < n; t++) {
        NEON_UNROLL for (int k = 0; k < VECTORS; k++) sum[t][k] = vdupq_n_f32(0);
    }
    for (size_t i = s->starts[block]; i < s->starts[block + 1]; i++) {
        const size_t one = i - s->starts[block];
        NEON_UNROLL for (int k = 0; k < VECTORS; k++) {
            const size_t at = i * SELL_ROWS + (size_t)(k * LANES);
            const uint16x4_t half = vld1_u16(sell_values(s) + at);
            const float32x4_t value = vcvt_f32_f16(vreinterpret_f16_u16(half));
            NEON_UNROLL for (int t = 0; t < n; t++) {
                const float *from = x + (size_t)t * ldx;
                float32x4_t v = form == SELL_WHOLE
                                    ? vld1q_dup_f32(from + column_at(columns, one, true))
                                    : gather(from, columns, at, form == SELL_WIDE);
                sum[t][k] = vfmaq_f32(sum[t][k], value, v);
            }
        }
    }
    NEON_UNROLL for (int t = 0; t < n; t++) add_rows(y + (size_t)t * ldy, sum[t], n_rows);
}

static void add(float *y, size_t ldy, const void *packed, const float *x, size_t ldx, int n, int r0,
                int r1) {
    sell_add(y, ldy, packed, x, ldx, n, r0, r1, add_block);
}

void neon_outliers_init(struct ops *ops) { ops->outliers_add = add; }
