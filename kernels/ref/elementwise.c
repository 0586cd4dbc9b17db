#include "kernels/ref/ref.h"

#include <math.h>
#include <string.h>

#include "kernels/float16.h"
#include "kernels/ops.h"

static void rope(float *x, int n_heads, int head_dim, int half, const float *cos,
                 const float *sin) {
    for (int h = 0; h < n_heads; h++) {
        float *head = x + (size_t)h * (size_t)head_dim;
        for (int i = 0; i < half; i++) {
            double a = (double)head[i], b = (double)head[i + half];
            double c = (double)cos[i], s = (double)sin[i];
            head[i] = (float)(a * c - b * s);
            head[i + half] = (float)(b * c + a * s);
        }
    }
}

static void silu_mul(float *gate, const float *up, size_t n) {
    for (size_t i = 0; i < n; i++) {
        double g = (double)gate[i];
        gate[i] = (float)(g / (1 + exp(-g)) * (double)up[i]);
    }
}

static void relu(float *x, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] = x[i] < 0 ? 0 : x[i];
}

/* 0.5 x (1 + tanh(u)), u = sqrt(2/pi) (x + 0.044715 x^3), in the form that loses no digits for
 * negative x: 1 + tanh(u) = 2 / (1 + exp(-2u)). */
static void gelu_tanh(float *x, size_t n) {
    for (size_t i = 0; i < n; i++) {
        double v = (double)x[i], u = 0.79788456080286535588 * (v + 0.044715 * v * v * v);
        x[i] = (float)(v / (1 + exp(-2 * u)));
    }
}

static void add(float *dst, const float *src, size_t n) {
    for (size_t i = 0; i < n; i++) dst[i] += src[i];
}

static void widen(float *dst, enum dtype type, const void *src, size_t n) {
    if (type == DTYPE_F32) {
        memcpy(dst, src, n * sizeof *dst);
        return;
    }
    const uint16_t *h = src;
    for (size_t i = 0; i < n; i++)
        dst[i] = type == DTYPE_F16 ? f16_to_f32(h[i]) : bf16_to_f32(h[i]);
}

void ref_elementwise_init(struct ops *ops) {
    ops->rope = rope;
    ops->silu_mul = silu_mul;
    ops->relu = relu;
    ops->gelu_tanh = gelu_tanh;
    ops->add = add;
    ops->widen = widen;
}
