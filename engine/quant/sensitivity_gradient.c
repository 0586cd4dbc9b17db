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
#include "engine/quant/linalg.h"
#include "engine/quant/sensitivity_state.h"
#include "engine/source.h"
#include "engine/train/gemm.h"
#include "engine/train/loss.h"
#include "engine/train/network.h"
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
    struct params *params;
    struct params_ends ends;
    struct network *network;
    struct loss *loss;
    struct params_block block;
    int layer, n_windows, ctx;
    size_t n_tokens;
    int32_t *tokens, *targets;
    float *hidden, *grad; /* (n_tokens, embed_dim) */
    bool *wanted;         /* (n_units) */
    struct layer_input *input;
    enum calibrate_input input_of; /* which one that is, of the layer */
    double *h;                     /* (widest, widest) */
    float *w, *q;       /* (ROWS, widest) rows of a matrix, and what coding changes in them */
    float *dy, *change; /* (n_tokens, ROWS) gradients and changes of their outputs */
    int status;
    struct error *err;
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
    r->targets = malloc(r->n_tokens * sizeof *r->targets);
    if (!r->tokens || !r->targets) return error_set(err, -ENOMEM, "sensitivities: out of memory");
    for (int w = 0; w < r->n_windows; w++) {
        const int32_t *from =
            job->tokens + (size_t)(w * (int64_t)job->n_windows / r->n_windows) * (size_t)job->ctx;
        memcpy(r->tokens + (size_t)w * (size_t)r->ctx, from, (size_t)r->ctx * sizeof *from);
    }
    return 0;
}

static int make_room(struct run *r, struct error *err) {
    size_t n = r->n_tokens, dim = (size_t)r->s->config->embed_dim, wide = (size_t)widest(r->s);
    r->hidden = malloc(n * dim * sizeof *r->hidden);
    r->grad = malloc(n * dim * sizeof *r->grad);
    r->wanted = calloc(r->s->n_units + 1, sizeof *r->wanted);
    r->h = malloc(wide * wide * sizeof *r->h);
    r->w = malloc(ROWS * wide * sizeof *r->w);
    r->q = malloc(ROWS * wide * sizeof *r->q);
    r->dy = malloc(n * ROWS * sizeof *r->dy);
    r->change = malloc(n * ROWS * sizeof *r->change);
    bool made = r->hidden && r->grad && r->wanted && r->h && r->w && r->q && r->dy && r->change;
    return made ? 0 : error_set(err, -ENOMEM, "sensitivities: out of memory");
}

static int open_run(struct run *r, struct error *err) {
    const struct model_config *c = r->s->config;
    int n_threads = r->s->job->layer->n_threads;
    int status = take_tokens(r, err);
    if (status == 0) status = make_room(r, err);
    if (status == 0) status = params_open(&r->params, r->s->job->source, err);
    if (status == 0) status = params_ends_read(&r->ends, r->params, err);
    if (status == 0)
        status = network_new(&r->network, c, &r->ends, r->n_windows, r->ctx, n_threads, CACHE, err);
    if (status == 0)
        status = loss_new(&r->loss, r->ends.head, NULL, c->vocab, c->embed_dim, n_threads, err);
    return status;
}

static void close_run(struct run *r) {
    layer_input_free(r->input);
    params_block_free(&r->block);
    loss_free(r->loss);
    network_free(r->network);
    params_ends_free(&r->ends);
    params_close(r->params);
    free(r->tokens);
    free(r->targets);
    free(r->hidden);
    free(r->grad);
    free(r->wanted);
    free(r->h);
    free(r->w);
    free(r->q);
    free(r->dy);
    free(r->change);
}

/* -- What a matrix does ----------------------------------------------------------------------- */

/* The matrices of one input are shown one after another. */
static int take_input(struct run *r, enum calibrate_input input, const float *x, int cols,
                      struct error *err) {
    const struct layer_options *o = r->s->job->layer;
    if (r->input && r->input_of == input) return 0;
    layer_input_free(r->input);
    r->input = NULL;
    memset(r->h, 0, (size_t)cols * (size_t)cols * sizeof *r->h);
    int status = linalg_gram_add(r->h, x, r->n_tokens, cols, o->n_threads, err);
    if (status < 0) return status;
    linalg_symmetrize(r->h, cols, 1.0 / (double)r->n_tokens);
    r->input_of = input;
    return layer_input_new(&r->input, r->h, cols, o, err);
}

/* The rows that stand for all; returns how many. */
static int take_rows(struct run *r, enum model_role role, const float *dy, int rows, int cols) {
    int n = rows < ROWS ? rows : ROWS;
    for (int i = 0; i < n; i++) {
        size_t row = (size_t)((int64_t)i * rows / n), wide = (size_t)cols;
        memcpy(r->w + (size_t)i * wide, r->block.linear[role] + row * wide, wide * sizeof *r->w);
        for (size_t t = 0; t < r->n_tokens; t++)
            r->dy[t * (size_t)n + (size_t)i] = dy[t * (size_t)rows + row];
    }
    return n;
}

/* Of the first n rows of w at some bits. */
static int measure(struct run *r, double *harm, const float *x, int n, int cols, int bits,
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
    for (size_t i = 0; i < (size_t)n * (size_t)cols; i++) r->q[i] -= r->w[i];
    gemm(GEMM_NT, (int)r->n_tokens, n, cols, x, r->q, 0.0f, r->change, o.n_threads);
    for (size_t t = 0; t < r->n_tokens; t++) {
        double along = 0.0;
        for (size_t i = t * (size_t)n; i < (t + 1) * (size_t)n; i++)
            along += (double)r->dy[i] * (double)r->change[i];
        sum += along * along;
    }
    *harm = 0.5 * sum / (double)r->n_tokens;
    return 0;
}

static struct mixed_unit *unit_of(struct run *r, enum model_role role) {
    for (size_t i = 0; i < r->s->n_units; i++)
        if (r->s->units[i].layer == r->layer && r->s->units[i].roles >> role & 1)
            return r->wanted[i] ? &r->s->table[i] : NULL;
    return NULL;
}

static void see(void *arg, enum model_role role, const float *x, const float *dy, int n_tokens,
                int rows, int cols) {
    struct run *r = arg;
    struct mixed_unit *unit = r->status < 0 ? NULL : unit_of(r, role);
    (void)n_tokens; /* all of them */
    if (!unit) return;
    r->status = take_input(r, calibrate_input_of(role), x, cols, r->err);
    int n = take_rows(r, role, dy, rows, cols);
    for (int bits = 1; r->status == 0 && bits <= BCQ_MAX_BITS; bits++) {
        double harm = 0.0;
        r->status = measure(r, &harm, x, n, cols, bits, r->err);
        if (r->status == 0 && !isfinite(harm))
            r->status = error_set(r->err, -EDOM, "block %d: its gradient is not finite", r->layer);
        unit->harm[bits - 1] += harm * rows / n;
    }
}

/* -- The passes ------------------------------------------------------------------------------- */

static int give_weights(void *arg, int layer, struct block_weights *ret, struct error *err) {
    struct run *r = arg;
    if (r->status < 0) return r->status;
    params_block_free(&r->block);
    r->block = (struct params_block){0};
    int status = params_block_read(&r->block, r->params, layer, err);
    if (status == 0) *ret = params_block_view(&r->block);
    return status;
}

static void give_grads(void *arg, int layer, struct block_grads *ret) {
    struct run *r = arg;
    r->layer = layer;
    layer_input_free(r->input);
    r->input = NULL;
    ret->see = see;
    ret->arg = r;
}

static void finish_layer(void *arg, int layer) {
    struct run *r = arg;
    const struct sensitivity_job *job = r->s->job;
    for (size_t i = 0; r->status == 0 && i < r->s->n_units; i++)
        if (r->wanted[i] && r->s->units[i].layer == layer)
            r->status = sensitivity_keep(r->s, i, r->err);
    if (job->progress)
        job->progress(job->arg, r->s->config->n_layers - layer, r->s->config->n_layers);
}

static int run_passes(struct run *r, struct error *err) {
    const struct network_blocks blocks = {give_weights, give_grads, finish_layer, r};
    size_t cells = r->n_tokens * (size_t)r->s->config->embed_dim;
    int n = (int)r->n_tokens;
    int status =
        network_forward(r->network, &blocks, r->tokens, r->n_windows, r->ctx, r->hidden, err);
    if (status < 0) return status;
    loss_draw(r->loss, r->targets, r->hidden, n, 1);
    if (!isfinite(loss_cross_entropy(r->loss, r->targets, r->hidden, n, r->grad)))
        return error_set(err, -EDOM, "calibration text: its loss is not finite");
    /* Of each token's loss, not of their mean. */
    for (size_t i = 0; i < cells; i++) r->grad[i] *= (float)n;
    status = network_backward(r->network, &blocks, r->grad, NULL, NULL, err);
    return r->status < 0 ? r->status : status;
}

int sensitivity_by_gradient(struct sensitivity *s, struct error *err) {
    struct run r = {.s = s, .err = err};
    int status = open_run(&r, err);
    for (size_t i = 0; status == 0 && i < s->n_units; i++) {
        r.wanted[i] = !sensitivity_found(s, i);
        if (r.wanted[i]) memset(s->table[i].harm, 0, sizeof s->table[i].harm);
    }
    if (status == 0) status = run_passes(&r, err);
    close_run(&r);
    return status;
}
