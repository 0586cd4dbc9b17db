/* attention.h - the arithmetic that attention of one query and of many have in common.
 *
 * Owns      nothing.
 * Borrows   arguments during the call.
 * Thread    any; no state.
 * Fails     never.
 * Cost      neon_softmax() about 25 operations for four positions of a row.
 *
 * A row (a query's head) goes through its context in blocks of 16 positions. Of a block: dot products,
 * each the sum of four sums l (of elements i, i + 4, ...) as (l0 + l1) + (l2 + l3); softmax terms; then the
 * weighted sum of values in the order of positions. That is the same arithmetic in both kernels and for any
 * company of rows, hence the same bits. */
#ifndef KERNELS_NEON_ATTENTION_H
#define KERNELS_NEON_ATTENTION_H

#include <arm_neon.h>
#include <string.h>

#include "kernels/neon/math.h"
#include "kernels/ops.h"

enum {
    NEON_LANES = 4,
    NEON_ROWS = 4,   /* that share each load of keys and values; most of one neon_softmax() */
    NEON_MAX_REP = 8 /* heads that either kernel looks at together */
};

/* A row's softmax so far: in four parts the sum of exp(score - top), and the largest score. */
struct neon_softmax {
    float32x4_t total;
    float top;
};

/* Positions [low, high) of a block are seen; offset: of the block's first from the query. */
struct neon_seen {
    int low, high, offset;
};

/* What scores and terms of a block are multiplied by. */
struct neon_scales {
    const float *k, *v; /* (16) of DTYPE_I8; else NULL */
    float scale;
    const float *slopes; /* (rows); NULL: 0 */
};

/* p: from n rows' dot products with a block to their softmax terms; those of positions that are not
 * seen are undefined. keep: (NEON_ROWS), what older sums shrink by. A row that sees nothing keeps
 * what it has. In a file of its own: inline or cloned, a compiler could join operations in one
 * kernel and not in the other. */
void neon_softmax(int n, float (*p)[KV_BLOCK_TOKENS], float *keep, struct neon_softmax *s,
                  const struct neon_seen *seen, const struct neon_scales *scales);

/* Elements i.. of a row, as many as there are of four; the other lanes 0. */
NEON_INLINE float32x4_t neon_kv_load(enum dtype type, const char *row, int i, int dim) {
    const size_t n = dim - i < NEON_LANES ? (size_t)(dim - i) : NEON_LANES;
    if (type == DTYPE_F32) return neon_load((const float *)(const void *)row + i, n);
    if (type == DTYPE_I8) {
        int32_t four = 0;
        memcpy(&four, row + i, n);
        const int16x8_t wide = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)));
        return vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
    }
    const uint16_t *h = (const uint16_t *)(const void *)row + i;
    uint16_t some[NEON_LANES] = {0};
    if (n < NEON_LANES) h = memcpy(some, h, n * sizeof *h);
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(h)));
}

/* sums (dim) over the total, to out. */
NEON_INLINE void neon_attention_end(float *out, const float *sum, const struct neon_softmax *s,
                                    int dim) {
    const float32x4_t total = vdupq_n_f32(vaddvq_f32(s->total));
    for (int i = 0; i < dim; i += NEON_LANES)
        neon_store(out + i, vdivq_f32(vld1q_f32(sum + i), total), (size_t)(dim - i));
}

/* The keys of block i of the table; its values are a plane further. */
NEON_INLINE const char *neon_keys(const struct attn_call *c, int i, size_t plane) {
    size_t at = (size_t)c->blocks[i] * (size_t)c->kv->n_kv_heads + (size_t)c->kv_head;
    return (const char *)c->kv->base + 2 * at * plane;
}

/* Scales of a plane of DTYPE_I8; NULL of others. */
NEON_INLINE const float *neon_kv_scales(const struct kv_layer *kv, const char *plane) {
    if (kv->type != DTYPE_I8) return NULL;
    return (const float *)(const void *)(plane + KV_BLOCK_TOKENS * (size_t)kv->head_dim);
}

/* attention_ops.attention_many(), see kernels/ops.h. */
size_t neon_attention_many_scratch(int n_rep, int head_dim);
void neon_attention_many(float *out, const float *q, size_t ld, int n, const struct attn_call *call,
                         int window, float *scratch);

#endif
