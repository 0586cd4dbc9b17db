/* math.h - small functions on vectors of eight floats.
 *
 * Owns      nothing.
 * Borrows   nothing.
 * Thread    any.
 * Fails     never; NaN stays NaN.
 * Cost      avx2_exp() about 16 operations.
 *
 * A loop handles its last elements with the same instructions as the others, under a mask, so
 * that an element's result does not depend on its place. */
#ifndef KERNELS_AVX2_MATH_H
#define KERNELS_AVX2_MATH_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#define AVX2_INLINE static inline __attribute__((always_inline))

/* Accumulators stay in registers only where every loop over them is unrolled. */
#ifdef __clang__
#define AVX2_UNROLL _Pragma("clang loop unroll(full)")
#else
#define AVX2_UNROLL _Pragma("GCC unroll 16")
#endif

/* The first n of eight lanes; all for n >= 8. */
static inline __m256i avx2_mask(size_t n) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n < 8 ? (int)n : 8), lane);
}

static inline float avx2_sum(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

/* e^x to 1.2e-7 of its value; 0 below -86.9, and at 88.3 it stops growing. x = n ln 2 + r with
 * |r| <= 0.35, where the Taylor series up to r^7 errs by 5e-9. */
static inline __m256 avx2_exp(__m256 x) {
    const __m256 least = _mm256_set1_ps(-86.9f);
    const __m256 ln2_high = _mm256_set1_ps(0x1.62e4p-1f); /* 15 bits: n * ln2_high is exact */
    const __m256 ln2_low = _mm256_set1_ps(0x1.7f7d1cp-20f);
    __m256 small = _mm256_cmp_ps(x, least, _CMP_LT_OQ);
    /* min and max return the second operand when one is NaN. */
    x = _mm256_max_ps(least, _mm256_min_ps(_mm256_set1_ps(88.3f), x));
    __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)),
                               _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, ln2_low, _mm256_fnmadd_ps(n, ln2_high, x));
    __m256 p = _mm256_set1_ps(1.0f / 5040);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 720));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 120));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 24));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 6));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1));
    __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    p = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent));
    /* A NaN would lose its mark to the integer addition. */
    p = _mm256_blendv_ps(p, x, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return _mm256_andnot_ps(small, p);
}

/* x / (1 + e^-u) */
static inline __m256 avx2_gate(__m256 x, __m256 u) {
    const __m256 one = _mm256_set1_ps(1), sign = _mm256_set1_ps(-0.0f);
    return _mm256_div_ps(x, _mm256_add_ps(one, avx2_exp(_mm256_xor_ps(u, sign))));
}

#endif
