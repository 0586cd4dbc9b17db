#include "engine/train/attention.h"

#include <cblas.h>
#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "engine/config.h"
#include "engine/model_arch.h"
#include "engine/positions.h"
#include "engine/quant/parallel.h"
#include "engine/train/wide.h"
#include "kernels/error.h"

/* Queries of a strip: half of a strip's last square is above the diagonal and wasted. */
enum { STRIP = 64, TURN_ROWS = 32 };

struct attention {
    int n_heads, n_kv_heads, head_dim, n_seqs, ctx, n_threads;
    float scale;
    float *slopes;    /* (n_heads) or NULL */
    float *cos, *sin; /* (ctx, head_dim / 2) or NULL */
    float *room;      /* (n_seqs * n_kv_heads, 2, STRIP, ctx) */
};

static int make_tables(struct attention *a, const struct model_config *c, struct error *err) {
    const struct arch_row *arch = model_arch_find(c->arch);
    if (arch->positions == POSITIONS_ALIBI) {
        a->slopes = malloc((size_t)a->n_heads * sizeof *a->slopes);
        if (!a->slopes) return error_set(err, -ENOMEM, "attention: out of memory");
        positions_alibi(a->slopes, a->n_heads);
    }
    if (arch->positions != POSITIONS_ROPE) return 0;
    size_t half = (size_t)a->head_dim / 2, n = (size_t)a->ctx * half;
    double *freq = malloc((half + 1) * sizeof *freq);
    a->cos = malloc((n + 1) * sizeof *a->cos);
    a->sin = malloc((n + 1) * sizeof *a->sin);
    if (!freq || !a->cos || !a->sin) {
        free(freq);
        return error_set(err, -ENOMEM, "attention: out of memory");
    }
    positions_rope(freq, c);
    for (size_t i = 0; i < n; i++) {
        double angle = (double)(i / half) * freq[i % half];
        a->cos[i] = (float)cos(angle);
        a->sin[i] = (float)sin(angle);
    }
    free(freq);
    return 0;
}

int attention_new(struct attention **ret, const struct model_config *c, int n_seqs, int ctx,
                  int n_threads, struct error *err) {
    struct attention *a = calloc(1, sizeof *a);
    if (!a) return error_set(err, -ENOMEM, "attention: out of memory");
    *a = (struct attention){.n_heads = c->n_heads,
                            .n_kv_heads = c->n_kv_heads,
                            .head_dim = c->head_dim,
                            .n_seqs = n_seqs,
                            .ctx = ctx,
                            .n_threads = n_threads,
                            .scale = (float)(1 / sqrt((double)c->head_dim))};
    int r = make_tables(a, c, err);
    size_t pieces = (size_t)n_seqs * (size_t)c->n_kv_heads;
    a->room = malloc(pieces * 2 * STRIP * (size_t)ctx * sizeof *a->room);
    if (r == 0 && !a->room) r = error_set(err, -ENOMEM, "attention: out of memory");
    if (r < 0)
        attention_free(a);
    else
        *ret = a;
    return r;
}

void attention_free(struct attention *a) {
    if (!a) return;
    free(a->slopes);
    free(a->cos);
    free(a->sin);
    free(a->room);
    free(a);
}

struct turn {
    const struct attention *a;
    float *q, *k;
    int n, ctx;
    float sign;
};

static void turn_heads(const struct turn *t, float *x, int n_heads, int position) {
    size_t half = (size_t)t->a->head_dim / 2;
    const float *cos = t->a->cos + (size_t)position * half;
    const float *sin = t->a->sin + (size_t)position * half;
    for (int h = 0; h < n_heads; h++, x += 2 * half) {
        for (size_t i = 0; i < half; i++) {
            float low = x[i], high = x[i + half], s = t->sign * sin[i];
            x[i] = low * cos[i] - high * s;
            x[i + half] = high * cos[i] + low * s;
        }
    }
}

static void turn_rows(void *arg, size_t piece) {
    const struct turn *t = arg;
    size_t dim = (size_t)t->a->head_dim;
    int first = (int)piece * TURN_ROWS, end = first + TURN_ROWS < t->n ? first + TURN_ROWS : t->n;
    for (int row = first; row < end; row++) {
        turn_heads(t, t->q + (size_t)row * (size_t)t->a->n_heads * dim, t->a->n_heads,
                   row % t->ctx);
        turn_heads(t, t->k + (size_t)row * (size_t)t->a->n_kv_heads * dim, t->a->n_kv_heads,
                   row % t->ctx);
    }
}

void attention_rotate(const struct attention *a, float *q, float *k, int n_seqs, int ctx,
                      int back) {
    if (!a->cos) return;
    struct turn t = {a, q, k, n_seqs * ctx, ctx, back ? -1.0f : 1.0f};
    parallel_for(a->n_threads, ((size_t)t.n + TURN_ROWS - 1) / TURN_ROWS, turn_rows, &t);
}

struct work {
    const struct attention *a;
    struct attention_kept kept;
    const float *dout;
    float *out, *lse, *dq, *dk, *dv;
    int ctx;
};

/* One query head of a piece. Rows of q-like arrays are q_width apart, of k-like ones kv_width. */
struct head {
    const struct work *k;
    size_t q_at, kv_at, lse_at; /* of the sequence's first token */
    int q_width, kv_width, head;
    float *p, *dp; /* (STRIP, ctx) */
};

static struct head head_of(const struct work *k, size_t piece, int rep) {
    const struct attention *a = k->a;
    size_t dim = (size_t)a->head_dim, n_kv = (size_t)a->n_kv_heads, n_heads = (size_t)a->n_heads;
    size_t seq = piece / n_kv, kv = piece % n_kv, token = seq * (size_t)k->ctx;
    size_t q_head = kv * (n_heads / n_kv) + (size_t)rep;
    return (struct head){.k = k,
                         .q_at = (token * n_heads + q_head) * dim,
                         .kv_at = (token * n_kv + kv) * dim,
                         .lse_at = token * n_heads + q_head,
                         .q_width = (int)(n_heads * dim),
                         .kv_width = (int)(n_kv * dim),
                         .head = (int)q_head,
                         .p = a->room + piece * 2 * STRIP * (size_t)a->ctx,
                         .dp = a->room + (piece * 2 + 1) * STRIP * (size_t)a->ctx};
}

/* p (n, first + n) = a rows of the strip times all rows of b up to its end, transposed. */
static void multiply_across(const struct head *h, const float *a, const float *b, int first, int n,
                            float factor, float *p) {
    const struct attention *t = h->k->a;
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, n, first + n, t->head_dim, factor,
                a + h->q_at + (size_t)first * (size_t)h->q_width, h->q_width, b + h->kv_at,
                h->kv_width, 0.0f, p, h->k->ctx);
}

WIDE_VERSIONS static float exp_row(float *p, int n, float top) {
    float sums[16] = {0}, sum = 0.0f;
    int i = 0;
    for (; i + 16 <= n; i += 16) {
        for (int j = 0; j < 16; j++) {
            p[i + j] = wide_exp(p[i + j] - top);
            sums[j] += p[i + j];
        }
    }
    for (int j = 0; j < 16; j++) sum += sums[j];
    for (; i < n; i++) {
        p[i] = wide_exp(p[i] - top);
        sum += p[i];
    }
    return sum;
}

static void add_slope(const struct head *h, float *p, int row) {
    if (!h->k->a->slopes) return;
    float slope = h->k->a->slopes[h->head];
    for (int j = 0; j <= row; j++) p[j] += slope * (float)(j - row);
}

/* Strip queries [first, first + n). */
static void forward_strip(const struct head *h, int first, int n) {
    const struct work *k = h->k;
    int dim = k->a->head_dim;
    multiply_across(h, k->kept.q, k->kept.k, first, n, k->a->scale, h->p);
    for (int i = 0; i < n; i++) {
        int row = first + i;
        float *p = h->p + (size_t)i * (size_t)k->ctx, top = -INFINITY;
        add_slope(h, p, row);
        for (int j = 0; j <= row; j++) top = p[j] > top ? p[j] : top;
        float sum = exp_row(p, row + 1, top), share = 1.0f / sum;
        for (int j = 0; j <= row; j++) p[j] *= share;
        for (int j = row + 1; j < first + n; j++) p[j] = 0.0f;
        k->lse[h->lse_at + (size_t)row * (size_t)k->a->n_heads] = top + logf(sum);
    }
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, n, dim, first + n, 1.0f, h->p, k->ctx,
                k->kept.v + h->kv_at, h->kv_width, 0.0f,
                k->out + h->q_at + (size_t)first * (size_t)h->q_width, h->q_width);
}

static void forward_piece(void *arg, size_t piece) {
    const struct work *k = arg;
    for (int rep = 0; rep < k->a->n_heads / k->a->n_kv_heads; rep++) {
        struct head h = head_of(k, piece, rep);
        for (int first = 0; first < k->ctx; first += STRIP)
            forward_strip(&h, first, k->ctx - first < STRIP ? k->ctx - first : STRIP);
    }
}

void attention_forward(const struct attention *a, const float *q, const float *k, const float *v,
                       int n_seqs, int ctx, float *out, float *lse) {
    struct work w = {.a = a, .kept = {.q = q, .k = k, .v = v}, .out = out, .lse = lse, .ctx = ctx};
    parallel_for(a->n_threads, (size_t)n_seqs * (size_t)a->n_kv_heads, forward_piece, &w);
}

/* dS = P (dP - sum(dout out)) scale, in dp; P in p. */
static void score_gradient(const struct head *h, int first, int n) {
    const struct work *k = h->k;
    for (int i = 0; i < n; i++) {
        int row = first + i;
        size_t at = h->q_at + (size_t)row * (size_t)h->q_width;
        float *p = h->p + (size_t)i * (size_t)k->ctx, *dp = h->dp + (size_t)i * (size_t)k->ctx;
        double along = 0.0;
        for (int d = 0; d < k->a->head_dim; d++)
            along += (double)k->dout[at + (size_t)d] * (double)k->kept.out[at + (size_t)d];
        add_slope(h, p, row);
        exp_row(p, row + 1, k->kept.lse[h->lse_at + (size_t)row * (size_t)k->a->n_heads]);
        for (int j = 0; j <= row; j++) dp[j] = p[j] * (dp[j] - (float)along) * k->a->scale;
        for (int j = row + 1; j < first + n; j++) p[j] = dp[j] = 0.0f;
    }
}

static void backward_strip(const struct head *h, int first, int n) {
    const struct work *k = h->k;
    int dim = k->a->head_dim, seen = first + n;
    size_t strip = h->q_at + (size_t)first * (size_t)h->q_width;
    multiply_across(h, k->kept.q, k->kept.k, first, n, k->a->scale, h->p);
    multiply_across(h, k->dout, k->kept.v, first, n, 1.0f, h->dp);
    score_gradient(h, first, n);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, n, dim, seen, 1.0f, h->dp, k->ctx,
                k->kept.k + h->kv_at, h->kv_width, 0.0f, k->dq + strip, h->q_width);
    cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, seen, dim, n, 1.0f, h->dp, k->ctx,
                k->kept.q + strip, h->q_width, 1.0f, k->dk + h->kv_at, h->kv_width);
    cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, seen, dim, n, 1.0f, h->p, k->ctx,
                k->dout + strip, h->q_width, 1.0f, k->dv + h->kv_at, h->kv_width);
}

static void backward_piece(void *arg, size_t piece) {
    const struct work *k = arg;
    for (int rep = 0; rep < k->a->n_heads / k->a->n_kv_heads; rep++) {
        struct head h = head_of(k, piece, rep);
        for (int first = 0; first < k->ctx; first += STRIP)
            backward_strip(&h, first, k->ctx - first < STRIP ? k->ctx - first : STRIP);
    }
}

void attention_backward(const struct attention *a, const struct attention_kept *kept,
                        const float *dout, int n_seqs, int ctx, float *dq, float *dk, float *dv) {
    struct work w = {.a = a, .kept = *kept, .dout = dout, .dq = dq, .dk = dk, .dv = dv, .ctx = ctx};
    size_t kv = (size_t)n_seqs * (size_t)ctx * (size_t)a->n_kv_heads * (size_t)a->head_dim;
    memset(dk, 0, kv * sizeof *dk);
    memset(dv, 0, kv * sizeof *dv);
    parallel_for(a->n_threads, (size_t)n_seqs * (size_t)a->n_kv_heads, backward_piece, &w);
}
