/* block.h - runs one block of a decoder forward in fp32 and backward again.
 *
 * Owns      caches and work room until block_free(); block_cache_free().
 * Borrows   weights, states and gradient buffers during a call; what a cache points at (see
 *           below) from forward to backward.
 * Thread    one at a time for a struct block; work is spread over its n_threads.
 * Fails     block_new() and block_cache_new() with -ENOMEM, -EINVAL (sizes); the rest never.
 * Cost      forward 2, backward 4 operations per weight and token, plus attention.
 *
 * Every architecture that engine/model.h runs is one set of flags here (norm, positions, gated or
 * plain feed-forward part, where the residual is taken), read from its config: the forward pass is
 * that of engine/model.c, the backward pass is derived by hand from it (README.md has the formulas).
 * Tokens are n_seqs sequences of ctx tokens each, at positions 0 to ctx - 1, side by side.
 * Sums are cut into pieces of fixed size: equal input gives equal bits for any n_threads. */
#ifndef ENGINE_TRAIN_BLOCK_H
#define ENGINE_TRAIN_BLOCK_H

#include <stddef.h>

#include "engine/model.h"

struct block;
struct block_cache;
struct error;

enum block_norm { BLOCK_ATTN_NORM, BLOCK_FFN_NORM, BLOCK_NORMS };

/* One block's parameters in fp32; whoever holds them may change them between calls. */
struct block_weights {
    const float *linear[ROLE_COUNT];  /* (rows, cols); NULL where a block has no such layer */
    const float *bias[ROLE_COUNT];    /* (rows) or NULL */
    const float *norm_w[BLOCK_NORMS]; /* (hidden) */
    const float *norm_b[BLOCK_NORMS]; /* (hidden); NULL: RMSNorm */
};

/* What backward is to give besides dx. Sums are added to what the buffers hold; NULL: not wanted. */
struct block_grads {
    float *linear[ROLE_COUNT];  /* (rows, cols) d loss / d W */
    float *bias[ROLE_COUNT];    /* (rows) */
    float *norm_w[BLOCK_NORMS]; /* (hidden) */
    float *norm_b[BLOCK_NORMS]; /* (hidden) */

    /* Shows each linear layer's input x (n_tokens, cols) and the gradient dy (n_tokens, rows) of
     * its output (before bias is added it is the same); both are valid during the call only. Called
     * on the calling thread, outside of parallel work: down, up, gate, o, v, k, q. May be NULL. */
    void (*see)(void *arg, enum model_role role, const float *x, const float *dy, int n_tokens,
                int rows, int cols);
    void *arg;
};

/* n_seqs and ctx are the most that calls will have. */
int block_new(struct block **ret, const struct model_config *config, int n_seqs, int ctx,
              int n_threads, struct error *err);
void block_free(struct block *b); /* NULL is allowed */

/* What backward needs of forward, for n_seqs x ctx tokens: activations, about
 * block_cache_bytes(). A cache may be used again by a later forward. */
int block_cache_new(struct block_cache **ret, const struct block *b, struct error *err);
void block_cache_free(struct block_cache *cache); /* NULL is allowed */
size_t block_cache_bytes(const struct block *b);

/* y = block(x), both (n_seqs * ctx, hidden); y may be x. cache NULL: nothing is kept. */
void block_forward(struct block *b, const struct block_weights *w, const float *x, float *y,
                   int n_seqs, int ctx, struct block_cache *cache);

/* dx = d loss / d x for dy = d loss / d y, with the weights that forward had; dx may be dy. grads may
 * be NULL. The cache stays as it is: backward may run again with another dy. */
void block_backward(struct block *b, const struct block_weights *w, const struct block_cache *cache,
                    const float *dy, float *dx, const struct block_grads *grads);

/* The input (n_tokens, cols) of a linear layer in the forward that filled the cache, with the
 * weights that it had; valid until the next call. */
const float *block_input(const struct block *b, const struct block_weights *w,
                         const struct block_cache *cache, enum model_role role);

/* The shape of a linear layer; 0 rows where a block has none. */
void block_shape(const struct block *b, enum model_role role, int *ret_rows, int *ret_cols);

#endif
