#include "kernels/avx512/attention.h"

#include <math.h>
#include <string.h>

/* One query. Each load of K and V serves up to four heads. */
enum { HEADS = 4, MAX_REP = 8, SLOTS = 4 };

/* One block as seen by a query: positions [low, high) of its 16 count. */
struct block {
    const char *k, *v, *next; /* next: the keys of the second block after this one, or NULL */
    size_t plane;             /* bytes from keys to values */
    int low, high;
};

/* The blocks of a span that the query sees: [first, end). */
struct span {
    struct block blocks[AVX512_SPAN_BLOCKS];
    float k_scales[AVX512_SPAN], v_scales[AVX512_SPAN]; /* of DTYPE_I8 */
    int first, end;
    struct avx512_seen seen;
};

static size_t attention_scratch(int n_rep, int head_dim) {
    return (size_t)n_rep * avx512_padded(head_dim);
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

/* Asks for n bytes of the second block after this one, from byte `at` of its keys on: keys are asked for
 * between products with keys, values between those with values, because a core waits for a few lines only at
 * a time. */
AVX512_INLINE void prefetch(const struct block *b, size_t at, size_t n) {
    if (!b->next) return;
    for (size_t i = 0; i < n; i += 64) _mm_prefetch(b->next + at + i, _MM_HINT_T0);
}

/* part[h][slot]: vectors whose sum is q_h . k_slot, for n slots from j on. */
AVX512_INLINE void dot_slots(__m512 part[][KV_BLOCK_TOKENS], enum dtype type, const struct block *b,
                             const float *q, int dim, int n_heads, int j, int n) {
    size_t row_bytes = (size_t)dim * dtype_size(type);
    const char *row = b->k + (size_t)j * row_bytes;
    __m512 sum[HEADS][SLOTS], k[SLOTS];
    int i = 0;
    prefetch(b, (size_t)j * row_bytes, (size_t)n * row_bytes);
    for (int h = 0; h < n_heads; h++)
        for (int e = 0; e < n; e++) sum[h][e] = _mm512_setzero_ps();
    for (; i + AVX512_LANES <= dim; i += AVX512_LANES) {
        for (int e = 0; e < n; e++)
            k[e] = avx512_kv_load(type, row + (size_t)e * row_bytes, i, dim, true);
        for (int h = 0; h < n_heads; h++) {
            __m512 x = _mm512_loadu_ps(q + h * dim + i);
            for (int e = 0; e < n; e++) sum[h][e] = _mm512_fmadd_ps(k[e], x, sum[h][e]);
        }
    }
    if (i < dim) {
        for (int e = 0; e < n; e++)
            k[e] = avx512_kv_load(type, row + (size_t)e * row_bytes, i, dim, false);
        for (int h = 0; h < n_heads; h++) {
            __m512 x = avx512_kv_load(DTYPE_F32, (const char *)(q + h * dim), i, dim, false);
            for (int e = 0; e < n; e++) sum[h][e] = _mm512_fmadd_ps(k[e], x, sum[h][e]);
        }
    }
    for (int h = 0; h < n_heads; h++)
        for (int e = 0; e < n; e++) part[h][j + e] = sum[h][e];
}

/* dot[h][v]: the dot products with block v of the span. Several slots at a time: as many more chains of
 * additions, and q is read less often. */
AVX512_INLINE void dot(__m512 dot[][AVX512_SPAN_BLOCKS], enum dtype type, const struct span *s,
                       const float *q, int dim, int n_heads) {
    __m512 part[HEADS][KV_BLOCK_TOKENS];
    for (int h = 0; h < n_heads; h++)
        for (int v = 0; v < AVX512_SPAN_BLOCKS; v++) dot[h][v] = _mm512_setzero_ps();
    for (int v = s->first; v < s->end; v++) {
        const struct block *b = &s->blocks[v];
        int j = b->low;
        if (b->high - b->low < KV_BLOCK_TOKENS) memset(part, 0, sizeof part);
        for (; j + SLOTS <= b->high; j += SLOTS)
            dot_slots(part, type, b, q, dim, n_heads, j, SLOTS);
        for (; j < b->high; j++) dot_slots(part, type, b, q, dim, n_heads, j, 1);
        for (int h = 0; h < n_heads; h++) dot[h][v] = sum_each(part[h]);
    }
}

/* sum[h] = keep[h] * sum[h] + the span's values weighted by p[h], for n vectors from element i. */
AVX512_INLINE void gather_some(float *sum, size_t ld, enum dtype type, const struct span *s,
                               float p[][AVX512_SPAN], const float *keep, int i, int dim,
                               int n_heads, int n, bool whole) {
    __m512 acc[HEADS][2];
    for (int h = 0; h < n_heads; h++)
        for (int e = 0; e < n; e++)
            acc[h][e] = _mm512_mul_ps(_mm512_loadu_ps(sum + (size_t)h * ld + i + e * AVX512_LANES),
                                      _mm512_set1_ps(keep[h]));
    for (int b = s->first; b < s->end; b++)
        for (int j = s->blocks[b].low; j < s->blocks[b].high; j++) {
            const size_t at = (size_t)j * (size_t)dim * dtype_size(type);
            const char *row = s->blocks[b].v + at;
            __m512 v[2];
            prefetch(&s->blocks[b], s->blocks[b].plane + at + (size_t)i * dtype_size(type),
                     (size_t)(n * AVX512_LANES) * dtype_size(type));
            for (int e = 0; e < n; e++)
                v[e] = avx512_kv_load(type, row, i + e * AVX512_LANES, dim, whole);
            for (int h = 0; h < n_heads; h++)
                for (int e = 0; e < n; e++)
                    acc[h][e] = _mm512_fmadd_ps(v[e], _mm512_set1_ps(p[h][b * AVX512_LANES + j]),
                                                acc[h][e]);
        }
    for (int h = 0; h < n_heads; h++)
        for (int e = 0; e < n; e++)
            _mm512_storeu_ps(sum + (size_t)h * ld + i + e * AVX512_LANES, acc[h][e]);
}

AVX512_INLINE void gather(float *sum, size_t ld, enum dtype type, const struct span *s,
                          float p[][AVX512_SPAN], const float *keep, int dim, int n_heads) {
    int i = 0;
    for (; i + 2 * AVX512_LANES <= dim; i += 2 * AVX512_LANES)
        gather_some(sum, ld, type, s, p, keep, i, dim, n_heads, 2, true);
    for (; i < dim; i += AVX512_LANES)
        gather_some(sum, ld, type, s, p, keep, i, dim, n_heads, 1, false);
}

/* What a value's whole numbers count. Those of slots that are not seen stay unused. */
AVX512_INLINE void scale_terms(float p[][AVX512_SPAN], const struct span *s, int n_heads) {
    for (int v = s->first; v < s->end; v++) {
        const __m512 scale = _mm512_loadu_ps(s->v_scales + AVX512_LANES * v);
        for (int h = 0; h < n_heads; h++)
            _mm512_store_ps(p[h] + AVX512_LANES * v,
                            _mm512_mul_ps(_mm512_load_ps(p[h] + AVX512_LANES * v), scale));
    }
}

AVX512_INLINE void attend_heads(float *sum, struct avx512_softmax *state, enum dtype type,
                                const struct span *s, const float *q, const float *slopes,
                                const struct attn_call *c, int n_heads) {
    int dim = c->kv->head_dim;
    __m512 dots[HEADS][AVX512_SPAN_BLOCKS];
    _Alignas(64) float p[HEADS][AVX512_SPAN];
    float keep[HEADS];
    const struct avx512_seen seen[HEADS] = {s->seen, s->seen, s->seen, s->seen};
    dot(dots, type, s, q, dim, n_heads);
    avx512_softmax(n_heads, p, keep, state, dots, type == DTYPE_I8 ? s->k_scales : NULL, seen,
                   c->scale, slopes);
    if (type == DTYPE_I8) scale_terms(p, s, n_heads);
    gather(sum, avx512_padded(dim), type, s, p, keep, dim, n_heads);
}

AVX512_INLINE void attend_span(float *sum, struct avx512_softmax *state, enum dtype type,
                               const struct span *s, const float *q, const struct attn_call *c) {
    size_t dim = (size_t)c->kv->head_dim;
    for (int h = 0; h < c->n_rep; h += HEADS) {
        float *to = sum + (size_t)h * avx512_padded(c->kv->head_dim);
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
    s->seen = (struct avx512_seen){from > 0 ? from : 0, past < AVX512_SPAN ? past : AVX512_SPAN,
                                   p0 - c->pos};
    s->first = s->seen.low / KV_BLOCK_TOKENS;
    s->end = (s->seen.high + KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS;
    for (int v = s->first; v < s->end; v++) {
        int at = v * KV_BLOCK_TOKENS, i = p0 / KV_BLOCK_TOKENS + v, left = past - at;
        struct block *b = &s->blocks[v];
        *b = (struct block){.k = avx512_keys(c, i, plane), .plane = plane};
        b->v = b->k + plane;
        b->next = left > 2 * KV_BLOCK_TOKENS ? avx512_keys(c, i + 2, plane) : NULL;
        b->low = from > at ? from - at : 0;
        b->high = left < KV_BLOCK_TOKENS ? left : KV_BLOCK_TOKENS;
        if (c->kv->type != DTYPE_I8) continue;
        memcpy(s->k_scales + at, avx512_kv_scales(b->k, c->kv->head_dim), 64);
        memcpy(s->v_scales + at, avx512_kv_scales(b->v, c->kv->head_dim), 64);
    }
}

static void attend(float *out, const float *q, const struct attn_call *c, float *sum) {
    size_t dim = (size_t)c->kv->head_dim, ld = avx512_padded(c->kv->head_dim);
    size_t plane = kv_plane_bytes(c->kv->type, c->kv->head_dim);
    struct avx512_softmax state[MAX_REP];
    struct span s = {.k_scales = {0}};
    for (int h = 0; h < c->n_rep; h++)
        state[h] = (struct avx512_softmax){_mm512_setzero_ps(), -INFINITY};
    memset(sum, 0, (size_t)c->n_rep * ld * sizeof *sum);
    for (int p0 = c->first / AVX512_SPAN * AVX512_SPAN; p0 <= c->pos; p0 += AVX512_SPAN) {
        look_at(&s, c, p0, plane);
        if (c->kv->type == DTYPE_F16)
            attend_span(sum, state, DTYPE_F16, &s, q, c);
        else if (c->kv->type == DTYPE_I8)
            attend_span(sum, state, DTYPE_I8, &s, q, c);
        else
            attend_span(sum, state, DTYPE_F32, &s, q, c);
    }
    for (int h = 0; h < c->n_rep; h++)
        avx512_attention_end(out + (size_t)h * dim, sum + (size_t)h * ld, &state[h], (int)dim);
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
    struct attention_ops *kinds[] = {&ops->float_kv, &ops->int8_kv};
    for (int i = 0; i < 2; i++) {
        kinds[i]->attention_scratch = attention_scratch;
        kinds[i]->attention = attention;
        kinds[i]->many_scratch = avx512_attention_many_scratch;
        kinds[i]->attention_many = avx512_attention_many;
    }
}
