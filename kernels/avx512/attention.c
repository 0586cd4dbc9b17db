#include "kernels/avx512/avx512.h"

#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "kernels/avx512/math.h"
#include "kernels/ops.h"

/* A block of 16 positions at a time: scores of all its positions for every query head, one vector
 * each; their softmax terms; then the weighted sum of values. Each load of K and V serves up to
 * four heads. A head's arithmetic does not depend on the heads beside it. */
enum { LANES = 16, HEADS = 4, MAX_REP = 8, SLOTS = 4 };

#define INLINE static inline __attribute__((always_inline))

/* One block as seen by a query: positions [low, high) of its 16 count. */
struct block {
    const char *k, *v, *next;       /* next: the keys of the block after this one, or NULL */
    const float *k_scale, *v_scale; /* (16) of DTYPE_I8; else NULL */
    size_t plane;                   /* bytes from keys to values */
    int low, high, offset;          /* offset: position of slot 0 less the query's */
};

struct state {
    float top, total; /* the largest score so far; sum of exp(score - top) */
};

static size_t padded(int head_dim) { return ((size_t)head_dim + LANES - 1) / LANES * LANES; }

static size_t attention_scratch(int n_rep, int head_dim) {
    return (size_t)n_rep * padded(head_dim);
}

/* Elements i.. of a row, as many as there are of sixteen; the other lanes 0. whole: a constant
 * that says there are sixteen. */
INLINE __m512 load(enum dtype type, const char *row, int i, int dim, bool whole) {
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

/* Lane i: sum of a[i]'s lanes. */
static __m512 sum_each(const __m512 *a) {
    __m512 t[8], u[4], w[2];
    for (int i = 0; i < 8; i++)
        t[i] = _mm512_add_ps(_mm512_unpacklo_ps(a[2 * i], a[2 * i + 1]),
                             _mm512_unpackhi_ps(a[2 * i], a[2 * i + 1]));
    for (int i = 0; i < 4; i++)
        u[i] = _mm512_add_ps(_mm512_shuffle_ps(t[2 * i], t[2 * i + 1], 0x44),
                             _mm512_shuffle_ps(t[2 * i], t[2 * i + 1], 0xee));
    for (int i = 0; i < 2; i++)
        w[i] = _mm512_add_ps(_mm512_shuffle_f32x4(u[2 * i], u[2 * i + 1], 0x88),
                             _mm512_shuffle_f32x4(u[2 * i], u[2 * i + 1], 0xdd));
    return _mm512_add_ps(_mm512_shuffle_f32x4(w[0], w[1], 0x88),
                         _mm512_shuffle_f32x4(w[0], w[1], 0xdd));
}

/* Asks for slot j of the block after this one. */
INLINE void prefetch(const struct block *b, int j, size_t row_bytes) {
    if (!b->next) return;
    const char *k = b->next + (size_t)j * row_bytes, *v = k + b->plane;
    for (size_t i = 0; i < row_bytes; i += 64) {
        _mm_prefetch(k + i, _MM_HINT_T0);
        _mm_prefetch(v + i, _MM_HINT_T0);
    }
}

/* part[h][slot]: vectors whose sum is q_h . k_slot, for n slots from j on. */
INLINE void dot_slots(__m512 part[][KV_BLOCK_TOKENS], enum dtype type, const struct block *b,
                      const float *q, int dim, int n_heads, int j, int n) {
    size_t row_bytes = (size_t)dim * dtype_size(type);
    const char *row = b->k + (size_t)j * row_bytes;
    __m512 sum[HEADS][SLOTS], k[SLOTS];
    int i = 0;
    for (int e = 0; e < n; e++) prefetch(b, j + e, row_bytes);
    for (int h = 0; h < n_heads; h++)
        for (int e = 0; e < n; e++) sum[h][e] = _mm512_setzero_ps();
    for (; i + LANES <= dim; i += LANES) {
        for (int e = 0; e < n; e++) k[e] = load(type, row + (size_t)e * row_bytes, i, dim, true);
        for (int h = 0; h < n_heads; h++) {
            __m512 x = _mm512_loadu_ps(q + h * dim + i);
            for (int e = 0; e < n; e++) sum[h][e] = _mm512_fmadd_ps(k[e], x, sum[h][e]);
        }
    }
    if (i < dim) {
        for (int e = 0; e < n; e++) k[e] = load(type, row + (size_t)e * row_bytes, i, dim, false);
        for (int h = 0; h < n_heads; h++) {
            __m512 x = load(DTYPE_F32, (const char *)(q + h * dim), i, dim, false);
            for (int e = 0; e < n; e++) sum[h][e] = _mm512_fmadd_ps(k[e], x, sum[h][e]);
        }
    }
    for (int h = 0; h < n_heads; h++)
        for (int e = 0; e < n; e++) part[h][j + e] = sum[h][e];
}

/* Several slots at a time: as many more chains of additions, and q is read less often. */
INLINE void dot(__m512 part[][KV_BLOCK_TOKENS], enum dtype type, const struct block *b,
                const float *q, int dim, int n_heads) {
    int j = b->low;
    for (; j + SLOTS <= b->high; j += SLOTS) dot_slots(part, type, b, q, dim, n_heads, j, SLOTS);
    for (; j < b->high; j++) dot_slots(part, type, b, q, dim, n_heads, j, 1);
}

/* From a head's partial sums to its softmax terms p (16); returns what older sums shrink by. */
static float softmax(float *p, struct state *s, const __m512 *part, const struct block *b,
                     float scale, float slope) {
    const __m512 lane = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __mmask16 seen = (__mmask16)((1u << b->high) - (1u << b->low));
    __m512 away = _mm512_add_ps(lane, _mm512_set1_ps((float)b->offset));
    __m512 dot = sum_each(part);
    if (b->k_scale) dot = _mm512_mul_ps(dot, _mm512_loadu_ps(b->k_scale));
    __m512 score =
        _mm512_fmadd_ps(_mm512_set1_ps(slope), away, _mm512_mul_ps(dot, _mm512_set1_ps(scale)));
    float top = _mm512_mask_reduce_max_ps(seen, score);
    top = top > s->top ? top : s->top;
    __m512 e = _mm512_maskz_mov_ps(seen, avx512_exp(_mm512_sub_ps(score, _mm512_set1_ps(top))));
    float keep = _mm512_cvtss_f32(avx512_exp(_mm512_set1_ps(s->top - top)));
    s->total = s->total * keep + _mm512_reduce_add_ps(e);
    s->top = top;
    _mm512_store_ps(p, e);
    return keep;
}

/* sum[h] = keep[h] * sum[h] + the block's values weighted by p[h], for n vectors from element i. */
INLINE void gather_some(float *sum, size_t ld, enum dtype type, const struct block *b,
                        float p[][KV_BLOCK_TOKENS], const float *keep, int i, int dim, int n_heads,
                        int n, bool whole) {
    __m512 acc[HEADS][2];
    for (int h = 0; h < n_heads; h++)
        for (int e = 0; e < n; e++)
            acc[h][e] = _mm512_mul_ps(_mm512_loadu_ps(sum + (size_t)h * ld + i + e * LANES),
                                      _mm512_set1_ps(keep[h]));
    for (int j = b->low; j < b->high; j++) {
        const char *row = b->v + (size_t)j * (size_t)dim * dtype_size(type);
        __m512 v[2];
        for (int e = 0; e < n; e++) v[e] = load(type, row, i + e * LANES, dim, whole);
        for (int h = 0; h < n_heads; h++)
            for (int e = 0; e < n; e++)
                acc[h][e] = _mm512_fmadd_ps(v[e], _mm512_set1_ps(p[h][j]), acc[h][e]);
    }
    for (int h = 0; h < n_heads; h++)
        for (int e = 0; e < n; e++)
            _mm512_storeu_ps(sum + (size_t)h * ld + i + e * LANES, acc[h][e]);
}

INLINE void gather(float *sum, size_t ld, enum dtype type, const struct block *b,
                   float p[][KV_BLOCK_TOKENS], const float *keep, int dim, int n_heads) {
    int i = 0;
    for (; i + 2 * LANES <= dim; i += 2 * LANES)
        gather_some(sum, ld, type, b, p, keep, i, dim, n_heads, 2, true);
    for (; i < dim; i += LANES) gather_some(sum, ld, type, b, p, keep, i, dim, n_heads, 1, false);
}

/* What a value's whole numbers count. Those of slots that are not seen stay unused. */
INLINE void scale_terms(float p[][KV_BLOCK_TOKENS], const float *v_scale, int n_heads) {
    const __m512 scale = _mm512_loadu_ps(v_scale);
    for (int h = 0; h < n_heads; h++)
        _mm512_store_ps(p[h], _mm512_mul_ps(_mm512_load_ps(p[h]), scale));
}

INLINE void attend_heads(float *sum, struct state *s, enum dtype type, const struct block *b,
                         const float *q, const float *slopes, const struct attn_call *c,
                         int n_heads) {
    int dim = c->kv->head_dim;
    __m512 part[HEADS][KV_BLOCK_TOKENS];
    _Alignas(64) float p[HEADS][KV_BLOCK_TOKENS];
    float keep[HEADS];
    if (b->high - b->low < KV_BLOCK_TOKENS) memset(part, 0, sizeof part);
    dot(part, type, b, q, dim, n_heads);
    for (int h = 0; h < n_heads; h++)
        keep[h] = softmax(p[h], &s[h], part[h], b, c->scale, slopes ? slopes[h] : 0);
    if (type == DTYPE_I8) scale_terms(p, b->v_scale, n_heads);
    gather(sum, padded(dim), type, b, p, keep, dim, n_heads);
}

INLINE void attend_block(float *sum, struct state *s, enum dtype type, const struct block *b,
                         const float *q, const struct attn_call *c) {
    size_t dim = (size_t)c->kv->head_dim;
    for (int h = 0; h < c->n_rep; h += HEADS) {
        float *to = sum + (size_t)h * padded(c->kv->head_dim);
        const float *from = q + (size_t)h * dim, *slopes = c->slopes ? c->slopes + h : NULL;
        switch (c->n_rep - h) {
        case 1:
            attend_heads(to, s + h, type, b, from, slopes, c, 1);
            break;
        case 2:
            attend_heads(to, s + h, type, b, from, slopes, c, 2);
            break;
        case 3:
            attend_heads(to, s + h, type, b, from, slopes, c, 3);
            break;
        default:
            attend_heads(to, s + h, type, b, from, slopes, c, 4);
            break;
        }
    }
}

/* The keys of block i of the table; its values follow. */
static const char *keys(const struct attn_call *c, int i, size_t plane) {
    size_t at = (size_t)c->blocks[i] * (size_t)c->kv->n_kv_heads + (size_t)c->kv_head;
    return (const char *)c->kv->base + 2 * at * plane;
}

static void attend(float *out, const float *q, const struct attn_call *c, float *sum) {
    size_t dim = (size_t)c->kv->head_dim, ld = padded(c->kv->head_dim);
    size_t plane = kv_plane_bytes(c->kv->type, c->kv->head_dim);
    size_t elements = KV_BLOCK_TOKENS * dim * dtype_size(c->kv->type);
    struct state s[MAX_REP];
    for (int h = 0; h < c->n_rep; h++) s[h] = (struct state){-INFINITY, 0};
    memset(sum, 0, (size_t)c->n_rep * ld * sizeof *sum);
    for (int i = c->first / KV_BLOCK_TOKENS; i <= c->pos / KV_BLOCK_TOKENS; i++) {
        int p0 = i * KV_BLOCK_TOKENS, past = c->pos + 1 - p0;
        struct block b = {.k = keys(c, i, plane), .plane = plane};
        b.v = b.k + plane;
        if (c->kv->type == DTYPE_I8) {
            b.k_scale = (const float *)(const void *)(b.k + elements);
            b.v_scale = (const float *)(const void *)(b.v + elements);
        }
        b.next = past > KV_BLOCK_TOKENS ? keys(c, i + 1, plane) : NULL;
        b.low = c->first > p0 ? c->first - p0 : 0;
        b.high = past < KV_BLOCK_TOKENS ? past : KV_BLOCK_TOKENS;
        b.offset = p0 - c->pos;
        if (c->kv->type == DTYPE_F16)
            attend_block(sum, s, DTYPE_F16, &b, q, c);
        else if (c->kv->type == DTYPE_I8)
            attend_block(sum, s, DTYPE_I8, &b, q, c);
        else
            attend_block(sum, s, DTYPE_F32, &b, q, c);
    }
    for (int h = 0; h < c->n_rep; h++)
        for (size_t d = 0; d < dim; d++)
            out[(size_t)h * dim + d] = sum[(size_t)h * ld + d] / s[h].total;
}

static void attention(float *out, const float *q, const struct attn_call *call, float *scratch) {
    size_t dim = (size_t)call->kv->head_dim;
    for (int h = 0; h < call->n_rep; h += MAX_REP) {
        struct attn_call some = *call;
        some.n_rep = call->n_rep - h < MAX_REP ? call->n_rep - h : MAX_REP;
        if (call->slopes) some.slopes += h;
        attend(out + (size_t)h * dim, q + (size_t)h * dim, &some, scratch);
    }
}

void avx512_attention_init(struct ops *ops) {
    ops->float_kv.attention_scratch = attention_scratch;
    ops->float_kv.attention = attention;
    ops->int8_kv.attention_scratch = attention_scratch;
    ops->int8_kv.attention = attention;
}
