/* Many queries of one sequence: keys and values of a block are widened once, keys with positions side by
 * side, so that a dot product needs no sum over lanes; then four rows (a query's head each) at a time. */
#include "kernels/neon/attention.h"

#include <math.h>
#include <stdbool.h>

enum {
    ROWS = NEON_ROWS,
    VECTORS = 4, /* 16 sums in registers: with six rows 24, of which gcc 12 keeps two in memory */
    WIDE = VECTORS * NEON_LANES,
    MAX_ROWS = 96 /* of one widening */
};
_Static_assert((int)WIDE == (int)KV_BLOCK_TOKENS, "the dot products with a block fill the sums");

/* Row r is head r % n_rep of the query at pos + r / n_rep; the last one again fills the last group. */
struct rows {
    const struct attn_call *call;
    int n, window;
    size_t ld;    /* head_dim in whole WIDEs */
    float *q;     /* (rows, ld), elements in the order of place() */
    float *sum;   /* (rows, ld) */
    float *k, *v; /* of a block: (ld, 16 positions) in the order of place(); (16 positions, ld) */
    struct neon_softmax *state;
};

/* What four rows see of a block. */
struct group {
    struct neon_seen seen[ROWS]; /* high <= low: nothing */
    int low, high;               /* what every row sees */
    bool any;
};

static size_t padded(int head_dim) { return ((size_t)head_dim + WIDE - 1) / WIDE * WIDE; }

/* The four sums of a dot product, one after the other. */
NEON_INLINE size_t place(size_t i, size_t ld) {
    return i % NEON_LANES * (ld / NEON_LANES) + i / NEON_LANES;
}

size_t neon_attention_many_scratch(int n_rep, int head_dim) {
    size_t state = sizeof(struct neon_softmax) / sizeof(float);
    (void)n_rep;
    return MAX_ROWS * state + (2 * MAX_ROWS + 2 * KV_BLOCK_TOKENS) * padded(head_dim);
}

/* r[i]: lane i of the four vectors in r. */
NEON_INLINE void transpose(float32x4_t r[NEON_LANES]) {
    float64x2_t t[NEON_LANES];
    for (int i = 0; i < 2; i++) {
        t[i] = vreinterpretq_f64_f32(vtrn1q_f32(r[2 * i], r[2 * i + 1]));
        t[i + 2] = vreinterpretq_f64_f32(vtrn2q_f32(r[2 * i], r[2 * i + 1]));
    }
    for (int i = 0; i < 2; i++) {
        r[i] = vreinterpretq_f32_f64(vtrn1q_f64(t[2 * i], t[2 * i + 1]));
        r[i + 2] = vreinterpretq_f32_f64(vtrn2q_f64(t[2 * i], t[2 * i + 1]));
    }
}

NEON_INLINE void widen(const struct rows *rows, enum dtype type, const char *keys,
                       const char *values) {
    const int dim = rows->call->kv->head_dim;
    const size_t row_bytes = (size_t)dim * dtype_size(type), ld = rows->ld;
    for (int i = 0; i < (int)ld; i += NEON_LANES)
        for (size_t j = 0; j < KV_BLOCK_TOKENS; j += NEON_LANES) {
            float32x4_t k[NEON_LANES];
            for (size_t e = 0; e < NEON_LANES; e++) {
                const size_t at = (j + e) * row_bytes;
                const float32x4_t none = vdupq_n_f32(0);
                k[e] = i < dim ? neon_kv_load(type, keys + at, i, dim) : none;
                vst1q_f32(rows->v + (j + e) * ld + i,
                          i < dim ? neon_kv_load(type, values + at, i, dim) : none);
            }
            transpose(k);
            for (size_t e = 0; e < NEON_LANES; e++)
                vst1q_f32(rows->k + place((size_t)i + e, ld) * KV_BLOCK_TOKENS + j, k[e]);
        }
}

/* acc[r] += x[r][j] * v[j] over j < count, for n rows; v: (count, WIDE). */
NEON_INLINE void accumulate(const int n, float32x4_t acc[ROWS][VECTORS], const float *v, size_t ldv,
                            const float *x, size_t ldx, size_t count) {
    for (size_t j = 0; j < count; j++, v += ldv, x++) {
        float32x4_t some[VECTORS];
        NEON_UNROLL for (int e = 0; e < VECTORS; e++) some[e] = vld1q_f32(v + e * NEON_LANES);
        NEON_UNROLL for (int r = 0; r < n; r++) {
            const float one = x[(size_t)r * ldx];
            NEON_UNROLL for (int e = 0; e < VECTORS; e++) acc[r][e] =
                vfmaq_n_f32(acc[r][e], some[e], one);
        }
    }
}

/* p[r]: products of row r with the block's 16 positions. */
static void dot(float (*p)[KV_BLOCK_TOKENS], const float *k, const float *q, size_t ld) {
    const size_t each = ld / NEON_LANES;
    float32x4_t sums[NEON_LANES][ROWS][VECTORS];
    for (size_t l = 0; l < NEON_LANES; l++) {
        float32x4_t sum[ROWS][VECTORS];
        NEON_UNROLL for (int i = 0; i < ROWS * VECTORS; i++) sum[i / VECTORS][i % VECTORS] =
            vdupq_n_f32(0);
        accumulate(ROWS, sum, k + l * each * KV_BLOCK_TOKENS, KV_BLOCK_TOKENS, q + l * each, ld,
                   each);
        NEON_UNROLL for (int i = 0; i < ROWS * VECTORS; i++) sums[l][i / VECTORS][i % VECTORS] =
            sum[i / VECTORS][i % VECTORS];
    }
    for (int r = 0; r < ROWS; r++)
        for (int e = 0; e < VECTORS; e++)
            vst1q_f32(p[r] + e * NEON_LANES, vaddq_f32(vaddq_f32(sums[0][r][e], sums[1][r][e]),
                                                       vaddq_f32(sums[2][r][e], sums[3][r][e])));
}

/* sum = keep * sum + values weighted by p, positions [low, high), for n rows. */
NEON_INLINE void gather(const int n, float *sum, const float *v, size_t ld,
                        float (*p)[KV_BLOCK_TOKENS], const float *keep, int low, int high) {
    for (size_t i = 0; i < ld; i += WIDE) {
        float32x4_t acc[ROWS][VECTORS];
        NEON_UNROLL for (int r = 0; r < n; r++) NEON_UNROLL for (int e = 0; e < VECTORS; e++)
            acc[r][e] = vmulq_n_f32(vld1q_f32(sum + (size_t)r * ld + i + e * NEON_LANES), keep[r]);
        accumulate(n, acc, v + (size_t)low * ld + i, ld, p[0] + low, KV_BLOCK_TOKENS,
                   (size_t)(high - low));
        NEON_UNROLL for (int r = 0; r < n; r++) NEON_UNROLL for (int e = 0; e < VECTORS; e++)
            vst1q_f32(sum + (size_t)r * ld + i + e * NEON_LANES, acc[r][e]);
    }
}

static void gather_row(float *sum, const float *v, size_t ld, float (*p)[KV_BLOCK_TOKENS],
                       float keep, int low, int high) {
    gather(1, sum, v, ld, p, &keep, low, high);
}

/* Values of positions that not all rows see are weighted row by row: what a row does not see may be
 * infinite. */
static void gather_group(float *sum, const float *v, size_t ld, float (*p)[KV_BLOCK_TOKENS],
                         float *keep, const struct group *g) {
    const bool shared = g->low < g->high;
    for (int r = 0; r < ROWS; r++) {
        int low = g->seen[r].low, high = shared ? g->low : g->seen[r].high;
        if (low >= high) continue;
        gather_row(sum + (size_t)r * ld, v, ld, &p[r], keep[r], low, high);
        keep[r] = 1;
    }
    if (!shared) return;
    gather(ROWS, sum, v, ld, p, keep, g->low, g->high);
    for (int r = 0; r < ROWS; r++)
        if (g->seen[r].high > g->high)
            gather_row(sum + (size_t)r * ld, v, ld, &p[r], 1, g->high, g->seen[r].high);
}

static void look_at(struct group *g, const struct rows *rows, int first_row, int p0) {
    *g = (struct group){.high = KV_BLOCK_TOKENS};
    for (int r = 0; r < ROWS; r++) {
        int row = first_row + r < rows->n ? first_row + r : rows->n - 1;
        int pos = rows->call->pos + row / rows->call->n_rep, past = pos + 1 - p0;
        int from = rows->window > 0 ? past - rows->window : 0;
        struct neon_seen *s = &g->seen[r];
        *s = (struct neon_seen){from > 0 ? from : 0,
                                past < KV_BLOCK_TOKENS ? past : KV_BLOCK_TOKENS, p0 - pos};
        if (s->low > g->low) g->low = s->low;
        if (s->high < g->high) g->high = s->high;
        if (s->high > s->low) g->any = true;
    }
}

static void attend_group(const struct rows *rows, int first_row, int p0,
                         const struct neon_scales *block) {
    const int n_rep = rows->call->n_rep;
    const size_t at = (size_t)first_row * rows->ld;
    struct neon_scales scales = *block;
    float p[ROWS][KV_BLOCK_TOKENS], keep[ROWS], slopes[ROWS];
    struct group g;
    look_at(&g, rows, first_row, p0);
    if (!g.any) return;
    dot(p, rows->k, rows->q + at, rows->ld);
    for (int r = 0; scales.slopes && r < ROWS; r++)
        slopes[r] = scales.slopes[(first_row + r) % n_rep];
    if (scales.slopes) scales.slopes = slopes;
    neon_softmax(ROWS, p, keep, rows->state + first_row, g.seen, &scales);
    gather_group(rows->sum + at, rows->v, rows->ld, p, keep, &g);
}

/* The block that begins at position p0. */
static void attend_block(const struct rows *rows, int p0, size_t plane) {
    const struct attn_call *c = rows->call;
    const char *keys = neon_keys(c, p0 / KV_BLOCK_TOKENS, plane), *values = keys + plane;
    const struct neon_scales scales = {neon_kv_scales(c->kv, keys), neon_kv_scales(c->kv, values),
                                       c->scale, c->slopes};
    if (c->kv->type == DTYPE_F16)
        widen(rows, DTYPE_F16, keys, values);
    else if (c->kv->type == DTYPE_I8)
        widen(rows, DTYPE_I8, keys, values);
    else
        widen(rows, DTYPE_F32, keys, values);
    for (int r = 0; r < rows->n; r += ROWS) attend_group(rows, r, p0, &scales);
}

static void begin(const struct rows *rows, const float *q, size_t ld) {
    const size_t dim = (size_t)rows->call->kv->head_dim;
    const int n_rep = rows->call->n_rep, n = (rows->n + ROWS - 1) / ROWS * ROWS;
    memset(rows->sum, 0, (size_t)n * rows->ld * sizeof *rows->sum);
    for (int r = 0; r < n; r++) {
        int row = r < rows->n ? r : rows->n - 1;
        const float *from = q + (size_t)(row / n_rep) * ld + (size_t)(row % n_rep) * dim;
        float *to = rows->q + (size_t)r * rows->ld;
        for (size_t i = 0; i < rows->ld; i++) to[place(i, rows->ld)] = i < dim ? from[i] : 0;
        rows->state[r] = (struct neon_softmax){vdupq_n_f32(0), -INFINITY};
    }
}

/* At most MAX_ROWS rows. */
static void attend(float *out, const float *q, size_t ld, int n, const struct attn_call *c,
                   int window, float *scratch) {
    const int dim = c->kv->head_dim, last = c->pos + n - 1;
    const size_t plane = kv_plane_bytes(c->kv->type, dim);
    struct rows rows = {.call = c,
                        .n = n * c->n_rep,
                        .window = window,
                        .ld = padded(dim),
                        .state = (void *)scratch};
    rows.q = (float *)(rows.state + MAX_ROWS);
    rows.sum = rows.q + MAX_ROWS * rows.ld;
    rows.k = rows.sum + MAX_ROWS * rows.ld;
    rows.v = rows.k + KV_BLOCK_TOKENS * rows.ld;
    begin(&rows, q, ld);
    int first = window > 0 && c->pos >= window ? c->pos - window + 1 : 0;
    for (int p0 = first / KV_BLOCK_TOKENS * KV_BLOCK_TOKENS; p0 <= last; p0 += KV_BLOCK_TOKENS)
        attend_block(&rows, p0, plane);
    for (int r = 0; r < rows.n; r++)
        neon_attention_end(out + (size_t)(r / c->n_rep) * ld + (size_t)(r % c->n_rep) * (size_t)dim,
                           rows.sum + (size_t)r * rows.ld, &rows.state[r], dim);
}

void neon_attention_many(float *out, const float *q, size_t ld, int n, const struct attn_call *call,
                         int window, float *scratch) {
    size_t dim = (size_t)call->kv->head_dim;
    for (int h = 0; h < call->n_rep; h += NEON_MAX_REP) {
        struct attn_call some = *call;
        some.n_rep = call->n_rep - h < NEON_MAX_REP ? call->n_rep - h : NEON_MAX_REP;
        if (call->slopes) some.slopes += h;
        const int each = MAX_ROWS / some.n_rep;
        for (int t = 0; t < n; t += each, some.pos += each) {
            const size_t at = (size_t)t * ld + (size_t)h * dim;
            attend(out + at, q + at, ld, n - t < each ? n - t : each, &some, window, scratch);
        }
    }
}
