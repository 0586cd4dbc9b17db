#include "kernels/ref/ref.h"

#include <math.h>

#include "kernels/ops.h"

static void rmsnorm(float *dst, const float *src, const float *w, int dim, float eps) {
    double squares = 0;
    for (int i = 0; i < dim; i++) squares += (double)src[i] * (double)src[i];
    double scale = 1 / sqrt(squares / dim + (double)eps);
    for (int i = 0; i < dim; i++) dst[i] = (float)((double)src[i] * scale * (double)w[i]);
}

static void layernorm(float *dst, const float *src, const float *w, const float *b, int dim,
                      float eps) {
    double sum = 0, squares = 0;
    for (int i = 0; i < dim; i++) sum += (double)src[i];
    double mean = sum / dim;
    for (int i = 0; i < dim; i++) squares += ((double)src[i] - mean) * ((double)src[i] - mean);
    double scale = 1 / sqrt(squares / dim + (double)eps);
    for (int i = 0; i < dim; i++)
        dst[i] = (float)(((double)src[i] - mean) * scale * (double)w[i] + (double)b[i]);
}

void ref_norm_init(struct ops *ops) {
    ops->rmsnorm = rmsnorm;
    ops->layernorm = layernorm;
}
