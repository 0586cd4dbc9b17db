#include "kernels/avx512/avx512.h"

#include "kernels/avx512/math.h"
#include "kernels/ops.h"

static void silu_mul(float *gate, const float *up, size_t n) {
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 mask = avx512_mask(n - i);
        __m512 g = _mm512_maskz_loadu_ps(mask, gate + i), u = _mm512_maskz_loadu_ps(mask, up + i);
        _mm512_mask_storeu_ps(gate + i, mask, _mm512_mul_ps(avx512_gate(g, g), u));
    }
}

static void gelu_tanh(float *x, size_t n) {
    const __m512 cubic = _mm512_set1_ps(2 * 0.79788456f * 0.044715f);
    const __m512 linear = _mm512_set1_ps(2 * 0.79788456f);
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 mask = avx512_mask(n - i);
        __m512 v = _mm512_maskz_loadu_ps(mask, x + i);
        __m512 u = _mm512_mul_ps(v, _mm512_fmadd_ps(cubic, _mm512_mul_ps(v, v), linear));
        _mm512_mask_storeu_ps(x + i, mask, avx512_gate(v, u));
    }
}

void avx512_elementwise_init(struct ops *ops) {
    ops->silu_mul = silu_mul;
    ops->gelu_tanh = gelu_tanh;
}
