/* Sensitivities to second order, of all units by one pass through the model and back.
 *
 * KL(original || changed) is half the quadratic form of the Fisher matrix to second order, and that
 * matrix the mean square of the gradients of log p at tokens drawn from the model itself. A unit
 * whose outputs change by d_t at token t harms by (g_t . d_t)^2 / 2 on average, g_t the gradient at
 * these outputs: products between tokens are left out, they vanish on average but for attention. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/config.h"
#include "engine/quant/backward.h"
#include "engine/quant/linalg.h"
#include "engine/quant/sensitivity_state.h"
#include "engine/train/gemm.h"
#include "kernels/error.h"
#include "kernels/expand.h"

enum {
    WINDOWS = 16, /* 8 cost SmolLM2 5 % of KL at 3 bits */
    CTX = 256,
    ROWS = 192, /* of a matrix are coded at most, spread evenly: the others are like them */
    CACHE = 1 << 28,
    STATES = 1 << 30 /* bytes of what enters the blocks, at most: fewer windows for a large model */
};

struct run {
    struct sensitivity *s;
    struct backward *backward;
    int n_windows, ctx;
    size_t n_tokens;
    int32_t *tokens;
    bool *wanted; /* (n_units) */
    struct layer_input *input;
    enum calibrate_input input_of; /* which one that is, of the block being shown */
    double *h;                     /* (widest, widest) */
    float *w, *q;       /* (ROWS, widest) rows of a matrix, and what coding changes in them */
    float *dy, *change; /* (n_tokens, ROWS) gradients and changes of their outputs */
};

static int widest(const struct sensitivity *s) {
    int most = 1;
    for (int role = 0; role < ROLE_COUNT; role++) {
        int rows, cols;
        if (model_linear_shape(s->model, (enum model_role)role, &rows, &cols) && cols > most)
            most = cols;
    }
    return most;
}

static int take_tokens(struct run *r, struct error *err) {
    const struct sensitivity_job *job = r->s->job;
    const struct model_config *c = r->s->config;
    r->ctx = job->ctx < CTX ? job->ctx : CTX;
    size_t window = (size_t)r->ctx * (size_t)c->hidden * (size_t)c->n_layers * sizeof(float);
    size_t fit = STATES / window;
    r->n_windows = job->n_windows < WINDOWS ? job->n_windows : WINDOWS;
    if (fit < (size_t)r->n_windows) r->n_windows = fit ? (int)fit : 1;
    r->n_tokens = (size_t)r->n_windows * (size_t)r->ctx;
    r->tokens = malloc(r->n_tokens * sizeof *r->tokens);
    if (!r->tokens) return error_set(err, -ENOMEM, "sensitivities: out of memory");
    for (int w = 0; w < r->n_windows; w++) {
        const int32_t *from =
            job->tokens + (size_t)(w * (int64_t)job->n_windows / r->n_windows) * (size_t)job->ctx;
        memcpy(r->tokens + (size_t)w * (size_t)r->ctx, from, (size_t)r->ctx * sizeof *from);
    }
    return 0;
}

static int make_room(struct run *r, struct error *err) {
    size_t n = r->n_tokens, wide = (size_t)widest(r->s);
    r->wanted = calloc(r->s->n_units + 1, sizeof *r->wanted);
    r->h = malloc(wide * wide * sizeof *r->h);
    r->w = malloc(ROWS * wide * sizeof *r->w);
    r->q = malloc(ROWS * wide * sizeof *r->q);
    r->dy = malloc(n * ROWS * sizeof *r->dy);
    r->change = malloc(n * ROWS * sizeof *r->change);
    bool made = r->wanted && r->h && r->w && r->q && r->dy && r->change;
    return made ? 0 : error_set(err, -ENOMEM, "sensitivities: out of memory");
}

static int open_run(struct run *r, struct error *err) {
    int status = take_tokens(r, err);
    if (status == 0) status = make_room(r, err);
    if (status < 0) return status;
    const struct backward_setup setup = {.source = r->s->job->source,
                                         .n_windows = r->n_windows,
                                         .ctx = r->ctx,
                                         .n_threads = r->s->job->layer->n_threads,
                                         .memory = CACHE,
                                         .drawn = true};
    return backward_new(&r->backward, &setup, err);
}

static void close_run(struct run *r) {
    layer_input_free(r->input);
    backward_free(r->backward);
    free(r->tokens);
    free(r->wanted);
    free(r->h);
    free(r->w);
    free(r->q);
    free(r->dy);
    free(r->change);
}

/* -- What a matrix does ----------------------------------------------------------------------- */

/* The matrices of one input are shown one after another. */
static int take_input(struct run *r, const struct backward_layer *l, struct error *err) {
    const struct layer_options *o = r->s->job->layer;
    enum calibrate_input input = calibrate_input_of(l->role);
    size_t cols = (size_t)l->cols;
    if (r->input && r->input_of == input) return 0;
    layer_input_free(r->input);
    r->input = NULL;
    memset(r->h, 0, cols * cols * sizeof *r->h);
    int status = linalg_gram_add(r->h, l->x, r->n_tokens, l->cols, o->n_threads, err);
    if (status < 0) return status;
    linalg_symmetrize(r->h, l->cols, 1.0 / (double)r->n_tokens);
    r->input_of = input;
    return layer_input_new(&r->input, r->h, l->cols, o, err);
}

/* The rows that stand for all; returns how many. */
static int take_rows(struct run *r, const struct backward_layer *l) {
    int n = l->rows < ROWS ? l->rows : ROWS;
    size_t cols = (size_t)l->cols;
    for (int i = 0; i < n; i++) {
        size_t row = (size_t)((int64_t)i * l->rows / n);
        memcpy(r->w + (size_t)i * cols, l->w + row * cols, cols * sizeof *r->w);
        for (size_t t = 0; t < r->n_tokens; t++)
            r->dy[t * (size_t)n + (size_t)i] = l->dy[t * (size_t)l->rows + row];
    }
    return n;
}

/* Of the first n rows of w at some bits. */
static int measure(struct run *r, double *harm, const struct backward_layer *l, int n, int bits,
                   struct error *err) {
    struct layer_options o = sensitivity_cheap(r->s, bits);
    struct layer_result result = {0};
    double sum = 0.0;
    int status = layer_quantize(&result, r->input, r->w, n, &o, err);
    if (status < 0) return status;
    struct weight_view coded = layer_view(&result);
    status = weight_expand(&coded, 0, n, r->q, err);
    layer_result_free(&result);
    if (status < 0) return status;
    for (size_t i = 0; i < (size_t)n * (size_t)l->cols; i++) r->q[i] -= r->w[i];
    gemm(GEMM_NT, l->n_tokens, n, l->cols, l->x, r->q, 0.0f, r->change, o.n_threads);
    for (size_t t = 0; t < r->n_tokens; t++) {
        double along = 0.0;
        for (size_t i = t * (size_t)n; i < (t + 1) * (size_t)n; i++)
            along += (double)r->dy[i] * (double)r->change[i];
        sum += along * along;
    }
    *harm = 0.5 * sum / (double)r->n_tokens * l->rows / n;
    if (isfinite(*harm)) return 0;
    return error_set(err, -EDOM, "block %d: its gradient is not finite", l->layer);
}

static struct mixed_unit *unit_of(struct run *r, const struct backward_layer *l) {
    const struct sensitivity *s = r->s;
    for (size_t i = 0; i < s->n_units; i++)
        if (s->units[i].layer == l->layer && s->units[i].roles >> l->role & 1)
            return r->wanted[i] ? &s->table[i] : NULL;
    return NULL;
}

static int see(void *arg, const struct backward_layer *l, struct error *err) {
    struct run *r = arg;
    struct mixed_unit *unit = unit_of(r, l);
    if (!unit) return 0;
    int status = take_input(r, l, err), n = take_rows(r, l);
    for (int bits = 1; status == 0 && bits <= BCQ_MAX_BITS; bits++) {
        double harm;
        status = measure(r, &harm, l, n, bits, err);
        if (status == 0) unit->harm[bits - 1] += harm;
    }
    return status;
}

static int finish_block(void *arg, int layer, struct error *err) {
    struct run *r = arg;
    const struct sensitivity_job *job = r->s->job;
    int n_layers = r->s->config->n_layers, status = 0;
    layer_input_free(r->input);
    r->input = NULL;
    for (size_t i = 0; status == 0 && i < r->s->n_units; i++)
        if (r->wanted[i] && r->s->units[i].layer == layer) status = sensitivity_keep(r->s, i, err);
    if (job->progress) job->progress(job->arg, n_layers - layer, n_layers);
    return status;
}

int sensitivity_by_gradient(struct sensitivity *s, struct error *err) {
    struct run r = {.s = s};
    const struct backward_calls calls = {see, finish_block, &r};
    int status = open_run(&r, err);
    for (size_t i = 0; status == 0 && i < s->n_units; i++) {
        r.wanted[i] = !sensitivity_found(s, i);
        if (r.wanted[i]) memset(s->table[i].harm, 0, sizeof s->table[i].harm);
    }
    if (status == 0) status = backward_run(r.backward, r.tokens, r.n_windows, &calls, err);
    close_run(&r);
    return status;
}
