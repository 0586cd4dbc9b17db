/* attention.h - the arithmetic that attention of one query and of many have in common.
 *
 * Owns      nothing.
 * Borrows   arguments during the call.
 * Thread    any; no state.
 * Fails     never.
 * Cost      avx512_softmax() about 90 operations a head.
 *
 * A head goes through its context in spans of 64 positions, counted from the sequence's first. Of a span:
 * dot products, each the sum of sixteen sums (of elements i, i + 16, ...) by the tree
 * ((a0 + a2) + (a1 + a3)) of each four and ((s0 + s1) + (s2 + s3)) of those; softmax terms; then the
 * weighted sum of values in the order of positions. That is the same arithmetic in both kernels and for
 * any company of heads and queries, hence the same bits. */
#ifndef KERNELS_AVX512_ATTENTION_H
#define KERNELS_AVX512_ATTENTION_H

#include <immintrin.h>

#include "kernels/avx512/avx512.h"
#include "kernels/avx512/math.h"
#include "kernels/ops.h"

enum {
    AVX512_LANES = 16,
    AVX512_SPAN_BLOCKS = 4, /* of KV_BLOCK_TOKENS positions, which are a vector */
    AVX512_SPAN = AVX512_SPAN_BLOCKS * AVX512_LANES
};

/* A head's softmax so far: the largest score, and in sixteen parts the sum of exp(score - top). */
struct avx512_softmax {
    __m512 total;
    float top;
};

/* Positions [low, high) of a span are seen; offset: of the span's first from the query. */
struct avx512_seen {
    int low, high, offset;
};

/* Of block v. */
AVX512_INLINE __mmask16 avx512_seen_mask(const struct avx512_seen *s, const int v) {
    const int from = s->low - AVX512_LANES * v, end = s->high - AVX512_LANES * v;
    const unsigned below = end <= 0 ? 0 : end >= AVX512_LANES ? 0xffff : (1u << end) - 1;
    return (__mmask16)(from <= 0 ? below : from >= AVX512_LANES ? 0 : below & ~0u << from);
}

AVX512_INLINE size_t avx512_padded(int head_dim) {
    return ((size_t)head_dim + AVX512_LANES - 1) / AVX512_LANES * AVX512_LANES;
}

/* Elements i.. of a row, as many as there are of sixteen; the other lanes 0. whole: a constant
 * that says there are sixteen. */
AVX512_INLINE __m512 avx512_kv_load(enum dtype type, const char *row, int i, int dim, bool whole) {
    const float *f = (const float *)(const void *)row + i;
    const uint16_t *h = (const uint16_t *)(const void *)row + i;
    __mmask16 mask = avx512_mask((size_t)(dim - i));
    if (type == DTYPE_F32) return whole ? _mm512_loadu_ps(f) : _mm512_maskz_loadu_ps(mask, f);
    if (type == DTYPE_I8)
        return _mm512_cvtepi32_ps(
            _mm512_cvtepi8_epi32(whole ? _mm_loadu_si128((const __m128i *)(const void *)(row + i))
                                       : _mm_maskz_loadu_epi8(mask, row + i)));
    if (whole) return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)h));
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, h));
}

/* From the dot products of n heads (a constant, at most 4) with a span to their softmax terms p, 0 where a
 * position is not seen, and what older sums shrink by. A head that sees nothing keeps what it has.
 * scales: of keys (64), NULL: 1; slopes: (n), NULL: 0. In two passes, because each waits long for its own
 * results and those of four heads can wait together. */
AVX512_INLINE void avx512_softmax(const int n, float (*p)[AVX512_SPAN], float *keep,
                                  struct avx512_softmax *s, __m512 (*dot)[AVX512_SPAN_BLOCKS],
                                  const float *scales, const struct avx512_seen *seen, float scale,
                                  const float *slopes) {
    const __m512 lane = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512 score[4][AVX512_SPAN_BLOCKS], top[4];
    float new_top[4] = {0}, fall[4] = {0};
    AVX512_UNROLL for (int h = 0; h < n; h++) {
        const __m512 slope = _mm512_set1_ps(slopes ? slopes[h] : 0);
        __m512 most = _mm512_set1_ps(-__builtin_inff());
        AVX512_UNROLL for (int v = 0; v < AVX512_SPAN_BLOCKS; v++) {
            __m512 away =
                _mm512_add_ps(lane, _mm512_set1_ps((float)(seen[h].offset + AVX512_LANES * v)));
            __m512 d = dot[h][v];
            if (scales) d = _mm512_mul_ps(d, _mm512_loadu_ps(scales + AVX512_LANES * v));
            score[h][v] = _mm512_fmadd_ps(slope, away, _mm512_mul_ps(d, _mm512_set1_ps(scale)));
            most = _mm512_mask_max_ps(most, avx512_seen_mask(&seen[h], v), most, score[h][v]);
        }
        new_top[h] = _mm512_reduce_max_ps(most);
        new_top[h] = new_top[h] > s[h].top ? new_top[h] : s[h].top;
        top[h] = _mm512_set1_ps(new_top[h]);
        fall[h] = s[h].top - new_top[h];
    }
    const __m128 falls = _mm_setr_ps(fall[0], fall[1], fall[2], fall[3]);
    const __m512 kept = avx512_exp(_mm512_zextps128_ps512(falls));
    AVX512_UNROLL for (int h = 0; h < n; h++) {
        __m512 e[AVX512_SPAN_BLOCKS];
        AVX512_UNROLL for (int v = 0; v < AVX512_SPAN_BLOCKS; v++) {
            e[v] = _mm512_maskz_mov_ps(avx512_seen_mask(&seen[h], v),
                                       avx512_exp(_mm512_sub_ps(score[h][v], top[h])));
            _mm512_store_ps(p[h] + AVX512_LANES * v, e[v]);
        }
        keep[h] = 1;
        if (seen[h].high <= seen[h].low) continue;
        const __m512 shrink = _mm512_permutexvar_ps(_mm512_set1_epi32(h), kept);
        const __m512 sum = _mm512_add_ps(_mm512_add_ps(e[0], e[1]), _mm512_add_ps(e[2], e[3]));
        s[h] = (struct avx512_softmax){_mm512_fmadd_ps(s[h].total, shrink, sum), new_top[h]};
        keep[h] = _mm512_cvtss_f32(shrink);
    }
}

/* sums (dim) over the total, to out. */
AVX512_INLINE void avx512_attention_end(float *out, const float *sum,
                                        const struct avx512_softmax *s, int dim) {
    const __m512 total = _mm512_set1_ps(_mm512_reduce_add_ps(s->total));
    for (int i = 0; i < dim; i += AVX512_LANES)
        _mm512_mask_storeu_ps(out + i, avx512_mask((size_t)(dim - i)),
                              _mm512_div_ps(_mm512_loadu_ps(sum + i), total));
}

/* The keys of block i of the table; its values are a plane further. */
AVX512_INLINE const char *avx512_keys(const struct attn_call *c, int i, size_t plane) {
    size_t at = (size_t)c->blocks[i] * (size_t)c->kv->n_kv_heads + (size_t)c->kv_head;
    return (const char *)c->kv->base + 2 * at * plane;
}

/* Scales of a plane of DTYPE_I8. */
AVX512_INLINE const float *avx512_kv_scales(const char *plane, int head_dim) {
    return (const float *)(const void *)(plane + KV_BLOCK_TOKENS * (size_t)head_dim);
}

/* attention_ops.attention_many(), see kernels/ops.h. */
size_t avx512_attention_many_scratch(int n_rep, int head_dim);
void avx512_attention_many(float *out, const float *q, size_t ld, int n,
                           const struct attn_call *call, int window, float *scratch);

#endif
