/* attention.h - keys and values in blocks, and attention over them.
 *
 * Owns      nothing.
 * Borrows   device memory during the launch.
 * Thread    the back end's.
 * Fails     each returns its launch's code.
 * Cost      keys and values of fp16 and heads up to 128 wide: each visible key and value is read once for
 *           16 rows of tokens and heads, on tensor cores. Else once for up to 4 heads of a token.
 *
 * Cuts are at multiples of SPLIT from position 0 and pieces are combined in order, whether one warp walks them
 * or each has a block of its own, so a token's result depends neither on the batch nor on how its
 * prompt was cut. A value beyond fp16 spoils the other tokens of its tile. */
#ifndef KERNELS_CUDA_ATTENTION_H
#define KERNELS_CUDA_ATTENTION_H

#include "kernels/cuda/gpu.h"

enum {
    KV_TOKENS = 16,
    SPLIT = 128,
    SPLIT_BLOCKS = SPLIT / KV_TOKENS,
    MAX_HEAD_DIM = 256,
    TILE_TOKENS = 16
};

/* A layer's pool: (blocks, n_kv_heads, K and V, KV_TOKENS, padded), rows padded with zeros. */
struct kv_pool {
    void *data;
    int is_half, n_kv_heads, head_dim, padded; /* padded: to a multiple of 8 */
};

struct batch_tables {
    const int32_t *positions, *seqs, *blocks;
    const int32_t
        *tiles; /* (n_tiles, TILE_TOKENS): tokens of one sequence, -1 where there is none */
    int max_blocks, n_tiles; /* max_blocks: a multiple of SPLIT_BLOCKS */
};

cudaError_t kv_store_run(const struct kv_pool *kv, const struct batch_tables *batch, const float *k,
                         const float *v, int n, cudaStream_t stream);

/* Turns q and k in place and stores k and v. */
struct rope_store_args {
    struct kv_pool kv;
    struct batch_tables batch;
    const float *angles; /* as rope_angles() makes them */
    float *q, *k;
    const float *v;
    int n_heads, n_freq;
};
cudaError_t rope_store_run(const struct rope_store_args *args, int n, cudaStream_t stream);

struct attention_args {
    float *dst;
    const float *q; /* (n, n_heads, head_dim) */
    struct kv_pool kv;
    struct batch_tables batch;
    int n_heads, window;
    float scale;
    const float *slopes; /* NULL without */
    float *pieces;       /* (tokens of a slice, n_heads, n_splits, padded + 2) */
    int n_splits;        /* of the longest context of the batch */
    int first_token;     /* of the slice */
};

static inline int splits_of(int longest) { return (longest + SPLIT - 1) / SPLIT; }
static inline size_t attention_floats(int n_heads, int n_splits, int padded) {
    return n_splits > 1 ? (size_t)n_heads * (size_t)n_splits * (size_t)(padded + 2) : 0;
}
cudaError_t attention_run(const struct attention_args *args, int n, cudaStream_t stream);

/* Whether tensor cores take this pool. */
static inline bool attention_in_tiles(const struct kv_pool *kv) {
    return kv->is_half && kv->padded <= 128;
}
/* All tokens of the batch; walk: without pieces in memory, else attention_merge_run() follows. */
cudaError_t attention_tiles_run(const struct attention_args *args, bool walk, cudaStream_t stream);
cudaError_t attention_merge_run(const struct attention_args *args, int n, cudaStream_t stream);

#endif
