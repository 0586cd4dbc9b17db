/* attention.h - the arithmetic that attention of one query and of many have in common.
 *
 * Owns      nothing.
 * Borrows   arguments during the call.
 * Thread    any; no state.
 * Fails     never.
 * Cost      avx2_softmax() about 17 operations for eight positions of a row.
 *
 * A row (a query's head) goes through its context in spans of 64 positions, counted from the sequence's
 * first. Of a span: dot products, each the sum of eight sums l (of elements i, i + 8, ...) by the tree
 * ((l0 + l4) + (l2 + l6)) + ((l1 + l5) + (l3 + l7)); softmax terms; then the weighted sum of values in
 * the order of positions. That is the same arithmetic in both kernels and for any company of rows, hence the
 * same bits. */
#ifndef KERNELS_AVX2_ATTENTION_H
#define KERNELS_AVX2_ATTENTION_H

#include <immintrin.h>
#include <stdbool.h>
#include <string.h>

#include "kernels/avx2/avx2.h"
#include "kernels/avx2/math.h"
#include "kernels/ops.h"

enum {
    AVX2_LANES = 8,
    AVX2_SPAN_BLOCKS = 4, /* of KV_BLOCK_TOKENS positions */
    AVX2_SPAN = AVX2_SPAN_BLOCKS * KV_BLOCK_TOKENS,
    AVX2_MAX_REP = 8,  /* heads that either kernel looks at together */
    AVX2_MAX_ROWS = 96 /* of one widening and of one avx2_softmax() */
};

/* A row's softmax so far: the largest score, times log2 e, and in eight parts the sum of
 * exp(score - top). */
struct avx2_softmax {
    __m256 total;
    float top;
};

/* Positions [low, high) of a span are seen; offset: of the span's first from the query. */
struct avx2_seen {
    int low, high, offset;
};

/* What scores and terms of a span are multiplied by. */
struct avx2_scales {
    const float *k, *v; /* (64) of DTYPE_I8; else NULL */
    float scale;
    const float *slopes; /* (rows); NULL: 0 */
};

/* p: from n rows' dot products with a span to their softmax terms; those of positions that are not
 * seen are undefined. keep: (n), what older sums shrink by. A row that sees nothing keeps what it has.
 * One function for both kernels: inline, a compiler could join operations in one and not in the
 * other. */
void avx2_softmax(int n, float (*p)[AVX2_SPAN], float *keep, struct avx2_softmax *s,
                  const struct avx2_seen *seen, const struct avx2_scales *scales);

AVX2_INLINE size_t avx2_padded(int head_dim) {
    return ((size_t)head_dim + AVX2_LANES - 1) / AVX2_LANES * AVX2_LANES;
}

/* Elements i.. of a row, as many as there are of eight; the other lanes 0. whole: a constant that
 * says there are eight. */
AVX2_INLINE __m256 avx2_kv_load(enum dtype type, const char *row, int i, int dim, bool whole) {
    const float *f = (const float *)(const void *)row + i;
    const uint16_t *h = (const uint16_t *)(const void *)row + i;
    if (type == DTYPE_F32)
        return whole ? _mm256_loadu_ps(f) : _mm256_maskload_ps(f, avx2_mask((size_t)(dim - i)));
    if (type == DTYPE_I8) {
        int64_t eight = 0;
        memcpy(&eight, row + i, whole || dim - i >= AVX2_LANES ? AVX2_LANES : (size_t)(dim - i));
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(eight)));
    }
    if (whole) return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)h));
    uint16_t some[AVX2_LANES] = {0};
    memcpy(some, h, (size_t)(dim - i < AVX2_LANES ? dim - i : AVX2_LANES) * sizeof *h);
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)some));
}

/* sums (dim) over the total, to out. */
AVX2_INLINE void avx2_attention_end(float *out, const float *sum, const struct avx2_softmax *s,
                                    int dim) {
    const __m256 total = _mm256_set1_ps(avx2_sum(s->total));
    for (int i = 0; i < dim; i += AVX2_LANES)
        _mm256_maskstore_ps(out + i, avx2_mask((size_t)(dim - i)),
                            _mm256_div_ps(_mm256_loadu_ps(sum + i), total));
}

/* The keys of block i of the table; its values are a plane further. */
AVX2_INLINE const char *avx2_keys(const struct attn_call *c, int i, size_t plane) {
    size_t at = (size_t)c->blocks[i] * (size_t)c->kv->n_kv_heads + (size_t)c->kv_head;
    return (const char *)c->kv->base + 2 * at * plane;
}

/* Scales of a plane of DTYPE_I8. */
AVX2_INLINE const float *avx2_kv_scales(const char *plane, int head_dim) {
    return (const float *)(const void *)(plane + KV_BLOCK_TOKENS * (size_t)head_dim);
}

/* attention_ops.attention_many(), see kernels/ops.h. */
size_t avx2_attention_many_scratch(int n_rep, int head_dim);
void avx2_attention_many(float *out, const float *q, size_t ld, int n, const struct attn_call *call,
                         int window, float *scratch);

#endif
