/* Many queries of one sequence: keys and values of a span are widened once, keys with positions side by
 * side, so that a dot product needs no sum over lanes; then four rows (a query's head each) at a time. */
#include "kernels/avx512/attention.h"

#include <math.h>
#include <string.h>

enum {
    ROWS = 4,      /* that share each load */
    MAX_ROWS = 96, /* of one widening: what it costs is a tenth then */
    MAX_REP = 8
};

/* Of a span: k (ld, 64), v (64, ld). */
struct span {
    float *k, *v;
    float k_scales[AVX512_SPAN], v_scales[AVX512_SPAN]; /* of DTYPE_I8 */
    int p0;                                             /* its first position */
};

/* Row r is head r % n_rep of the query at pos + r / n_rep; the last one again fills the last group. */
struct rows {
    const struct attn_call *call;
    int n, window, last; /* last: position that any row sees */
    size_t ld;           /* of q and sum: head_dim in whole vectors */
    float *q, *sum;
    struct avx512_softmax *state;
};

size_t avx512_attention_many_scratch(int n_rep, int head_dim) {
    size_t state = sizeof(struct avx512_softmax) / sizeof(float);
    (void)n_rep;
    return MAX_ROWS * state + (2 * MAX_ROWS + 2 * AVX512_SPAN) * avx512_padded(head_dim);
}

/* Block v of a span. */
AVX512_INLINE void widen_block(struct span *s, enum dtype type, const struct rows *r, int v,
                               const char *keys, size_t plane) {
    const int dim = r->call->kv->head_dim;
    const size_t row_bytes = (size_t)dim * dtype_size(type);
    const char *values = keys + plane;
    for (int i = 0; i < (int)r->ld; i += AVX512_LANES) {
        __m512i k[AVX512_LANES];
        AVX512_UNROLL for (int j = 0; j < AVX512_LANES; j++) {
            const size_t at = (size_t)j * row_bytes;
            const bool whole = i + AVX512_LANES <= dim;
            k[j] = _mm512_castps_si512(whole ? avx512_kv_load(type, keys + at, i, dim, true)
                                             : avx512_kv_load(type, keys + at, i, dim, false));
            _mm512_storeu_ps(s->v + (size_t)(v * AVX512_LANES + j) * r->ld + i,
                             whole ? avx512_kv_load(type, values + at, i, dim, true)
                                   : avx512_kv_load(type, values + at, i, dim, false));
        }
        avx512_transpose(k);
        AVX512_UNROLL for (int j = 0; j < AVX512_LANES; j++)
            _mm512_storeu_si512(s->k + (i + j) * AVX512_SPAN + v * AVX512_LANES, k[j]);
    }
    if (type != DTYPE_I8) return;
    memcpy(s->k_scales + v * AVX512_LANES, avx512_kv_scales(keys, dim), 64);
    memcpy(s->v_scales + v * AVX512_LANES, avx512_kv_scales(values, dim), 64);
}

/* What lies behind the last block that is seen stays as it was: it may be no block at all. */
static void widen(struct span *s, const struct rows *r) {
    const struct attn_call *c = r->call;
    const size_t plane = kv_plane_bytes(c->kv->type, c->kv->head_dim);
    for (int v = 0; v < AVX512_SPAN_BLOCKS && s->p0 + v * KV_BLOCK_TOKENS <= r->last; v++) {
        const int block = s->p0 / KV_BLOCK_TOKENS + v;
        if (r->window > 0 && (block + 1) * KV_BLOCK_TOKENS <= c->pos + 1 - r->window) continue;
        const char *keys = avx512_keys(c, block, plane);
        if (c->kv->type == DTYPE_F16)
            widen_block(s, DTYPE_F16, r, v, keys, plane);
        else if (c->kv->type == DTYPE_I8)
            widen_block(s, DTYPE_I8, r, v, keys, plane);
        else
            widen_block(s, DTYPE_F32, r, v, keys, plane);
    }
}

/* dot[r][v], dot[r][v + 1]: products of row r with two blocks of the span. */
AVX512_INLINE void dot_pair(__m512 dot[ROWS][AVX512_SPAN_BLOCKS], const float *k, const float *q,
                            size_t ld, const int v) {
    __m512 halves[2][ROWS][2];
    AVX512_UNROLL for (int c = 0; c < 4; c++) {
        __m512 four[ROWS][2];
        AVX512_UNROLL for (int odd = 0; odd < 2; odd++) {
            __m512 sum[ROWS][2][2];
            AVX512_UNROLL for (int i = 0; i < ROWS * 4; i++) sum[i / 4][i / 2 % 2][i % 2] =
                _mm512_setzero_ps();
            for (size_t i = (size_t)(4 * c + odd); i < ld; i += AVX512_LANES)
                AVX512_UNROLL for (int e = 0; e < 2; e++) {
                    const float *at = k + (i + 2 * (size_t)e) * AVX512_SPAN + AVX512_LANES * v;
                    const __m512 k0 = _mm512_loadu_ps(at), k1 = _mm512_loadu_ps(at + AVX512_LANES);
                    AVX512_UNROLL for (int r = 0; r < ROWS; r++) {
                        const __m512 x = _mm512_set1_ps(q[(size_t)r * ld + i + 2 * (size_t)e]);
                        sum[r][e][0] = _mm512_fmadd_ps(k0, x, sum[r][e][0]);
                        sum[r][e][1] = _mm512_fmadd_ps(k1, x, sum[r][e][1]);
                    }
                }
            AVX512_UNROLL for (int i = 0; i < ROWS * 2; i++) {
                const __m512 two = _mm512_add_ps(sum[i / 2][0][i % 2], sum[i / 2][1][i % 2]);
                four[i / 2][i % 2] = odd ? _mm512_add_ps(four[i / 2][i % 2], two) : two;
            }
        }
        AVX512_UNROLL for (int i = 0; i < ROWS * 2; i++) {
            __m512 *half = &halves[c / 2][i / 2][i % 2];
            *half = c % 2 ? _mm512_add_ps(*half, four[i / 2][i % 2]) : four[i / 2][i % 2];
        }
    }
    AVX512_UNROLL for (int i = 0; i < ROWS * 2; i++) dot[i / 2][v + i % 2] =
        _mm512_add_ps(halves[0][i / 2][i % 2], halves[1][i / 2][i % 2]);
}

/* sum = keep * sum + values weighted by p, positions [low, high), for n rows and vectors. */
AVX512_INLINE void gather_some(const int n, const int vectors, float *sum, const float *v,
                               size_t ld, float (*p)[AVX512_SPAN], const float *keep, int low,
                               int high) {
    __m512 acc[ROWS][4];
    AVX512_UNROLL for (int r = 0; r < n; r++) AVX512_UNROLL for (int e = 0; e < vectors; e++)
        acc[r][e] = _mm512_mul_ps(_mm512_loadu_ps(sum + (size_t)r * ld + e * AVX512_LANES),
                                  _mm512_set1_ps(keep[r]));
    for (int j = low; j < high; j++) {
        __m512 value[4];
        AVX512_UNROLL for (int e = 0; e < vectors; e++) value[e] =
            _mm512_loadu_ps(v + (size_t)j * ld + e * AVX512_LANES);
        AVX512_UNROLL for (int r = 0; r < n; r++) {
            const __m512 x = _mm512_set1_ps(p[r][j]);
            AVX512_UNROLL for (int e = 0; e < vectors; e++) acc[r][e] =
                _mm512_fmadd_ps(value[e], x, acc[r][e]);
        }
    }
    AVX512_UNROLL for (int r = 0; r < n; r++) AVX512_UNROLL for (int e = 0; e < vectors; e++)
        _mm512_storeu_ps(sum + (size_t)r * ld + e * AVX512_LANES, acc[r][e]);
}

AVX512_INLINE void gather(const int n, float *sum, const float *v, size_t ld,
                          float (*p)[AVX512_SPAN], const float *keep, int low, int high) {
    size_t i = 0;
    for (; i + 4 * AVX512_LANES <= ld; i += 4 * AVX512_LANES)
        gather_some(n, 4, sum + i, v + i, ld, p, keep, low, high);
    for (; i < ld; i += AVX512_LANES) gather_some(n, 1, sum + i, v + i, ld, p, keep, low, high);
}

static void gather_row(float *sum, const float *v, size_t ld, float (*p)[AVX512_SPAN], float keep,
                       int low, int high) {
    gather(1, sum, v, ld, p, &keep, low, high);
}

/* Of a group of rows and a span. */
struct group {
    struct avx512_seen seen[ROWS]; /* high <= low: nothing */
    int low, high;                 /* what every row sees */
    int most;                      /* end of what any sees */
    float keep[ROWS];
    _Alignas(64) float p[ROWS][AVX512_SPAN];
};

static void look_at(struct group *g, const struct rows *rows, int first_row, int p0) {
    g->low = g->most = 0;
    g->high = AVX512_SPAN;
    for (int r = 0; r < ROWS; r++) {
        int row = first_row + r < rows->n ? first_row + r : rows->n - 1;
        int pos = rows->call->pos + row / rows->call->n_rep, past = pos + 1 - p0;
        int from = rows->window > 0 ? past - rows->window : 0;
        struct avx512_seen *s = &g->seen[r];
        *s = (struct avx512_seen){from > 0 ? from : 0, past < AVX512_SPAN ? past : AVX512_SPAN,
                                  p0 - pos};
        if (s->low > g->low) g->low = s->low;
        if (s->high < g->high) g->high = s->high;
        if (s->high > s->low && s->high > g->most) g->most = s->high;
    }
}

static void find_terms(struct group *g, const struct rows *rows, int first_row,
                       const struct span *s) {
    const struct attn_call *c = rows->call;
    const bool whole = c->kv->type == DTYPE_I8;
    __m512 dot[ROWS][AVX512_SPAN_BLOCKS];
    const float *q = rows->q + (size_t)first_row * rows->ld;
    dot_pair(dot, s->k, q, rows->ld, 0);
    if (g->most > 2 * AVX512_LANES)
        dot_pair(dot, s->k, q, rows->ld, 2);
    else
        AVX512_UNROLL for (int r = 0; r < ROWS; r++) dot[r][2] = dot[r][3] = _mm512_setzero_ps();
    float slopes[ROWS];
    for (int r = 0; c->slopes && r < ROWS; r++) slopes[r] = c->slopes[(first_row + r) % c->n_rep];
    avx512_softmax(ROWS, g->p, g->keep, &rows->state[first_row], dot, whole ? s->k_scales : NULL,
                   g->seen, c->scale, c->slopes ? slopes : NULL);
    for (int r = 0; whole && r < ROWS; r++)
        for (int j = 0; j < g->most; j += AVX512_LANES)
            _mm512_store_ps(g->p[r] + j, _mm512_mul_ps(_mm512_load_ps(g->p[r] + j),
                                                       _mm512_loadu_ps(s->v_scales + j)));
}

/* Values of positions that not all rows see are weighted row by row: what a row does not see may be
 * infinite. */
static void attend_group(const struct rows *rows, int first_row, const struct span *s) {
    const size_t ld = rows->ld;
    float *sum = rows->sum + (size_t)first_row * ld;
    struct group g;
    look_at(&g, rows, first_row, s->p0);
    if (!g.most) return;
    find_terms(&g, rows, first_row, s);
    const bool shared = g.low < g.high;
    for (int r = 0; r < ROWS; r++) {
        int low = g.seen[r].low, high = shared ? g.low : g.seen[r].high;
        if (low >= high) continue;
        gather_row(sum + (size_t)r * ld, s->v, ld, &g.p[r], g.keep[r], low, high);
        g.keep[r] = 1;
    }
    if (!shared) return;
    gather(ROWS, sum, s->v, ld, g.p, g.keep, g.low, g.high);
    for (int r = 0; r < ROWS; r++)
        if (g.seen[r].high > g.high)
            gather_row(sum + (size_t)r * ld, s->v, ld, &g.p[r], 1, g.high, g.seen[r].high);
}

static void begin(const struct rows *rows, const float *q, size_t ld) {
    const int dim = rows->call->kv->head_dim, n_rep = rows->call->n_rep;
    for (int r = 0; r < (rows->n + ROWS - 1) / ROWS * ROWS; r++) {
        int row = r < rows->n ? r : rows->n - 1;
        const float *from = q + (size_t)(row / n_rep) * ld + (size_t)(row % n_rep) * (size_t)dim;
        for (int i = 0; i < (int)rows->ld; i += AVX512_LANES) {
            float *to = rows->q + (size_t)r * rows->ld + i;
            _mm512_storeu_ps(
                to, _mm512_maskz_loadu_ps(avx512_mask(i < dim ? (size_t)(dim - i) : 0), from + i));
            _mm512_storeu_ps(rows->sum + (size_t)r * rows->ld + i, _mm512_setzero_ps());
        }
        rows->state[r] = (struct avx512_softmax){_mm512_setzero_ps(), -INFINITY};
    }
}

/* At most MAX_ROWS rows. */
static void attend(float *out, const float *q, size_t ld, int n, const struct attn_call *c,
                   int window, float *scratch) {
    const int dim = c->kv->head_dim;
    struct rows rows = {.call = c,
                        .n = n * c->n_rep,
                        .window = window,
                        .last = c->pos + n - 1,
                        .ld = avx512_padded(dim),
                        .state = (void *)scratch};
    rows.q = (float *)(rows.state + MAX_ROWS);
    rows.sum = rows.q + MAX_ROWS * rows.ld;
    struct span s = {.k = rows.sum + MAX_ROWS * rows.ld};
    s.v = s.k + AVX512_SPAN * rows.ld;
    begin(&rows, q, ld);
    int first = window > 0 && c->pos >= window ? c->pos - window + 1 : 0;
    for (s.p0 = first / AVX512_SPAN * AVX512_SPAN; s.p0 <= rows.last; s.p0 += AVX512_SPAN) {
        widen(&s, &rows);
        for (int r = 0; r < rows.n; r += ROWS) attend_group(&rows, r, &s);
    }
    for (int r = 0; r < rows.n; r++)
        avx512_attention_end(out + (size_t)(r / c->n_rep) * ld +
                                 (size_t)(r % c->n_rep) * (size_t)dim,
                             rows.sum + (size_t)r * rows.ld, &rows.state[r], dim);
}

void avx512_attention_many(float *out, const float *q, size_t ld, int n,
                           const struct attn_call *call, int window, float *scratch) {
    size_t dim = (size_t)call->kv->head_dim;
    for (int h = 0; h < call->n_rep; h += MAX_REP) {
        struct attn_call some = *call;
        some.n_rep = call->n_rep - h < MAX_REP ? call->n_rep - h : MAX_REP;
        if (call->slopes) some.slopes += h;
        const int each = MAX_ROWS / some.n_rep;
        for (int t = 0; t < n; t += each, some.pos += each) {
            const size_t at = (size_t)t * ld + (size_t)h * dim;
            attend(out + at, q + at, ld, n - t < each ? n - t : each, &some, window, scratch);
        }
    }
}
