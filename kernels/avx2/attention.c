#include "kernels/avx2/avx2.h"

#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "kernels/avx2/math.h"
#include "kernels/float16.h"
#include "kernels/ops.h"
#include "kernels/rounding.h"

/* A block of 16 positions at a time: scores of all its positions for every query head, two vectors
 * each; their softmax terms; then the weighted sum of values. Each load of K and V serves up to
 * four heads. A head's arithmetic does not depend on the heads beside it. */
enum { LANES = 8, HEADS = 4, MAX_REP = 8 };

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

/* Elements i.. of a row, as many as there are of eight; the other lanes 0. whole: a constant that
 * says there are eight. */
INLINE __m256 load(enum dtype type, const char *row, int i, int dim, bool whole) {
    const float *f = (const float *)(const void *)row + i;
    const uint16_t *h = (const uint16_t *)(const void *)row + i;
    if (type == DTYPE_F32)
        return whole ? _mm256_loadu_ps(f) : _mm256_maskload_ps(f, avx2_mask((size_t)(dim - i)));
    if (type == DTYPE_I8) {
        int64_t eight = 0;
        memcpy(&eight, row + i, whole || dim - i >= LANES ? LANES : (size_t)(dim - i));
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(eight)));
    }
    if (whole) return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)h));
    uint16_t some[LANES] = {0};
    memcpy(some, h, (size_t)(dim - i < LANES ? dim - i : LANES) * sizeof *h);
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)some));
}

/* Lane i: sum of a[i]'s lanes, for eight vectors. */
static __m256 sum_each(const __m256 *a) {
    __m256 t[4], u[2];
    for (int i = 0; i < 4; i++) t[i] = _mm256_hadd_ps(a[2 * i], a[2 * i + 1]);
    for (int i = 0; i < 2; i++) u[i] = _mm256_hadd_ps(t[2 * i], t[2 * i + 1]);
    return _mm256_add_ps(_mm256_permute2f128_ps(u[0], u[1], 0x20),
                         _mm256_permute2f128_ps(u[0], u[1], 0x31));
}

static float largest(__m256 v) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
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
INLINE void dot_slots(__m256 part[][KV_BLOCK_TOKENS], enum dtype type, const struct block *b,
                      const float *q, int dim, int n_heads, int j, int n) {
    size_t row_bytes = (size_t)dim * dtype_size(type);
    const char *row = b->k + (size_t)j * row_bytes;
    __m256 sum[HEADS][2], k[2];
    int i = 0;
    for (int h = 0; h < n_heads; h++)
        for (int e = 0; e < n; e++) sum[h][e] = _mm256_setzero_ps();
    for (; i + LANES <= dim; i += LANES) {
        for (int e = 0; e < n; e++) k[e] = load(type, row + (size_t)e * row_bytes, i, dim, true);
        for (int h = 0; h < n_heads; h++) {
            __m256 x = _mm256_loadu_ps(q + h * dim + i);
            for (int e = 0; e < n; e++) sum[h][e] = _mm256_fmadd_ps(k[e], x, sum[h][e]);
        }
    }
    if (i < dim) {
        for (int e = 0; e < n; e++) k[e] = load(type, row + (size_t)e * row_bytes, i, dim, false);
        for (int h = 0; h < n_heads; h++) {
            __m256 x = load(DTYPE_F32, (const char *)(q + h * dim), i, dim, false);
            for (int e = 0; e < n; e++) sum[h][e] = _mm256_fmadd_ps(k[e], x, sum[h][e]);
        }
    }
    for (int h = 0; h < n_heads; h++)
        for (int e = 0; e < n; e++) part[h][j + e] = sum[h][e];
}

/* Two slots at a time: twice the chains of additions, and q is read half as often. */
INLINE void dot(__m256 part[][KV_BLOCK_TOKENS], enum dtype type, const struct block *b,
                const float *q, int dim, int n_heads) {
    int j = b->low;
    for (int e = j; e < b->high; e++) prefetch(b, e, (size_t)dim * dtype_size(type));
    for (; j + 2 <= b->high; j += 2) dot_slots(part, type, b, q, dim, n_heads, j, 2);
    if (j < b->high) dot_slots(part, type, b, q, dim, n_heads, j, 1);
}

/* From a head's partial sums to its softmax terms p (16); returns what older sums shrink by. */
static float softmax(float *p, struct state *s, const __m256 *part, const struct block *b,
                     float scale, float slope) {
    const __m256 lane = _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7), none = _mm256_set1_ps(-INFINITY);
    const __m256 low = _mm256_set1_ps((float)b->low), high = _mm256_set1_ps((float)b->high);
    __m256 score[2], seen[2];
    for (int i = 0; i < 2; i++) {
        __m256 slot = _mm256_add_ps(lane, _mm256_set1_ps((float)(8 * i)));
        __m256 away = _mm256_add_ps(slot, _mm256_set1_ps((float)b->offset));
        seen[i] = _mm256_and_ps(_mm256_cmp_ps(slot, low, _CMP_GE_OQ),
                                _mm256_cmp_ps(slot, high, _CMP_LT_OQ));
        __m256 dot = sum_each(part + 8 * i);
        if (b->k_scale) dot = _mm256_mul_ps(dot, _mm256_loadu_ps(b->k_scale + 8 * i));
        score[i] =
            _mm256_fmadd_ps(_mm256_set1_ps(slope), away, _mm256_mul_ps(dot, _mm256_set1_ps(scale)));
        score[i] = _mm256_blendv_ps(none, score[i], seen[i]);
    }
    float top = largest(_mm256_max_ps(score[0], score[1]));
    top = top > s->top ? top : s->top;
    for (int i = 0; i < 2; i++) {
        score[i] = avx2_exp(_mm256_sub_ps(score[i], _mm256_set1_ps(top)));
        score[i] = _mm256_and_ps(score[i], seen[i]);
        _mm256_store_ps(p + 8 * i, score[i]);
    }
    float keep = _mm256_cvtss_f32(avx2_exp(_mm256_set1_ps(s->top - top)));
    s->total = s->total * keep + avx2_sum(_mm256_add_ps(score[0], score[1]));
    s->top = top;
    return keep;
}

/* sum[h] = keep[h] * sum[h] + the block's values weighted by p[h], for n vectors from element i. */
INLINE void gather_some(float *sum, size_t ld, enum dtype type, const struct block *b,
                        float p[][KV_BLOCK_TOKENS], const float *keep, int i, int dim, int n_heads,
                        int n, bool whole) {
    __m256 acc[HEADS][2];
    for (int h = 0; h < n_heads; h++)
        for (int e = 0; e < n; e++)
            acc[h][e] = _mm256_mul_ps(_mm256_loadu_ps(sum + (size_t)h * ld + i + e * LANES),
                                      _mm256_set1_ps(keep[h]));
    for (int j = b->low; j < b->high; j++) {
        const char *row = b->v + (size_t)j * (size_t)dim * dtype_size(type);
        __m256 v[2];
        for (int e = 0; e < n; e++) v[e] = load(type, row, i + e * LANES, dim, whole);
        for (int h = 0; h < n_heads; h++)
            for (int e = 0; e < n; e++)
                acc[h][e] = _mm256_fmadd_ps(v[e], _mm256_set1_ps(p[h][j]), acc[h][e]);
    }
    for (int h = 0; h < n_heads; h++)
        for (int e = 0; e < n; e++)
            _mm256_storeu_ps(sum + (size_t)h * ld + i + e * LANES, acc[h][e]);
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
    for (int h = 0; h < n_heads; h++)
        for (int i = 0; i < KV_BLOCK_TOKENS; i += LANES)
            _mm256_store_ps(p[h] + i,
                            _mm256_mul_ps(_mm256_load_ps(p[h] + i), _mm256_loadu_ps(v_scale + i)));
}

INLINE void attend_heads(float *sum, struct state *s, enum dtype type, const struct block *b,
                         const float *q, const float *slopes, const struct attn_call *c,
                         int n_heads) {
    int dim = c->kv->head_dim;
    __m256 part[HEADS][KV_BLOCK_TOKENS];
    _Alignas(32) float p[HEADS][KV_BLOCK_TOKENS];
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

/* Magnitudes are compared as integers: that orders finite values alike, and a NaN wins. */
static float largest_of(const float *x, size_t n) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256i most = _mm256_setzero_si256();
    for (size_t i = 0; i < n; i += LANES) {
        __m256i v = _mm256_maskload_epi32((const int *)(const void *)x + i, avx2_mask(n - i));
        most = _mm256_max_epi32(most, _mm256_and_si256(v, magnitude));
    }
    int32_t lanes[LANES], all = 0;
    float ret;
    _mm256_storeu_si256((__m256i *)(void *)lanes, most);
    for (int i = 0; i < LANES; i++) all = lanes[i] > all ? lanes[i] : all;
    memcpy(&ret, &all, sizeof ret);
    return ret;
}

static void store_whole(int8_t *dst, float *scale, const float *src, size_t dim) {
    struct rounding r;
    rounding_to(&r, largest_of(src, dim), 127);
    const __m256 up = _mm256_set1_ps(r.up);
    for (size_t d = 0; d < dim; d += LANES) {
        int32_t whole[LANES];
        __m256 x = _mm256_maskload_ps(src + d, avx2_mask(dim - d));
        __m256i v = r.up > 0 ? _mm256_cvtps_epi32(_mm256_mul_ps(x, up)) : _mm256_setzero_si256();
        _mm256_storeu_si256((__m256i *)(void *)whole, v);
        for (size_t i = 0; i < LANES && d + i < dim; i++) dst[d + i] = (int8_t)whole[i];
    }
    *scale = r.scale;
}

static void store_row(const struct kv_layer *kv, char *plane, int slot, const float *src) {
    size_t dim = (size_t)kv->head_dim, d = 0;
    char *row = plane + (size_t)slot * dim * dtype_size(kv->type);
    if (kv->type == DTYPE_F32) {
        memcpy(row, src, dim * sizeof *src);
        return;
    }
    if (kv->type == DTYPE_I8) {
        float *scales = (float *)(void *)(plane + KV_BLOCK_TOKENS * dim);
        store_whole((int8_t *)row, scales + slot, src, dim);
        return;
    }
    uint16_t *dst = (uint16_t *)(void *)row;
    for (; d + LANES <= dim; d += LANES)
        _mm_storeu_si128((__m128i *)(void *)(dst + d),
                         _mm256_cvtps_ph(_mm256_loadu_ps(src + d), _MM_FROUND_TO_NEAREST_INT));
    for (; d < dim; d++) dst[d] = f32_to_f16(src[d]);
}

static void kv_store(const struct kv_layer *kv, int block, int slot, const float *k,
                     const float *v) {
    size_t dim = (size_t)kv->head_dim, plane = kv_plane_bytes(kv->type, kv->head_dim);
    for (int h = 0; h < kv->n_kv_heads; h++) {
        size_t at = ((size_t)block * (size_t)kv->n_kv_heads + (size_t)h) * 2 * plane;
        store_row(kv, (char *)kv->base + at, slot, k + (size_t)h * dim);
        store_row(kv, (char *)kv->base + at + plane, slot, v + (size_t)h * dim);
    }
}

void avx2_attention_init(struct ops *ops) {
    ops->float_kv = (struct attention_ops){
        .attention_scratch = attention_scratch, .attention = attention, .kv_store = kv_store};
    ops->int8_kv = ops->float_kv;
}
