#include "kernels/avx2/avx2.h"

#include <math.h>

#include "kernels/avx2/math.h"
#include "kernels/ops.h"

/* Sum of (x - mean)^2. Four sums of eight lanes each take every fourth vector. */
static float squares(const float *x, int dim, __m256 mean) {
    __m256 sum[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(),
                     _mm256_setzero_ps()};
    int i = 0;
    for (; i + 32 <= dim; i += 32) {
        for (int j = 0; j < 4; j++) {
            __m256 d = _mm256_sub_ps(_mm256_loadu_ps(x + i + 8 * j), mean);
            sum[j] = _mm256_fmadd_ps(d, d, sum[j]);
        }
    }
    for (; i < dim; i += 8) {
        __m256i mask = avx2_mask((size_t)(dim - i));
        __m256 d = _mm256_sub_ps(_mm256_maskload_ps(x + i, mask), mean);
        d = _mm256_and_ps(d, _mm256_castsi256_ps(mask));
        sum[0] = _mm256_fmadd_ps(d, d, sum[0]);
    }
    return avx2_sum(_mm256_add_ps(_mm256_add_ps(sum[0], sum[1]), _mm256_add_ps(sum[2], sum[3])));
}

static float sum_of(const float *x, int dim) {
    __m256 a = _mm256_setzero_ps(), b = _mm256_setzero_ps();
    int i = 0;
    for (; i + 16 <= dim; i += 16) {
        a = _mm256_add_ps(a, _mm256_loadu_ps(x + i));
        b = _mm256_add_ps(b, _mm256_loadu_ps(x + i + 8));
    }
    for (; i < dim; i += 8)
        a = _mm256_add_ps(a, _mm256_maskload_ps(x + i, avx2_mask((size_t)(dim - i))));
    return avx2_sum(_mm256_add_ps(a, b));
}

/* dst = (src - mean) * scale * w + b; b may be NULL. */
static void apply(float *dst, const float *src, const float *w, const float *b, int dim,
                  __m256 mean, __m256 scale) {
    for (int i = 0; i < dim; i += 8) {
        __m256i mask = avx2_mask((size_t)(dim - i));
        __m256 v = _mm256_sub_ps(_mm256_maskload_ps(src + i, mask), mean);
        v = _mm256_mul_ps(_mm256_mul_ps(v, scale), _mm256_maskload_ps(w + i, mask));
        if (b) v = _mm256_add_ps(v, _mm256_maskload_ps(b + i, mask));
        _mm256_maskstore_ps(dst + i, mask, v);
    }
}

static void rmsnorm(float *dst, const float *src, const float *w, int dim, float eps) {
    float mean_square = squares(src, dim, _mm256_setzero_ps()) / (float)dim;
    apply(dst, src, w, NULL, dim, _mm256_setzero_ps(),
          _mm256_set1_ps(1 / sqrtf(mean_square + eps)));
}

static void layernorm(float *dst, const float *src, const float *w, const float *b, int dim,
                      float eps) {
    __m256 mean = _mm256_set1_ps(sum_of(src, dim) / (float)dim);
    float variance = squares(src, dim, mean) / (float)dim;
    apply(dst, src, w, b, dim, mean, _mm256_set1_ps(1 / sqrtf(variance + eps)));
}

void avx2_norm_init(struct ops *ops) {
    ops->rmsnorm = rmsnorm;
    ops->layernorm = layernorm;
}
