/* Norms, lookups, rotations and elementwise operations, against kernels/ref. */
#include <float.h>

#include "tests/kernels/gpu.h"

void check_norm(void) {
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

void check_elements(void) {
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

void check_embed(void) {
    enum { N = 30, W = 33, VOCAB = 40 };
    const struct bcq_spec whole = {BCQ_WHOLE, VOCAB, W, 5, BCQ_WHOLE_GROUP, 0, 0, 0};
    for (int type = 0; type < 4; type++) {
        struct weight_view view = {.is_bcq = type == 3, .rows = VOCAB, .cols = W};
        void *block = type == 3 ? matrix_bcq(&view.bcq, &whole, 9)
                                : matrix_dense(&view, (enum dtype)type, VOCAB, W, 9);
        float least = type == 3 ? 1e-3f : 0; /* fp16 in between */
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
                expect(fabsf(y[t * W + i] - (row[i] * 3 + pos[i])) <= least,
                       "embed type %d at %d, %d", type, t, i);
        }
        free(y);
        backend_buffer_free(be, dst);
        backend_weight_free(be, table);
        free(block);
    }
}

/* More than both halves of what weights pass through, and a rest; rows from everywhere. */
void check_upload(void) {
    enum { N = 250, W = 1000, ROWS = 2503 };
    struct weight_view view;
    void *block = matrix_dense(&view, DTYPE_F32, ROWS, W, 12);
    struct weight *table = weight_of(WEIGHT_TABLE, &view);
    const float *rows = view.data;
    struct buffer *dst = buffer_of(NULL, N * W);
    struct some_batch b;
    batch_of(&b, N, 0);
    for (int t = 0; t < N; t++) b.tokens[t] = t * (ROWS - 1) / (N - 1);
    backend_begin(be, &b.batch);
    backend_embed(be, dst, table, false, 0, 1, false);
    float *y = read_all(dst, N * W);
    for (int t = 0; t < N; t++)
        expect(!memcmp(y + t * W, rows + (size_t)b.tokens[t] * W, W * sizeof *y), "row %d of %d",
               (int)b.tokens[t], ROWS);
    free(y);
    backend_buffer_free(be, dst);
    backend_weight_free(be, table);
    free(block);
}

void check_rope(void) {
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

/* As the sampler has it. */
static int32_t best_of(const float *x, int width) {
    int32_t best = 0;
    float most = -INFINITY;
    for (int i = 0; i < width; i++) {
        float v = isnan(x[i]) ? -INFINITY : x[i] > FLT_MAX ? FLT_MAX : x[i];
        if (v > most) {
            most = v;
            best = i;
        }
    }
    return best;
}

static void fill_best(float *x, int row, int width, uint64_t seed) {
    static const float fills[] = {NAN, -INFINITY, INFINITY, 0, -3, FLT_MAX, -FLT_MAX, 1e-45f};
    enum { N_FILLS = sizeof fills / sizeof *fills };
    float *some = normal((size_t)width, seed + (uint64_t)row);
    int last = width - 1, mid = width / 2;
    for (int i = 0; i < width; i++) x[i] = row < N_FILLS ? fills[row] : some[i];
    if (row == 8) x[last] = INFINITY;
    if (row == 9) x[mid] = x[last] = 9; /* ties */
    if (row == 10) x[0] = NAN, x[last] = FLT_MAX, x[mid] = INFINITY;
    if (row == 11)
        for (int i = 0; i < width; i++) x[i] = i % 3 ? -0.0f : 0.0f;
    if (row == 12)
        for (int i = 0; i < width; i++) x[i] = i % 3 == 1 ? 0.0f : -0.0f;
    if (row == 13)
        for (int i = 0; i < width; i++) x[i] = -(float)(i + 1);
    if (row == 14)
        for (int i = 0; i < width; i++) x[i] = i == last ? -FLT_MAX : i % 2 ? NAN : -INFINITY;
    free(some);
}

void check_best(void) {
    static const int widths[] = {1, 2, 31, 255, 256, 257, 1009, 4999};
    enum { N = 20 };
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++) {
        int width = widths[i];
        float *x = malloc((size_t)(N * width) * sizeof *x);
        int32_t ids[N + 1];
        struct error err;
        for (int row = 0; row < N; row++) fill_best(x + row * width, row, width, i);
        struct buffer *b = buffer_of(x, (size_t)(N * width));
        ids[N] = -7;
        expect(backend_best(be, ids, b, N, width, &err) == 0, "best of %d", width);
        for (int row = 0; row < N; row++) {
            int32_t want = best_of(x + row * width, width);
            expect(ids[row] == want, "best of row %d of %d: %d for %d", row, width, ids[row], want);
        }
        expect(ids[N] == -7, "best wrote past its rows");
        backend_buffer_free(be, b);
        free(x);
    }
}
