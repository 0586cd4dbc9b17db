#include "engine/quant/target.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "engine/quant/linalg.h"
#include "engine/quant/parallel.h"
#include "kernels/error.h"

enum { ROWS = 64 /* rows that one piece of work takes */ };

struct target {
    int n;
    bool of_states;
    float share;
    float *step; /* (n, n): w += share w step; of states (rows, n): w += share step */
};

static double ridge_of(const double *h, size_t n, double ridge) {
    double sum = 0.0;
    for (size_t i = 0; i < n; i++) sum += h[i * n + i];
    return sum > 0.0 ? ridge * sum / (double)n : 1.0;
}

/* step: (rows, n), divided here. */
static int divide(struct target *t, double *step, int rows, const double *h,
                  const struct target_way *way, int n_threads, struct error *err) {
    size_t side = (size_t)t->n, cells = (size_t)rows * side;
    double added = ridge_of(h, side, way->ridge), *damped = malloc(side * side * sizeof *damped);
    t->step = malloc(cells * sizeof *t->step);
    t->share = (float)way->share;
    int r = damped && t->step ? 0 : error_set(err, -ENOMEM, "target: out of memory");
    if (r == 0) {
        memcpy(damped, h, side * side * sizeof *damped);
        for (size_t i = 0; i < side; i++) damped[i * side + i] += added;
        r = linalg_divide(step, rows, damped, t->n, n_threads, err);
    }
    for (size_t k = 0; r == 0 && k < cells; k++) t->step[k] = (float)step[k];
    free(damped);
    return r;
}

static int make(struct target **ret, const struct target *as, const double *h, const double *cross,
                int rows, const struct target_way *way, int n_threads, struct error *err) {
    size_t cells = (size_t)rows * (size_t)as->n;
    struct target *t = malloc(sizeof *t);
    double *step = malloc(cells * sizeof *step);
    int r = t && step ? 0 : error_set(err, -ENOMEM, "target: out of memory");
    if (t) *t = *as;
    if (r == 0) {
        for (size_t k = 0; k < cells; k++) step[k] = cross[k] - (t->of_states ? 0.0 : h[k]);
        r = divide(t, step, rows, h, way, n_threads, err);
    }
    free(step);
    if (r < 0)
        target_free(t);
    else
        *ret = t;
    return r;
}

int target_new(struct target **ret, const double *h, const double *cross, int n,
               const struct target_way *way, int n_threads, struct error *err) {
    return make(ret, &(struct target){.n = n}, h, cross, n, way, n_threads, err);
}

int target_new_of_states(struct target **ret, const double *h, const double *lack, int rows, int n,
                         const struct target_way *way, int n_threads, struct error *err) {
    struct target as = {.n = n, .of_states = true};
    return make(ret, &as, h, lack, rows, way, n_threads, err);
}

void target_free(struct target *t) {
    if (!t) return;
    free(t->step);
    free(t);
}

struct apply {
    const struct target *t;
    float *w;
    int rows;
    atomic_int failed;
};

static void apply_rows(void *arg, size_t index) {
    struct apply *a = arg;
    int first = (int)index * ROWS, n = a->t->n;
    int rows = a->rows - first < ROWS ? a->rows - first : ROWS;
    size_t cells = (size_t)rows * (size_t)n;
    float *w = a->w + (size_t)first * (size_t)n;
    if (a->t->of_states) {
        const float *step = a->t->step + (size_t)first * (size_t)n;
        for (size_t k = 0; k < cells; k++) w[k] += a->t->share * step[k];
        return;
    }
    float *before = malloc(cells * sizeof *before);
    if (!before) {
        atomic_store(&a->failed, 1);
        return;
    }
    memcpy(before, w, cells * sizeof *w);
    struct linalg_shape shape = {rows, n, n, n, n, n};
    linalg_gemm_f32(w, before, a->t->step, &shape, a->t->share, 1.0f);
    free(before);
}

int target_apply(const struct target *t, float *w, int rows, int n_threads, struct error *err) {
    struct apply a = {.t = t, .w = w, .rows = rows};
    atomic_init(&a.failed, 0);
    parallel_for(n_threads, ((size_t)rows + ROWS - 1) / ROWS, apply_rows, &a);
    return atomic_load(&a.failed) ? error_set(err, -ENOMEM, "target: out of memory") : 0;
}
