/* whole.h - how matrices of whole numbers are packed, and how their inputs are rounded.
 *
 * Owns      nothing.
 * Borrows   arguments during the call.
 * Thread    any; no state.
 * Fails     never.
 * Cost      stated per function.
 *
 * kernels/whole.h has what all levels do. x is 256 times a high byte plus a low one, both signed.
 *
 * Words are those of 32 rows, vectors with a word for each of 16 rows with four inputs ("a quad", 8
 * in a group), the halves of a panel in turns:
 *   up to 4 bits   quads 2 v and 2 v + 1 in the nibbles of vector v;
 *   5, 6 bits      the same for the low 4 bits; then vectors of 4 quads' high pairs of bits;
 *   7, 8 bits      quad v. */
#ifndef KERNELS_AVX512_WHOLE_H
#define KERNELS_AVX512_WHOLE_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "kernels/avx512/math.h"
#include "kernels/rounding.h"
#include "kernels/whole.h"

enum { WHOLE_LANES = 16, WHOLE_ROWS = 2 * WHOLE_LANES, WHOLE_QUADS = WHOLE_GROUP / 4 };

AVX512_INLINE __m512i whole_vector(const char *words, int v, int half) {
    return _mm512_loadu_si512(words + 64 * (2 * v + half));
}

/* Quad j of sixteen rows; everything but words is a constant. */
AVX512_INLINE __m512i whole_codes(enum whole_form form, const char *words, int half, int j) {
    const __m512i nibble = _mm512_set1_epi8(15);
    if (form == WHOLE_BYTES) return whole_vector(words, j, half);
    __m512i low = whole_vector(words, j / 2, half);
    if (j % 2) low = _mm512_srli_epi16(low, 4);
    if (form == WHOLE_NIBBLES) return _mm512_and_si512(low, nibble);
    __m512i high = whole_vector(words, 4 + j / 4, half);
    int place = 2 * (j % 4);
    high = place < 4 ? _mm512_slli_epi16(high, 4 - place) : _mm512_srli_epi16(high, place - 4);
    high = _mm512_and_si512(high, _mm512_set1_epi8(0x30));
    return _mm512_ternarylogic_epi32(high, low, nibble, 0xf8); /* high | (low & nibble) */
}

/* Scales of sixteen rows. */
AVX512_INLINE __m512 whole_scales(const char *scales, int half) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)(scales + 32 * half)));
}

/* Writes lanes of rows r.. below n_rows. */
AVX512_INLINE void whole_store(float *y, int r, int n_rows, __m512 sum) {
    if (r < n_rows) _mm512_mask_storeu_ps(y + r, avx512_mask((size_t)(n_rows - r)), sum);
}

/* -- Inputs ----------------------------------------------------------------------------------- */

/* Magnitudes are compared as integers: that orders finite values alike, and a NaN wins. */
AVX512_INLINE float whole_largest(__m512 a, __m512 b) {
    __m512i v = _mm512_max_epi32(_mm512_castps_si512(_mm512_abs_ps(a)),
                                 _mm512_castps_si512(_mm512_abs_ps(b)));
    int32_t bits = _mm512_reduce_max_epi32(v);
    float ret;
    memcpy(&ret, &bits, sizeof ret);
    return ret;
}

/* Sixteen numbers to bytes; returns them. */
AVX512_INLINE __m512i whole_split(int8_t *high, int8_t *low, __m512 x, __m512 up, __mmask16 some) {
    /* Inf times 0 is the least integer: nothing of it is used. */
    __m512i v = _mm512_maskz_cvtps_epi32(some, _mm512_mul_ps(x, up));
    __m512i above = _mm512_srai_epi32(_mm512_add_epi32(v, _mm512_set1_epi32(128)), 8);
    _mm_storeu_si128((__m128i *)(void *)high, _mm512_cvtepi32_epi8(above));
    _mm_storeu_si128((__m128i *)(void *)low, _mm512_cvtepi32_epi8(v));
    return v;
}

/* high, low: (WHOLE_GROUP); x: the first n of a group. */
AVX512_INLINE struct whole_factor whole_round(int8_t *high, int8_t *low, const float *x, size_t n) {
    __m512 a = _mm512_maskz_loadu_ps(avx512_mask(n), x);
    __m512 b =
        _mm512_maskz_loadu_ps(avx512_mask(n > WHOLE_LANES ? n - WHOLE_LANES : 0), x + WHOLE_LANES);
    struct rounding r;
    rounding_to(&r, whole_largest(a, b), 32639); /* 127 of both bytes */
    __mmask16 mask = r.up > 0 ? 0xffff : 0;
    __m512 up = _mm512_set1_ps(r.up);
    __m512i v = whole_split(high, low, a, up, mask);
    v = _mm512_add_epi32(v, whole_split(high + WHOLE_LANES, low + WHOLE_LANES, b, up, mask));
    return (struct whole_factor){.scale = r.scale, .sum = _mm512_reduce_add_epi32(v)};
}

/* As ops.h says, for any number of tokens. */
size_t avx512_whole_act_bytes(int act_bits, int cols, int n);
void avx512_whole_act_pack(void *act, int act_bits, const struct bcq_spec *w, const float *x,
                           size_t ldx, int n, int part, int n_parts);
void avx512_whole_mul(float *y, size_t ldy, const void *packed, const struct bcq_spec *w,
                      const void *act, int act_bits, int n, int b0, int b1);

#endif
