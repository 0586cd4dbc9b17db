#include "engine/train/network.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "engine/config.h"
#include "engine/train/gemm.h"
#include "engine/train/norm.h"
#include "kernels/error.h"

struct network {
    struct model_config config;
    const struct params_ends *ends;
    int n_threads, n_seqs, ctx; /* of the last forward */
    struct block *block;
    bool keeps_all;
    struct block_cache **caches; /* (n_layers), or one */
    float *entered;              /* (n_layers, n, hidden) unless all caches are kept */
    float *x, *dx;               /* (n, hidden) */
    float *narrow;               /* (n, embed_dim) where that is not hidden */
    float *stats;                /* (n, 2) */
    size_t max_tokens;
};

static bool has_projections(const struct network *n) {
    return n->config.embed_dim != n->config.hidden;
}

static int make_caches(struct network *n, size_t cache_bytes, struct error *err) {
    size_t layers = (size_t)n->config.n_layers, each = block_cache_bytes(n->block);
    n->keeps_all = each <= cache_bytes / layers;
    n->caches = calloc(layers, sizeof *n->caches);
    if (!n->caches) return error_set(err, -ENOMEM, "network: out of memory");
    int r = 0;
    for (size_t i = 0; r == 0 && i < (n->keeps_all ? layers : 1); i++)
        r = block_cache_new(&n->caches[i], n->block, err);
    if (r < 0 || n->keeps_all) return r;
    n->entered = malloc(layers * n->max_tokens * (size_t)n->config.hidden * sizeof *n->entered);
    return n->entered ? 0 : error_set(err, -ENOMEM, "network: out of memory");
}

int network_new(struct network **ret, const struct model_config *config,
                const struct params_ends *ends, int n_seqs, int ctx, int n_threads,
                size_t cache_bytes, struct error *err) {
    struct network *n = calloc(1, sizeof *n);
    if (!n) return error_set(err, -ENOMEM, "network: out of memory");
    *n = (struct network){.config = *config, .ends = ends, .n_threads = n_threads};
    int r = block_new(&n->block, config, n_seqs, ctx, n_threads, err);
    if (r == 0) {
        n->max_tokens = (size_t)n_seqs * (size_t)ctx;
        size_t state = n->max_tokens * (size_t)config->hidden;
        n->x = malloc(state * sizeof *n->x);
        n->dx = malloc(state * sizeof *n->dx);
        n->stats = malloc(2 * n->max_tokens * sizeof *n->stats);
        n->narrow = malloc(n->max_tokens * (size_t)config->embed_dim * sizeof *n->narrow);
        if (!n->x || !n->dx || !n->stats || !n->narrow)
            r = error_set(err, -ENOMEM, "network: out of memory");
    }
    if (r == 0 && cache_bytes > 0) r = make_caches(n, cache_bytes, err);
    if (r < 0)
        network_free(n);
    else
        *ret = n;
    return r;
}

void network_free(struct network *n) {
    if (!n) return;
    for (int i = 0; n->caches && i < n->config.n_layers; i++) block_cache_free(n->caches[i]);
    free(n->caches);
    block_free(n->block);
    free(n->entered);
    free(n->x);
    free(n->dx);
    free(n->narrow);
    free(n->stats);
    free(n);
}

struct block *network_block(struct network *n) {
    return n->block;
}

static struct norm_rows norm_of(const struct network *n, const float *w, const float *b,
                                int n_tokens) {
    return (struct norm_rows){.w = w,
                              .b = b,
                              .n = n_tokens,
                              .dim = n->config.hidden,
                              .eps = n->config.norm_eps,
                              .n_threads = n->n_threads};
}

static void add_positions(const struct network *n, int n_tokens, int ctx, float *x) {
    size_t hidden = (size_t)n->config.hidden;
    for (int t = 0; t < n_tokens; t++) {
        const float *row =
            n->ends->positions + (size_t)(t % ctx + n->config.position_offset) * hidden;
        for (size_t i = 0; i < hidden; i++) x[(size_t)t * hidden + i] += row[i];
    }
}

void network_embed(struct network *n, const int32_t *tokens, int n_seqs, int ctx, float *x) {
    const struct params_ends *e = n->ends;
    int n_tokens = n_seqs * ctx;
    size_t width = (size_t)n->config.embed_dim;
    float *dst = has_projections(n) ? n->narrow : x;
    for (size_t t = 0; t < (size_t)n_tokens; t++)
        memcpy(dst + t * width, e->embed + (size_t)tokens[t] * width, width * sizeof *dst);
    if (has_projections(n))
        gemm(GEMM_NT, n_tokens, n->config.hidden, n->config.embed_dim, n->narrow, e->project_in,
             0.0f, x, n->n_threads);
    if (e->positions) add_positions(n, n_tokens, ctx, x);
    if (!e->embed_norm_w) return;
    struct norm_rows norm = norm_of(n, e->embed_norm_w, e->embed_norm_b, n_tokens);
    norm_forward(&norm, x, x);
}

void network_finish(struct network *n, const float *x, int n_tokens, float *hidden) {
    const struct params_ends *e = n->ends;
    size_t bytes = (size_t)n_tokens * (size_t)n->config.hidden * sizeof *x;
    float *dst = has_projections(n) ? n->dx : hidden;
    if (e->final_norm_w) {
        struct norm_rows norm = norm_of(n, e->final_norm_w, e->final_norm_b, n_tokens);
        norm_forward(&norm, x, dst);
    } else {
        memcpy(dst, x, bytes);
    }
    if (has_projections(n))
        gemm(GEMM_NT, n_tokens, n->config.embed_dim, n->config.hidden, dst, e->project_out, 0.0f,
             hidden, n->n_threads);
}

static float *entered_at(const struct network *n, int layer) {
    return n->entered + (size_t)layer * n->max_tokens * (size_t)n->config.hidden;
}

int network_forward(struct network *n, const struct network_blocks *blocks, const int32_t *tokens,
                    int n_seqs, int ctx, float *hidden, struct error *err) {
    int n_tokens = n_seqs * ctx;
    n->n_seqs = n_seqs;
    n->ctx = ctx;
    network_embed(n, tokens, n_seqs, ctx, n->x);
    for (int layer = 0; layer < n->config.n_layers; layer++) {
        struct block_weights w;
        int r = blocks->weights(blocks->arg, layer, &w, err);
        if (r < 0) return r;
        if (!n->keeps_all)
            memcpy(entered_at(n, layer), n->x,
                   (size_t)n_tokens * (size_t)n->config.hidden * sizeof *n->x);
        block_forward(n->block, &w, n->x, n->x, n_seqs, ctx,
                      n->keeps_all ? n->caches[layer] : NULL);
    }
    network_finish(n, n->x, n_tokens, hidden);
    return 0;
}

/* From the states that the output matrix reads to those after the last block, into dx. */
static void finish_back(struct network *n, const float *dhidden, float *dnorm_w, float *dnorm_b) {
    const struct params_ends *e = n->ends;
    int n_tokens = n->n_seqs * n->ctx;
    size_t bytes = (size_t)n_tokens * (size_t)n->config.hidden * sizeof *n->dx;
    if (has_projections(n))
        gemm(GEMM_NN, n_tokens, n->config.hidden, n->config.embed_dim, dhidden, e->project_out,
             0.0f, n->dx, n->n_threads);
    else
        memcpy(n->dx, dhidden, bytes);
    if (!e->final_norm_w) return;
    struct norm_rows norm = norm_of(n, e->final_norm_w, e->final_norm_b, n_tokens);
    norm_backward(&norm, n->x, n->dx, NULL, n->dx, dnorm_w, dnorm_b, n->stats);
}

int network_backward(struct network *n, const struct network_blocks *blocks, const float *dhidden,
                     float *dnorm_w, float *dnorm_b, struct error *err) {
    finish_back(n, dhidden, dnorm_w, dnorm_b);
    for (int layer = n->config.n_layers - 1; layer >= 0; layer--) {
        struct block_weights w;
        struct block_grads grads = {0};
        struct block_cache *cache = n->caches[n->keeps_all ? layer : 0];
        int r = blocks->weights(blocks->arg, layer, &w, err);
        if (r < 0) return r;
        if (blocks->grads) blocks->grads(blocks->arg, layer, &grads);
        if (!n->keeps_all)
            block_forward(n->block, &w, entered_at(n, layer), n->x, n->n_seqs, n->ctx, cache);
        block_backward(n->block, &w, cache, n->dx, n->dx, &grads);
        if (blocks->done) blocks->done(blocks->arg, layer);
    }
    return 0;
}
