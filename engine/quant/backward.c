#include "engine/quant/backward.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>

#include "engine/config.h"
#include "engine/source.h"
#include "engine/train/loss.h"
#include "engine/train/network.h"
#include "kernels/error.h"

struct backward {
    struct backward_setup setup;
    const struct model_config *config;
    struct params *params;
    struct params_ends ends;
    struct network *network;
    struct loss *loss;
    int32_t *targets;     /* (n_windows * ctx) */
    float *hidden, *grad; /* (n_windows * ctx, embed_dim) */

    /* Of a run. */
    const struct backward_calls *calls;
    struct params_block block;
    int layer, status;
    struct error *err;
};

static int open_parts(struct backward *b, struct error *err) {
    const struct model_config *c = b->config;
    const struct backward_setup *s = &b->setup;
    int r = params_open(&b->params, s->source, err);
    if (r == 0) r = params_ends_read(&b->ends, b->params, err);
    if (r == 0)
        r = network_new(&b->network, c, &b->ends, s->n_windows, s->ctx, s->n_threads, s->memory,
                        err);
    if (r == 0)
        r = loss_new(&b->loss, b->ends.head, NULL, c->vocab, c->embed_dim, s->n_threads, err);
    return r;
}

int backward_new(struct backward **ret, const struct backward_setup *setup, struct error *err) {
    struct backward *b = calloc(1, sizeof *b);
    if (!b) return error_set(err, -ENOMEM, "sensitivities: out of memory");
    b->setup = *setup;
    b->config = source_config(setup->source);
    size_t n = (size_t)setup->n_windows * (size_t)setup->ctx, dim = (size_t)b->config->embed_dim;
    b->targets = malloc(n * sizeof *b->targets);
    b->hidden = malloc(n * dim * sizeof *b->hidden);
    b->grad = malloc(n * dim * sizeof *b->grad);
    int r = b->targets && b->hidden && b->grad
                ? open_parts(b, err)
                : error_set(err, -ENOMEM, "sensitivities: out of memory");
    if (r < 0)
        backward_free(b);
    else
        *ret = b;
    return r;
}

void backward_free(struct backward *b) {
    if (!b) return;
    params_block_free(&b->block);
    loss_free(b->loss);
    network_free(b->network);
    params_ends_free(&b->ends);
    params_close(b->params);
    free(b->targets);
    free(b->hidden);
    free(b->grad);
    free(b);
}

static int give_weights(void *arg, int layer, struct block_weights *ret, struct error *err) {
    struct backward *b = arg;
    if (b->status < 0) return b->status;
    params_block_free(&b->block);
    b->block = (struct params_block){0};
    int r = params_block_read(&b->block, b->params, layer, err);
    if (r == 0) *ret = params_block_view(&b->block);
    return r;
}

static void see(void *arg, enum model_role role, const float *x, const float *dy, int n_tokens,
                int rows, int cols) {
    struct backward *b = arg;
    const struct backward_layer l = {.layer = b->layer,
                                     .role = role,
                                     .n_tokens = n_tokens,
                                     .rows = rows,
                                     .cols = cols,
                                     .w = b->block.linear[role],
                                     .x = x,
                                     .dy = dy};
    if (b->status == 0) b->status = b->calls->see(b->calls->arg, &l, b->err);
}

static void give_grads(void *arg, int layer, struct block_grads *ret) {
    struct backward *b = arg;
    b->layer = layer;
    ret->see = see;
    ret->arg = b;
}

static void finish_layer(void *arg, int layer) {
    struct backward *b = arg;
    if (b->status == 0 && b->calls->done) b->status = b->calls->done(b->calls->arg, layer, b->err);
}

static void choose_targets(struct backward *b, const int32_t *tokens, int n) {
    int ctx = b->setup.ctx;
    if (b->setup.drawn) {
        loss_draw(b->loss, b->targets, b->hidden, n, 1);
        return;
    }
    for (int i = 0; i < n; i++) b->targets[i] = (i + 1) % ctx ? tokens[i + 1] : -1;
}

int backward_run(struct backward *b, const int32_t *tokens, int n_windows,
                 const struct backward_calls *calls, struct error *err) {
    const struct network_blocks blocks = {give_weights, give_grads, finish_layer, b};
    int n = n_windows * b->setup.ctx;
    b->calls = calls;
    b->status = 0;
    b->err = err;
    int r = network_forward(b->network, &blocks, tokens, n_windows, b->setup.ctx, b->hidden, err);
    if (r < 0) return r;
    choose_targets(b, tokens, n);
    if (!isfinite(loss_cross_entropy(b->loss, b->targets, b->hidden, n, b->grad)))
        return error_set(err, -EDOM, "calibration text: its loss is not finite");
    size_t cells = (size_t)n * (size_t)b->config->embed_dim;
    for (size_t i = 0; i < cells; i++) b->grad[i] *= (float)n;
    r = network_backward(b->network, &blocks, b->grad, NULL, NULL, err);
    return b->status < 0 ? b->status : r;
}
