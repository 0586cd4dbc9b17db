#include "kernels/avx2/attention.h"

#include <math.h>
#include <string.h>

#include "kernels/float16.h"
#include "kernels/rounding.h"

/* One query. Each load of K and V serves up to four heads. */
enum { HEADS = 4, SLOTS = 8, VECTORS = 4 };

/* One block as seen by a query: positions [low, high) of its 16 count. */
struct block {
    const char *k, *v, *next; /* next: the keys of the block after this one, or NULL */
    size_t plane;             /* bytes from keys to values */
    int low, high;
};

/* The blocks of a span that the query sees: [first, end). */
struct span {
    struct block blocks[AVX2_SPAN_BLOCKS];
    float k_scales[AVX2_SPAN], v_scales[AVX2_SPAN]; /* of DTYPE_I8 */
    int first, end;
    struct avx2_seen seen;
};

static size_t attention_scratch(int n_rep, int head_dim) {
    return (size_t)n_rep * avx2_padded(head_dim);
}

/* Lane i: sum of a[i]'s lanes, for eight vectors. */
static __m256 sum_each(const __m256 *a) {
    __m256 t[4], u[2];
    for (int i = 0; i < 4; i++)
        t[i] = _mm256_add_ps(_mm256_blend_ps(a[i], a[i + 4], 0xf0),
                             _mm256_permute2f128_ps(a[i], a[i + 4], 0x21));
    for (int i = 0; i < 2; i++)
        u[i] = _mm256_add_ps(_mm256_blend_ps(t[2 * i], t[2 * i + 1], 0xcc),
                             _mm256_shuffle_ps(t[2 * i], t[2 * i + 1], 0x4e));
    return _mm256_add_ps(_mm256_shuffle_ps(u[0], u[1], 0x88), _mm256_shuffle_ps(u[0], u[1], 0xdd));
}

/* Asks for slot j of the block after this one. */
AVX2_INLINE void prefetch(const struct block *b, int j, size_t row_bytes) {
    if (!b->next) return;
    const char *k = b->next + (size_t)j * row_bytes, *v = k + b->plane;
    for (size_t i = 0; i < row_bytes; i += 64) {
        _mm_prefetch(k + i, _MM_HINT_T0);
        _mm_prefetch(v + i, _MM_HINT_T0);
    }
}

/* part[h][slot]: vectors whose sum is q_h . k_slot, for n slots from j on. */
AVX2_INLINE void dot_slots(__m256 part[][KV_BLOCK_TOKENS], enum dtype type, const struct block *b,
                           const float *q, int dim, int n_heads, int j, int n) {
    size_t row_bytes = (size_t)dim * dtype_size(type);
    const char *row = b->k + (size_t)j * row_bytes;
    __m256 sum[HEADS][SLOTS];
    int i = 0;
    for (int h = 0; h < n_heads; h++)
        for (int e = 0; e < n; e++) sum[h][e] = _mm256_setzero_ps();
    for (; i + AVX2_LANES <= dim; i += AVX2_LANES)
        for (int e = 0; e < n; e++) {
            __m256 k = avx2_kv_load(type, row + (size_t)e * row_bytes, i, dim, true);
            for (int h = 0; h < n_heads; h++)
                sum[h][e] = _mm256_fmadd_ps(k, _mm256_loadu_ps(q + h * dim + i), sum[h][e]);
        }
    for (int h = 0; i < dim && h < n_heads; h++) {
        __m256 x = avx2_kv_load(DTYPE_F32, (const char *)(q + h * dim), i, dim, false);
        for (int e = 0; e < n; e++)
            sum[h][e] = _mm256_fmadd_ps(
                avx2_kv_load(type, row + (size_t)e * row_bytes, i, dim, false), x, sum[h][e]);
    }
    for (int h = 0; h < n_heads; h++)
        for (int e = 0; e < n; e++) part[h][j + e] = sum[h][e];
}

/* p: the dot products with the span. Several slots at a time: as many more chains of additions, and q is
 * read less often. */
AVX2_INLINE void dot(float p[][AVX2_SPAN], enum dtype type, const struct span *s, const float *q,
                     int dim, int n_heads) {
    const int slots = n_heads == 1 ? 8 : n_heads < 4 ? 4 : 2;
    __m256 part[HEADS][KV_BLOCK_TOKENS];
    for (int v = s->first; v < s->end; v++) {
        const struct block *b = &s->blocks[v];
        int j = b->low;
        if (b->high - b->low < KV_BLOCK_TOKENS) memset(part, 0, sizeof part);
        for (int e = j; e < b->high; e++) prefetch(b, e, (size_t)dim * dtype_size(type));
        for (; j + slots <= b->high; j += slots)
            dot_slots(part, type, b, q, dim, n_heads, j, slots);
        for (; j < b->high; j++) dot_slots(part, type, b, q, dim, n_heads, j, 1);
        for (int h = 0; h < n_heads; h++)
            for (int i = 0; i < KV_BLOCK_TOKENS; i += AVX2_LANES)
                _mm256_store_ps(p[h] + v * KV_BLOCK_TOKENS + i, sum_each(part[h] + i));
    }
}

static float largest(__m256 v) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

/* 2^x to 1e-7 of its value for x <= 0; 2^-100 for less, whose products are still no denormals. */
AVX2_INLINE __m256 exp2_of(__m256 x) {
    x = _mm256_max_ps(_mm256_set1_ps(-100), x); /* the second operand when one is NaN */
    const __m256i n = _mm256_cvtps_epi32(x);
    const __m256 r = _mm256_sub_ps(x, _mm256_cvtepi32_ps(n));
    __m256 p = _mm256_set1_ps(0x1.44138ap-13f);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.5f0890p-10f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.3b2a54p-7f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.c6af6cp-5f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.ebfbe0p-3f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.62e430p-1f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1));
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(n, 23)));
}

/* Which of eight positions from i on are seen. */
static __m256 seen_mask(const struct avx2_seen *s, int i) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_castsi256_ps(
        _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(s->low - i), lane),
                            _mm256_cmpgt_epi32(_mm256_set1_epi32(s->high - i), lane)));
}

/* p: from a row's products to its scores times log2 e, of the blocks where something is seen; returns
 * the largest, NaN aside. all: a constant that says the whole span is seen. */
AVX2_INLINE float find_scores(const bool all, float *p, const struct avx2_seen *s,
                              const struct avx2_scales *c, float slope) {
    const float log2e = 1.44269504f;
    const __m256 lane = _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256 scale = _mm256_set1_ps(c->scale * log2e), slopes = _mm256_set1_ps(slope * log2e);
    const __m256 none = _mm256_set1_ps(-INFINITY);
    const int first = all ? 0 : s->low / KV_BLOCK_TOKENS * KV_BLOCK_TOKENS;
    __m256 most[2] = {none, none};
    for (int i = first; i < (all ? AVX2_SPAN : s->high); i += KV_BLOCK_TOKENS)
        AVX2_UNROLL for (int e = 0; e < 2; e++) {
            const int at = i + e * AVX2_LANES;
            __m256 score = _mm256_load_ps(p + at);
            if (c->k) score = _mm256_mul_ps(score, _mm256_loadu_ps(c->k + at));
            score = _mm256_mul_ps(score, scale);
            if (c->slopes) {
                __m256 away = _mm256_add_ps(lane, _mm256_set1_ps((float)(s->offset + at)));
                score = _mm256_fmadd_ps(slopes, away, score);
            }
            _mm256_store_ps(p + at, score);
            if (!all) score = _mm256_blendv_ps(none, score, seen_mask(s, at));
            most[e] = _mm256_max_ps(score, most[e]);
        }
    return largest(_mm256_max_ps(most[0], most[1]));
}

/* p: from scores to terms; returns their sum. */
AVX2_INLINE __m256 find_terms(const bool all, float *p, const struct avx2_seen *s, const float *v,
                              float top) {
    const int first = all ? 0 : s->low / KV_BLOCK_TOKENS * KV_BLOCK_TOKENS;
    __m256 sum[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int i = first; i < (all ? AVX2_SPAN : s->high); i += KV_BLOCK_TOKENS)
        AVX2_UNROLL for (int e = 0; e < 2; e++) {
            const int at = i + e * AVX2_LANES;
            __m256 term = exp2_of(_mm256_sub_ps(_mm256_load_ps(p + at), _mm256_set1_ps(top)));
            if (!all) term = _mm256_and_ps(term, seen_mask(s, at));
            sum[e] = _mm256_add_ps(sum[e], term);
            if (v) term = _mm256_mul_ps(term, _mm256_loadu_ps(v + at));
            _mm256_store_ps(p + at, term);
        }
    return _mm256_add_ps(sum[0], sum[1]);
}

void avx2_softmax(int n, float (*p)[AVX2_SPAN], float *keep, struct avx2_softmax *s,
                  const struct avx2_seen *seen, const struct avx2_scales *c) {
    float tops[AVX2_MAX_ROWS];
    /* Pass by pass, because each row waits long for its own results. */
    for (int r = 0; r < n; r++) {
        const bool all = seen[r].low == 0 && seen[r].high == AVX2_SPAN;
        const float slope = c->slopes ? c->slopes[r] : 0;
        const float top = all ? find_scores(true, p[r], &seen[r], c, slope)
                              : find_scores(false, p[r], &seen[r], c, slope);
        tops[r] = top > s[r].top ? top : s[r].top;
    }
    for (int r = 0; r < n; r++) {
        keep[r] = 1;
        if (seen[r].high <= seen[r].low) continue;
        const bool all = seen[r].low == 0 && seen[r].high == AVX2_SPAN;
        const __m256 sum = all ? find_terms(true, p[r], &seen[r], c->v, tops[r])
                               : find_terms(false, p[r], &seen[r], c->v, tops[r]);
        const __m256 shrink = exp2_of(_mm256_set1_ps(s[r].top - tops[r]));
        s[r] = (struct avx2_softmax){_mm256_fmadd_ps(s[r].total, shrink, sum), tops[r]};
        keep[r] = _mm256_cvtss_f32(shrink);
    }
}

/* sum[h] = keep[h] * sum[h] + the span's values weighted by p[h], for n vectors from element i. */
AVX2_INLINE void gather_some(float *sum, size_t ld, enum dtype type, const struct span *s,
                             float p[][AVX2_SPAN], const float *keep, int i, int dim, int n_heads,
                             int n, bool whole) {
    __m256 acc[HEADS][VECTORS];
    for (int h = 0; h < n_heads; h++)
        for (int e = 0; e < n; e++)
            acc[h][e] = _mm256_mul_ps(_mm256_loadu_ps(sum + (size_t)h * ld + i + e * AVX2_LANES),
                                      _mm256_set1_ps(keep[h]));
    for (int b = s->first; b < s->end; b++)
        for (int j = s->blocks[b].low; j < s->blocks[b].high; j++) {
            const char *row = s->blocks[b].v + (size_t)j * (size_t)dim * dtype_size(type);
            for (int e = 0; e < n; e++) {
                __m256 v = avx2_kv_load(type, row, i + e * AVX2_LANES, dim, whole);
                for (int h = 0; h < n_heads; h++)
                    acc[h][e] = _mm256_fmadd_ps(v, _mm256_set1_ps(p[h][b * KV_BLOCK_TOKENS + j]),
                                                acc[h][e]);
            }
        }
    for (int h = 0; h < n_heads; h++)
        for (int e = 0; e < n; e++)
            _mm256_storeu_ps(sum + (size_t)h * ld + i + e * AVX2_LANES, acc[h][e]);
}

AVX2_INLINE void gather(float *sum, size_t ld, enum dtype type, const struct span *s,
                        float p[][AVX2_SPAN], const float *keep, int dim, int n_heads) {
    const int n = n_heads < 4 ? VECTORS : 2;
    int i = 0;
    for (; i + n * AVX2_LANES <= dim; i += n * AVX2_LANES)
        gather_some(sum, ld, type, s, p, keep, i, dim, n_heads, n, true);
    for (; i < dim; i += AVX2_LANES)
        gather_some(sum, ld, type, s, p, keep, i, dim, n_heads, 1, false);
}

AVX2_INLINE void attend_heads(float *sum, struct avx2_softmax *state, enum dtype type,
                              const struct span *s, const float *q, const float *slopes,
                              const struct attn_call *c, int n_heads) {
    const bool whole = type == DTYPE_I8;
    const struct avx2_scales scales = {whole ? s->k_scales : NULL, whole ? s->v_scales : NULL,
                                       c->scale, slopes};
    const struct avx2_seen seen[HEADS] = {s->seen, s->seen, s->seen, s->seen};
    _Alignas(32) float p[HEADS][AVX2_SPAN];
    float keep[HEADS];
    int dim = c->kv->head_dim;
    dot(p, type, s, q, dim, n_heads);
    avx2_softmax(n_heads, p, keep, state, seen, &scales);
    gather(sum, avx2_padded(dim), type, s, p, keep, dim, n_heads);
}

AVX2_INLINE void attend_span(float *sum, struct avx2_softmax *state, enum dtype type,
                             const struct span *s, const float *q, const struct attn_call *c) {
    size_t dim = (size_t)c->kv->head_dim;
    for (int h = 0; h < c->n_rep; h += HEADS) {
        float *to = sum + (size_t)h * avx2_padded(c->kv->head_dim);
        const float *from = q + (size_t)h * dim, *slopes = c->slopes ? c->slopes + h : NULL;
        switch (c->n_rep - h) {
        case 1:
            attend_heads(to, state + h, type, s, from, slopes, c, 1);
            break;
        case 2:
            attend_heads(to, state + h, type, s, from, slopes, c, 2);
            break;
        case 3:
            attend_heads(to, state + h, type, s, from, slopes, c, 3);
            break;
        default:
            attend_heads(to, state + h, type, s, from, slopes, c, 4);
            break;
        }
    }
}

/* The span of positions from p0 on. */
static void look_at(struct span *s, const struct attn_call *c, int p0, size_t plane) {
    int past = c->pos + 1 - p0, from = c->first - p0;
    s->seen =
        (struct avx2_seen){from > 0 ? from : 0, past < AVX2_SPAN ? past : AVX2_SPAN, p0 - c->pos};
    s->first = s->seen.low / KV_BLOCK_TOKENS;
    s->end = (s->seen.high + KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS;
    for (int v = s->first; v < s->end; v++) {
        int at = v * KV_BLOCK_TOKENS, i = p0 / KV_BLOCK_TOKENS + v, left = past - at;
        struct block *b = &s->blocks[v];
        *b = (struct block){.k = avx2_keys(c, i, plane), .plane = plane};
        b->v = b->k + plane;
        b->next = left > KV_BLOCK_TOKENS ? avx2_keys(c, i + 1, plane) : NULL;
        b->low = from > at ? from - at : 0;
        b->high = left < KV_BLOCK_TOKENS ? left : KV_BLOCK_TOKENS;
        if (c->kv->type != DTYPE_I8) continue;
        memcpy(s->k_scales + at, avx2_kv_scales(b->k, c->kv->head_dim), 64);
        memcpy(s->v_scales + at, avx2_kv_scales(b->v, c->kv->head_dim), 64);
    }
}

static void attend(float *out, const float *q, const struct attn_call *c, float *sum) {
    size_t dim = (size_t)c->kv->head_dim, ld = avx2_padded(c->kv->head_dim);
    size_t plane = kv_plane_bytes(c->kv->type, c->kv->head_dim);
    struct avx2_softmax state[AVX2_MAX_REP];
    struct span s = {.k_scales = {0}};
    for (int h = 0; h < c->n_rep; h++)
        state[h] = (struct avx2_softmax){_mm256_setzero_ps(), -INFINITY};
    memset(sum, 0, (size_t)c->n_rep * ld * sizeof *sum);
    for (int p0 = c->first / AVX2_SPAN * AVX2_SPAN; p0 <= c->pos; p0 += AVX2_SPAN) {
        look_at(&s, c, p0, plane);
        if (c->kv->type == DTYPE_F16)
            attend_span(sum, state, DTYPE_F16, &s, q, c);
        else if (c->kv->type == DTYPE_I8)
            attend_span(sum, state, DTYPE_I8, &s, q, c);
        else
            attend_span(sum, state, DTYPE_F32, &s, q, c);
    }
    for (int h = 0; h < c->n_rep; h++)
        avx2_attention_end(out + (size_t)h * dim, sum + (size_t)h * ld, &state[h], (int)dim);
}

static void attention(float *out, const float *q, const struct attn_call *call, float *scratch) {
    size_t dim = (size_t)call->kv->head_dim;
    for (int h = 0; h < call->n_rep; h += AVX2_MAX_REP) {
        struct attn_call some = *call;
        some.n_rep = call->n_rep - h < AVX2_MAX_REP ? call->n_rep - h : AVX2_MAX_REP;
        if (call->slopes) some.slopes += h;
        attend(out + (size_t)h * dim, q + (size_t)h * dim, &some, scratch);
    }
}

/* Magnitudes are compared as integers: that orders finite values alike, and a NaN wins. */
static float largest_of(const float *x, size_t n) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256i most = _mm256_setzero_si256();
    for (size_t i = 0; i < n; i += AVX2_LANES) {
        __m256i v = _mm256_maskload_epi32((const int *)(const void *)x + i, avx2_mask(n - i));
        most = _mm256_max_epi32(most, _mm256_and_si256(v, magnitude));
    }
    int32_t lanes[AVX2_LANES], all = 0;
    float ret;
    _mm256_storeu_si256((__m256i *)(void *)lanes, most);
    for (int i = 0; i < AVX2_LANES; i++) all = lanes[i] > all ? lanes[i] : all;
    memcpy(&ret, &all, sizeof ret);
    return ret;
}

static void store_whole(int8_t *dst, float *scale, const float *src, size_t dim) {
    struct rounding r;
    rounding_to(&r, largest_of(src, dim), 127);
    const __m256 up = _mm256_set1_ps(r.up);
    for (size_t d = 0; d < dim; d += AVX2_LANES) {
        int32_t whole[AVX2_LANES];
        __m256 x = _mm256_maskload_ps(src + d, avx2_mask(dim - d));
        __m256i v = r.up > 0 ? _mm256_cvtps_epi32(_mm256_mul_ps(x, up)) : _mm256_setzero_si256();
        _mm256_storeu_si256((__m256i *)(void *)whole, v);
        for (size_t i = 0; i < AVX2_LANES && d + i < dim; i++) dst[d + i] = (int8_t)whole[i];
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
    for (; d + AVX2_LANES <= dim; d += AVX2_LANES)
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
    ops->float_kv = (struct attention_ops){.attention_scratch = attention_scratch,
                                           .attention = attention,
                                           .many_scratch = avx2_attention_many_scratch,
                                           .attention_many = avx2_attention_many,
                                           .kv_store = kv_store};
    ops->int8_kv = ops->float_kv;
}
