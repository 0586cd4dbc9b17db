#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/kernels/check.h"
#include "tests/support/matrix.h"
#include "tests/support/random.h"

enum { N_BLOCKS = 12, KV_HEADS = 2, MAX_REP = 11 };

/* A pool of one layer with everything in it random, and a table that visits it out of order. */
struct pool {
    struct kv_layer layer;
    struct fence data;
    int32_t table[N_BLOCKS];
};

static const struct attention_ops *kv_ops(const struct ops *ops, enum dtype type) {
    return type == DTYPE_I8 ? &ops->int8_kv : &ops->float_kv;
}

static void pool_init(struct pool *p, const struct ops *ops, enum dtype type, int dim) {
    p->data = fence_new(2 * (size_t)N_BLOCKS * KV_HEADS * kv_plane_bytes(type, dim), 4);
    p->layer = (struct kv_layer){p->data.p, type, KV_HEADS, dim};
    struct fence k = check_floats(KV_HEADS * (size_t)dim, INPUT_NORMAL, 1);
    struct fence v = check_floats(KV_HEADS * (size_t)dim, INPUT_NORMAL, 1);
    for (int i = 0; i < N_BLOCKS * KV_BLOCK_TOKENS; i++) {
        check_fill(k.p, KV_HEADS * (size_t)dim, INPUT_NORMAL, (uint64_t)i);
        check_fill(v.p, KV_HEADS * (size_t)dim, INPUT_NORMAL, (uint64_t)i + 1000);
        kv_ops(ops, type)->kv_store(&p->layer, i / KV_BLOCK_TOKENS, i % KV_BLOCK_TOKENS, k.p, v.p);
    }
    for (int i = 0; i < N_BLOCKS; i++) p->table[i] = (i * 5 + 3) % N_BLOCKS;
    fence_free(&k);
    fence_free(&v);
}

static struct fence run(const struct ops *all, const struct attn_call *call, const float *q) {
    const struct attention_ops *ops = kv_ops(all, call->kv->type);
    size_t n = (size_t)call->n_rep * (size_t)call->kv->head_dim;
    struct fence out = fence_new(n * sizeof(float), sizeof(float));
    struct fence scratch =
        fence_new(ops->attention_scratch(call->n_rep, call->kv->head_dim) * sizeof(float), 64);
    ops->attention(out.p, q, call, scratch.p);
    fence_free(&scratch);
    return out;
}

/* slack: how much larger than usual the scores are, whose rounding the exponential passes on. */
static void check_call(struct check *c, const struct attn_call *call, double slack) {
    int dim = call->kv->head_dim;
    struct fence q = check_floats((size_t)call->n_rep * (size_t)dim, INPUT_NORMAL, 77);
    struct fence got = run(c->ops, call, q.p), want = run(c->ref, call, q.p);
    double worst = 0;
    for (int i = 0; i < call->n_rep * dim; i++)
        worst = fmax(worst, fabs((double)((float *)got.p)[i] - (double)((float *)want.p)[i]));
    check_expect(c, worst <= 2e-6 * 5 * slack, "dim %d rep %d positions %d..%d: off by %g", dim,
                 call->n_rep, call->first, call->pos, worst);
    check_expect(c, fence_intact(&got), "dim %d rep %d: wrote outside", dim, call->n_rep);
    for (int h = 0; h < call->n_rep; h++) {
        struct attn_call one = *call;
        one.n_rep = 1;
        if (call->slopes) one.slopes += h;
        struct fence alone = run(c->ops, &one, (float *)q.p + h * dim);
        check_expect(c, check_same(alone.p, (float *)got.p + h * dim, (size_t)dim),
                     "dim %d: head %d of %d differs alone", dim, h, call->n_rep);
        fence_free(&alone);
    }
    fence_free(&q);
    fence_free(&got);
    fence_free(&want);
}

/* What lies in the blocks outside first..pos, NaN at worst, must not be seen. */
static void check_unseen(struct check *c, struct pool *p, const struct attn_call *call) {
    int dim = p->layer.head_dim;
    struct fence q = check_floats((size_t)call->n_rep * (size_t)dim, INPUT_NORMAL, 77);
    struct fence before = run(c->ops, call, q.p);
    float row[KV_HEADS * 64];
    for (int i = 0; i < KV_HEADS * dim; i++) row[i] = NAN;
    for (int pos = 0; pos < N_BLOCKS * KV_BLOCK_TOKENS; pos++)
        if (pos < call->first || pos > call->pos)
            kv_ops(c->ops, p->layer.type)
                ->kv_store(&p->layer, p->table[pos / KV_BLOCK_TOKENS], pos % KV_BLOCK_TOKENS, row,
                           row);
    struct fence after = run(c->ops, call, q.p);
    check_expect(c, check_same(before.p, after.p, (size_t)call->n_rep * (size_t)dim),
                 "dim %d: positions outside %d..%d are seen", dim, call->first, call->pos);
    fence_free(&q);
    fence_free(&before);
    fence_free(&after);
}

/* Tokens together give the bits of each alone; what lies behind the last is not looked at. */
static void check_many(struct check *c, struct pool *p, const struct attn_call *first, int n,
                       int window, enum check_input input) {
    const struct attention_ops *ops = kv_ops(c->ops, p->layer.type);
    size_t row = (size_t)first->n_rep * (size_t)p->layer.head_dim, ld = row + 3;
    if (!ops->attention_many) return;
    struct attn_call call = *first;
    struct fence q = check_floats((size_t)n * ld, input, 99);
    struct fence out = fence_new((size_t)n * ld * sizeof(float), sizeof(float));
    struct fence scratch =
        fence_new(ops->many_scratch(call.n_rep, p->layer.head_dim) * sizeof(float), 64);
    int32_t *table = malloc((size_t)((call.pos + n - 1) / KV_BLOCK_TOKENS + 1) * sizeof *table);
    for (int i = 0; i <= (call.pos + n - 1) / KV_BLOCK_TOKENS; i++) table[i] = p->table[i];
    call.blocks = table;
    ops->attention_many(out.p, q.p, ld, n, &call, window, scratch.p);
    check_expect(c, fence_intact(&out) && fence_intact(&scratch), "%d tokens: wrote outside", n);
    for (int t = 0; t < n; t++, call.pos++) {
        call.first = window > 0 && call.pos >= window ? call.pos - window + 1 : 0;
        struct fence alone = run(c->ops, &call, (float *)q.p + (size_t)t * ld);
        check_expect(c, check_alike(alone.p, (float *)out.p + (size_t)t * ld, row),
                     "dim %d rep %d: token %d of %d from %d, window %d, differs alone",
                     p->layer.head_dim, call.n_rep, t, n, first->pos, window);
        fence_free(&alone);
    }
    free(table);
    fence_free(&q);
    fence_free(&out);
    fence_free(&scratch);
}

/* Tokens before, in and behind a span's end, with heads that fill groups of rows and not; a
 * window that ends before a span, in it, behind it. */
static void check_all_many(struct check *c, struct pool *p, const float *slopes) {
    static const int cases[][4] = {/* first position, tokens, heads of a KV head, window */
                                   {0, 2, 1, 0},     {0, 192, 3, 0},  {63, 2, 4, 0},
                                   {40, 61, 8, 0},   {7, 120, 1, 5},  {0, 80, 2, 64},
                                   {100, 33, 3, 70}, {64, 64, 11, 1}, {15, 3, 5, 16}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const int *k = cases[i];
        struct attn_call call = {.kv = &p->layer,
                                 .blocks = p->table,
                                 .kv_head = (int)(i % KV_HEADS),
                                 .n_rep = k[2],
                                 .pos = k[0],
                                 .scale = i % 2 ? 0.3f : 4,
                                 .slopes = i % 3 ? NULL : slopes};
        check_many(c, p, &call, k[1], k[3], INPUT_NORMAL);
    }
}

/* A value that is not finite reaches the tokens behind it alone, a query that is not no other. */
static void check_many_later(struct check *c, enum dtype type) {
    struct pool p;
    float row[KV_HEADS * 64];
    pool_init(&p, c->ops, type, 64);
    for (int i = 0; i < KV_HEADS * 64; i++) row[i] = i % 3 ? INFINITY : NAN;
    kv_ops(c->ops, type)->kv_store(&p.layer, p.table[5], 3, row, row);
    struct attn_call call = {.kv = &p.layer, .blocks = p.table, .n_rep = 3, .pos = 40, .scale = 1};
    check_many(c, &p, &call, 43, 0, INPUT_NORMAL); /* up to that position */
    check_many(c, &p, &call, 60, 0, INPUT_NORMAL);
    check_many(c, &p, &call, 60, 0, INPUT_NOT_FINITE);
    fence_free(&p.data);
}

static void check_pool(struct check *c, enum dtype type, int dim) {
    static const int reps[] = {1, 2, 3, 4, 5, 7, 8, MAX_REP};
    static const int spans[][2] = {{0, 0},  {0, 14},  {0, 15},   {0, 16},  {0, 191}, {5, 5},
                                   {5, 21}, {15, 16}, {17, 100}, {16, 31}, {31, 150}};
    float slopes[MAX_REP];
    for (int i = 0; i < MAX_REP; i++) slopes[i] = 0.5f / (float)(i + 1);
    struct pool p;
    pool_init(&p, c->ops, type, dim);
    for (size_t s = 0; s < sizeof spans / sizeof *spans; s++) {
        struct attn_call call = {.kv = &p.layer,
                                 .blocks = p.table,
                                 .kv_head = (int)(s % KV_HEADS),
                                 .n_rep = reps[s % 8],
                                 .first = spans[s][0],
                                 .pos = spans[s][1],
                                 .scale = 1 / sqrtf((float)dim),
                                 .slopes = s % 3 ? NULL : slopes};
        check_call(c, &call, 1);
        /* Scores of hundreds: one position takes all. */
        call.scale = 40;
        check_call(c, &call, type == DTYPE_I8 ? 60 : 20); /* scales round once more */
    }
    struct attn_call call = {
        .kv = &p.layer, .blocks = p.table, .n_rep = 2, .first = 21, .pos = 70, .scale = 0.1f};
    check_all_many(c, &p, slopes);
    if (dim <= 64) check_unseen(c, &p, &call);
    check_expect(c, fence_intact(&p.data), "dim %d: wrote outside the pool", dim);
    fence_free(&p.data);
}

/* Queries that are not finite must not fault. */
static void check_not_finite(struct check *c) {
    struct pool p;
    pool_init(&p, c->ops, DTYPE_F16, 64);
    struct attn_call call = {.kv = &p.layer, .blocks = p.table, .n_rep = 3, .pos = 40, .scale = 1};
    for (int i = 0; i < 20; i++) {
        struct fence q = check_floats(3 * 64, INPUT_NOT_FINITE, (uint64_t)i);
        struct fence out = run(c->ops, &call, q.p);
        check_expect(c, fence_intact(&out), "wrote outside");
        fence_free(&q);
        fence_free(&out);
    }
    fence_free(&p.data);
}

void check_attention(struct check *c) {
    static const int dims[] = {1, 3, 7, 8, 15, 16, 17, 20, 31, 33, 64, 80, 96, 127, 128, 256};
    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++) {
        check_pool(c, DTYPE_F32, dims[i]);
        check_pool(c, DTYPE_F16, dims[i]);
        check_pool(c, DTYPE_I8, dims[i]);
    }
    check_not_finite(c);
    check_many_later(c, DTYPE_F16);
    check_many_later(c, DTYPE_F32);
    check_many_later(c, DTYPE_I8);
}

/* The stored bytes are the reference's. */
void check_kv_store(struct check *c) {
    for (int i = 0; i < CHECK_N_SIZES; i++) {
        for (int t = 0; t < 3; t++) {
            static const enum dtype types[] = {DTYPE_F32, DTYPE_F16, DTYPE_I8};
            struct pool got, want;
            enum dtype type = types[t];
            pool_init(&got, c->ops, type, check_sizes[i]);
            pool_init(&want, c->ref, type, check_sizes[i]);
            check_expect(c, !memcmp(got.data.p, want.data.p, want.data.bytes),
                         "type %d dim %d: other bytes", (int)type, check_sizes[i]);
            check_expect(c, fence_intact(&got.data), "dim %d: wrote outside", check_sizes[i]);
            fence_free(&got.data);
            fence_free(&want.data);
        }
    }
}
