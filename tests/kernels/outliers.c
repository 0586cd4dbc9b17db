#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/outliers.h"
#include "kernels/sell.h"
#include "tests/kernels/check.h"
#include "tests/support/beside.h"

enum { MAX_N = 9, GAP = 3 };
static const int counts[] = {1, 2, 3, 4, 5, 8, MAX_N};

struct side {
    void *block;
    struct outliers_view view;
    struct fence packed;
};

static void side_init(struct side *s, int rows, int cols, bool whole) {
    uint64_t seed = (uint64_t)(rows * 1000 + cols);
    s->block = whole ? beside_columns(&s->view, rows, cols, seed)
                     : beside_outliers(&s->view, rows, cols, seed);
    s->packed = fence_new(sell_bytes(&s->view), 64);
    sell_pack(s->packed.p, &s->view);
}

static void side_free(struct side *s) {
    fence_free(&s->packed);
    free(s->block);
}

/* y begins as 1, 2, 3, ... so that what is added to, and what is left alone, shows. */
static struct fence run(struct check *c, const struct side *s, const float *x, int n, bool whole) {
    int rows = s->view.rows;
    size_t ldy = (size_t)rows + GAP, size = (size_t)n * ldy;
    struct fence y = fence_new(size * sizeof(float), sizeof(float));
    for (size_t i = 0; i < size; i++) ((float *)y.p)[i] = (float)(i % ldy + 1);
    int middle = whole ? rows : (sell_blocks(rows) + 1) / 2 * SELL_ROWS;
    if (middle > rows) middle = rows;
    size_t ldx = (size_t)s->view.cols;
    if (middle < rows) c->ops->outliers_add(y.p, ldy, s->packed.p, x, ldx, n, middle, rows);
    c->ops->outliers_add(y.p, ldy, s->packed.p, x, ldx, n, 0, middle);
    for (int t = 0; t < n; t++)
        for (int g = rows; g < rows + GAP; g++)
            check_expect(c, ((float *)y.p)[(size_t)t * ldy + (size_t)g] == (float)(g + 1),
                         "%d rows: wrote past the last", rows);
    check_expect(c, fence_intact(&y), "%d rows: wrote outside", rows);
    return y;
}

static void compare(struct check *c, const struct side *s, const float *x, const float *y, int n) {
    const struct outliers_view *v = &s->view;
    float *row = malloc((size_t)v->cols * sizeof *row);
    for (int r = 0; r < v->rows; r++) {
        memset(row, 0, (size_t)v->cols * sizeof *row);
        outliers_add_row(v, r, row);
        for (int t = 0; t < n; t++) {
            double sum = r + 1, size = r + 1, entries = v->whole ? v->n : v->counts[r];
            for (int k = 0; k < v->cols; k++) {
                double p = (double)row[k] * (double)x[(size_t)t * (size_t)v->cols + (size_t)k];
                sum += p;
                size += fabs(p);
            }
            double d = (double)y[(size_t)t * (size_t)(v->rows + GAP) + (size_t)r] - sum;
            check_expect(c, fabs(d) <= 2e-7 * (entries + 2) * size,
                         "%dx%d: row %d token %d is off by %g from %g", v->rows, v->cols, r, t, d,
                         sum);
        }
    }
    free(row);
}

static void check_matrix(struct check *c, int rows, int cols, bool whole, enum check_input input) {
    struct side s;
    side_init(&s, rows, cols, whole);
    struct fence x = check_floats(MAX_N * (size_t)cols, input, 3);
    struct fence y = run(c, &s, x.p, MAX_N, true);
    if (input != INPUT_NOT_FINITE) compare(c, &s, x.p, y.p, MAX_N);
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        size_t from = (size_t)(MAX_N - counts[i]), ldy = (size_t)rows + GAP;
        struct fence some = run(c, &s, (const float *)x.p + from * (size_t)cols, counts[i], false);
        for (int t = 0; t < counts[i] && input != INPUT_NOT_FINITE; t++)
            check_expect(c,
                         check_same((float *)some.p + (size_t)t * ldy,
                                    (float *)y.p + (from + (size_t)t) * ldy, (size_t)rows),
                         "%dx%d: token %d of %d differs from itself in a batch", rows, cols, t,
                         counts[i]);
        fence_free(&some);
    }
    fence_free(&x);
    fence_free(&y);
    side_free(&s);
}

void check_outliers(struct check *c) {
    for (int i = 0; i < 3 * CHECK_N_SIZES; i++) {
        int rows = check_sizes[(i * 5 + 2) % CHECK_N_SIZES], cols = check_sizes[i % CHECK_N_SIZES];
        for (int whole = 0; whole < 2; whole++)
            check_matrix(c, rows, cols, whole,
                         i % 3 ? INPUT_NORMAL : (enum check_input)(i % CHECK_N_INPUTS));
    }
    check_matrix(c, 40, 70000, false, INPUT_NORMAL); /* columns of four bytes */
}
