#include "kernels/backend.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/features.h"
#include "kernels/error.h"
#include "kernels/profile.h"
#include "kernels/rounding.h"
#include "tests/support/matrix.h"
#include "tests/support/random.h"

static const char *const levels[] = {"ref", "avx2", "avx512", "amx"};
enum { N_LEVELS = 4 };

/* NULL when this processor lacks the level. */
static struct backend *open_level(const char *level, int n_threads) {
    struct backend *be = NULL;
    unsigned features;
    if (features_parse(&features, level, NULL)) return NULL;
    struct backend_options options = {.name = "cpu", .level = level, .n_threads = n_threads};
    cr_assert_eq(backend_open(&be, &options, NULL), 0);
    return be;
}

static float *random_floats(size_t n, uint64_t seed) {
    float *x = malloc(n * sizeof *x);
    cr_assert(x);
    for (size_t i = 0; i < n; i++) x[i] = matrix_normal(&seed);
    return x;
}

static struct buffer *buffer_of(struct backend *be, const float *x, size_t n) {
    struct buffer *b = NULL;
    cr_assert_eq(backend_buffer_new(be, &b, n, NULL), 0);
    if (x) backend_buffer_write(be, b, 0, x, n);
    return b;
}

static float *read_all(struct backend *be, const struct buffer *b, size_t n) {
    float *x = malloc(n * sizeof *x);
    cr_assert(x);
    cr_assert_eq(backend_buffer_read(be, x, b, 0, n, NULL), 0);
    return x;
}

static struct weight *weight_of(struct backend *be, enum weight_use use,
                                const struct weight_view *view) {
    struct weight *w = NULL;
    cr_assert_eq(backend_weight_new(be, &w, use, view, NULL), 0);
    return w;
}

/* ||a - b|| / ||b|| */
static double distance(const float *a, const float *b, size_t n) {
    double d = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        d += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        norm += (double)b[i] * (double)b[i];
    }
    return norm > 0 ? sqrt(d / norm) : sqrt(d);
}

/* One batch of n tokens of one sequence, positions 0..n-1. */
struct plain_batch {
    struct batch batch;
    int32_t tokens[400], positions[400], seqs[400], blocks[32];
};

static void plain_batch(struct plain_batch *b, int n) {
    for (int t = 0; t < n; t++) {
        b->tokens[t] = (t * 7) % 11;
        b->positions[t] = t;
        b->seqs[t] = 0;
    }
    for (int i = 0; i < 32; i++) b->blocks[i] = 31 - i;
    b->batch = (struct batch){n, 1, b->tokens, b->positions, b->seqs, b->blocks, 32};
}

enum { COLS = 200, N_MATRICES = 5 };

struct matrices {
    struct weight_view views[N_MATRICES];
    void *blocks[N_MATRICES];
    struct weight_view bias;
    void *bias_block;
};

static void matrices_init(struct matrices *m) {
    const struct bcq_spec r = {BCQ_COMPACT, 130, COLS, 3, 16, 4, 5, 0};
    const struct bcq_spec f = {BCQ_FREE, 65, COLS, 2, 64, 0, 0, 0};
    *m = (struct matrices){0};
    m->blocks[0] = matrix_bcq(&m->views[0].bcq, &r, 1);
    m->blocks[1] = matrix_bcq(&m->views[1].bcq, &f, 2);
    for (int i = 0; i < 2; i++) {
        m->views[i].is_bcq = 1;
        m->views[i].rows = m->views[i].bcq.spec.rows;
        m->views[i].cols = COLS;
    }
    m->blocks[2] = matrix_dense(&m->views[2], DTYPE_F16, 97, COLS, 3);
    m->blocks[3] = matrix_dense(&m->views[3], DTYPE_F32, 33, COLS, 4);
    const struct bcq_spec whole = {BCQ_WHOLE, 77, COLS, 6, 32, 0, 0, 0};
    m->blocks[4] = matrix_bcq(&m->views[4].bcq, &whole, 6);
    m->views[4].is_bcq = 1;
    m->views[4].rows = 77;
    m->views[4].cols = COLS;
    m->bias_block = matrix_dense(&m->bias, DTYPE_BF16, 1, 130, 5);
}

static void matrices_deinit(struct matrices *m) {
    for (int i = 0; i < N_MATRICES; i++) free(m->blocks[i]);
    free(m->bias_block);
}

/* The calls of the linear tests: plain; accumulated; with bias and ReLU; accumulated with GELU. */
static float *plain_linear(const struct matrices *m, int i, const float *x, const float *old,
                           int n) {
    const struct weight_view *w = &m->views[i];
    float *y = malloc((size_t)n * (size_t)w->rows * sizeof *y), row[COLS], bias[130];
    matrix_row(&m->bias, 0, bias);
    for (int r = 0; r < w->rows; r++) {
        matrix_row(w, r, row);
        for (int t = 0; t < n; t++) {
            double sum = 0;
            for (int k = 0; k < COLS; k++) sum += (double)row[k] * (double)x[t * COLS + k];
            if (i >= 2) sum += (double)bias[r];
            if (i == 2 && sum < 0) sum = 0;
            if (i == 3)
                sum *= 0.5 * (1 + tanh(0.7978845608028654 * (sum + 0.044715 * sum * sum * sum)));
            if (i % 2) sum += (double)old[t * w->rows + r];
            y[t * w->rows + r] = (float)sum;
        }
    }
    return y;
}

static void run_linear(struct backend *be, const struct matrices *m, const float *x,
                       const float *old, int n, float *ret[N_MATRICES]) {
    struct plain_batch batch;
    plain_batch(&batch, n);
    struct buffer *in = buffer_of(be, x, (size_t)n * COLS), *out[N_MATRICES];
    struct weight *w[N_MATRICES], *bias = weight_of(be, WEIGHT_VECTOR, &m->bias);
    struct linear_call calls[N_MATRICES];
    for (int i = 0; i < N_MATRICES; i++) {
        w[i] = weight_of(be, WEIGHT_LINEAR, &m->views[i]);
        out[i] = buffer_of(be, old, (size_t)n * (size_t)m->views[i].rows);
        calls[i] = (struct linear_call){
            .dst = out[i],
            .w = w[i],
            .bias = i >= 2 ? bias : NULL,
            .act = i == 2   ? ACT_RELU
                   : i == 3 ? ACT_GELU_TANH
                            : ACT_NONE,
            .accumulate = i % 2 == 1,
        };
    }
    backend_begin(be, &batch.batch);
    backend_linear(be, calls, N_MATRICES, in);
    for (int i = 0; i < N_MATRICES; i++) {
        ret[i] = read_all(be, out[i], (size_t)n * (size_t)m->views[i].rows);
        backend_buffer_free(be, out[i]);
        backend_weight_free(be, w[i]);
    }
    backend_weight_free(be, bias);
    backend_buffer_free(be, in);
}

Test(backend, linear_computes_what_plain_loops_do) {
    struct matrices m;
    matrices_init(&m);
    float *x = random_floats(300 * COLS, 9), *old = random_floats(300 * 130, 10);
    const int counts[] = {1, 3, 300};
    for (int l = 0; l < N_LEVELS; l++) {
        struct backend *be = open_level(levels[l], 2);
        for (int c = 0; be && c < 3; c++) {
            float *got[N_MATRICES];
            run_linear(be, &m, x, old, counts[c], got);
            for (int i = 0; i < N_MATRICES; i++) {
                float *want = plain_linear(&m, i, x, old, counts[c]);
                size_t size = (size_t)counts[c] * (size_t)m.views[i].rows;
                double d = distance(got[i], want, size);
                cr_expect(d < (m.views[i].is_bcq ? 2e-4 : 1e-5), "%s, %d tokens, matrix %d: %g",
                          levels[l], counts[c], i, d);
                free(got[i]);
                free(want);
            }
        }
        backend_close(be);
    }
    free(x);
    free(old);
    matrices_deinit(&m);
}

/* Matrices of one call may ask for inputs rounded differently, or not at all. */
Test(backend, linear_rounds_the_inputs_of_coded_matrices_that_ask_for_it) {
    enum { N = 20 };
    static const int act_bits[] = {8, 4, 16, 0, 8};
    struct matrices m;
    matrices_init(&m);
    float *x = random_floats(N * COLS, 9), *old = random_floats(N * 130, 10);
    for (int i = 0; i < N_MATRICES; i++) m.views[i].act_bits = act_bits[i];
    for (int l = 0; l < N_LEVELS; l++) {
        struct backend *be = open_level(levels[l], 2);
        float *got[N_MATRICES], *seen = malloc(N * COLS * sizeof *seen);
        if (be) run_linear(be, &m, x, old, N, got);
        for (int i = 0; be && i < N_MATRICES; i++) {
            memcpy(seen, x, N * COLS * sizeof *seen);
            for (int t = 0; i < 2 && t < N; t++)
                rounding_row(seen + t * COLS, x + t * COLS, COLS, act_bits[i]);
            float *want = plain_linear(&m, i, seen, old, N);
            double d = distance(got[i], want, N * (size_t)m.views[i].rows);
            cr_expect(d < 1e-5 || ((i == 0 || i == 4) && d < 1e-4), "%s, matrix %d: %g", levels[l],
                      i, d);
            free(want);
            free(got[i]);
        }
        free(seen);
        backend_close(be);
    }
    free(x);
    free(old);
    matrices_deinit(&m);
}

/* As a mixed model's have: how inputs are packed may depend on the bits. */
Test(backend, matrices_of_different_bits_share_a_call) {
    enum { N = 24, ROWS = 70 };
    struct weight_view views[BCQ_MAX_BITS] = {{0}};
    void *blocks[BCQ_MAX_BITS];
    float *x = random_floats(N * COLS, 9), *want = malloc(N * ROWS * sizeof *want);
    for (int i = 0; i < BCQ_MAX_BITS; i++) {
        const struct bcq_spec spec = {BCQ_COMPACT, ROWS, COLS, i + 1, 16, 4, 5, 0};
        blocks[i] = matrix_bcq(&views[i].bcq, &spec, (uint64_t)i + 1);
        views[i].is_bcq = 1;
        views[i].rows = ROWS;
        views[i].cols = COLS;
    }
    for (int l = 0; l < 2 * N_LEVELS; l++) {
        struct backend *be = open_level(levels[l / 2], 2);
        if (!be) continue;
        struct buffer *in = buffer_of(be, x, N * COLS), *zeros = buffer_of(be, NULL, N * COLS);
        struct buffer *out[BCQ_MAX_BITS];
        struct linear_call calls[BCQ_MAX_BITS];
        for (int i = 0; i < BCQ_MAX_BITS; i++) {
            views[i].act_bits = l % 2 ? 8 : 16;
            out[i] = buffer_of(be, NULL, N * ROWS);
            calls[i] =
                (struct linear_call){.dst = out[i], .w = weight_of(be, WEIGHT_LINEAR, &views[i])};
        }
        for (int n = 1; n <= N; n++) {
            struct plain_batch batch;
            plain_batch(&batch, n);
            backend_begin(be, &batch.batch);
            for (int i = 0; i < BCQ_MAX_BITS; i++) {
                size_t size = (size_t)n * ROWS;
                backend_linear(be, &calls[i], 1, in);
                cr_assert_eq(backend_buffer_read(be, want, out[i], 0, size, NULL), 0);
                /* So that nothing of this is left in scratch memory. */
                for (int j = 0; j < BCQ_MAX_BITS; j++) backend_linear(be, &calls[j], 1, zeros);
                backend_linear(be, calls, BCQ_MAX_BITS, in);
                float *got = read_all(be, out[i], size);
                cr_expect_arr_eq(got, want, size * sizeof *got, "%s, %d of 16 bits, %d tokens, %d",
                                 levels[l / 2], views[i].act_bits, n, i + 1);
                free(got);
            }
        }
        for (int i = 0; i < BCQ_MAX_BITS; i++) {
            backend_buffer_free(be, out[i]);
            backend_weight_free(be, (struct weight *)calls[i].w);
        }
        backend_buffer_free(be, zeros);
        backend_buffer_free(be, in);
        backend_close(be);
    }
    for (int i = 0; i < BCQ_MAX_BITS; i++) free(blocks[i]);
    free(x);
    free(want);
}

Test(backend, inputs_are_rounded_to_eight_or_four_bits_or_not) {
    struct matrices m;
    struct error err;
    struct weight *w;
    matrices_init(&m);
    struct backend *be = open_level("ref", 1);
    m.views[0].act_bits = 6;
    cr_assert_eq(backend_weight_new(be, &w, WEIGHT_LINEAR, &m.views[0], &err), -EINVAL);
    cr_expect_str_eq(err.text, "activations of 6 bits; 16, 8 and 4 are known");
    backend_close(be);
    matrices_deinit(&m);
}

Test(backend, linear_gives_equal_bits_alone_in_a_batch_and_on_any_number_of_threads) {
    struct matrices m;
    matrices_init(&m);
    enum { N = 140 };
    float *x = random_floats(N * COLS, 9), *old = random_floats(N * 130, 10);
    for (int l = 0; l < N_LEVELS; l++) {
        float *all[N_MATRICES], *some[N_MATRICES];
        struct backend *be = open_level(levels[l], 1);
        if (!be) continue;
        run_linear(be, &m, x, old, N, all);
        run_linear(be, &m, x, old, 1, some);
        for (int i = 0; i < N_MATRICES; i++) {
            cr_expect_arr_eq(all[i], some[i], (size_t)m.views[i].rows * sizeof(float));
            free(some[i]);
        }
        backend_close(be);
        be = open_level(levels[l], 5);
        run_linear(be, &m, x, old, N, some);
        for (int i = 0; i < N_MATRICES; i++) {
            cr_expect_arr_eq(all[i], some[i], N * (size_t)m.views[i].rows * sizeof(float));
            free(some[i]);
            free(all[i]);
        }
        backend_close(be);
    }
    free(x);
    free(old);
    matrices_deinit(&m);
}

/* More operations on rows than wait at a time, before, between and after products. at_once: each is done
 * before the next. Returns h (n, COLS), then the products. */
static float *run_rows(struct backend *be, const struct matrices *m, const float *x, int n,
                       bool at_once) {
    struct weight_view view;
    void *gains = matrix_dense(&view, DTYPE_F32, 1, COLS, 8);
    struct weight *gain = weight_of(be, WEIGHT_VECTOR, &view),
                  *w = weight_of(be, WEIGHT_LINEAR, &m->views[0]);
    struct buffer *in = buffer_of(be, x, (size_t)n * COLS),
                  *h = buffer_of(be, NULL, (size_t)n * COLS),
                  *y = buffer_of(be, NULL, (size_t)n * 130);
    struct linear_call call = {.dst = y, .w = w, .accumulate = true};
    struct norm_call norm = {gain, NULL, COLS, 1e-5f};
    struct plain_batch batch;
    plain_batch(&batch, n);
    backend_begin(be, &batch.batch);
    for (int i = 0; i < 25; i++) {
        if (i % 8 == 0) backend_norm(be, h, i ? h : in, &norm);
        if (i % 8 == 5) backend_gate(be, h, in, COLS);
        if (i % 12 == 6) backend_linear(be, &call, 1, h);
        backend_add(be, h, in, COLS);
        if (at_once) cr_assert_eq(backend_sync(be, NULL), 0);
    }
    float *ret = malloc((size_t)n * (COLS + 130) * sizeof *ret);
    cr_assert_eq(backend_buffer_read(be, ret, h, 0, (size_t)n * COLS, NULL), 0);
    cr_assert_eq(backend_buffer_read(be, ret + (size_t)n * COLS, y, 0, (size_t)n * 130, NULL), 0);
    backend_add(be, h, in, COLS); /* waits for nothing but the end of its buffers */
    backend_buffer_free(be, in);
    backend_buffer_free(be, h);
    backend_buffer_free(be, y);
    backend_weight_free(be, w);
    backend_weight_free(be, gain);
    free(gains);
    return ret;
}

Test(backend, operations_that_wait_compute_what_they_would_at_once) {
    static const int counts[] = {1, 7, 40, 300};
    struct matrices m;
    matrices_init(&m);
    float *x = random_floats(300 * COLS, 11);
    for (int l = 0; l < N_LEVELS; l++)
        for (int threads = 1; threads <= 3; threads++) {
            struct backend *be = open_level(levels[l], threads);
            for (int i = 0; be && i < 4; i++) {
                int n = counts[i];
                float *want = run_rows(be, &m, x, n, true), *got = run_rows(be, &m, x, n, false);
                cr_expect_arr_eq(want, got, (size_t)n * (COLS + 130) * sizeof *want,
                                 "%s, %d threads, %d tokens", levels[l], threads, n);
                free(want);
                free(got);
            }
            backend_close(be);
        }
    free(x);
    matrices_deinit(&m);
}

enum { HEADS = 6, KV_HEADS = 2, DIM = 20, LAYERS = 2 };

/* Plain softmax over the stored values of one sequence whose token t is at position t. */
static void plain_attention(float *out, const float *q, const float *k, const float *v, int n,
                            int window, const float *slopes) {
    for (int t = 0; t < n; t++) {
        for (int h = 0; h < HEADS; h++) {
            int first = window && t >= window ? t - window + 1 : 0, kv = h / (HEADS / KV_HEADS);
            double p[400], top = -INFINITY, sum = 0;
            const float *head = q + (t * HEADS + h) * DIM;
            for (int j = first; j <= t; j++) {
                double dot = 0;
                for (int d = 0; d < DIM; d++)
                    dot += (double)head[d] * (double)k[(j * KV_HEADS + kv) * DIM + d];
                p[j] = dot * 0.3 + (slopes ? (double)slopes[h] * (j - t) : 0);
                if (p[j] > top) top = p[j];
            }
            for (int j = first; j <= t; j++) sum += p[j] = exp(p[j] - top);
            for (int d = 0; d < DIM; d++) {
                double o = 0;
                for (int j = first; j <= t; j++)
                    o += p[j] / sum * (double)v[(j * KV_HEADS + kv) * DIM + d];
                out[(t * HEADS + h) * DIM + d] = (float)o;
            }
        }
    }
}

/* Stores and attends in steps of the given sizes; returns (n, HEADS, DIM). */
static float *run_attention(struct backend *be, enum dtype type, const float *q, const float *k,
                            const float *v, int n, int step, int window, const float *slopes) {
    enum { QW = HEADS * DIM, KW = KV_HEADS * DIM };
    struct kv *kv = NULL;
    const struct kv_spec spec = {LAYERS, KV_HEADS, DIM, 32, type};
    cr_assert_eq(backend_kv_new(be, &kv, &spec, NULL), 0);
    float *out = malloc((size_t)n * QW * sizeof *out);
    for (int t = 0; t < n; t += step) {
        int m = n - t < step ? n - t : step;
        struct plain_batch b;
        plain_batch(&b, n);
        b.batch.n_tokens = m;
        b.batch.positions += t;
        struct buffer *bq = buffer_of(be, q + t * QW, (size_t)m * QW);
        struct buffer *bk = buffer_of(be, k + t * KW, (size_t)m * KW);
        struct buffer *bv = buffer_of(be, v + t * KW, (size_t)m * KW);
        struct buffer *bo = buffer_of(be, NULL, (size_t)m * QW);
        struct attention_call call = {bo, bq, kv, 1, HEADS, window, 0.3f, slopes};
        backend_begin(be, &b.batch);
        backend_kv_store(be, kv, 1, bk, bv);
        backend_attention(be, &call);
        cr_assert_eq(backend_buffer_read(be, out + t * QW, bo, 0, (size_t)m * QW, NULL), 0);
        struct buffer *all[] = {bq, bk, bv, bo};
        for (int i = 0; i < 4; i++) backend_buffer_free(be, all[i]);
    }
    backend_kv_free(be, kv);
    return out;
}

Test(backend, attention_sees_what_a_plain_softmax_sees) {
    enum { N = 70, QW = HEADS * DIM, KW = KV_HEADS * DIM };
    const float slopes[HEADS] = {0.5f, 0.25f, 0.125f, 0.1f, 0.01f, 1};
    float *q = random_floats(N * QW, 1), *k = random_floats(N * KW, 2);
    float *v = random_floats(N * KW, 3), *want = malloc(N * QW * sizeof *want);
    for (int l = 0; l < N_LEVELS; l++) {
        struct backend *be = open_level(levels[l], 2), *three = open_level(levels[l], 3);
        for (int c = 0; be && c < 12; c++) {
            enum dtype type = c >= 8 ? DTYPE_I8 : c & 1 ? DTYPE_F16 : DTYPE_F32;
            int window = c & 2 ? 19 : 0;
            const float *s = c & 4 || c == 9 ? slopes : NULL;
            float *whole = run_attention(be, type, q, k, v, N, N, window, s);
            float *steps = run_attention(be, type, q, k, v, N, 3, window, s);
            /* Four heads of keys on three threads. */
            float *pairs = run_attention(three, type, q, k, v, N, 2, window, s);
            plain_attention(want, q, k, v, N, window, s);
            double d = distance(whole, want, N * QW);
            cr_expect(d < (c >= 8  ? 2e-2
                           : c & 1 ? 1e-3
                                   : 2e-6),
                      "%s, case %d: %g", levels[l], c, d);
            cr_expect_arr_eq(whole, steps, N * QW * sizeof *whole, "%s, case %d", levels[l], c);
            cr_expect_arr_eq(whole, pairs, N * QW * sizeof *whole, "%s, case %d", levels[l], c);
            free(whole);
            free(steps);
            free(pairs);
        }
        backend_close(be);
        backend_close(three);
    }
    free(q);
    free(k);
    free(v);
    free(want);
}

Test(backend, rope_turns_by_position_times_frequency) {
    enum { N = 40, N_HEADS = 3, D = 22, F = 8, W = N_HEADS * D };
    double freq[F];
    for (int i = 0; i < F; i++) freq[i] = pow(10000, -i / 8.0);
    float *x = random_floats(N * W, 1);
    for (int l = 0; l < N_LEVELS; l++) {
        struct backend *be = open_level(levels[l], 2);
        if (!be) continue;
        struct plain_batch b;
        plain_batch(&b, N);
        for (int t = 0; t < N; t++) b.positions[t] = 3000 - 7 * t;
        struct buffer *buf = buffer_of(be, x, N * W);
        backend_begin(be, &b.batch);
        backend_rope(be, &(struct rope_call){buf, N_HEADS, D, freq, F, 1.5f});
        float *y = read_all(be, buf, N * W);
        for (int i = 0; i < N * W; i++) {
            int t = i / W, e = i % D, pair = e % F;
            double angle = (3000 - 7 * t) * freq[pair], c = 1.5 * cos(angle), s = 1.5 * sin(angle);
            double want = (double)x[i];
            if (e < F) want = (double)x[i] * c - (double)x[i + F] * s;
            if (e >= F && e < 2 * F) want = (double)x[i] * c + (double)x[i - F] * s;
            cr_assert_float_eq(y[i], want, 4e-6, "%s, %d: %g, not %g", levels[l], i, (double)y[i],
                               want);
        }
        free(y);
        backend_buffer_free(be, buf);
        backend_close(be);
    }
    free(x);
}

enum { EMBED_ROWS = 40, EMBED_WIDTH = 45 };

/* Rows by token, three times as large, and rows by position added to them, on every level. */
static void check_embedding(const struct weight_view *view, size_t bytes) {
    enum { N = 30, W = EMBED_WIDTH };
    for (int l = 0; l < N_LEVELS; l++) {
        struct backend *be = open_level(levels[l], 2);
        if (!be) continue;
        struct plain_batch b;
        plain_batch(&b, N);
        struct weight *table = weight_of(be, WEIGHT_TABLE, view);
        struct buffer *buf = buffer_of(be, NULL, N * W);
        cr_expect_eq(backend_weight_bytes(be, table), bytes);
        backend_begin(be, &b.batch);
        backend_embed(be, buf, table, false, 0, 3, false);
        backend_embed(be, buf, table, true, 2, 1, true);
        float *y = read_all(be, buf, N * W), row[W], pos[W];
        for (int t = 0; t < N; t++) {
            matrix_row(view, b.tokens[t], row);
            matrix_row(view, t + 2, pos);
            for (int i = 0; i < W; i++) cr_assert_eq(y[t * W + i], row[i] * 3 + pos[i]);
        }
        free(y);
        backend_buffer_free(be, buf);
        backend_weight_free(be, table);
        backend_close(be);
    }
}

Test(backend, embed_adds_scaled_rows_by_token_and_by_position) {
    struct weight_view view;
    void *block = matrix_dense(&view, DTYPE_BF16, EMBED_ROWS, EMBED_WIDTH, 6);
    check_embedding(&view, sizeof(uint16_t) * EMBED_ROWS * EMBED_WIDTH);
    free(block);
}

Test(backend, embed_expands_rows_of_whole_numbers) {
    const struct bcq_spec spec = {BCQ_WHOLE, EMBED_ROWS, EMBED_WIDTH, 5, 32, 0, 0, 0};
    struct weight_view view = {.is_bcq = 1, .rows = EMBED_ROWS, .cols = EMBED_WIDTH};
    void *block = matrix_bcq(&view.bcq, &spec, 6);
    check_embedding(&view, (size_t)view.bcq.layout.total);
    free(block);
}

static double ticks;
static double tick(void) { return ticks += 1; }

/* Every operation counts once, two readings of the clock apart, and computes what it did before. */
Test(backend, a_profile_counts_what_runs_and_leaves_no_trace) {
    enum { N = 3 };
    struct backend *be = open_level("ref", 1);
    const struct backend_ops *own = be->ops;
    struct weight_view view, gain;
    void *block = matrix_dense(&view, DTYPE_F32, 7, COLS, 6);
    void *row = matrix_dense(&gain, DTYPE_F32, 1, COLS, 7);
    float *x = random_floats(N * COLS, 1), *out[2];
    struct weight *w = weight_of(be, WEIGHT_LINEAR, &view),
                  *g = weight_of(be, WEIGHT_VECTOR, &gain);
    struct plain_batch b;
    plain_batch(&b, N);
    struct profile p;
    for (int timed = 0; timed < 2; timed++) {
        struct buffer *src = buffer_of(be, x, N * COLS), *y = buffer_of(be, NULL, N * 7);
        struct linear_call call = {.dst = y, .w = w};
        const int32_t first = 2;
        if (timed) profile_start(&p, be, tick);
        backend_begin(be, &b.batch);
        backend_norm(be, src, src, &(struct norm_call){g, NULL, COLS, 1e-5f});
        backend_linear(be, &call, 1, src);
        backend_linear(be, &call, 1, src);
        backend_gather(be, src, src, &first, 1, COLS);
        backend_linear(be, &call, 1, src);
        out[timed] = read_all(be, y, N * 7);
        if (timed) profile_stop(&p);
        backend_buffer_free(be, src);
        backend_buffer_free(be, y);
    }
    cr_expect_arr_eq(out[0], out[1], N * 7 * sizeof(float));
    const long want[PROFILE_PARTS] = {
        [PROFILE_LINEAR] = 2, [PROFILE_OUTPUT] = 1, [PROFILE_NORM] = 1, [PROFILE_OTHER] = 2};
    for (int i = 0; i < PROFILE_PARTS; i++) {
        cr_expect_eq(p.calls[i], want[i], "%s: %ld", profile_name((enum profile_part)i),
                     p.calls[i]);
        cr_expect_eq(p.seconds[i], (double)want[i]);
    }
    cr_expect(be->ops == own && !be->profile);
    for (int i = 0; i < 2; i++) free(out[i]);
    backend_weight_free(be, w);
    backend_weight_free(be, g);
    backend_close(be);
    free(block);
    free(row);
    free(x);
}

Test(backend, norm_and_linear_follow_gather) {
    enum { N = 5, W = 33 };
    struct weight_view gain;
    void *block = matrix_dense(&gain, DTYPE_F32, 1, W, 6);
    float *x = random_floats(N * W, 1), row[W];
    matrix_row(&gain, 0, row);
    struct backend *be = open_level("ref", 1);
    struct plain_batch b;
    plain_batch(&b, N);
    struct weight *w = weight_of(be, WEIGHT_VECTOR, &gain);
    struct buffer *src = buffer_of(be, x, N * W), *dst = buffer_of(be, NULL, 3 * W);
    const int32_t rows[] = {4, 0};
    backend_begin(be, &b.batch);
    backend_gather(be, dst, src, rows, 2, W);
    backend_norm(be, dst, dst, &(struct norm_call){w, NULL, W, 1e-5f});
    float *y = read_all(be, dst, 3 * W);
    for (int r = 0; r < 2; r++) {
        double squares = 0;
        for (int i = 0; i < W; i++)
            squares += (double)x[rows[r] * W + i] * (double)x[rows[r] * W + i];
        for (int i = 0; i < W; i++)
            cr_expect_float_eq(
                y[r * W + i],
                (double)x[rows[r] * W + i] * (double)row[i] / sqrt(squares / W + 1e-5), 1e-6);
    }
    for (int i = 2 * W; i < 3 * W; i++) cr_expect_eq(y[i], 0);
    free(y);
    free(x);
    free(block);
    backend_buffer_free(be, src);
    backend_buffer_free(be, dst);
    backend_weight_free(be, w);
    backend_close(be);
}

Test(backend, refuses_what_it_does_not_know) {
    struct backend *be = NULL;
    struct error err;
    struct backend_options options = {.name = "abacus"};
    cr_expect_eq(backend_open(&be, &options, &err), -ENODEV);
    cr_expect(strstr(err.text, "abacus") && strstr(err.text, "cpu"));
    options = (struct backend_options){.level = "mmx"};
    cr_expect_eq(backend_open(&be, &options, &err), -EINVAL);
    cr_expect_null(be);
}

Test(backend, refuses_weights_that_it_cannot_use) {
    struct backend *be = open_level("ref", 1);
    struct weight *w = NULL;
    const struct bcq_spec spec = {BCQ_FREE, 4, 8, 1, 8, 0, 0, 0};
    struct weight_view view = {.is_bcq = 1, .rows = 4, .cols = 8};
    void *block = matrix_bcq(&view.bcq, &spec, 1);
    cr_expect_eq(backend_weight_new(be, &w, WEIGHT_TABLE, &view, NULL), -EINVAL);
    view.rows = 5;
    cr_expect_eq(backend_weight_new(be, &w, WEIGHT_LINEAR, &view, NULL), -EINVAL);
    view.rows = -1;
    cr_expect_eq(backend_weight_new(be, &w, WEIGHT_LINEAR, &view, NULL), -EINVAL);
    cr_expect_null(w);
    struct kv *kv = NULL;
    const struct kv_spec huge = {1 << 30, 1 << 30, 1 << 30, 1 << 30, DTYPE_F16};
    cr_expect_eq(backend_kv_new(be, &kv, &huge, NULL), -EINVAL);
    cr_expect_null(kv);
    free(block);
    backend_close(be);
}

Test(backend, the_environment_chooses_the_level) {
    struct backend *be = NULL;
    cr_assert_eq(setenv("GPTQT_CPU", "ref", 1), 0);
    cr_assert_eq(backend_open(&be, &(struct backend_options){.n_threads = 3}, NULL), 0);
    cr_expect_str_eq(be->detail, "ref, 3 threads");
    backend_close(be);
    cr_assert_eq(setenv("GPTQT_CPU", "mmx", 1), 0);
    cr_expect_eq(backend_open(&be, &(struct backend_options){0}, NULL), -EINVAL);
}
