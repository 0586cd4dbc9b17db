/* Checks a GPU plugin, emulated or real, against kernels/ref and sums in fp64:
 * gpu_check PLUGIN.so [WORD [N]]: the parts whose name has the word ("" is all of them); with N of
 * 0..7 every eighth of their cases only, so that eight runs, each under another schedule of the
 * emulation, make a whole. */
#include <dlfcn.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/backend.h"
#include "kernels/cuda/plugin.h"
#include "kernels/error.h"
#include "kernels/float16.h"
#include "kernels/ops.h"
#include "tests/support/matrix.h"
#include "tests/support/random.h"

static struct backend *be;
static struct ops ref;
static long n_expectations;
static int n_failures;
static int eighth = -1; /* of the cases; all when negative */

static bool is_left_out(int turn) { return eighth >= 0 && turn % 8 != eighth; }

static void expect(bool good, const char *format, ...) {
    n_expectations++;
    if (good) return;
    if (n_failures++ > 20) return;
    va_list args;
    va_start(args, format);
    printf("# failed: ");
    vprintf(format, args);
    printf("\n");
    va_end(args);
}

static float *normal(size_t n, uint64_t seed) {
    float *x = malloc((n ? n : 1) * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = matrix_normal(&seed);
    return x;
}

static struct buffer *buffer_of(const float *x, size_t n) {
    struct buffer *b = NULL;
    struct error err;
    if (backend_buffer_new(be, &b, n, &err)) {
        printf("Bail out! %s\n", err.text);
        exit(1);
    }
    if (x) backend_buffer_write(be, b, 0, x, n);
    return b;
}

static float *read_all(const struct buffer *b, size_t n) {
    struct error err;
    float *x = malloc((n ? n : 1) * sizeof *x);
    if (backend_buffer_read(be, x, b, 0, n, &err)) {
        printf("Bail out! %s\n", err.text);
        exit(1);
    }
    return x;
}

static struct weight *weight_of(enum weight_use use, const struct weight_view *view) {
    struct weight *w = NULL;
    struct error err;
    if (backend_weight_new(be, &w, use, view, &err)) {
        printf("Bail out! %s\n", err.text);
        exit(1);
    }
    return w;
}

/* ||a - b|| / ||b||; NaN is infinity. */
static double distance(const float *a, const float *b, size_t n) {
    double d = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        d += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        norm += (double)b[i] * (double)b[i];
    }
    double r = norm > 0 ? sqrt(d / norm) : sqrt(d);
    return isnan(r) ? INFINITY : r;
}

enum { MAX_N = 400, N_BLOCKS = 64 };

/* n tokens of two sequences, the first of positions from..., with blocks out of order. */
struct some_batch {
    struct batch batch;
    int32_t tokens[MAX_N], positions[MAX_N], seqs[MAX_N], blocks[2 * N_BLOCKS];
};

static void batch_of(struct some_batch *b, int n, int from) {
    for (int t = 0; t < n; t++) {
        b->tokens[t] = (t * 7) % 11;
        b->seqs[t] = t % 2;
        b->positions[t] = from + t / 2;
    }
    for (int i = 0; i < 2 * N_BLOCKS; i++) b->blocks[i] = (i * 37 + 5) % (2 * N_BLOCKS);
    b->batch = (struct batch){n, 2, b->tokens, b->positions, b->seqs, b->blocks, N_BLOCKS};
}

/* -- Products -------------------------------------------------------------------------------- */

struct matrix {
    struct weight_view view;
    void *block;
    char name[96];
};

static void coded(struct matrix *m, const struct bcq_spec *s, bool extreme) {
    *m = (struct matrix){0};
    m->view.is_bcq = 1;
    m->block = extreme ? matrix_bcq_extreme(&m->view.bcq, s) : matrix_bcq(&m->view.bcq, s, 7);
    m->view.rows = s->rows;
    m->view.cols = s->cols;
    snprintf(m->name, sizeof m->name, "kind %d %dx%d bits %d group %d q%d p%d%s", (int)s->kind,
             s->rows, s->cols, s->bits, s->group, s->scale_bits, s->bias_bits,
             extreme ? " extreme" : "");
}

static void dense(struct matrix *m, enum dtype type, int rows, int cols) {
    *m = (struct matrix){0};
    m->block = matrix_dense(&m->view, type, rows, cols, 3);
    snprintf(m->name, sizeof m->name, "dense type %d %dx%d", (int)type, rows, cols);
}

static float activated(double v, enum activation act) {
    if (act == ACT_RELU && v < 0) v = 0;
    if (act == ACT_GELU_TANH)
        v *= 0.5 * (1 + tanh(0.7978845608028654 * (v + 0.044715 * v * v * v)));
    return (float)v;
}

/* (n, rows) of n tokens from token `from` on. */
static float *multiply(const struct weight *w, const struct matrix *m, const struct weight *bias,
                       enum activation act, bool accumulate, const float *x, const float *old,
                       int n) {
    size_t rows = (size_t)m->view.rows, cols = (size_t)m->view.cols;
    struct some_batch b;
    batch_of(&b, n, 0);
    struct buffer *in = buffer_of(x, (size_t)n * cols), *out = buffer_of(old, (size_t)n * rows);
    struct linear_call call = {out, w, bias, act, accumulate};
    backend_begin(be, &b.batch);
    backend_linear(be, &call, 1, in);
    float *y = read_all(out, (size_t)n * rows);
    backend_buffer_free(be, in);
    backend_buffer_free(be, out);
    return y;
}

static void check_matrix(struct matrix *m, double tolerance, int turn) {
    static const int counts[] = {1, 2, 3, 4, 5, 8, 9, 16, 17, 33, 64};
    enum { MOST = 70 };
    size_t rows = (size_t)m->view.rows, cols = (size_t)m->view.cols;
    float *x = normal(MOST * cols, 11 + (uint64_t)turn), *old = normal(MOST * rows, 12);
    if (turn % 3 == 1) /* outliers and sizes far from 1 in some tokens */
        for (size_t i = 0; i < MOST * cols; i++) {
            if (i % 97 == 0) x[i] *= 40;
            if (i / cols % 4 == 1) x[i] *= 1e-12f;
            if (i / cols % 4 == 2) x[i] *= 1e12f;
        }
    struct weight_view bias_view;
    void *bias_block = matrix_dense(&bias_view, DTYPE_BF16, 1, m->view.rows, 5);
    float *bias_row = malloc(rows * sizeof *bias_row), *row = malloc(cols * sizeof *row);
    matrix_row(&bias_view, 0, bias_row);
    struct weight *w = weight_of(WEIGHT_LINEAR, &m->view);
    struct weight *bias = weight_of(WEIGHT_VECTOR, &bias_view);
    bool with_bias = turn % 2, accumulate = turn % 4 >= 2;
    enum activation act = turn % 3 == 1 ? ACT_NONE : (enum activation)(turn % 3);
    float *y = multiply(w, m, with_bias ? bias : NULL, act, accumulate, x, old, MOST);
    float *want = malloc(MOST * rows * sizeof *want);
    for (size_t r = 0; r < rows; r++) {
        matrix_row(&m->view, (int)r, row);
        for (size_t t = 0; t < MOST; t++) {
            double sum = 0;
            for (size_t k = 0; k < cols; k++) sum += (double)row[k] * (double)x[t * cols + k];
            if (with_bias) sum += (double)bias_row[r];
            want[t * rows + r] = activated(sum, act) + (accumulate ? old[t * rows + r] : 0);
        }
    }
    for (size_t t = 0; t < MOST; t++) {
        double d = distance(y + t * rows, want + t * rows, rows);
        expect(d <= tolerance * (rows < 16 ? 20 : 1), "%s: token %zu is off by %g", m->name, t, d);
    }
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
        size_t from = (size_t)(MOST - counts[c]);
        float *some = multiply(w, m, with_bias ? bias : NULL, act, accumulate, x + from * cols,
                               old + from * rows, counts[c]);
        expect(!memcmp(some, y + from * rows, (size_t)counts[c] * rows * sizeof *y),
               "%s: %d tokens differ from themselves in a batch", m->name, counts[c]);
        free(some);
    }
    backend_weight_free(be, w);
    backend_weight_free(be, bias);
    free(y);
    free(want);
    free(x);
    free(old);
    free(row);
    free(bias_row);
    free(bias_block);
    free(m->block);
}

static const int shapes[][2] = {{1, 16},    {16, 128}, {33, 200},  {7, 1000},
                                {130, 257}, {48, 31},  {64, 2048}, {129, 1300}};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

/* The contract is 2e-4. On an H200 scales of fp16 met 5e-5 at worst, compact ones 2e-5, and the
 * emulation, whose sums round each addend to nearest, 2e-5 with both: tensor cores cut what lies
 * below the largest addend's last bits. */
static double tolerance_of(enum bcq_kind kind) { return kind == BCQ_FREE ? 1e-4 : 2e-5; }

static void check_coded(enum bcq_kind kind) {
    static const int groups[] = {16, 128, 64, 32, 48, 24, 100, 256, 0};
    static const int widths[][2] = {{4, 5}, {1, 2}, {4, 8}, {6, 6}, {3, 4}};
    int turn = 0;
    for (int bits = 1; bits <= BCQ_MAX_BITS; bits++)
        for (size_t g = 0; g < sizeof groups / sizeof *groups; g++, turn++) {
            if (is_left_out(turn)) continue;
            int shape = (turn * 3 + bits) % N_SHAPES, width = turn % 5;
            struct bcq_spec s = {kind, shapes[shape][0], shapes[shape][1], bits, groups[g], 0, 0,
                                 0};
            if (!s.group || s.group > s.cols) s.group = s.cols;
            if (kind != BCQ_FREE) {
                s.scale_bits = widths[width][0];
                s.bias_bits = widths[width][1];
            }
            if (kind == BCQ_COMPACT_GROUP) s.n_shapes = turn % 2 ? 1 + turn : 256;
            struct matrix m;
            coded(&m, &s, false);
            check_matrix(&m, tolerance_of(kind), turn);
            if (g < 2) {
                coded(&m, &s, true);
                check_matrix(&m, tolerance_of(kind), 2);
            }
        }
}

static void check_compact(void) { check_coded(BCQ_COMPACT); }
static void check_shapes(void) { check_coded(BCQ_COMPACT_GROUP); }
static void check_free(void) { check_coded(BCQ_FREE); }

static void check_dense(void) {
    int turn = 0;
    for (int type = 0; type < 3; type++)
        for (int i = 0; i < N_SHAPES; i++, turn++) {
            if (is_left_out(turn)) continue;
            struct matrix m;
            dense(&m, (enum dtype)type, shapes[i][0], shapes[i][1]);
            check_matrix(&m, 4e-6, turn);
        }
}

/* Several matrices of different forms on one input, as Q, K, V are. */
static void check_sets(void) {
    enum { N = 9, COLS = 320, CALLS = 7 };
    const struct bcq_spec r = {BCQ_COMPACT, 100, COLS, 3, 16, 4, 5, 0};
    const struct bcq_spec r2 = {BCQ_COMPACT, 33, COLS, 3, 32, 4, 5, 0};
    const struct bcq_spec h = {BCQ_COMPACT_GROUP, 50, COLS, 2, 16, 4, 5, 9};
    const struct bcq_spec f = {BCQ_FREE, 65, COLS, 2, 64, 0, 0, 0};
    const struct bcq_spec odd = {BCQ_FREE, 20, COLS, 4, 10, 0, 0, 0};
    struct matrix m[CALLS];
    coded(&m[0], &r, false);
    coded(&m[1], &r2, false);
    coded(&m[2], &h, false);
    coded(&m[3], &f, false);
    coded(&m[4], &odd, false);
    dense(&m[5], DTYPE_F16, 40, COLS);
    dense(&m[6], DTYPE_F32, 17, COLS);
    float *x = normal(N * COLS, 5);
    struct buffer *in = buffer_of(x, N * COLS), *out[CALLS];
    struct weight *w[CALLS];
    struct linear_call calls[CALLS];
    for (int i = 0; i < CALLS; i++) {
        w[i] = weight_of(WEIGHT_LINEAR, &m[i].view);
        out[i] = buffer_of(NULL, (size_t)(N * m[i].view.rows));
        calls[i] = (struct linear_call){.dst = out[i], .w = w[i]};
    }
    struct some_batch b;
    batch_of(&b, N, 0);
    backend_begin(be, &b.batch);
    backend_linear(be, calls, CALLS, in);
    for (int i = 0; i < CALLS; i++) {
        size_t n = (size_t)(N * m[i].view.rows);
        float *got = read_all(out[i], n);
        float *alone = multiply(w[i], &m[i], NULL, ACT_NONE, false, x, NULL, N);
        expect(!memcmp(got, alone, n * sizeof *got), "%s: differs in a set", m[i].name);
        free(got);
        free(alone);
        backend_buffer_free(be, out[i]);
        backend_weight_free(be, w[i]);
        free(m[i].block);
    }
    backend_buffer_free(be, in);
    free(x);
}

/* NaN and infinity in a token leave the others alone. */
static void check_not_finite(void) {
    enum { N = 7, COLS = 300 };
    const float odd[] = {NAN, INFINITY, -INFINITY, 3e38f, 1e-42f};
    const struct bcq_spec specs[] = {{BCQ_COMPACT, 40, COLS, 3, 16, 4, 5, 0},
                                     {BCQ_FREE, 40, COLS, 3, 64, 0, 0, 0},
                                     {BCQ_FREE, 40, COLS, 3, 10, 0, 0, 0}};
    for (int s = 0; s < 3; s++) {
        struct matrix m;
        coded(&m, &specs[s], false);
        struct weight *w = weight_of(WEIGHT_LINEAR, &m.view);
        float *x = normal(N * COLS, 5);
        float *good = multiply(w, &m, NULL, ACT_NONE, false, x, NULL, N);
        for (int i = 0; i < 5; i++) {
            x[3 * COLS + 17 * i] = odd[i];
            float *bad = multiply(w, &m, NULL, ACT_NONE, false, x, NULL, N);
            size_t rows = (size_t)m.view.rows;
            expect(!memcmp(bad, good, 3 * rows * sizeof *bad) &&
                       !memcmp(bad + 4 * rows, good + 4 * rows, 3 * rows * sizeof *bad),
                   "%s: changed beside %g", m.name, (double)odd[i]);
            free(bad);
        }
        free(good);
        free(x);
        backend_weight_free(be, w);
        free(m.block);
    }
}

/* -- The rest -------------------------------------------------------------------------------- */

static void check_norm(void) {
    static const int dims[] = {1, 7, 64, 255, 256, 1000, 4096};
    enum { N = 5 };
    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++)
        for (int with_bias = 0; with_bias < 2; with_bias++) {
            int dim = dims[i];
            struct weight_view wv, bv;
            void *wb = matrix_dense(&wv, DTYPE_F16, 1, dim, 6);
            void *bb = matrix_dense(&bv, DTYPE_F32, 1, dim, 7);
            float *w_row = malloc((size_t)dim * sizeof *w_row), *want = malloc((size_t)dim * 4);
            matrix_row(&wv, 0, w_row);
            struct weight *w = weight_of(WEIGHT_VECTOR, &wv), *b = weight_of(WEIGHT_VECTOR, &bv);
            float *x = normal((size_t)(N * dim), 8);
            for (int k = 0; k < N * dim; k++) x[k] += 0.5f;
            struct buffer *src = buffer_of(x, (size_t)(N * dim));
            struct some_batch batch;
            batch_of(&batch, N, 0);
            backend_begin(be, &batch.batch);
            struct norm_call call = {w, with_bias ? b : NULL, dim, 1e-5f};
            backend_norm(be, src, src, &call);
            float *y = read_all(src, (size_t)(N * dim));
            for (int t = 0; t < N; t++) {
                if (with_bias)
                    ref.layernorm(want, x + t * dim, w_row, bv.data, dim, 1e-5f);
                else
                    ref.rmsnorm(want, x + t * dim, w_row, dim, 1e-5f);
                double d = distance(y + t * dim, want, (size_t)dim);
                expect(d <= 1e-5, "norm of %d: %g", dim, d);
            }
            backend_weight_free(be, w);
            backend_weight_free(be, b);
            backend_buffer_free(be, src);
            free(w_row);
            free(want);
            free(x);
            free(y);
            free(wb);
            free(bb);
        }
}

static void check_elements(void) {
    enum { N = 6, W = 75, ROWS = 3 };
    float *x = normal(N * W, 1), *u = normal(N * W, 2), want[N * W];
    struct buffer *a = buffer_of(x, N * W), *b = buffer_of(u, N * W), *c = buffer_of(NULL, N * W);
    struct some_batch batch;
    batch_of(&batch, N, 0);
    backend_begin(be, &batch.batch);
    backend_gate(be, a, b, W);
    float *y = read_all(a, N * W);
    memcpy(want, x, sizeof want);
    ref.silu_mul(want, u, N * W);
    expect(distance(y, want, N * W) <= 1e-6, "gate");
    free(y);
    backend_buffer_write(be, a, 0, x, N * W);
    backend_add(be, a, b, W);
    y = read_all(a, N * W);
    for (int i = 0; i < N * W; i++) expect(y[i] == x[i] + u[i], "add at %d", i);
    free(y);
    const int32_t rows[ROWS] = {4, 0, 5};
    backend_gather(be, c, b, rows, ROWS, W);
    y = read_all(c, N * W);
    for (int r = 0; r < ROWS; r++)
        expect(!memcmp(y + r * W, u + rows[r] * W, W * sizeof *y), "gather %d", r);
    for (int i = ROWS * W; i < N * W; i++) expect(y[i] == 0, "gather wrote past its rows");
    free(y);
    backend_buffer_free(be, a);
    backend_buffer_free(be, b);
    backend_buffer_free(be, c);
    free(x);
    free(u);
}

static void check_embed(void) {
    enum { N = 30, W = 33, VOCAB = 40 };
    for (int type = 0; type < 3; type++) {
        struct weight_view view;
        void *block = matrix_dense(&view, (enum dtype)type, VOCAB, W, 9);
        struct weight *table = weight_of(WEIGHT_TABLE, &view);
        struct buffer *dst = buffer_of(NULL, N * W);
        struct some_batch b;
        batch_of(&b, N, 0);
        backend_begin(be, &b.batch);
        backend_embed(be, dst, table, false, 0, 3, false);
        backend_embed(be, dst, table, true, 2, 1, true);
        float *y = read_all(dst, N * W), row[W], pos[W];
        for (int t = 0; t < N; t++) {
            matrix_row(&view, b.tokens[t], row);
            matrix_row(&view, b.positions[t] + 2, pos);
            for (int i = 0; i < W; i++)
                expect(y[t * W + i] == row[i] * 3 + pos[i], "embed type %d at %d, %d", type, t, i);
        }
        free(y);
        backend_buffer_free(be, dst);
        backend_weight_free(be, table);
        free(block);
    }
}

static void check_rope(void) {
    enum { N = 20, HEADS = 3, DIM = 40, FREQ = 16 };
    double inv_freq[FREQ];
    for (int i = 0; i < FREQ; i++) inv_freq[i] = pow(10000, -(double)i / FREQ);
    float *x = normal(N * HEADS * DIM, 4);
    struct buffer *buf = buffer_of(x, N * HEADS * DIM);
    struct some_batch b;
    batch_of(&b, N, 100000);
    backend_begin(be, &b.batch);
    struct rope_call call = {buf, HEADS, DIM, inv_freq, FREQ, 1.25f};
    backend_rope(be, &call);
    float *y = read_all(buf, N * HEADS * DIM);
    for (int t = 0; t < N; t++) {
        float c[FREQ], s[FREQ];
        for (int i = 0; i < FREQ; i++) {
            c[i] = (float)(cos(b.positions[t] * inv_freq[i]) * 1.25);
            s[i] = (float)(sin(b.positions[t] * inv_freq[i]) * 1.25);
        }
        ref.rope(x + t * HEADS * DIM, HEADS, DIM, FREQ, c, s);
    }
    double d = distance(y, x, N * HEADS * DIM);
    expect(d <= 1e-6, "rope: %g", d);
    free(y);
    free(x);
    backend_buffer_free(be, buf);
}

struct attention_case {
    int dim, kv_heads, n_heads, window, length, chunk;
    bool slopes;
    enum dtype type;
};

/* Attention of all tokens of two sequences fed `chunk` positions at a time. */
static float *attend(const struct attention_case *a, const float *q, const float *k,
                     const float *v) {
    int dim = a->dim, n_layers = 2, layer = 1;
    size_t q_width = (size_t)(a->n_heads * dim), kv_width = (size_t)(a->kv_heads * dim);
    struct kv_spec spec = {n_layers, a->kv_heads, dim, 2 * N_BLOCKS, a->type};
    struct kv *kv = NULL;
    struct error err;
    if (backend_kv_new(be, &kv, &spec, &err)) {
        printf("Bail out! %s\n", err.text);
        exit(1);
    }
    float slopes[32];
    for (int i = 0; i < 32; i++) slopes[i] = 0.5f / (float)(i + 1);
    float *out = malloc((size_t)(2 * a->length) * q_width * sizeof *out);
    for (int at = 0; at < a->length; at += a->chunk) {
        int n = (a->length - at < a->chunk ? a->length - at : a->chunk) * 2;
        struct some_batch b;
        batch_of(&b, n, at);
        size_t from = (size_t)(2 * at);
        struct buffer *bq = buffer_of(q + from * q_width, (size_t)n * q_width);
        struct buffer *bk = buffer_of(k + from * kv_width, (size_t)n * kv_width);
        struct buffer *bv = buffer_of(v + from * kv_width, (size_t)n * kv_width);
        struct buffer *dst = buffer_of(NULL, (size_t)n * q_width);
        backend_begin(be, &b.batch);
        backend_kv_store(be, kv, layer, bk, bv);
        struct attention_call call = {dst,
                                      bq,
                                      kv,
                                      layer,
                                      a->n_heads,
                                      a->window,
                                      1 / sqrtf((float)dim),
                                      a->slopes ? slopes : NULL};
        backend_attention(be, &call);
        float *y = read_all(dst, (size_t)n * q_width);
        memcpy(out + from * q_width, y, (size_t)n * q_width * sizeof *y);
        free(y);
        backend_buffer_free(be, bq);
        backend_buffer_free(be, bk);
        backend_buffer_free(be, bv);
        backend_buffer_free(be, dst);
    }
    backend_kv_free(be, kv);
    return out;
}

static float kept(float v, enum dtype type) {
    return type == DTYPE_F32 ? v : f16_to_f32(f32_to_f16(v));
}

/* Token t (position t / 2 of sequence t % 2) in fp64. */
static double attention_error(const struct attention_case *a, const float *q, const float *k,
                              const float *v, const float *got, int t) {
    int dim = a->dim, pos = t / 2, seq = t % 2, per_kv = a->n_heads / a->kv_heads;
    int first = a->window > 0 && pos >= a->window ? pos - a->window + 1 : 0;
    float *want = malloc((size_t)(a->n_heads * dim) * sizeof *want);
    double *p = malloc((size_t)(pos + 1) * sizeof *p);
    for (int h = 0; h < a->n_heads; h++) {
        size_t head = (size_t)(h / per_kv * dim);
        double most = -INFINITY, total = 0;
        for (int i = first; i <= pos; i++) {
            const float *key = k + (size_t)(2 * i + seq) * (size_t)(a->kv_heads * dim) + head;
            double s = 0;
            for (int d = 0; d < dim; d++)
                s += (double)
                         q[((size_t)t * (size_t)a->n_heads + (size_t)h) * (size_t)dim + (size_t)d] *
                     (double)kept(key[d], a->type);
            s *= (double)(1 / sqrtf((float)dim));
            if (a->slopes) s += (double)(0.5f / (float)(h + 1)) * (i - pos);
            p[i] = s;
            if (s > most) most = s;
        }
        for (int i = first; i <= pos; i++) total += p[i] = exp(p[i] - most);
        for (int d = 0; d < dim; d++) {
            double sum = 0;
            for (int i = first; i <= pos; i++)
                sum +=
                    p[i] *
                    (double)kept(
                        v[(size_t)(2 * i + seq) * (size_t)(a->kv_heads * dim) + head + (size_t)d],
                        a->type);
            want[h * dim + d] = (float)(sum / total);
        }
    }
    size_t width = (size_t)(a->n_heads * dim);
    /* Of the size of the values, not of sums that may cancel. */
    double d = 0;
    for (size_t i = 0; i < width; i++)
        d = fmax(d, isnan(got[(size_t)t * width + i])
                        ? INFINITY
                        : fabs((double)got[(size_t)t * width + i] - (double)want[i]));
    free(want);
    free(p);
    return d;
}

static void check_attention(void) {
    static const struct attention_case cases[] = {
        {64, 2, 6, 0, 40, 7, false, DTYPE_F16},      {128, 1, 4, 0, 300, 100, false, DTYPE_F16},
        {80, 2, 2, 0, 33, 5, true, DTYPE_F32},       {256, 1, 1, 0, 20, 20, false, DTYPE_F16},
        {7, 1, 11, 0, 50, 9, true, DTYPE_F16},       {16, 1, 2, 30, 600, 111, false, DTYPE_F16},
        {20, 2, 10, 100, 290, 150, true, DTYPE_F32}, {1, 1, 1, 0, 18, 3, false, DTYPE_F32},
        {32, 1, 3, 0, 800, 160, false, DTYPE_F16},
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        if (is_left_out((int)c)) continue;
        const struct attention_case *a = &cases[c];
        int n = 2 * a->length;
        float *q = normal((size_t)(n * a->n_heads * a->dim), 21);
        float *k = normal((size_t)(n * a->kv_heads * a->dim), 22);
        float *v = normal((size_t)(n * a->kv_heads * a->dim), 23);
        float *got = attend(a, q, k, v);
        for (int t = 0; t < n; t += t < 8 || t > n - 8 ? 1 : 13) {
            double d = attention_error(a, q, k, v, got, t);
            expect(d <= 1e-5, "attention case %zu token %d: %g", c, t, d);
        }
        struct attention_case other = *a;
        other.chunk = a->chunk > 20 ? a->chunk - 13 : 1;
        float *again = attend(&other, q, k, v);
        expect(!memcmp(got, again, (size_t)(n * a->n_heads * a->dim) * sizeof *got),
               "attention case %zu depends on how the prompt is cut", c);
        free(again);
        free(got);
        free(q);
        free(k);
        free(v);
    }
}

static const struct {
    const char *name;
    void (*run)(void);
} parts[] = {
    {"elements", check_elements},
    {"embed", check_embed},
    {"norm", check_norm},
    {"rope", check_rope},
    {"attention", check_attention},
    {"dense", check_dense},
    {"compact", check_compact},
    {"free", check_free},
    {"shapes", check_shapes},
    {"sets", check_sets},
    {"not_finite", check_not_finite},
};
enum { N_PARTS = sizeof parts / sizeof *parts };

int main(int argc, char **argv) {
    if (argc < 2) return fprintf(stderr, "usage: gpu_check PLUGIN.so [WORD [0..7]]\n"), 2;
    if (argc > 3) eighth = atoi(argv[3]);
    void *library = dlopen(argv[1], RTLD_NOW);
    if (!library) return printf("Bail out! %s\n", dlerror()), 1;
    gpu_plugin_get *get;
    *(void **)&get = dlsym(library, GPU_PLUGIN_SYMBOL);
    struct error err;
    if (!get || get()->n_ops != sizeof(struct backend_ops) || get()->version != GPU_PLUGIN_VERSION)
        return printf("Bail out! not a plugin of this version\n"), 1;
    if (get()->open(&be, &err)) return printf("Bail out! %s\n", err.text), 1;
    ops_init_ref(&ref);
    printf("1..%d\n# %s: %s\n", (int)N_PARTS, be->name, be->detail);
    int bad = 0;
    for (int i = 0; i < N_PARTS; i++) {
        if (argc > 2 && !strstr(parts[i].name, argv[2])) {
            printf("ok %d - %s # SKIP not asked for\n", i + 1, parts[i].name);
            continue;
        }
        n_expectations = n_failures = 0;
        parts[i].run();
        printf("%s %d - %s\n# %d of %ld expectations failed\n", n_failures ? "not ok" : "ok", i + 1,
               parts[i].name, n_failures, n_expectations);
        fflush(stdout);
        bad += n_failures > 0;
    }
    be->ops->close(be);
    return bad != 0;
}
