/* norm.h - RMSNorm and LayerNorm over rows, and their gradients.
 *
 * Owns      nothing.
 * Borrows   its arguments during the call.
 * Thread    any, but not inside parallel_for().
 * Fails     never.
 * Cost      a few operations per element; sums in fp64.
 *
 * xhat = x / rms(x) or (x - mean) / deviation; y = w xhat (+ b). With g = w dy:
 * dx = (g - xhat mean(g xhat)) / rms, LayerNorm also takes mean(g) off. */
#ifndef ENGINE_TRAIN_NORM_H
#define ENGINE_TRAIN_NORM_H

#include <stddef.h>

struct norm_rows {
    const float *w, *b; /* (dim); b NULL: RMSNorm */
    int n, dim;
    float eps;
    int n_threads;
};

/* y, x: (n, dim); y may be x. */
void norm_forward(const struct norm_rows *norm, const float *x, float *y);

/* dx = base + gradient for dy; base NULL: the gradient alone. dx may be dy or base. dw, db (dim) or
 * NULL: added to. stats: (n, 2) scratch. */
void norm_backward(const struct norm_rows *norm, const float *x, const float *dy, const float *base,
                   float *dx, float *dw, float *db, float *stats);

#endif
