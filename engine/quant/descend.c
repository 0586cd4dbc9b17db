#include "engine/quant/descend.h"

#include "engine/quant/gptq.h"
#include "engine/quant/linalg.h"
#include "engine/quant/strip.h"

enum { SWEEP_BLOCK = 32 /* columns between two gemms */ };

void descend_difference(struct strip *s) {
    for (size_t i = 0; i < (size_t)s->n * GPTQ_LANES; i++) s->d[i] = s->q[i] - s->w[i];
}

/* Column k of a block that starts at first: moves it to its best level, given the gradient without
 * the moves that this block has made before. */
static void descend_column(struct strip *s, int first, int k, float *gradient, float *moved) {
    const float *h = s->p->h + (size_t)k * (size_t)s->n;
    size_t at = (size_t)k * GPTQ_LANES;
    float target[GPTQ_LANES], inverse = 1.0f / h[k];
    for (int j = first; j < k; j++) {
        const float *step = moved + (size_t)(j - first) * GPTQ_LANES;
        for (int i = 0; i < GPTQ_LANES; i++) gradient[i] += h[j] * step[i];
    }
    for (int i = 0; i < GPTQ_LANES; i++)
        target[i] = s->w[at + (size_t)i] + s->d[at + (size_t)i] - gradient[i] * inverse;
    gptq_nearest(s->values + (size_t)s->p->group_of[k] * (size_t)s->n_levels * GPTQ_LANES,
                 s->n_levels, target, s->q + at, s->rank + at);
    if (s->exact) gptq_keep_exact(s->exact + at, target, s->q + at);
    float *step = moved + (size_t)(k - first) * GPTQ_LANES;
    for (int i = 0; i < GPTQ_LANES; i++) {
        float d = s->q[at + (size_t)i] - s->w[at + (size_t)i];
        step[i] = d - s->d[at + (size_t)i];
        s->d[at + (size_t)i] = d;
    }
}

void descend_codes(struct strip *s) {
    float gradient[SWEEP_BLOCK * GPTQ_LANES], moved[SWEEP_BLOCK * GPTQ_LANES];
    descend_difference(s);
    for (int first = 0; first < s->n; first += SWEEP_BLOCK) {
        int width = s->n - first < SWEEP_BLOCK ? s->n - first : SWEEP_BLOCK;
        struct linalg_shape shape = {width, GPTQ_LANES, s->n, s->n, GPTQ_LANES, GPTQ_LANES};
        linalg_gemm_f32(gradient, s->p->h + (size_t)first * (size_t)s->n, s->d, &shape, 1.0f, 0.0f);
        for (int k = first; k < first + width; k++)
            descend_column(s, first, k, gradient + (size_t)(k - first) * GPTQ_LANES, moved);
    }
    strip_codes(s);
}
