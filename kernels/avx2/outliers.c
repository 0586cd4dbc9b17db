/* Sums of eight rows in one register: columns and values of a step are read once for up to four
 * tokens. Rows past the last of the matrix have no entries and are left alone. */
#include <immintrin.h>
#include <stdbool.h>

#include "kernels/avx2/avx2.h"
#include "kernels/ops.h"
#include "kernels/sell.h"

enum { LANES = 8 };

#define INLINE static inline __attribute__((always_inline))

INLINE __m256i columns_at(const void *columns, size_t at, bool wide) {
    if (wide)
        return _mm256_loadu_si256((const __m256i *)(const void *)((const uint32_t *)columns + at));
    return _mm256_cvtepu16_epi32(
        _mm_loadu_si128((const __m128i *)(const void *)((const uint16_t *)columns + at)));
}

/* y += sum in the first n of eight rows. */
INLINE void keep(float *y, __m256 sum, int n) {
    if (n >= LANES) {
        _mm256_storeu_ps(y, _mm256_add_ps(_mm256_loadu_ps(y), sum));
        return;
    }
    float rows[LANES];
    _mm256_storeu_ps(rows, sum);
    for (int i = 0; i < n; i++) y[i] += rows[i];
}

enum form { NARROW, WIDE, WHOLE };

/* Half of a block: rows half * 8 and on of it, n_rows of them in the matrix. */
INLINE void add_half(float *y, size_t ldy, const struct sell *s, const float *x, size_t ldx, int n,
                     int block, int half, int n_rows, enum form form) {
    const void *columns = sell_columns(s);
    const uint16_t *values = sell_values(s);
    __m256 sum[4];
    for (int t = 0; t < n; t++) sum[t] = _mm256_setzero_ps();
    for (size_t i = s->starts[block]; i < s->starts[block + 1]; i++) {
        size_t at = i * SELL_ROWS + (size_t)half * LANES;
        __m256i column = _mm256_setzero_si256();
        uint32_t one = 0;
        if (form == WHOLE)
            one = ((const uint32_t *)columns)[i - s->starts[block]];
        else
            column = columns_at(columns, at, form == WIDE);
        __m256 value =
            _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(values + at)));
        for (int t = 0; t < n; t++) {
            const float *from = x + (size_t)t * ldx;
            __m256 v =
                form == WHOLE ? _mm256_set1_ps(from[one]) : _mm256_i32gather_ps(from, column, 4);
            sum[t] = _mm256_fmadd_ps(value, v, sum[t]);
        }
    }
    for (int t = 0; t < n; t++)
        keep(y + (size_t)t * ldy + block * SELL_ROWS + half * LANES, sum[t], n_rows);
}

INLINE void add_blocks(float *y, size_t ldy, const struct sell *s, const float *x, size_t ldx,
                       int n, int r0, int r1, enum form form) {
    for (int b = r0 / SELL_ROWS; b * SELL_ROWS < r1; b++) {
        if (s->starts[b] == s->starts[b + 1]) continue;
        for (int half = 0; half < 2 && b * SELL_ROWS + half * LANES < r1; half++) {
            int t = 0, n_rows = r1 - b * SELL_ROWS - half * LANES;
            for (; t + 4 <= n; t += 4)
                add_half(y + (size_t)t * ldy, ldy, s, x + (size_t)t * ldx, ldx, 4, b, half, n_rows,
                         form);
            for (; t < n; t++)
                add_half(y + (size_t)t * ldy, ldy, s, x + (size_t)t * ldx, ldx, 1, b, half, n_rows,
                         form);
        }
    }
}

static void add(float *y, size_t ldy, const void *packed, const float *x, size_t ldx, int n, int r0,
                int r1) {
    const struct sell *s = packed;
    if (s->whole)
        add_blocks(y, ldy, s, x, ldx, n, r0, r1, WHOLE);
    else if (s->is_wide)
        add_blocks(y, ldy, s, x, ldx, n, r0, r1, WIDE);
    else
        add_blocks(y, ldy, s, x, ldx, n, r0, r1, NARROW);
}

void avx2_outliers_init(struct ops *ops) { ops->outliers_add = add; }
