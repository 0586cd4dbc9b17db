/* Norm Tweaking in closed form (arXiv 2309.02784, section 3.2), norm by norm. Unlike the paper's
 * few Adam steps on the two norms inside a coded block, each norm is fitted where the states enter
 * it, and a fit stays only if the block's output on held-out windows comes nearer to the original
 * one's. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/config.h"
#include "engine/quant/blockwise_state.h"
#include "engine/quant/norm_fit.h"
#include "engine/train/norm.h"
#include "kernels/error.h"

struct fitting {
    struct norm_fit *fit;
    const float *w[2], *b[2]; /* of the coded model's norm, of the original's */
};

static float *second_scratch(const struct blockwise *b) {
    return b->y + (size_t)b->batch * (size_t)b->ctx * (size_t)b->config->hidden;
}

static void run_norm(const struct blockwise *b, const float *w, const float *bias, const float *x,
                     float *y, int n) {
    struct norm_rows rows = {.w = w,
                             .b = bias,
                             .n = n,
                             .dim = b->config->hidden,
                             .eps = b->config->norm_eps,
                             .n_threads = b->n_threads};
    norm_forward(&rows, x, y);
}

static enum norm_fit_form form_of(const struct blockwise *b) {
    return b->o->tweak == TWEAK_MOMENTS ? NORM_FIT_MOMENTS : NORM_FIT_SQUARES;
}

/* Puts the fitted factors on a norm of width floats. */
static int adjust(struct blockwise *b, const struct norm_fit *fit, float *w, float *bias,
                  struct error *err) {
    size_t hidden = (size_t)b->config->hidden;
    float *factor = malloc(2 * hidden * sizeof *factor);
    if (!factor) return error_set(err, -ENOMEM, "norm fit: out of memory");
    norm_fit_solve(fit, form_of(b), bias != NULL, factor, factor + hidden);
    for (size_t c = 0; c < hidden; c++) {
        w[c] *= factor[c];
        if (bias) bias[c] = bias[c] * factor[c] + factor[hidden + c];
    }
    free(factor);
    return 0;
}

/* Keeps the adjusted norm where the held-out windows come out better on `judged`, whose norm it
 * becomes; else puts the old one back. */
static int adjust_or_not(struct blockwise *b, const struct norm_fit *fit, enum block_norm which,
                         struct params_block *judged, struct error *err) {
    size_t hidden = (size_t)b->config->hidden;
    float *w = b->now.norm_w[which], *bias = b->now.norm_b[which];
    float *saved = malloc(2 * hidden * sizeof *saved);
    if (!saved) return error_set(err, -ENOMEM, "norm fit: out of memory");
    memcpy(saved, w, hidden * sizeof *w);
    if (bias) memcpy(saved + hidden, bias, hidden * sizeof *bias);
    struct params_block old = *judged;
    judged->norm_w[which] = w;
    judged->norm_b[which] = bias;
    double before = blockwise_error(b, judged);
    int r = adjust(b, fit, w, bias, err);
    double after = r == 0 ? blockwise_error(b, judged) : before;
    *judged = old;
    if (r == 0 && after < before) {
        int first = which == BLOCK_ATTN_NORM ? VECTOR_ATTN_NORM : VECTOR_FFN_NORM;
        r = blockwise_change(b, (enum model_vector)first, err);
        if (r == 0) r = blockwise_change(b, (enum model_vector)(first + 1), err);
    } else {
        memcpy(w, saved, hidden * sizeof *w);
        if (bias) memcpy(bias, saved + hidden, hidden * sizeof *bias);
    }
    free(saved);
    return r;
}

static int add_inputs(struct blockwise *b, const struct blockwise_windows *w, void *arg) {
    struct fitting *f = arg;
    int n = w->n * b->ctx;
    float *wanted = second_scratch(b);
    run_norm(b, f->w[0], f->b[0], w->coded, b->y, n);
    run_norm(b, f->w[1], f->b[1], w->original, wanted, n);
    norm_fit_add(f->fit, b->y, wanted, n);
    return 0;
}

int norm_tweak_input(struct blockwise *b, struct error *err) {
    struct fitting f = {.w = {b->now.norm_w[BLOCK_ATTN_NORM], b->original.norm_w[BLOCK_ATTN_NORM]},
                        .b = {b->now.norm_b[BLOCK_ATTN_NORM], b->original.norm_b[BLOCK_ATTN_NORM]}};
    int r = norm_fit_new(&f.fit, b->config->hidden, err);
    if (r < 0) return r;
    /* The first block's input is the embeddings, the same in both. */
    if (b->layer > 0) {
        blockwise_each(b, PART_FIT, add_inputs, &f);
        /* Judged on the original matrices, those to come not being coded yet. */
        r = adjust_or_not(b, f.fit, BLOCK_ATTN_NORM, &b->original, err);
    }
    norm_fit_free(f.fit);
    return r;
}

static int add_inside(struct blockwise *b, const struct blockwise_windows *w, void *arg) {
    struct fitting *f = arg;
    int n = w->n * b->ctx;
    float *wanted = second_scratch(b);
    struct block_weights now = params_block_view(&b->now);
    struct block_weights original = params_block_view(&b->original);
    block_forward(b->block, &original, w->original, b->y, w->n, b->ctx, b->cache);
    memcpy(wanted, block_input(b->block, &original, b->cache, ROLE_UP),
           (size_t)n * (size_t)b->config->hidden * sizeof *wanted);
    block_forward(b->block, &now, w->coded, b->y, w->n, b->ctx, b->cache);
    norm_fit_add(f->fit, block_input(b->block, &now, b->cache, ROLE_UP), wanted, n);
    return 0;
}

int norm_tweak_inside(struct blockwise *b, struct error *err) {
    struct fitting f = {0};
    int r = norm_fit_new(&f.fit, b->config->hidden, err);
    if (r < 0) return r;
    blockwise_each(b, PART_FIT, add_inside, &f);
    r = adjust_or_not(b, f.fit, BLOCK_FFN_NORM, &b->now, err);
    norm_fit_free(f.fit);
    return r;
}

static int add_outputs(struct blockwise *b, const struct blockwise_windows *w, void *arg) {
    struct fitting *f = arg;
    int n = w->n * b->ctx;
    float *wanted = second_scratch(b);
    struct block_weights now = params_block_view(&b->now);
    block_forward(b->block, &now, w->coded, b->y, w->n, b->ctx, NULL);
    run_norm(b, f->w[0], f->b[0], b->y, b->y, n);
    run_norm(b, f->w[1], f->b[1], w->wanted, wanted, n);
    norm_fit_add(f->fit, b->y, wanted, n);
    return 0;
}

int norm_tweak_final(struct blockwise *b, struct error *err) {
    struct fitting f = {0};
    if (!model_vector_size(b->model, VECTOR_FINAL_NORM)) return 0;
    int r = norm_fit_new(&f.fit, b->config->hidden, err);
    for (int i = 0; r == 0 && i < 2; i++) {
        enum model_vector v = (enum model_vector)(VECTOR_FINAL_NORM + i);
        if (!model_vector_size(b->model, v)) continue;
        b->final_norm[i] = malloc((size_t)b->config->hidden * sizeof *b->final_norm[i]);
        if (!b->final_norm[i]) r = error_set(err, -ENOMEM, "norm fit: out of memory");
        if (r == 0) r = model_read_vector(b->model, 0, v, b->final_norm[i], err);
    }
    if (r == 0) {
        f.w[0] = f.w[1] = b->final_norm[0];
        f.b[0] = f.b[1] = b->final_norm[1];
        blockwise_each(b, PART_FIT, add_outputs, &f);
        r = adjust(b, f.fit, b->final_norm[0], b->final_norm[1], err);
    }
    norm_fit_free(f.fit);
    return r;
}
