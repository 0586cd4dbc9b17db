#include "engine/quant/outliers.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/quant/layer.h"
#include "engine/quant/linalg.h"
#include "kernels/error.h"
#include "kernels/expand.h"
#include "tests/unit/engine/quant/support.h"

enum { ROWS = 70, COLS = 90 }; /* a part strip, a ragged last group */

struct problem {
    float w[ROWS * COLS];
    double h[COLS * COLS];
};

static struct problem *problem_new(uint64_t seed) {
    struct problem *p = malloc(sizeof *p);
    cr_assert(p);
    support_problem(seed, ROWS, COLS, p->w, p->h);
    linalg_init();
    return p;
}

/* In fp32 where the module is, so that equal scores are equal here too. */
static float score(const float *w, double h, int row, int column, int group) {
    int first = column / group * group, end = first + group < COLS ? first + group : COLS;
    double sum = 0.0;
    for (int k = first; k < end; k++) sum += (double)w[row * COLS + k];
    float away = w[row * COLS + column] - (float)(sum / (end - first));
    return (float)h * away * away;
}

static bool has(const struct outlier_set *set, int row, int column) {
    for (uint32_t e = set->starts[row]; e < set->starts[row + 1]; e++)
        if (set->columns[e] == (uint32_t)column) return true;
    return false;
}

Test(outliers, the_largest_scores_are_taken) {
    static const double shares[] = {0.01, 0.5, 5.0};
    struct problem *p = problem_new(3);
    double h[COLS];
    for (int k = 0; k < COLS; k++) h[k] = k % 11 ? 0.5 + k % 7 : 0.0; /* some dead */
    for (int s = 0; s < 3; s++) {
        struct outlier_set *set;
        struct error err;
        cr_assert_eq(outlier_set_new(&set, p->w, h, ROWS, COLS, 16, shares[s], false, &err), 0);
        cr_assert_eq(set->n, (uint32_t)(shares[s] / 100.0 * ROWS * COLS));
        float least = INFINITY, most = 0.0f;
        for (int r = 0; r < ROWS; r++)
            for (int k = 0; k < COLS; k++) {
                float v = score(p->w, h[k], r, k, 16);
                if (has(set, r, k)) least = fminf(least, v);
                if (!has(set, r, k)) most = fmaxf(most, v);
            }
        cr_expect(least >= most, "%g per cent: took %g, left %g", shares[s], (double)least,
                  (double)most);
        outlier_set_free(set);
    }
    free(p);
}

Test(outliers, whole_columns_are_those_with_the_largest_sums) {
    struct problem *p = problem_new(5);
    struct outlier_set *set;
    double h[COLS], sums[COLS] = {0};
    for (int k = 0; k < COLS; k++) h[k] = 0.5 + k % 7;
    for (int k = 0; k < COLS; k++)
        for (int r = 0; r < ROWS; r++) sums[k] += (double)score(p->w, h[k], r, k, 16);
    cr_assert_eq(outlier_set_new(&set, p->w, h, ROWS, COLS, 16, 5.0, true, NULL), 0);
    cr_assert_eq(set->starts[1], 5); /* 4.5 columns */
    double least = INFINITY, most = 0.0;
    for (int k = 0; k < COLS; k++) {
        for (int r = 0; r < ROWS; r++) cr_assert_eq(has(set, r, k), has(set, 0, k));
        if (has(set, 0, k)) least = fmin(least, sums[k]);
        if (!has(set, 0, k)) most = fmax(most, sums[k]);
    }
    cr_expect(least >= most, "took %g, left %g", least, most);
    outlier_set_free(set);
    free(p);
}

Test(outliers, equal_scores_are_taken_by_place) {
    float w[ROWS * COLS];
    double h[COLS];
    struct outlier_set *set;
    struct error err;
    for (int i = 0; i < ROWS * COLS; i++) w[i] = i % 2 ? 1.0f : -1.0f;
    for (int k = 0; k < COLS; k++) h[k] = 1.0;
    cr_assert_eq(outlier_set_new(&set, w, h, ROWS, COLS, 10, 0.1, false, &err), 0);
    cr_assert_eq(set->n, 6);
    for (uint32_t e = 0; e < 6; e++) cr_expect_eq(set->columns[e], e);
    cr_expect_eq(set->starts[1], 6);
    outlier_set_free(set);
}

static struct layer_result quantize(const struct problem *p, const struct layer_options *o,
                                    double *h) {
    struct layer_result result;
    struct layer_input *in;
    struct error err;
    memcpy(h, p->h, sizeof p->h);
    cr_assert_eq(layer_input_new(&in, h, COLS, o, &err), 0, "%s", err.text);
    cr_assert_eq(layer_quantize(&result, in, p->w, ROWS, o, &err), 0, "%s", err.text);
    layer_input_free(in);
    return result;
}

static void expand(const struct layer_result *result, double *q) {
    struct weight_view view = {.is_bcq = 1, .bcq = result->view};
    float row[COLS];
    if (result->side) view.outliers = &result->outliers;
    for (int r = 0; r < ROWS; r++) {
        cr_assert_eq(weight_expand(&view, r, 1, row, NULL), 0);
        for (int k = 0; k < COLS; k++) q[r * COLS + k] = (double)row[k];
    }
}

static struct layer_options options_of(enum layer_method method, enum bcq_kind kind, int bits) {
    struct layer_options o;
    layer_defaults(&o);
    o.method = method;
    o.kind = kind;
    o.bits = bits;
    o.n_ranges = 4;
    o.outliers = 1.0;
    return o;
}

static const struct {
    enum layer_method method;
    enum bcq_kind kind;
} pairs[] = {{LAYER_GPTQT, BCQ_COMPACT}, {LAYER_GPTQT, BCQ_COMPACT_GROUP},
             {LAYER_GPTQT, BCQ_FREE},    {LAYER_GPTQ, BCQ_COMPACT},
             {LAYER_GPTQ, BCQ_FREE},     {LAYER_RTN, BCQ_COMPACT},
             {LAYER_GPTQ_BCQ, BCQ_FREE}, {LAYER_BCQ, BCQ_FREE}};

Test(outliers, the_reported_loss_is_that_of_the_stored_matrix_and_falls) {
    struct problem *p = problem_new(7);
    static double h[COLS * COLS], q[ROWS * COLS];
    for (size_t i = 0; i < 2 * sizeof pairs / sizeof *pairs; i++) {
        struct layer_options o = options_of(pairs[i / 2].method, pairs[i / 2].kind, 2);
        double last = INFINITY;
        o.whole_outliers = i % 2;
        for (o.refine = 0; o.refine <= 2; o.refine++) {
            struct outliers_view view;
            struct error err;
            struct layer_result result = quantize(p, &o, h);
            cr_assert_eq(outliers_parse(&view, result.side, result.n_side, &err), 0, "%s",
                         err.text);
            cr_assert_eq(view.whole, o.whole_outliers);
            cr_assert_eq(view.n, i % 2 ? 1 : ROWS * COLS / 100);
            expand(&result, q);
            double loss = support_loss(p->w, q, h, ROWS, COLS);
            cr_assert(fabs(loss - result.loss) <= 1e-4 * loss, "pair %zu: %.9g, reported %.9g", i,
                      loss, result.loss);
            cr_assert(loss <= last * 1.0001, "pair %zu: round %d, %g after %g", i, o.refine, loss,
                      last);
            last = loss;
            layer_result_free(&result);
        }
        struct layer_options none = o;
        none.refine = 0;
        none.outliers = 0.0;
        none.whole_outliers = false;
        struct layer_result plain = quantize(p, &none, h);
        cr_assert_null(plain.side);
        cr_assert_lt(last, plain.loss);
        layer_result_free(&plain);
    }
    free(p);
}

/* x h^-1 for a row x: solved by elimination, in fp64. */
static void invert(const double *h, double *inverse) {
    static double a[COLS][2 * COLS];
    for (int i = 0; i < COLS; i++)
        for (int j = 0; j < 2 * COLS; j++)
            a[i][j] = j < COLS ? h[i * COLS + j] : (double)(j - COLS == i);
    for (int i = 0; i < COLS; i++) {
        double pivot = 1.0 / a[i][i];
        for (int j = 0; j < 2 * COLS; j++) a[i][j] *= pivot;
        for (int r = 0; r < COLS; r++) {
            double factor = a[r][i];
            for (int j = 0; r != i && j < 2 * COLS; j++) a[r][j] -= factor * a[i][j];
        }
    }
    for (int i = 0; i < COLS; i++)
        for (int j = 0; j < COLS; j++) inverse[i * COLS + j] = a[i][COLS + j];
}

static double nearest(const struct bcq_view *v, int row, int column, double x) {
    float alpha[BCQ_MAX_BITS], beta;
    double best = INFINITY;
    bcq_group_params(v, row, column / v->spec.group, alpha, &beta);
    for (int code = 0; code < 1 << v->spec.bits; code++) {
        double level = (double)beta;
        for (int i = 0; i < v->spec.bits; i++) level += code >> i & 1 ? alpha[i] : -alpha[i];
        if (fabs(level - x) < fabs(best - x)) best = level;
    }
    return best;
}

/* Optimal brain surgery as it is told, in fp64: fix one column, spread its error over the columns
 * left by the inverse of what is left of H, strike the column out. An outlier is fixed where it
 * stands. Columns go by falling diagonal. */
Test(outliers, the_column_loop_takes_them_as_they_stand) {
    struct problem *p = problem_new(11);
    static double h[COLS * COLS], q[ROWS * COLS], inverse[COLS * COLS], w[ROWS * COLS];
    static bool done[COLS], exact[ROWS * COLS];
    struct layer_options o = options_of(LAYER_GPTQT, BCQ_COMPACT, 2);
    struct layer_result result = quantize(p, &o, h);
    expand(&result, q);
    for (int r = 0; r < ROWS; r++) {
        uint32_t first = outliers_first(&result.outliers, r);
        for (uint32_t e = first; e < first + result.outliers.counts[r]; e++)
            exact[r * COLS + (int)outliers_column(&result.outliers, e)] = true;
    }
    invert(h, inverse);
    for (int i = 0; i < ROWS * COLS; i++) w[i] = (double)p->w[i];
    int far = 0, n_exact = 0;
    for (int step = 0; step < COLS; step++) {
        int k = -1;
        for (int j = 0; j < COLS; j++)
            if (!done[j] && (k < 0 || h[j * COLS + j] > h[k * COLS + k])) k = j;
        done[k] = true;
        for (int r = 0; r < ROWS; r++) {
            double x = w[r * COLS + k];
            double want = exact[r * COLS + k] ? x : nearest(&result.view, r, k, x);
            /* An outlier is stored as fp16 of what it has beyond its code. */
            double slack = exact[r * COLS + k] ? 1e-3 * fabs(x) + 1e-4 : 1e-4 * fabs(x) + 1e-5;
            far += fabs(q[r * COLS + k] - want) > slack;
            n_exact += exact[r * COLS + k];
            double e = (x - q[r * COLS + k]) / inverse[k * COLS + k];
            for (int j = 0; j < COLS; j++)
                if (!done[j]) w[r * COLS + j] -= e * inverse[k * COLS + j];
        }
        for (int i = 0; i < COLS; i++)
            for (int j = 0; j < COLS; j++)
                if (!done[i] && !done[j])
                    inverse[i * COLS + j] -=
                        inverse[i * COLS + k] * inverse[k * COLS + j] / inverse[k * COLS + k];
    }
    cr_assert_eq(n_exact, ROWS * COLS / 100);
    /* The loop is in fp32: a weight between two levels may go either way. */
    cr_assert_leq(far, 3, "%d weights differ", far);
    layer_result_free(&result);
    free(p);
}

Test(outliers, threads_do_not_change_a_byte) {
    struct problem *p = problem_new(13);
    static double h[COLS * COLS];
    struct layer_options o = options_of(LAYER_GPTQT, BCQ_COMPACT, 3);
    o.refine = 1;
    struct layer_result one = quantize(p, &o, h);
    o.n_threads = 3;
    struct layer_result many = quantize(p, &o, h);
    cr_assert_eq(one.n_side, many.n_side);
    cr_assert_eq(memcmp(one.side, many.side, one.n_side), 0);
    cr_assert_eq(memcmp(one.block, many.block, one.n_bytes), 0);
    cr_assert(fabs(layer_bits_per_weight(&one) -
                   8.0 * (double)(one.n_side + one.n_bytes) / (ROWS * COLS)) < 1e-9);
    layer_result_free(&one);
    layer_result_free(&many);
    free(p);
}

Test(outliers, impossible_settings_are_refused) {
    struct layer_options o = options_of(LAYER_GPTQ, BCQ_FREE, 3);
    struct error err;
    cr_assert_eq(layer_check(&o, &err), 0);
    o.act_order = false;
    cr_assert_eq(layer_check(&o, &err), -EINVAL);
    cr_assert(strstr(err.text, "outliers"), "%s", err.text);
    o.act_order = true;
    o.outliers = 5.5;
    cr_assert_eq(layer_check(&o, &err), -EINVAL);
    o.outliers = NAN;
    cr_assert_eq(layer_check(&o, &err), -EINVAL);
}
