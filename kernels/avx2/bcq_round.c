#include "kernels/avx2/bcq.h"

#include <math.h>
#include <string.h>

#include "kernels/rounding.h"

/* Magnitudes are compared as integers: that orders finite values alike, and a NaN wins. */
AVX2_INLINE float largest_of(const float *x, bool of_fours) {
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    __m256i largest = _mm256_setzero_si256();
    for (int i = 0; i < AVX2_BCQ_SPAN; i += 8) {
        __m256 a = _mm256_and_ps(_mm256_loadu_ps(x + i), magnitude);
        if (of_fours) {
            a = _mm256_add_ps(a, _mm256_permute_ps(a, 0xb1));
            a = _mm256_add_ps(a, _mm256_permute_ps(a, 0x4e));
        }
        largest = _mm256_max_epi32(largest, _mm256_castps_si256(a));
    }
    __m128i v =
        _mm_max_epi32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
    v = _mm_max_epi32(v, _mm_shuffle_epi32(v, 0x4e));
    v = _mm_max_epi32(v, _mm_shuffle_epi32(v, 0xb1));
    return _mm_cvtss_f32(_mm_castsi128_ps(v));
}

float avx2_bcq_round(float *out, const float *x, int act_bits) {
    struct rounding r;
    rounding_of(&r, largest_of(x, act_bits > 4), act_bits);
    const __m256 up = _mm256_set1_ps(r.up);
    for (int i = 0; i < AVX2_BCQ_SPAN; i += 8) {
        __m256 v = _mm256_mul_ps(_mm256_loadu_ps(x + i), up);
        v = _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        _mm256_storeu_ps(out + i, r.up > 0 ? v : _mm256_setzero_ps());
    }
    return r.scale;
}
