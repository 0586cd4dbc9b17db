#include "kernels/float16.h"
#include "kernels/ops.h"
#include "kernels/ref/ref.h"
#include "kernels/sell.h"

/* Of the i-th step of a block, or of the lane that is the at-th of all. */
static uint32_t column_of(const struct sell *s, size_t i, size_t at) {
    const void *columns = sell_columns(s);
    if (s->whole) return ((const uint32_t *)columns)[i];
    return s->is_wide ? ((const uint32_t *)columns)[at] : ((const uint16_t *)columns)[at];
}

static double row_sum(const struct sell *s, int row, const float *x) {
    double sum = 0;
    size_t lane = (size_t)(row % SELL_ROWS);
    size_t first = s->starts[row / SELL_ROWS];
    for (size_t i = first; i < s->starts[row / SELL_ROWS + 1]; i++) {
        size_t at = i * SELL_ROWS + lane;
        sum += (double)f16_to_f32(sell_values(s)[at]) * (double)x[column_of(s, i - first, at)];
    }
    return sum;
}

static void add(float *y, size_t ldy, const void *packed, const float *x, size_t ldx, int n, int r0,
                int r1) {
    const struct sell *s = packed;
    for (int t = 0; t < n; t++)
        for (int r = r0; r < r1; r++) {
            float *to = y + (size_t)t * ldy + r;
            *to = (float)((double)*to + row_sum(s, r, x + (size_t)t * ldx));
        }
}

void ref_outliers_init(struct ops *ops) { ops->outliers_add = add; }
