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

/* Half of a block: y is its first row, n_rows of which are in the matrix. */
INLINE void add_half(float *y, size_t ldy, const struct sell *s, const float *x, size_t ldx, int n,
                     int block, int half, int n_rows, enum sell_form form) {
    const void *columns = sell_columns(s);
    const uint16_t *values = sell_values(s);
    __m256 sum[SELL_TOKENS];
    for (int t = 0; t < n; t++) sum[t] = _mm256_setzero_ps();
    for (size_t i = s->starts[block]; i < s->starts[block + 1]; i++) {
        size_t at = i * SELL_ROWS + (size_t)half * LANES;
        __m256i column = _mm256_setzero_si256();
        uint32_t one = 0;
        if (form == SELL_WHOLE)
            one = ((const uint32_t *)columns)[i - s->starts[block]];
        else
            column = columns_at(columns, at, form == SELL_WIDE);
        __m256 value =
            _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(values + at)));
        for (int t = 0; t < n; t++) {
            const float *from = x + (size_t)t * ldx;
            __m256 v = form == SELL_WHOLE ? _mm256_set1_ps(from[one])
                                          : _mm256_i32gather_ps(from, column, 4);
            sum[t] = _mm256_fmadd_ps(value, v, sum[t]);
        }
    }
    for (int t = 0; t < n; t++) keep(y + (size_t)t * ldy, sum[t], n_rows);
}

INLINE void add_block(float *y, size_t ldy, const struct sell *s, const float *x, size_t ldx, int n,
                      int block, int n_rows, enum sell_form form) {
    for (int half = 0; half < 2 && half * LANES < n_rows; half++)
        add_half(y + half * LANES, ldy, s, x, ldx, n, block, half, n_rows - half * LANES, form);
}

static void add(float *y, size_t ldy, const void *packed, const float *x, size_t ldx, int n, int r0,
                int r1) {
    sell_add(y, ldy, packed, x, ldx, n, r0, r1, add_block);
}

void avx2_outliers_init(struct ops *ops) { ops->outliers_add = add; }
