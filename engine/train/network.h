/* network.h - a whole decoder forward to the states that its output matrix reads, and backward.
 *
 * Owns      activations and work room until network_free().
 * Borrows   the ends until network_free(); what its callbacks give until the next callback.
 * Thread    one at a time; work is spread over n_threads.
 * Fails     network_new() with -ENOMEM, -EINVAL (sizes); a run with what its callbacks fail with.
 * Cost      block.h's, for every block. When all caches exceed cache_bytes only what enters each
 *           block is kept, and backward runs every block forward once more.
 *
 * Weights are asked for block by block, so that only one block need be dense at a time. */
#ifndef ENGINE_TRAIN_NETWORK_H
#define ENGINE_TRAIN_NETWORK_H

#include <stddef.h>
#include <stdint.h>

#include "engine/train/block.h"
#include "engine/train/params.h"

struct network;

struct network_blocks {
    /* A block's dense weights, valid until the next call: once in forward, in rising order, once in
     * backward, in falling order. */
    int (*weights)(void *arg, int layer, struct block_weights *ret, struct error *err);
    /* Which gradients backward is to give; ret is zeroed before. NULL: none. */
    void (*grads)(void *arg, int layer, struct block_grads *ret);
    /* Backward is through with the block. May be NULL. */
    void (*done)(void *arg, int layer);
    void *arg;
};

/* cache_bytes 0: for network_block() and the other parts alone. */
int network_new(struct network **ret, const struct model_config *config,
                const struct params_ends *ends, int n_seqs, int ctx, int n_threads,
                size_t cache_bytes, struct error *err);
void network_free(struct network *n); /* NULL is allowed */

/* tokens: (n_seqs, ctx), at most what network_new() was told. hidden: (n_seqs * ctx, embed_dim), what
 * the output matrix reads. */
int network_forward(struct network *n, const struct network_blocks *blocks, const int32_t *tokens,
                    int n_seqs, int ctx, float *hidden, struct error *err);

/* Of the last forward. dnorm_w, dnorm_b (hidden): of the final norm, added to; may be NULL. */
int network_backward(struct network *n, const struct network_blocks *blocks, const float *dhidden,
                     float *dnorm_w, float *dnorm_b, struct error *err);

/* Parts of forward, for who runs blocks in an order of their own. x: (n_seqs * ctx, hidden). */
struct block *network_block(struct network *n);
void network_embed(struct network *n, const int32_t *tokens, int n_seqs, int ctx, float *x);
void network_finish(struct network *n, const float *x, int n_tokens, float *hidden);

#endif
