/* Sums of sixteen rows in one register: columns and values of a step are read once for up to four
 * tokens. Rows past the last of the matrix have no entries and are masked out. */
#include <immintrin.h>
#include <stdbool.h>

#include "kernels/avx512/avx512.h"
#include "kernels/avx512/math.h"
#include "kernels/ops.h"
#include "kernels/sell.h"

#define INLINE static inline __attribute__((always_inline))

INLINE __m512i columns_at(const void *columns, size_t at, bool wide) {
    if (wide) return _mm512_loadu_si512((const uint32_t *)columns + at);
    return _mm512_cvtepu16_epi32(
        _mm256_loadu_si256((const __m256i *)(const void *)((const uint16_t *)columns + at)));
}

INLINE void add_block(float *y, size_t ldy, const struct sell *s, const float *x, size_t ldx, int n,
                      int block, int n_rows, enum sell_form form) {
    const void *columns = sell_columns(s);
    const uint16_t *values = sell_values(s);
    const __mmask16 rows = avx512_mask((size_t)n_rows);
    __m512 sum[SELL_TOKENS];
    for (int t = 0; t < n; t++) sum[t] = _mm512_setzero_ps();
    for (size_t i = s->starts[block]; i < s->starts[block + 1]; i++) {
        __m512i column = _mm512_setzero_si512();
        uint32_t one = 0;
        if (form == SELL_WHOLE)
            one = ((const uint32_t *)columns)[i - s->starts[block]];
        else
            column = columns_at(columns, i * SELL_ROWS, form == SELL_WIDE);
        __m512 value = _mm512_cvtph_ps(
            _mm256_loadu_si256((const __m256i *)(const void *)(values + i * SELL_ROWS)));
        for (int t = 0; t < n; t++) {
            const float *from = x + (size_t)t * ldx;
            __m512 v = form == SELL_WHOLE ? _mm512_set1_ps(from[one])
                                          : _mm512_i32gather_ps(column, from, 4);
            sum[t] = _mm512_fmadd_ps(value, v, sum[t]);
        }
    }
    for (int t = 0; t < n; t++) {
        float *to = y + (size_t)t * ldy;
        _mm512_mask_storeu_ps(to, rows, _mm512_add_ps(_mm512_maskz_loadu_ps(rows, to), sum[t]));
    }
}

static void add(float *y, size_t ldy, const void *packed, const float *x, size_t ldx, int n, int r0,
                int r1) {
    sell_add(y, ldy, packed, x, ldx, n, r0, r1, add_block);
}

void avx512_outliers_init(struct ops *ops) { ops->outliers_add = add; }
