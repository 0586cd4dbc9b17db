/* math.h - small functions on vectors of sixteen floats.
 *
 * Owns      nothing.
 * Borrows   nothing.
 * Thread    any.
 * Fails     never; NaN stays NaN.
 * Cost      avx512_exp() about 12 operations.
 *
 * A loop handles its last elements with the same instructions as the others, under a mask, so
 * that an element's result does not depend on its place. */
#ifndef KERNELS_AVX512_MATH_H
#define KERNELS_AVX512_MATH_H

#include <immintrin.h>
#include <stddef.h>

#define AVX512_INLINE static inline __attribute__((always_inline))

/* Accumulators stay in registers only where every loop over them is unrolled. */
#ifdef __clang__
#define AVX512_UNROLL _Pragma("clang loop unroll(full)")
#else
#define AVX512_UNROLL _Pragma("GCC unroll 16")
#endif

/* The first n of sixteen lanes; all for n >= 16. */
static inline __mmask16 avx512_mask(size_t n) {
    return n < 16 ? (__mmask16)((1u << n) - 1) : (__mmask16)0xffff;
}

/* r[i]: word i of the 16 rows whose words 0 to 15 are in r. */
AVX512_INLINE void avx512_transpose(__m512i r[16]) {
    __m512i t[16];
    AVX512_UNROLL for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    AVX512_UNROLL for (int i = 0; i < 4; i++) {
        r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    AVX512_UNROLL for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
        t[4 + i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
        t[8 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
        t[12 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
    }
    AVX512_UNROLL for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88);
        r[8 + i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd);
        r[4 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0x88);
        r[12 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0xdd);
    }
}

/* e^x to 1.2e-7 of its value; infinite and zero where fp32 ends. x = n ln 2 + r with |r| <= 0.35,
 * where the Taylor series up to r^7 errs by 5e-9. */
static inline __m512 avx512_exp(__m512 x) {
    const __m512 ln2_high = _mm512_set1_ps(0x1.62e4p-1f); /* 15 bits: n * ln2_high is exact */
    const __m512 ln2_low = _mm512_set1_ps(0x1.7f7d1cp-20f);
    /* min and max return the second operand when one is NaN. */
    x = _mm512_max_ps(_mm512_set1_ps(-110), _mm512_min_ps(_mm512_set1_ps(110), x));
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)),
                                    _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fnmadd_ps(n, ln2_low, _mm512_fnmadd_ps(n, ln2_high, x));
    __m512 p = _mm512_set1_ps(1.0f / 5040);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 720));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 120));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1));
    return _mm512_scalef_ps(p, n);
}

/* x / (1 + e^-u) */
static inline __m512 avx512_gate(__m512 x, __m512 u) {
    const __m512 one = _mm512_set1_ps(1);
    __m512 e = avx512_exp(_mm512_sub_ps(_mm512_setzero_ps(), u));
    return _mm512_div_ps(x, _mm512_add_ps(one, e));
}

#endif
