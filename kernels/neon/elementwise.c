#include <arm_neon.h>
#include <string.h>

#include "kernels/float16.h"
#include "kernels/neon/math.h"
#include "kernels/neon/neon.h"
#include "kernels/ops.h"

/* relu() and add() stay with kernels/ref: compilers make the same loops of them. */

static void rope(float *x, int n_heads, int head_dim, int half, const float *cos,
                 const float *sin) {
    for (int h = 0; h < n_heads; h++) {
        float *low = x + (size_t)h * (size_t)head_dim, *high = low + half;
        for (int i = 0; i < half; i += 4) {
            size_t n = (size_t)(half - i);
            float32x4_t c = neon_load(cos + i, n), s = neon_load(sin + i, n);
            float32x4_t a = neon_load(low + i, n), b = neon_load(high + i, n);
            neon_store(low + i, vfmsq_f32(vmulq_f32(a, c), b, s), n);
            neon_store(high + i, vfmaq_f32(vmulq_f32(a, s), b, c), n);
        }
    }
}

static void silu_mul(float *gate, const float *up, size_t n) {
    for (size_t i = 0; i < n; i += 4) {
        float32x4_t g = neon_load(gate + i, n - i), u = neon_load(up + i, n - i);
        neon_store(gate + i, vmulq_f32(neon_gate(g, g), u), n - i);
    }
}

static void gelu_tanh(float *x, size_t n) {
    const float32x4_t linear = vdupq_n_f32(2 * 0.79788456f);
    const float32x4_t cubic = vdupq_n_f32(2 * 0.79788456f * 0.044715f);
    for (size_t i = 0; i < n; i += 4) {
        float32x4_t v = neon_load(x + i, n - i);
        float32x4_t u = vmulq_f32(v, vfmaq_f32(linear, cubic, vmulq_f32(v, v)));
        neon_store(x + i, neon_gate(v, u), n - i);
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
    for (; i + 4 <= n; i += 4) {
        uint16x4_t v = vld1_u16(h + i);
        float32x4_t bf16 = vreinterpretq_f32_u32(vshll_n_u16(v, 16));
        vst1q_f32(dst + i, type == DTYPE_F16 ? vcvt_f32_f16(vreinterpret_f16_u16(v)) : bf16);
    }
    for (; i < n; i++) dst[i] = type == DTYPE_F16 ? f16_to_f32(h[i]) : bf16_to_f32(h[i]);
}

void neon_elementwise_init(struct ops *ops) {
    ops->rope = rope;
    ops->silu_mul = silu_mul;
    ops->gelu_tanh = gelu_tanh;
    ops->widen = widen;
}
