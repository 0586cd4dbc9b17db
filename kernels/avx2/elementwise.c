#include "kernels/avx2/avx2.h"

#include <string.h>

#include "kernels/avx2/math.h"
#include "kernels/float16.h"
#include "kernels/ops.h"

static void rope(float *x, int n_heads, int head_dim, int half, const float *cos,
                 const float *sin) {
    for (int h = 0; h < n_heads; h++) {
        float *low = x + (size_t)h * (size_t)head_dim, *high = low + half;
        for (int i = 0; i < half; i += 8) {
            __m256i mask = avx2_mask((size_t)(half - i));
            __m256 c = _mm256_maskload_ps(cos + i, mask), s = _mm256_maskload_ps(sin + i, mask);
            __m256 a = _mm256_maskload_ps(low + i, mask), b = _mm256_maskload_ps(high + i, mask);
            _mm256_maskstore_ps(low + i, mask, _mm256_fmsub_ps(a, c, _mm256_mul_ps(b, s)));
            _mm256_maskstore_ps(high + i, mask, _mm256_fmadd_ps(b, c, _mm256_mul_ps(a, s)));
        }
    }
}

static void silu_mul(float *gate, const float *up, size_t n) {
    for (size_t i = 0; i < n; i += 8) {
        __m256i mask = avx2_mask(n - i);
        __m256 g = _mm256_maskload_ps(gate + i, mask), u = _mm256_maskload_ps(up + i, mask);
        _mm256_maskstore_ps(gate + i, mask, _mm256_mul_ps(avx2_gate(g, g), u));
    }
}

static void relu(float *x, size_t n) {
    for (size_t i = 0; i < n; i += 8) {
        __m256i mask = avx2_mask(n - i);
        __m256 v = _mm256_maskload_ps(x + i, mask);
        /* In this order a NaN stays. */
        _mm256_maskstore_ps(x + i, mask, _mm256_max_ps(_mm256_setzero_ps(), v));
    }
}

static void gelu_tanh(float *x, size_t n) {
    const __m256 cubic = _mm256_set1_ps(2 * 0.79788456f * 0.044715f);
    const __m256 linear = _mm256_set1_ps(2 * 0.79788456f);
    for (size_t i = 0; i < n; i += 8) {
        __m256i mask = avx2_mask(n - i);
        __m256 v = _mm256_maskload_ps(x + i, mask);
        __m256 u = _mm256_mul_ps(v, _mm256_fmadd_ps(cubic, _mm256_mul_ps(v, v), linear));
        _mm256_maskstore_ps(x + i, mask, avx2_gate(v, u));
    }
}

static void add(float *dst, const float *src, size_t n) {
    for (size_t i = 0; i < n; i += 8) {
        __m256i mask = avx2_mask(n - i);
        __m256 sum =
            _mm256_add_ps(_mm256_maskload_ps(dst + i, mask), _mm256_maskload_ps(src + i, mask));
        _mm256_maskstore_ps(dst + i, mask, sum);
    }
}

/* Widening is exact, so the last few may take another way. */
static void widen(float *dst, enum dtype type, const void *src, size_t n) {
    const uint16_t *h = src;
    size_t i = 0;
    if (type == DTYPE_F32) {
        memcpy(dst, src, n * sizeof *dst);
        return;
    }
    for (; i + 8 <= n; i += 8) {
        __m128i v = _mm_loadu_si128((const __m128i *)(const void *)(h + i));
        __m256i bf16 = _mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16);
        _mm256_storeu_ps(dst + i,
                         type == DTYPE_F16 ? _mm256_cvtph_ps(v) : _mm256_castsi256_ps(bf16));
    }
    for (; i < n; i++) dst[i] = type == DTYPE_F16 ? f16_to_f32(h[i]) : bf16_to_f32(h[i]);
}

void avx2_elementwise_init(struct ops *ops) {
    ops->rope = rope;
    ops->silu_mul = silu_mul;
    ops->relu = relu;
    ops->gelu_tanh = gelu_tanh;
    ops->add = add;
    ops->widen = widen;
}
