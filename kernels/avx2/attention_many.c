/* Many queries of one sequence: keys and values of a span are widened once, keys with positions side by
 * side, so that a dot product needs no sum over lanes; then six rows (a query's head each) at a time. */
#include "kernels/avx2/attention.h"

#include <math.h>

enum {
    ROWS = 6, /* that share each load: with two vectors twelve sums, of sixteen registers */
    PAIR = 2 * AVX2_LANES
};

/* Row r is head r % n_rep of the query at pos + r / n_rep; the last one again fills the last group. A span
 * goes through the first cache in parts, each for all rows: a block of keys, a pair of vectors of values. */
struct rows {
    const struct attn_call *call;
    int n, groups, window, last; /* last: position that any row sees */
    size_t ld;                   /* of q and sum: head_dim in whole pairs of vectors */
    float *q, *sum;              /* elements of q in the order of place() */
    float (*p)[AVX2_SPAN];       /* products, scores, terms */
    float *part; /* keys: (ld, 16 positions) in the order of place(); or values: (64, 16) */
    struct avx2_softmax *state;
};

/* What six rows see of a span. */
struct group {
    int low, high;   /* what every row sees */
    int least, most; /* what any sees */
};

/* Of a span. */
struct span {
    int p0;                                         /* its first position */
    int first, end;                                 /* blocks that are seen */
    float k_scales[AVX2_SPAN], v_scales[AVX2_SPAN]; /* of DTYPE_I8 */
    const char *keys[AVX2_SPAN_BLOCKS];
    size_t plane;                         /* bytes from keys to values */
    struct avx2_seen seen[AVX2_MAX_ROWS]; /* high <= low: nothing */
    struct group groups[AVX2_MAX_ROWS / ROWS];
    float keep[AVX2_MAX_ROWS];
};

static size_t in_pairs(int head_dim) { return ((size_t)head_dim + PAIR - 1) / PAIR * PAIR; }

static size_t part_floats(int head_dim) {
    size_t keys = KV_BLOCK_TOKENS * in_pairs(head_dim), values = AVX2_SPAN * PAIR;
    return keys > values ? keys : values;
}

/* The eight sums of a dot product, one after the other, such that each joins those before it. */
AVX2_INLINE size_t place(size_t i, size_t ld) {
    static const unsigned char turn[AVX2_LANES] = {0, 4, 2, 6, 1, 5, 3, 7};
    return turn[i % AVX2_LANES] * (ld / AVX2_LANES) + i / AVX2_LANES;
}

size_t avx2_attention_many_scratch(int n_rep, int head_dim) {
    size_t state = sizeof(struct avx2_softmax) / sizeof(float);
    (void)n_rep;
    return AVX2_MAX_ROWS * state + 2 * AVX2_MAX_ROWS * in_pairs(head_dim) +
           AVX2_MAX_ROWS * AVX2_SPAN + part_floats(head_dim);
}

/* r[i]: lane i of the eight vectors in r. */
AVX2_INLINE void transpose(__m256 r[AVX2_LANES]) {
    __m256 t[AVX2_LANES], u[AVX2_LANES];
    AVX2_UNROLL for (int i = 0; i < 4; i++) {
        t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    AVX2_UNROLL for (int i = 0; i < 4; i++) {
        const int at = i / 2 * 4 + i % 2;
        u[2 * i] = _mm256_shuffle_ps(t[at], t[at + 2], 0x44);
        u[2 * i + 1] = _mm256_shuffle_ps(t[at], t[at + 2], 0xee);
    }
    AVX2_UNROLL for (int i = 0; i < 4; i++) {
        r[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
        r[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
    }
}

AVX2_INLINE __m256 load(enum dtype type, const char *row, int i, int dim) {
    if (i + AVX2_LANES <= dim) return avx2_kv_load(type, row, i, dim, true);
    return i < dim ? avx2_kv_load(type, row, i, dim, false) : _mm256_setzero_ps();
}

AVX2_INLINE void widen_keys(float *k, enum dtype type, const char *keys, int dim, size_t ld) {
    const size_t row_bytes = (size_t)dim * dtype_size(type);
    for (int i = 0; i < (int)ld; i += AVX2_LANES)
        for (int half = 0; half < KV_BLOCK_TOKENS; half += AVX2_LANES) {
            __m256 row[AVX2_LANES];
            AVX2_UNROLL for (int j = 0; j < AVX2_LANES; j++) row[j] =
                load(type, keys + (size_t)(half + j) * row_bytes, i, dim);
            transpose(row);
            AVX2_UNROLL for (int j = 0; j < AVX2_LANES; j++)
                _mm256_storeu_ps(k + place((size_t)(i + j), ld) * KV_BLOCK_TOKENS + half, row[j]);
        }
}

/* Elements i to i + 15. */
AVX2_INLINE void widen_values(float *v, enum dtype type, const struct span *s, int i, int dim) {
    const size_t row_bytes = (size_t)dim * dtype_size(type);
    for (int b = s->first; b < s->end; b++)
        for (int j = 0; j < KV_BLOCK_TOKENS; j++) {
            const char *row = s->keys[b] + s->plane + (size_t)j * row_bytes;
            float *to = v + (b * KV_BLOCK_TOKENS + j) * PAIR;
            _mm256_storeu_ps(to, load(type, row, i, dim));
            _mm256_storeu_ps(to + AVX2_LANES, load(type, row, i + AVX2_LANES, dim));
        }
}

/* p[r], from at on: products of row r with the 16 positions of k. Of the eight sums, pairs are joined as
 * they come, and pairs of pairs. */
AVX2_INLINE void dot_block(float (*p)[AVX2_SPAN], int at, const float *k, const float *q,
                           size_t ld) {
    const size_t each = ld / AVX2_LANES;
    __m256 held[3][ROWS][2];
    for (unsigned c = 0; c < AVX2_LANES; c++) {
        __m256 sum[ROWS][2];
        AVX2_UNROLL for (int i = 0; i < 2 * ROWS; i++) sum[i / 2][i % 2] = _mm256_setzero_ps();
        for (size_t i = 0; i < each; i++, q++, k += KV_BLOCK_TOKENS) {
            const __m256 k0 = _mm256_loadu_ps(k), k1 = _mm256_loadu_ps(k + AVX2_LANES);
            AVX2_UNROLL for (int r = 0; r < ROWS; r++) {
                const __m256 x = _mm256_set1_ps(q[(size_t)r * ld]);
                sum[r][0] = _mm256_fmadd_ps(k0, x, sum[r][0]);
                sum[r][1] = _mm256_fmadd_ps(k1, x, sum[r][1]);
            }
        }
        int level = 0;
        for (; c >> level & 1; level++)
            AVX2_UNROLL for (int i = 0; i < 2 * ROWS; i++) sum[i / 2][i % 2] =
                _mm256_add_ps(held[level][i / 2][i % 2], sum[i / 2][i % 2]);
        if (level < 3) {
            AVX2_UNROLL for (int i = 0; i < 2 * ROWS; i++) held[level][i / 2][i % 2] =
                sum[i / 2][i % 2];
            continue;
        }
        AVX2_UNROLL for (int i = 0; i < 2 * ROWS; i++)
            _mm256_store_ps(p[i / 2] + at + i % 2 * AVX2_LANES, sum[i / 2][i % 2]);
    }
}

/* sum = keep * sum + values weighted by p, positions [low, high), for n rows and a pair of vectors. */
AVX2_INLINE void gather(const int n, float *sum, const float *v, size_t ld, float (*p)[AVX2_SPAN],
                        const float *keep, int low, int high) {
    __m256 acc[ROWS][2];
    AVX2_UNROLL for (int r = 0; r < n; r++) AVX2_UNROLL for (int e = 0; e < 2; e++) acc[r][e] =
        _mm256_mul_ps(_mm256_loadu_ps(sum + (size_t)r * ld + e * AVX2_LANES),
                      _mm256_set1_ps(keep[r]));
    for (int j = low; j < high; j++) {
        const __m256 v0 = _mm256_loadu_ps(v + (size_t)j * PAIR),
                     v1 = _mm256_loadu_ps(v + (size_t)j * PAIR + AVX2_LANES);
        AVX2_UNROLL for (int r = 0; r < n; r++) {
            const __m256 x = _mm256_set1_ps(p[r][j]);
            acc[r][0] = _mm256_fmadd_ps(v0, x, acc[r][0]);
            acc[r][1] = _mm256_fmadd_ps(v1, x, acc[r][1]);
        }
    }
    AVX2_UNROLL for (int r = 0; r < n; r++) AVX2_UNROLL for (int e = 0; e < 2; e++)
        _mm256_storeu_ps(sum + (size_t)r * ld + e * AVX2_LANES, acc[r][e]);
}

static void gather_row(float *sum, const float *v, size_t ld, float (*p)[AVX2_SPAN], float keep,
                       int low, int high) {
    gather(1, sum, v, ld, p, &keep, low, high);
}

static void look_at_group(struct span *s, const struct rows *rows, int group) {
    struct group *g = &s->groups[group];
    *g = (struct group){.high = AVX2_SPAN, .least = AVX2_SPAN};
    for (int r = group * ROWS; r < (group + 1) * ROWS; r++) {
        int row = r < rows->n ? r : rows->n - 1;
        int pos = rows->call->pos + row / rows->call->n_rep, past = pos + 1 - s->p0;
        int from = rows->window > 0 ? past - rows->window : 0;
        struct avx2_seen *seen = &s->seen[r];
        *seen = (struct avx2_seen){from > 0 ? from : 0, past < AVX2_SPAN ? past : AVX2_SPAN,
                                   s->p0 - pos};
        if (seen->low > g->low) g->low = seen->low;
        if (seen->high < g->high) g->high = seen->high;
        if (seen->high <= seen->low) continue;
        if (seen->low < g->least) g->least = seen->low;
        if (seen->high > g->most) g->most = seen->high;
    }
}

/* What lies behind the last block that is seen may be no block at all. */
static void look_at(struct span *s, const struct rows *rows) {
    const struct attn_call *c = rows->call;
    const int block = s->p0 / KV_BLOCK_TOKENS, dim = c->kv->head_dim;
    const int from = rows->window > 0 ? c->pos + 1 - rows->window - s->p0 : 0;
    const int end = (rows->last - s->p0) / KV_BLOCK_TOKENS + 1;
    s->first = from > 0 ? from / KV_BLOCK_TOKENS : 0;
    s->end = end < AVX2_SPAN_BLOCKS ? end : AVX2_SPAN_BLOCKS;
    for (int b = s->first; b < s->end; b++) {
        const int at = b * KV_BLOCK_TOKENS;
        s->keys[b] = avx2_keys(c, block + b, s->plane);
        if (c->kv->type != DTYPE_I8) continue;
        memcpy(s->k_scales + at, avx2_kv_scales(s->keys[b], dim), 64);
        memcpy(s->v_scales + at, avx2_kv_scales(s->keys[b] + s->plane, dim), 64);
    }
    for (int g = 0; g < rows->groups; g++) look_at_group(s, rows, g);
}

AVX2_INLINE void find_products(const struct rows *rows, enum dtype type, const struct span *s) {
    for (int b = s->first; b < s->end; b++) {
        const int at = b * KV_BLOCK_TOKENS;
        widen_keys(rows->part, type, s->keys[b], rows->call->kv->head_dim, rows->ld);
        for (int g = 0; g < rows->groups; g++)
            if (s->groups[g].least < at + KV_BLOCK_TOKENS && s->groups[g].most > at)
                dot_block(rows->p + g * ROWS, at, rows->part,
                          rows->q + (size_t)(g * ROWS) * rows->ld, rows->ld);
    }
}

static void find_terms(const struct rows *rows, struct span *s) {
    const struct attn_call *c = rows->call;
    const bool whole = c->kv->type == DTYPE_I8;
    float slopes[AVX2_MAX_ROWS];
    for (int r = 0; c->slopes && r < AVX2_MAX_ROWS; r++) slopes[r] = c->slopes[r % c->n_rep];
    avx2_softmax(rows->groups * ROWS, rows->p, s->keep, rows->state, s->seen,
                 &(struct avx2_scales){whole ? s->k_scales : NULL, whole ? s->v_scales : NULL,
                                       c->scale, c->slopes ? slopes : NULL});
}

/* Values of positions that not all rows see are weighted row by row: what a row does not see may be
 * infinite. */
static void gather_group(float *sum, size_t ld, const float *v, const struct span *s, int group,
                         float (*p)[AVX2_SPAN]) {
    const struct group *g = &s->groups[group];
    const struct avx2_seen *seen = &s->seen[group * ROWS];
    const bool shared = g->low < g->high;
    float keep[ROWS];
    memcpy(keep, s->keep + group * ROWS, sizeof keep);
    for (int r = 0; r < ROWS; r++) {
        int low = seen[r].low, high = shared ? g->low : seen[r].high;
        if (low >= high) continue;
        gather_row(sum + (size_t)r * ld, v, ld, &p[r], keep[r], low, high);
        keep[r] = 1;
    }
    if (!shared) return;
    gather(ROWS, sum, v, ld, p, keep, g->low, g->high);
    for (int r = 0; r < ROWS; r++)
        if (seen[r].high > g->high)
            gather_row(sum + (size_t)r * ld, v, ld, &p[r], 1, g->high, seen[r].high);
}

AVX2_INLINE void attend_span(const struct rows *rows, enum dtype type, struct span *s) {
    const size_t ld = rows->ld;
    find_products(rows, type, s);
    find_terms(rows, s);
    for (size_t i = 0; i < ld; i += PAIR) {
        widen_values(rows->part, type, s, (int)i, rows->call->kv->head_dim);
        for (int g = 0; g < rows->groups; g++)
            gather_group(rows->sum + (size_t)(g * ROWS) * ld + i, ld, rows->part, s, g,
                         rows->p + g * ROWS);
    }
}

static void begin(const struct rows *rows, const float *q, size_t ld) {
    const size_t dim = (size_t)rows->call->kv->head_dim;
    const int n_rep = rows->call->n_rep;
    memset(rows->sum, 0, (size_t)(rows->groups * ROWS) * rows->ld * sizeof *rows->sum);
    for (int r = 0; r < rows->groups * ROWS; r++) {
        int row = r < rows->n ? r : rows->n - 1;
        const float *from = q + (size_t)(row / n_rep) * ld + (size_t)(row % n_rep) * dim;
        float *to = rows->q + (size_t)r * rows->ld;
        for (size_t i = 0; i < rows->ld; i++) to[place(i, rows->ld)] = i < dim ? from[i] : 0;
        rows->state[r] = (struct avx2_softmax){_mm256_setzero_ps(), -INFINITY};
    }
}

/* At most AVX2_MAX_ROWS rows. */
static void attend(float *out, const float *q, size_t ld, int n, const struct attn_call *c,
                   int window, float *scratch) {
    const int dim = c->kv->head_dim;
    struct rows rows = {.call = c,
                        .n = n * c->n_rep,
                        .groups = (n * c->n_rep + ROWS - 1) / ROWS,
                        .window = window,
                        .last = c->pos + n - 1,
                        .ld = in_pairs(dim),
                        .state = (void *)scratch};
    struct span s;
    rows.p = (float(*)[AVX2_SPAN])(rows.state + AVX2_MAX_ROWS);
    rows.part = rows.p[AVX2_MAX_ROWS];
    rows.q = rows.part + part_floats(dim);
    rows.sum = rows.q + AVX2_MAX_ROWS * rows.ld;
    s.plane = kv_plane_bytes(c->kv->type, dim);
    begin(&rows, q, ld);
    int first = window > 0 && c->pos >= window ? c->pos - window + 1 : 0;
    for (s.p0 = first / AVX2_SPAN * AVX2_SPAN; s.p0 <= rows.last; s.p0 += AVX2_SPAN) {
        look_at(&s, &rows);
        if (c->kv->type == DTYPE_F16)
            attend_span(&rows, DTYPE_F16, &s);
        else if (c->kv->type == DTYPE_I8)
            attend_span(&rows, DTYPE_I8, &s);
        else
            attend_span(&rows, DTYPE_F32, &s);
    }
    for (int r = 0; r < rows.n; r++)
        avx2_attention_end(out + (size_t)(r / c->n_rep) * ld + (size_t)(r % c->n_rep) * (size_t)dim,
                           rows.sum + (size_t)r * rows.ld, &rows.state[r], dim);
}

void avx2_attention_many(float *out, const float *q, size_t ld, int n, const struct attn_call *call,
                         int window, float *scratch) {
    size_t dim = (size_t)call->kv->head_dim;
    for (int h = 0; h < call->n_rep; h += AVX2_MAX_REP) {
        struct attn_call some = *call;
        some.n_rep = call->n_rep - h < AVX2_MAX_REP ? call->n_rep - h : AVX2_MAX_REP;
        if (call->slopes) some.slopes += h;
        const int each = AVX2_MAX_ROWS / some.n_rep;
        for (int t = 0; t < n; t += each, some.pos += each) {
            const size_t at = (size_t)t * ld + (size_t)h * dim;
            attend(out + at, q + at, ld, n - t < each ? n - t : each, &some, window, scratch);
        }
    }
}
