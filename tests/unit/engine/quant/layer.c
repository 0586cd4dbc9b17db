#include "engine/quant/layer.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/quant/linalg.h"
#include "kernels/error.h"
#include "kernels/float16.h"
#include "tests/unit/engine/quant/support.h"

struct problem {
    int rows, cols;
    float *w;
    double *h; /* damped by layer_input_new() */
};

static struct problem problem_new(uint64_t seed, int rows, int cols) {
    struct problem p = {rows, cols, NULL, NULL};
    p.w = malloc((size_t)(rows * cols) * sizeof *p.w);
    p.h = malloc((size_t)(cols * cols) * sizeof *p.h);
    cr_assert(p.w && p.h);
    support_problem(seed, rows, cols, p.w, p.h);
    linalg_init();
    return p;
}

static void problem_free(struct problem *p) {
    free(p->w);
    free(p->h);
}

/* Quantizes a fresh copy of H; the damped copy goes to ret_h (may be NULL). */
static struct layer_result run(const struct problem *p, const struct layer_options *o,
                               double *ret_h) {
    struct layer_result result;
    struct layer_input *in;
    struct error err;
    size_t n_bytes = (size_t)(p->cols * p->cols) * sizeof *p->h;
    double *h = malloc(n_bytes);
    cr_assert(h);
    memcpy(h, p->h, n_bytes);
    cr_assert_eq(layer_input_new(&in, h, p->cols, o, &err), 0, "%s", err.text);
    cr_assert_eq(layer_quantize(&result, in, p->w, p->rows, o, &err), 0, "%s", err.text);
    layer_input_free(in);
    if (ret_h) memcpy(ret_h, h, n_bytes);
    free(h);
    return result;
}

static double *expanded(const struct layer_result *result) {
    const struct bcq_view *v = &result->view;
    size_t cols = (size_t)v->spec.cols, rows = (size_t)v->spec.rows;
    double *q = malloc(rows * cols * sizeof *q);
    float *row = malloc(cols * sizeof *row);
    cr_assert(q && row);
    for (size_t r = 0; r < rows; r++) {
        bcq_expand_row(v, (int)r, row);
        for (size_t k = 0; k < cols; k++) q[r * cols + k] = (double)row[k];
    }
    free(row);
    return q;
}

/* The block parses, is canonical, and expands to what the reported loss is about. */
static void check_result(const struct problem *p, const struct layer_result *result,
                         const double *h, const char *what) {
    struct bcq_view view;
    struct error err;
    cr_assert_eq(bcq_parse(&view, result->block, result->n_bytes, &err), 0, "%s: %s", what,
                 err.text);
    for (int r = 0; r < p->rows; r++) {
        for (int g = 0; g < view.layout.n_groups; g++) {
            float alpha[BCQ_MAX_BITS], beta;
            bcq_group_params(&view, r, g, alpha, &beta);
            for (int i = 0; i < view.spec.bits; i++)
                cr_assert(alpha[i] >= (i ? alpha[i - 1] : 0.0f), "%s: scales rise from 0", what);
        }
    }
    double *q = expanded(result);
    double loss = support_loss(p->w, q, h, p->rows, p->cols);
    cr_assert(fabs(loss - result->loss) <= 1e-4 * loss + 1e-12, "%s: loss %.9g, reported %.9g",
              what, loss, result->loss);
    free(q);
}

static const struct {
    const char *name;
    enum layer_method method;
    enum bcq_kind kind;
} pairs[] = {
    {"rtn free", LAYER_RTN, BCQ_FREE},           {"rtn compact", LAYER_RTN, BCQ_COMPACT},
    {"rtn group", LAYER_RTN, BCQ_COMPACT_GROUP}, {"gptq free", LAYER_GPTQ, BCQ_FREE},
    {"gptq compact", LAYER_GPTQ, BCQ_COMPACT},   {"bcq free", LAYER_BCQ, BCQ_FREE},
    {"gptq-bcq free", LAYER_GPTQ_BCQ, BCQ_FREE}, {"gptqt free", LAYER_GPTQT, BCQ_FREE},
    {"gptqt compact", LAYER_GPTQT, BCQ_COMPACT}, {"gptqt group", LAYER_GPTQT, BCQ_COMPACT_GROUP},
};

enum { N_PAIRS = sizeof pairs / sizeof *pairs };

Test(layer, every_method_and_kind_gives_the_block_it_reports) {
    static const int groups[] = {16, 32, 128, 0};
    struct problem p = problem_new(3, 37, 150); /* ragged last groups, a part strip */
    double *h = malloc((size_t)(p.cols * p.cols) * sizeof *h);
    cr_assert(h);
    for (int i = 0; i < N_PAIRS; i++) {
        for (int bits = 1; bits <= 4; bits++) {
            for (int g = 0; g < 4; g++) {
                /* Fewer range factors: this test is about form, not quality. */
                struct layer_options o;
                layer_defaults(&o);
                o.method = pairs[i].method;
                o.kind = pairs[i].kind;
                o.bits = bits;
                o.group = groups[g];
                o.n_ranges = 3;
                o.act_order = g != 1;
                o.bcq_bias = g == 2;
                o.min_mse = g == 3;
                if (o.kind == BCQ_COMPACT_GROUP && groups[g] == 0 && bits == 4) continue;
                struct layer_result result = run(&p, &o, h);
                check_result(&p, &result, h, pairs[i].name);
                layer_result_free(&result);
            }
        }
    }
    free(h);
    problem_free(&p);
}

static double decibels(const struct problem *p, struct layer_options o) {
    struct layer_result result = run(p, &o, NULL);
    double ret = result.decibels;
    layer_result_free(&result);
    return ret;
}

Test(layer, methods_rank_as_they_should) {
    struct problem p = problem_new(11, 64, 256);
    struct layer_options o;
    layer_defaults(&o);
    for (int bits = 2; bits <= 3; bits++) {
        struct layer_options rtn = o, gptq = o, mse = o, bcq = o, best = o;
        rtn.bits = gptq.bits = mse.bits = bcq.bits = best.bits = bits;
        rtn.kind = gptq.kind = mse.kind = bcq.kind = best.kind = BCQ_FREE;
        rtn.group = gptq.group = mse.group = bcq.group = best.group = 64;
        rtn.method = LAYER_RTN;
        gptq.method = LAYER_GPTQ;
        mse.method = LAYER_GPTQ;
        mse.min_mse = true;
        bcq.method = LAYER_BCQ;
        double plain = decibels(&p, rtn), loop = decibels(&p, gptq), clipped = decibels(&p, mse);
        double alternating = decibels(&p, bcq), ours = decibels(&p, best);
        cr_assert(loop < plain - 3.0, "%d bits: loop %.2f, nearest %.2f dB", bits, loop, plain);
        cr_assert(clipped < loop + 0.3, "%d bits: clipped %.2f, min-max %.2f dB", bits, clipped,
                  loop);
        cr_assert(ours < clipped - 0.5, "%d bits: gptqt %.2f, grid %.2f dB", bits, ours, clipped);
        cr_assert(ours < alternating - 3.0, "%d bits: gptqt %.2f, bcq %.2f dB", bits, ours,
                  alternating);
    }
    problem_free(&p);
}

Test(layer, refinement_never_raises_the_loss) {
    struct problem p = problem_new(17, 40, 150);
    double *h = malloc((size_t)(p.cols * p.cols) * sizeof *h);
    cr_assert(h);
    for (int i = 0; i < N_PAIRS; i++) {
        struct layer_options o;
        double last = INFINITY;
        layer_defaults(&o);
        o.method = pairs[i].method;
        o.kind = pairs[i].kind;
        o.n_ranges = 4;
        for (o.refine = 0; o.refine <= 3; o.refine++) {
            struct layer_result result = run(&p, &o, h);
            check_result(&p, &result, h, pairs[i].name);
            cr_assert(result.loss <= last * 1.00001, "%s: round %d, %.6g after %.6g", pairs[i].name,
                      o.refine, result.loss, last);
            last = result.loss;
            layer_result_free(&result);
        }
    }
    free(h);
    problem_free(&p);
}

/* Variants are a prefix of one list and each row keeps its best: more of them never lose. */
Test(layer, exploring_more_never_raises_the_loss) {
    static const enum bcq_kind kinds[] = {BCQ_COMPACT, BCQ_COMPACT_GROUP, BCQ_FREE};
    struct problem p = problem_new(18, 70, 150);
    double *h = malloc((size_t)(p.cols * p.cols) * sizeof *h);
    cr_assert(h);
    for (int i = 0; i < 3; i++) {
        struct layer_options o;
        double first = INFINITY, last = INFINITY;
        layer_defaults(&o);
        o.kind = kinds[i];
        o.bits = 2;
        o.n_ranges = 4;
        for (o.explore = 1; o.explore <= 16; o.explore *= 4) {
            struct layer_result result = run(&p, &o, h);
            check_result(&p, &result, h, "explore");
            cr_assert(result.loss <= last * 1.000001, "%d variants: %g after %g", o.explore,
                      result.loss, last);
            last = result.loss;
            if (o.explore == 1) first = last;
            layer_result_free(&result);
        }
        cr_assert(last < 0.99 * first, "kind %d: %g after %g", kinds[i], last, first);
    }
    free(h);
    problem_free(&p);
}

Test(layer, refinement_is_worth_its_time) {
    struct problem p = problem_new(19, 64, 256);
    struct layer_options o;
    layer_defaults(&o);
    o.bits = 2;
    double plain = decibels(&p, o);
    o.refine = 2;
    double refined = decibels(&p, o);
    cr_assert(refined < plain - 0.3, "%.2f after %.2f dB", refined, plain);
    problem_free(&p);
}

Test(layer, threads_do_not_change_a_byte) {
    struct problem p = problem_new(23, 200, 96);
    struct layer_options o;
    layer_defaults(&o);
    o.refine = 1;
    o.explore = 4;
    struct layer_result one = run(&p, &o, NULL);
    for (o.n_threads = 2; o.n_threads <= 5; o.n_threads += 3) {
        struct layer_result many = run(&p, &o, NULL);
        cr_assert_eq(one.n_bytes, many.n_bytes);
        cr_assert_eq(memcmp(one.block, many.block, one.n_bytes), 0);
        cr_assert_eq(one.loss, many.loss);
        layer_result_free(&many);
    }
    layer_result_free(&one);
    problem_free(&p);
}

/* Rows: zero, constant, two values, one huge outlier, tiny values, nearly constant. */
static void spoil_rows(struct problem *p) {
    for (int j = 0; j < p->cols; j++) {
        p->w[j] = 0.0f;
        p->w[p->cols + j] = 0.25f;
        p->w[2 * p->cols + j] = j % 3 ? 0.5f : -0.5f;
        p->w[4 * p->cols + j] *= 1e-7f;
        p->w[5 * p->cols + j] = 1.0f + (j % 7 == 0 ? 1e-3f : 0.0f);
    }
    p->w[3 * p->cols + 40] = 1000.0f;
}

/* Columns 5 and 30 .. 49 (whole groups of 16 among them) no input ever used. */
static void kill_columns(struct problem *p) {
    for (int j = 0; j < p->cols; j++) {
        if (j != 5 && (j < 30 || j > 49)) continue;
        for (int i = 0; i < p->cols; i++) p->h[i * p->cols + j] = p->h[j * p->cols + i] = 0.0;
    }
}

Test(layer, degenerate_rows_and_columns_are_defined) {
    struct problem p = problem_new(29, 9, 80);
    spoil_rows(&p);
    kill_columns(&p);
    for (int i = 0; i < N_PAIRS; i++) {
        for (int bits = 1; bits <= 4; bits++) {
            struct layer_options o;
            layer_defaults(&o);
            o.method = pairs[i].method;
            o.kind = pairs[i].kind;
            o.bits = bits;
            o.n_ranges = 3;
            o.refine = bits == 2;
            o.explore = bits == 2 && o.method == LAYER_GPTQT ? 5 : 0;
            struct layer_result a = run(&p, &o, NULL), b = run(&p, &o, NULL);
            struct bcq_view view;
            cr_assert_eq(bcq_parse(&view, a.block, a.n_bytes, NULL), 0, "%s", pairs[i].name);
            cr_assert_eq(memcmp(a.block, b.block, a.n_bytes), 0, "%s: deterministic",
                         pairs[i].name);
            cr_assert(isfinite(a.loss) && isfinite(a.decibels));
            double *q = expanded(&a);
            for (int j = 0; j < p.cols; j++)
                cr_assert_eq(q[j], 0.0, "%s %d: a row of zeros stays zero", pairs[i].name, bits);
            for (int j = 0; j < p.rows * p.cols; j++) cr_assert(isfinite(q[j]));
            if (o.method == LAYER_GPTQT && o.kind == BCQ_FREE && o.refine == 0)
                for (int j = 64; j < 80; j++)
                    cr_assert_eq(q[p.cols + j], 0.25, "a constant is its bias");
            free(q);
            layer_result_free(&a);
            layer_result_free(&b);
        }
    }
    problem_free(&p);
}

Test(layer, singular_second_moments_still_work) {
    /* 10 samples for 64 columns. */
    struct problem p = problem_new(31, 8, 64);
    uint64_t state = 5;
    memset(p.h, 0, (size_t)(p.cols * p.cols) * sizeof *p.h);
    for (int s = 0; s < 10; s++) {
        double x[64];
        for (int j = 0; j < 64; j++) x[j] = support_normal(&state);
        for (int i = 0; i < 64; i++)
            for (int j = 0; j < 64; j++) p.h[i * 64 + j] += x[i] * x[j] / 10.0;
    }
    struct layer_options o;
    layer_defaults(&o);
    cr_assert_lt(decibels(&p, o), -15.0);
    o.damp = 0.0;
    cr_assert_lt(decibels(&p, o), -15.0, "the damping rises by itself");
    memset(p.h, 0, (size_t)(p.cols * p.cols) * sizeof *p.h);
    struct layer_result none = run(&p, &o, NULL);
    cr_assert_eq(none.energy, 0.0, "all columns dead: nothing to lose");
    layer_result_free(&none);
    problem_free(&p);
}

static int refusal(struct problem *p, float value, struct error *err) {
    struct layer_options o;
    struct layer_input *in;
    struct layer_result result = {0};
    float kept = p->w[7];
    layer_defaults(&o);
    cr_assert_eq(layer_input_new(&in, p->h, p->cols, &o, err), 0);
    p->w[7] = value;
    int r = layer_quantize(&result, in, p->w, p->rows, &o, err);
    p->w[7] = kept;
    cr_assert_null(result.block);
    layer_input_free(in);
    return r;
}

Test(layer, refuses_weights_that_cannot_be_stored) {
    struct problem p = problem_new(37, 4, 32);
    struct error err;
    cr_assert_eq(refusal(&p, NAN, &err), -EDOM);
    cr_assert(strstr(err.text, "row 0, column 7"), "%s", err.text);
    cr_assert_eq(refusal(&p, -INFINITY, &err), -EDOM);
    cr_assert_eq(refusal(&p, 1e6f, &err), -ERANGE);
    problem_free(&p);
}

Test(layer, check_names_the_option) {
    struct layer_options o;
    struct error err;
    layer_defaults(&o);
    cr_assert_eq(layer_check(&o, &err), 0);
    o.bits = 5;
    cr_assert_eq(layer_check(&o, &err), -EINVAL);
    layer_defaults(&o);
    o.method = LAYER_BCQ;
    cr_assert_eq(layer_check(&o, &err), -EINVAL);
    layer_defaults(&o);
    o.step_bits = 7;
    cr_assert_eq(layer_check(&o, &err), -EINVAL);
    cr_assert(strstr(err.text, "step bits"));
    layer_defaults(&o);
    o.damp = NAN;
    cr_assert_eq(layer_check(&o, &err), -EINVAL);
    layer_defaults(&o);
    o.bias_bits = 9;
    cr_assert_eq(layer_check(&o, &err), -EINVAL);
}

/* On the golden case the loop with static groups must be as good as the reference's. */
Test(layer, golden_case_is_not_worse_than_the_reference) {
    struct golden g;
    linalg_init();
    cr_assert(support_golden_open(&g, "w96x256"));
    struct problem p = {g.rows, g.cols, (float *)(uintptr_t)g.w, g.h};
    struct layer_options o;
    layer_defaults(&o);
    o.kind = BCQ_FREE;
    o.group = 0;
    struct layer_result result = run(&p, &o, NULL);
    /* 3 bits, one grid a row, act-order: results.json says 14.4 in the undamped H. */
    struct layer_options grid = o;
    grid.method = LAYER_GPTQ;
    struct layer_result plain = run(&p, &grid, NULL);
    cr_assert_lt(result.loss, 0.7 * plain.loss);
    layer_result_free(&plain);
    layer_result_free(&result);
    support_golden_close(&g);
}
