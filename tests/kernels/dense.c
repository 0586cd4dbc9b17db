#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/kernels/check.h"
#include "tests/support/matrix.h"

enum { MAX_N = 33, GAP = 3 };
static const int counts[] = {1, 2, 3, 4, 5, 6, 7, 9, 12, 13, 16, MAX_N};
enum { N_COUNTS = sizeof counts / sizeof *counts };
static const float untouched = -12345.5f;

struct packed {
    struct weight_view view;
    void *values;
    struct fence data;
};

static int n_blocks(const struct check *c, const struct packed *m) {
    return (m->view.rows + c->ops->dense.row_block - 1) / c->ops->dense.row_block;
}

static void packed_init(struct packed *m, struct check *c, enum dtype type, int rows, int cols) {
    const struct dense_ops *ops = &c->ops->dense;
    *m = (struct packed){0};
    m->values = matrix_dense(&m->view, type, rows, cols, 5);
    m->data = fence_new(ops->pack_bytes(type, rows, cols), 64);
    int end = n_blocks(c, m), middle = end / 2;
    ops->pack(m->data.p, type, m->values, rows, cols, middle, end);
    ops->pack(m->data.p, type, m->values, rows, cols, 0, middle);
    check_expect(c, fence_intact(&m->data), "%dx%d: pack() wrote outside", rows, cols);
}

static struct fence multiply(struct check *c, const struct packed *m, const float *x, int n,
                             bool whole) {
    const struct weight_view *w = &m->view;
    size_t ldy = (size_t)w->rows + GAP, size = (size_t)n * ldy;
    struct fence y = fence_new(size * sizeof(float), sizeof(float));
    for (size_t i = 0; i < size; i++) ((float *)y.p)[i] = untouched;
    int end = n_blocks(c, m), middle = whole ? end : (end + 2) / 3;
    const int range[][2] = {{middle, end}, {0, middle}};
    for (int i = 0; i < 2; i++)
        if (range[i][0] < range[i][1])
            c->ops->dense.mul(y.p, ldy, m->data.p, w->type, w->rows, w->cols, x, (size_t)w->cols, n,
                              range[i][0], range[i][1]);
    for (int t = 0; t < n; t++)
        for (int g = 0; g < GAP; g++)
            check_expect(c, ((float *)y.p)[(size_t)t * ldy + (size_t)(w->rows + g)] == untouched,
                         "%dx%d: mul() wrote past the rows", w->rows, w->cols);
    check_expect(c, fence_intact(&y), "%dx%d: mul() wrote outside", w->rows, w->cols);
    return y;
}

static void compare(struct check *c, const struct packed *m, const float *x, const float *y,
                    int n) {
    const struct weight_view *w = &m->view;
    float *row = malloc((size_t)w->cols * sizeof *row);
    for (int r = 0; r < w->rows; r++) {
        matrix_row(w, r, row);
        for (int t = 0; t < n; t++) {
            double sum = 0, top_w = 0, top_x = 0;
            for (int k = 0; k < w->cols; k++) {
                double v = (double)x[(size_t)t * (size_t)w->cols + (size_t)k];
                sum += (double)row[k] * v;
                top_w = fmax(top_w, fabs((double)row[k]));
                top_x = fmax(top_x, fabs(v));
            }
            double d = (double)y[(size_t)t * (size_t)(w->rows + GAP) + (size_t)r] - sum;
            check_expect(c, fabs(d) <= 2e-6 * w->cols * top_w * top_x + 1e-37,
                         "type %d %dx%d: row %d token %d of %d is off by %g from %g", (int)w->type,
                         w->rows, w->cols, r, t, n, d, sum);
        }
    }
    free(row);
}

static void check_matrix(struct check *c, enum dtype type, int rows, int cols,
                         enum check_input input) {
    struct packed m;
    packed_init(&m, c, type, rows, cols);
    struct fence x = check_floats(MAX_N * (size_t)cols, input, 3);
    struct fence y = multiply(c, &m, x.p, MAX_N, true);
    if (check_finite(input)) compare(c, &m, x.p, y.p, MAX_N);
    for (int i = 0; i < N_COUNTS; i++) {
        size_t from = (size_t)(MAX_N - counts[i]), ldy = (size_t)rows + GAP;
        struct fence some =
            multiply(c, &m, (const float *)x.p + from * (size_t)cols, counts[i], false);
        for (int t = 0; t < counts[i]; t++)
            check_expect(c,
                         check_alike((float *)some.p + (size_t)t * ldy,
                                     (float *)y.p + (from + (size_t)t) * ldy, (size_t)rows),
                         "type %d %dx%d: token %d of %d differs from itself in a batch", (int)type,
                         rows, cols, t, counts[i]);
        fence_free(&some);
    }
    fence_free(&x);
    fence_free(&y);
    fence_free(&m.data);
    free(m.values);
}

/* A token with NaN in it must leave its neighbours alone. */
static void check_neighbours(struct check *c, enum dtype type, int rows, int cols, int n) {
    struct packed m;
    packed_init(&m, c, type, rows, cols);
    struct fence x = check_floats((size_t)n * (size_t)cols, INPUT_NORMAL, 3);
    struct fence good = multiply(c, &m, x.p, n, true);
    check_fill((float *)x.p + (n / 2) * cols, (size_t)cols, INPUT_NOT_FINITE, 9);
    struct fence bad = multiply(c, &m, x.p, n, true);
    size_t ldy = (size_t)rows + GAP;
    for (int t = 0; t < n; t++)
        check_expect(c,
                     t == n / 2 || check_same((float *)good.p + (size_t)t * ldy,
                                              (float *)bad.p + (size_t)t * ldy, (size_t)rows),
                     "type %d: token %d of %d differs beside a NaN", (int)type, t, n);
    fence_free(&x);
    fence_free(&good);
    fence_free(&bad);
    fence_free(&m.data);
    free(m.values);
}

void check_dense(struct check *c) {
    static const enum dtype types[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16};
    for (int i = 0; i < 3 * CHECK_N_SIZES; i++) {
        int rows = check_sizes[(i * 5 + 2) % CHECK_N_SIZES], cols = check_sizes[i % CHECK_N_SIZES];
        for (int t = 0; t < 3; t++)
            check_matrix(c, types[t], rows, cols,
                         i % 3 ? INPUT_NORMAL
                               : (enum check_input)((i + t) % CHECK_N_PRODUCT_INPUTS));
    }
    for (int t = 0; t < 3; t++) {
        for (int i = 0; i < CHECK_N_PRODUCT_INPUTS; i++)
            check_matrix(c, types[t], 100, 576, (enum check_input)i);
        check_neighbours(c, types[t], 100, 576, 2);
        check_neighbours(c, types[t], 100, 576, 16);
    }
}
