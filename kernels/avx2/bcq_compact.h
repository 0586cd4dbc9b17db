/* bcq_compact.h - reads the packed form of compact matrices and writes their products.
 *
 * Owns      nothing.
 * Borrows   arguments during the call.
 * Thread    any; no state.
 * Fails     never.
 * Cost      a few instructions each.
 *
 * bcq_compact.c looks sums up, bcq_tile.c multiplies expanded weights: the same integers, and
 * after them the same operations on floats. */
#ifndef KERNELS_AVX2_BCQ_COMPACT_H
#define KERNELS_AVX2_BCQ_COMPACT_H

#include "kernels/avx2/bcq.h"

/* Where p begins in the bytes of a span; a quarter is 32 inputs. */
enum {
    AVX2_COMPACT_P = 128,
    AVX2_COMPACT_P_LAST = 256,
    AVX2_COMPACT_QUARTERS = 4,
    AVX2_COMPACT_COLUMNS = 4
};

/* q and p of rows 8k..8k+7, of a quarter's two groups in the words of a 32-bit lane. */
AVX2_INLINE __m256i avx2_compact_q(const uint8_t *meta, int k, int quarter) {
    return _mm256_and_si256(
        _mm256_srlv_epi32(avx2_bcq_load(meta + 32 * k), _mm256_set1_epi32(4 * quarter)),
        _mm256_set1_epi32(0x000f000f));
}

AVX2_INLINE __m256i avx2_compact_p(const uint8_t *meta, int k, int quarter) {
    __m256i v = avx2_bcq_load(meta + AVX2_COMPACT_P + 32 * k);
    switch (quarter) {
    case 0:
        return _mm256_srai_epi16(v, 11);
    case 1:
        return _mm256_srai_epi16(_mm256_slli_epi16(v, 5), 11);
    case 2:
        return _mm256_srai_epi16(_mm256_slli_epi16(v, 10), 11);
    default:
        return _mm256_cvtepi8_epi16(
            _mm_load_si128((const void *)(meta + AVX2_COMPACT_P_LAST + 16 * k)));
    }
}

/* y = s0/2 * ya + s1 * yb for the rows that there are. */
AVX2_INLINE void avx2_compact_store(const struct avx2_bcq_mul *c, int b, int token,
                                    const uint8_t *scales, const float *ya, const float *yb) {
    _Alignas(32) float rows[AVX2_BCQ_ROWS];
    for (int k = 0; k < 4; k++) {
        __m256 s0 = _mm256_cvtph_ps(_mm_load_si128((const void *)(scales + 16 * k)));
        __m256 s1 = _mm256_cvtph_ps(_mm_load_si128((const void *)(scales + 64 + 16 * k)));
        __m256 t =
            _mm256_mul_ps(_mm256_mul_ps(s0, _mm256_set1_ps(0.5f)), _mm256_load_ps(ya + 8 * k));
        _mm256_store_ps(rows + 8 * k, _mm256_fmadd_ps(s1, _mm256_load_ps(yb + 8 * k), t));
    }
    int row0 = b * AVX2_BCQ_ROWS;
    avx2_bcq_store(c->y + (size_t)token * c->ldy + row0, rows, c->w->rows - row0);
}

/* Quarters of 32 inputs in a span. */
AVX2_INLINE int avx2_compact_quarters(const struct bcq_spec *w, int span) {
    return avx2_bcq_min((w->cols - span * AVX2_BCQ_SPAN + 31) / 32, AVX2_COMPACT_QUARTERS);
}

#endif
