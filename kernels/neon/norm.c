#include <arm_neon.h>
#include <math.h>

#include "kernels/neon/math.h"
#include "kernels/neon/neon.h"
#include "kernels/ops.h"

/* Sum of (x - mean)^2. Four sums of four lanes each take every fourth vector. */
static float squares(const float *x, int dim, float mean) {
    float32x4_t sum[4] = {vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0)};
    const float32x4_t middle = vdupq_n_f32(mean);
    int i = 0;
    for (; i + 16 <= dim; i += 16)
        for (int j = 0; j < 4; j++) {
            float32x4_t d = vsubq_f32(vld1q_f32(x + i + 4 * j), middle);
            sum[j] = vfmaq_f32(sum[j], d, d);
        }
    for (; i + 4 <= dim; i += 4) {
        float32x4_t d = vsubq_f32(vld1q_f32(x + i), middle);
        sum[0] = vfmaq_f32(sum[0], d, d);
    }
    float all = vaddvq_f32(vaddq_f32(vaddq_f32(sum[0], sum[1]), vaddq_f32(sum[2], sum[3])));
    for (; i < dim; i++) all += (x[i] - mean) * (x[i] - mean);
    return all;
}

static float sum_of(const float *x, int dim) {
    float32x4_t a = vdupq_n_f32(0), b = a;
    int i = 0;
    for (; i + 8 <= dim; i += 8) {
        a = vaddq_f32(a, vld1q_f32(x + i));
        b = vaddq_f32(b, vld1q_f32(x + i + 4));
    }
    for (; i < dim; i += 4) a = vaddq_f32(a, neon_load(x + i, (size_t)(dim - i)));
    return vaddvq_f32(vaddq_f32(a, b));
}

/* dst = (src - mean) * scale * w + b; b may be NULL. */
static void apply(float *dst, const float *src, const float *w, const float *b, int dim, float mean,
                  float scale) {
    for (int i = 0; i < dim; i += 4) {
        size_t n = (size_t)(dim - i);
        float32x4_t v = vsubq_f32(neon_load(src + i, n), vdupq_n_f32(mean));
        v = vmulq_f32(vmulq_n_f32(v, scale), neon_load(w + i, n));
        if (b) v = vaddq_f32(v, neon_load(b + i, n));
        neon_store(dst + i, v, n);
    }
}

static void rmsnorm(float *dst, const float *src, const float *w, int dim, float eps) {
    float mean_square = squares(src, dim, 0) / (float)dim;
    apply(dst, src, w, NULL, dim, 0, 1 / sqrtf(mean_square + eps));
}

static void layernorm(float *dst, const float *src, const float *w, const float *b, int dim,
                      float eps) {
    float mean = sum_of(src, dim) / (float)dim;
    float variance = squares(src, dim, mean) / (float)dim;
    apply(dst, src, w, b, dim, mean, 1 / sqrtf(variance + eps));
}

void neon_norm_init(struct ops *ops) {
    ops->rmsnorm = rmsnorm;
    ops->layernorm = layernorm;
}
