#include <stddef.h>
#include <string.h>

#include "kernels/ops.h"
#include "kernels/ref/ref.h"

static void turn_signs(float *x, const struct rotate_plan *p) {
    for (int i = 0; i < p->n; i++)
        if (p->signs[i / 32] >> i % 32 & 1) x[i] = -x[i];
}

static void hadamard(float *x, int n, float scale) {
    for (int half = 1; half < n; half *= 2)
        for (int i = 0; i < n; i++) {
            if (i & half) continue;
            float a = x[i], b = x[i + half];
            x[i] = a + b;
            x[i + half] = a - b;
        }
    for (int i = 0; i < n; i++) x[i] *= scale;
}

static void mix(float *x, float *tmp, const struct rotate_plan *p, const float *basis) {
    for (int a = 0; a < p->order; a++)
        for (int b = 0; b < p->length; b++) {
            double sum = 0;
            for (int c = 0; c < p->order; c++)
                sum += (double)basis[a * p->order + c] * (double)x[c * p->length + b];
            tmp[a * p->length + b] = (float)sum;
        }
    memcpy(x, tmp, (size_t)p->n * sizeof *x);
}

void ref_rotate(float *x, float *tmp, const struct rotate_plan *p, bool back) {
    if (!back) turn_signs(x, p);
    for (int a = 0; a < p->order; a++) hadamard(x + a * p->length, p->length, p->scale);
    if (p->order > 1) mix(x, tmp, p, back ? p->transposed : p->basis);
    if (back) turn_signs(x, p);
}

void ref_rotate_init(struct ops *ops) { ops->rotate = ref_rotate; }
