#include "kernels/avx512/bcq.h"

#include <math.h>
#include <string.h>

#include "kernels/rounding.h"

/* Magnitudes are compared as integers: that orders finite values alike, and a NaN wins. */
AVX512_INLINE float largest_of(const float *x, bool of_fours) {
    __m512i largest = _mm512_setzero_si512();
    AVX512_UNROLL for (int i = 0; i < AVX512_BCQ_SPAN; i += 16) {
        __m512 a = _mm512_abs_ps(_mm512_loadu_ps(x + i));
        if (of_fours) {
            a = _mm512_add_ps(a, _mm512_permute_ps(a, 0xb1));
            a = _mm512_add_ps(a, _mm512_permute_ps(a, 0x4e));
        }
        largest = _mm512_max_epi32(largest, _mm512_castps_si512(a));
    }
    int32_t bits = _mm512_reduce_max_epi32(largest);
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

float avx512_bcq_round(float *out, const float *x, int act_bits) {
    struct rounding r;
    rounding_of(&r, largest_of(x, act_bits > 4), act_bits);
    const __m512 up = _mm512_set1_ps(r.up);
    for (int i = 0; i < AVX512_BCQ_SPAN; i += 16) {
        __m512 v = _mm512_mul_ps(_mm512_loadu_ps(x + i), up);
        v = _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        _mm512_storeu_ps(out + i, r.up > 0 ? v : _mm512_setzero_ps());
    }
    return r.scale;
}
