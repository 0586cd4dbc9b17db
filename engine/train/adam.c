#include "engine/train/adam.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/quant/parallel.h"
#include "engine/train/wide.h"
#include "kernels/error.h"

/* Faster than Adam's usual 0.999: runs are some hundred steps long. */
static const float beta1 = 0.9f, beta2 = 0.98f;
/* Against division by 0 alone: gradients of a mean over tokens are small numbers. */
static const float least = 1e-12f;

enum { PIECE = 1 << 16 };

int adam_new(struct adam *ret, size_t n, struct error *err) {
    float *memory = calloc(5 * n + 1, sizeof *memory);
    if (!memory) return error_set(err, -ENOMEM, "tune: out of memory");
    *ret = (struct adam){.n = n,
                         .x = memory,
                         .m = memory + n,
                         .v = memory + 2 * n,
                         .g = memory + 3 * n,
                         .unit = memory + 4 * n};
    return 0;
}

void adam_free(struct adam *a) {
    free(a->x);
    *a = (struct adam){0};
}

struct work {
    struct adam *a;
    float rate, share1, share2; /* 1 / (1 - beta^step) */
};

WIDE_VERSIONS static void move(const struct work *k, size_t first, size_t n) {
    float *x = k->a->x + first, *m = k->a->m + first, *v = k->a->v + first, *g = k->a->g + first;
    const float *unit = k->a->unit + first;
    float rate = k->rate, share1 = k->share1, share2 = k->share2;
#pragma GCC ivdep
    for (size_t i = 0; i < n; i++) {
        float slope = g[i] * unit[i];
        m[i] = beta1 * m[i] + (1.0f - beta1) * slope;
        v[i] = beta2 * v[i] + (1.0f - beta2) * slope * slope;
        x[i] -= rate * unit[i] * (m[i] * share1) / (sqrtf(v[i] * share2) + least);
        g[i] = 0.0f;
    }
}

static void move_piece(void *arg, size_t piece) {
    const struct work *k = arg;
    size_t first = piece * PIECE, rest = k->a->n - first;
    move(k, first, rest < PIECE ? rest : PIECE);
}

void adam_move(struct adam *a, const struct adam_step *step) {
    struct work k = {.a = a,
                     .rate = step->rate,
                     .share1 = (float)(1.0 / (1.0 - pow((double)beta1, step->step))),
                     .share2 = (float)(1.0 / (1.0 - pow((double)beta2, step->step)))};
    parallel_for(step->n_threads, (a->n + PIECE - 1) / PIECE, move_piece, &k);
}

void adam_reset(struct adam *a) {
    memset(a->m, 0, a->n * sizeof *a->m);
    memset(a->v, 0, a->n * sizeof *a->v);
    memset(a->g, 0, a->n * sizeof *a->g);
}
