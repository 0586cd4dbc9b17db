/* attention.cuh - what the kernels of attention share: where keys and values lie, how pieces meet.
 *
 * Owns      nothing.
 * Borrows   see attention.h.
 * Thread    a kernel's.
 * Fails     never.
 * Cost      nothing of its own. */
#ifndef KERNELS_CUDA_ATTENTION_CUH
#define KERNELS_CUDA_ATTENTION_CUH

#include "kernels/cuda/attention.h"
#include "kernels/cuda/ptx.h"

static __device__ __forceinline__ const int32_t *blocks_of(const struct batch_tables &batch,
                                                           int token) {
    return batch.blocks + (size_t)batch.seqs[token] * (size_t)batch.max_blocks;
}

static __device__ __forceinline__ size_t row_in(const struct kv_pool &kv, int block, int position,
                                                int head, int is_value) {
    size_t plane = ((size_t)block * (size_t)kv.n_kv_heads + (size_t)head) * 2 + (size_t)is_value;
    return (plane * KV_TOKENS + (size_t)(position % KV_TOKENS)) * (size_t)kv.padded;
}

/* The first position that a query at pos sees. */
static __device__ __forceinline__ int first_seen(int window, int pos) {
    return window > 0 && pos >= window ? pos - window + 1 : 0;
}

/* A sum so far, whose largest score becomes smaller by the factor `old`, and the next piece's, by the
 * factor `next`: one way for all who combine, in the order of positions, so that their bits agree. */
static __device__ __forceinline__ float combined(float sum, float old, float piece, float next) {
    return fmaf(sum, old, __fmul_rn(piece, next));
}

/* Where a piece of a token's head lies: padded sums, the largest score, the sum of weights. */
static __device__ __forceinline__ float *piece_of(const struct attention_args &a, int token,
                                                  int head, int piece) {
    return a.pieces + (((size_t)(token - a.first_token) * (size_t)a.n_heads + (size_t)head) *
                           (size_t)a.n_splits +
                       (size_t)piece) *
                          (size_t)(a.kv.padded + 2);
}

#endif
