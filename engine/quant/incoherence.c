#include "engine/quant/incoherence.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "engine/quant/parallel.h"
#include "engine/splitmix.h"
#include "kernels/error.h"

enum { PIECE = 16 /* vectors that a thread takes at a time */ };

static size_t words(int n) { return ((size_t)n + 31) / 32; }

static uint32_t next_word(uint64_t *state) { return (uint32_t)(splitmix_next(state) >> 32); }

int incoherence_new(struct incoherence **ret, int n, struct error *err) {
    struct rotation r = {0};
    int rc = rotation_choose(&r, n, err);
    if (rc < 0) return rc;
    struct incoherence *v = calloc(1, sizeof *v);
    if (v) v->signs = calloc(words(n), sizeof *v->signs);
    if (!v || !v->signs) {
        incoherence_free(v);
        return error_set(err, -ENOMEM, "incoherence: out of memory");
    }
    uint64_t state = (uint64_t)n;
    for (size_t i = 0; i < words(n); i++) v->signs[i] = next_word(&state);
    if (n % 32) v->signs[words(n) - 1] &= (1u << n % 32) - 1;
    r.signs = v->signs;
    rc = rotation_plan_init(&v->plan, &r, err);
    if (rc < 0)
        incoherence_free(v);
    else
        *ret = v;
    return rc;
}

void incoherence_free(struct incoherence *v) {
    if (!v) return;
    rotation_plan_free(&v->plan);
    free(v->signs);
    free(v);
}

/* Vectors of doubles or floats, element k of vector i at i * stride + k * step. */
struct turn_job {
    const struct incoherence *v;
    double *wide;
    float *narrow; /* one of both */
    size_t count, stride, step;
    atomic_int status;
};

static void turn_piece(void *arg, size_t index) {
    struct turn_job *job = arg;
    size_t n = (size_t)job->v->plan.r.n, end = (index + 1) * PIECE;
    if (end > job->count) end = job->count;
    double *x = malloc(2 * n * sizeof *x);
    if (!x) {
        atomic_store(&job->status, -ENOMEM);
        return;
    }
    for (size_t i = index * PIECE; i < end; i++) {
        for (size_t k = 0; k < n; k++) {
            size_t at = i * job->stride + k * job->step;
            x[k] = job->wide ? job->wide[at] : (double)job->narrow[at];
        }
        rotation_apply(&job->v->plan, x, x + n, false);
        for (size_t k = 0; k < n; k++) {
            size_t at = i * job->stride + k * job->step;
            if (job->wide)
                job->wide[at] = x[k];
            else
                job->narrow[at] = (float)x[k];
        }
    }
    free(x);
}

static int turn(struct turn_job *job, int n_threads, struct error *err) {
    atomic_init(&job->status, 0);
    parallel_for(n_threads, (job->count + PIECE - 1) / PIECE, turn_piece, job);
    int r = atomic_load(&job->status);
    return r < 0 ? error_set(err, r, "incoherence: out of memory") : 0;
}

int incoherence_moments(const struct incoherence *v, double *h, int n_threads, struct error *err) {
    size_t n = (size_t)v->plan.r.n;
    struct turn_job rows = {.v = v, .wide = h, .count = n, .stride = n, .step = 1};
    struct turn_job columns = {.v = v, .wide = h, .count = n, .stride = 1, .step = n};
    int r = turn(&rows, n_threads, err);
    if (r == 0) r = turn(&columns, n_threads, err);
    /* What follows reads either half. */
    for (size_t i = 0; r == 0 && i < n; i++)
        for (size_t j = 0; j < i; j++) h[i * n + j] = h[j * n + i];
    return r;
}

int incoherence_weights(const struct incoherence *v, const struct incoherence *u, float *dst,
                        const float *src, int rows, int n_threads, struct error *err) {
    size_t n = (size_t)v->plan.r.n, m = (size_t)rows;
    memcpy(dst, src, m * n * sizeof *dst);
    struct turn_job inputs = {.v = v, .narrow = dst, .count = m, .stride = n, .step = 1};
    struct turn_job outputs = {.v = u, .narrow = dst, .count = n, .stride = 1, .step = n};
    int r = turn(&inputs, n_threads, err);
    return r == 0 && u ? turn(&outputs, n_threads, err) : r;
}

int incoherence_block(const struct incoherence *v, const struct incoherence *u, int rows,
                      void **ret, size_t *ret_n, struct rotation_view *view, struct error *err) {
    const struct rotation *in = &v->plan.r, *out = u ? &u->plan.r : NULL;
    size_t n_bytes = rotation_bytes(rows, in->n, u != NULL);
    void *block = aligned_alloc(ROTATION_ALIGN, n_bytes);
    if (!block) return error_set(err, -ENOMEM, "incoherence: out of memory");
    memset(block, 0, n_bytes);
    rotation_format(view, block, rows, in->n, in, out);
    memcpy((uint32_t *)(uintptr_t)view->in.signs, v->signs, words(in->n) * sizeof *v->signs);
    if (u) memcpy((uint32_t *)(uintptr_t)view->out.signs, u->signs, words(rows) * sizeof *u->signs);
    *ret = block;
    *ret_n = n_bytes;
    return 0;
}
