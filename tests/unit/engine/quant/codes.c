#include "engine/quant/codes.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "engine/quant/additive.h"
#include "engine/quant/beam.h"
#include "engine/quant/layer.h"
#include "engine/quant/pack.h"
#include "engine/quant/strip.h"
#include "kernels/error.h"
#include "kernels/expand.h"
#include "tests/unit/engine/quant/support.h"

enum { ROWS = 5, MAX_N = 160 };

/* Rows under H with a free block whose scales are some for each group. */
struct bench {
    int n, bits, group;
    float w[ROWS * MAX_N];
    double h[MAX_N * MAX_N]; /* damped */
    float h32[MAX_N * MAX_N];
    int group_of[MAX_N];
    void *block;
    struct gptq_factor *factor;
    struct strip_problem problem;
    struct strip *strip;
};

static void set_levels(struct bench *b) {
    struct bcq_view *v = &b->problem.view;
    for (int row = 0; row < ROWS; row++) {
        for (int g = 0; g < v->layout.n_groups; g++) {
            struct pack_group group = {0};
            double sum = 0.0;
            int first = g * b->group, end = first + b->group < b->n ? first + b->group : b->n;
            for (int k = first; k < end; k++) sum += fabs((double)b->w[row * b->n + k]);
            float scale = (float)(sum / (end - first));
            for (int i = 0; i < b->bits; i++)
                group.alpha[i] = scale * ldexpf(1.0f, i) / (float)(1 << (b->bits - 1));
            group.bias = 0.05f * scale;
            pack_free(v, row, g, group.alpha, group.bias);
        }
    }
}

static void begin(struct bench *b, uint64_t seed, int n, int bits, int group) {
    struct error err;
    struct gptq_options options = {.damp = 0.01, .act_order = true, .n_threads = 1};
    struct bcq_spec spec = {
        .kind = BCQ_FREE, .rows = ROWS, .cols = n, .bits = bits, .group = group};
    struct bcq_layout layout;
    memset(b, 0, sizeof *b);
    b->n = n;
    b->bits = bits;
    b->group = group;
    support_problem(seed, ROWS, n, b->w, b->h);
    cr_assert_eq(gptq_factor_new(&b->factor, b->h, n, &options, &err), 0, "%s", err.text);
    const int *perm = b->factor->perm;
    for (int i = 0; i < n; i++) {
        b->group_of[i] = perm[i] / group;
        for (int j = 0; j < n; j++) b->h32[i * n + j] = (float)b->h[perm[i] * n + perm[j]];
    }
    bcq_layout(&layout, &spec);
    b->block = aligned_alloc(BCQ_ALIGN, (size_t)layout.total);
    cr_assert(b->block);
    memset(b->block, 0, (size_t)layout.total);
    b->problem = (struct strip_problem){.factor = b->factor, .h = b->h32, .group_of = b->group_of};
    bcq_format(&b->problem.view, b->block, &spec);
    set_levels(b);
    cr_assert_eq(strip_new(&b->strip, &b->problem, &err), 0);
    strip_load(b->strip, b->w, 0, ROWS);
    strip_levels(b->strip);
}

static void end(struct bench *b) {
    strip_free(b->strip);
    gptq_factor_free(b->factor);
    free(b->block);
}

static double row_loss(const struct bench *b, int row, const double *q) {
    return support_loss(b->w + row * b->n, q, b->h, 1, b->n);
}

/* Loss of what the block holds after strip_store(), in fp64. */
static double stored_loss(const struct bench *b, int row) {
    float out[MAX_N];
    double q[MAX_N];
    bcq_expand_row(&b->problem.view, row, out);
    for (int k = 0; k < b->n; k++) q[k] = (double)out[k];
    return row_loss(b, row, q);
}

static void find(struct bench *b, enum codes_search search, int width, double *loss) {
    struct codes_options o = {search, width};
    struct error err;
    set_levels(b);
    strip_levels(b->strip);
    cr_assert_eq(codes_find(b->strip, &o, &err), 0, "%s", err.text);
    strip_store(b->strip);
    for (int row = 0; row < ROWS; row++) loss[row] = stored_loss(b, row);
}

/* The least loss over all codes of a row of one group. */
static double brute_force(const struct bench *b, int row) {
    float value[1 << BCQ_MAX_BITS];
    double least = INFINITY, q[MAX_N];
    pack_values(&b->problem.view, row, 0, value);
    for (long all = 0; all < 1L << (b->bits * b->n); all++) {
        for (int k = 0; k < b->n; k++)
            q[k] = (double)value[all >> (k * b->bits) & ((1 << b->bits) - 1)];
        least = fmin(least, row_loss(b, row, q));
    }
    return least;
}

static void check_against_brute_force(int n, int bits, int width, bool is_exact) {
    static struct bench b;
    double loss[ROWS];
    for (uint64_t seed = 1; seed <= 6; seed++) {
        begin(&b, seed, n, bits, n);
        find(&b, CODES_BEAM, width, loss);
        for (int row = 0; row < ROWS; row++) {
            double least = brute_force(&b, row);
            cr_assert_geq(loss[row], least * (1.0 - 1e-5), "n %d bits %d", n, bits);
            if (is_exact)
                cr_assert_leq(loss[row], least * (1.0 + 1e-5), "n %d bits %d row %d: %g, not %g", n,
                              bits, row, loss[row], least);
        }
        end(&b);
    }
}

Test(codes, a_wide_beam_finds_the_best_of_all_codes) {
    check_against_brute_force(10, 1, 512, true);
    check_against_brute_force(7, 1, 64, true);
    check_against_brute_force(6, 2, 1024, true);
    check_against_brute_force(4, 3, 512, true);
}

Test(codes, no_beam_beats_brute_force) {
    check_against_brute_force(10, 1, 3, false);
    check_against_brute_force(8, 2, 2, false);
    check_against_brute_force(8, 2, 64, false);
}

/* The beam in fp64, one row, one assignment after the other, each with its own residuals. */
struct trail {
    double loss, w[MAX_N];
};

static int by_loss(const void *a, const void *b) {
    const struct trail *x = a, *y = b;
    return x->loss < y->loss ? -1 : x->loss > y->loss;
}

static double plain_beam(const struct bench *b, int row, int width) {
    int n = b->n, n_levels = 1 << b->bits, alive = 1;
    struct trail *now = malloc((size_t)width * sizeof *now);
    struct trail *next = malloc((size_t)(width * n_levels) * sizeof *next);
    cr_assert(now && next);
    now[0].loss = 0.0;
    for (int k = 0; k < n; k++) now[0].w[k] = (double)b->w[row * n + b->factor->perm[k]];
    for (int k = 0; k < n; k++) {
        float value[1 << BCQ_MAX_BITS];
        int count = 0;
        pack_values(&b->problem.view, row, b->group_of[k], value);
        for (int c = 0; c < alive; c++) {
            for (int l = 0; l < n_levels; l++) {
                double d = now[c].w[k] - (double)value[l];
                struct trail *t = &next[count++];
                *t = now[c];
                t->loss += d * d * b->factor->pivot[k];
                for (int j = k + 1; j < n; j++) t->w[j] -= d * (double)b->factor->v[j * n + k];
            }
        }
        qsort(next, (size_t)count, sizeof *next, by_loss);
        alive = count < width ? count : width;
        memcpy(now, next, (size_t)alive * sizeof *now);
    }
    double loss = now[0].loss;
    free(now);
    free(next);
    return loss;
}

Test(codes, long_rows_agree_with_a_plain_beam) {
    static struct bench b;
    static const int widths[] = {1, 2, 5, 8, 40};
    struct error err;
    begin(&b, 11, 150, 2, 16);
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++) {
        struct gptq_levels levels = {b.strip->n_levels, b.group_of, b.strip->values, NULL};
        double loss[GPTQ_LANES], loop[GPTQ_LANES];
        strip_nearest(b.strip); /* for the lanes without a row */
        for (int lane = 0; lane < GPTQ_LANES; lane++) loss[lane] = INFINITY;
        cr_assert_eq(beam_search(b.factor, &levels, b.strip->w, ROWS, widths[i], b.strip->q,
                                 b.strip->rank, loss, &err),
                     0);
        strip_codes(b.strip);
        strip_store(b.strip);
        for (int row = 0; row < ROWS; row++) {
            double plain = plain_beam(&b, row, widths[i]);
            cr_assert_float_eq(loss[row], plain, 0.02 * plain, "width %d: %g, not %g", widths[i],
                               loss[row], plain);
            cr_assert_float_eq(loss[row], stored_loss(&b, row), 1e-3 * loss[row],
                               "the loss is that of the codes");
        }
        gptq_loop(b.factor, &levels, b.strip->w, b.strip->d, b.strip->q, b.strip->rank, loop);
        for (int row = 0; row < ROWS; row++)
            if (widths[i] == 1) cr_assert_float_eq(loss[row], loop[row], 1e-6 * loop[row]);
    }
    end(&b);
}

Test(codes, every_search_is_no_worse_than_the_loop) {
    static struct bench b;
    double greedy[ROWS], loop[ROWS], cd[ROWS], beam[ROWS], additive[ROWS], sum[5] = {0};
    for (uint64_t seed = 21; seed <= 26; seed++) {
        begin(&b, seed, 130, 2, 32);
        find(&b, CODES_GREEDY, 8, greedy);
        find(&b, CODES_LOOP, 8, loop);
        find(&b, CODES_DESCENT, 8, cd);
        find(&b, CODES_BEAM, 8, beam);
        find(&b, CODES_ADDITIVE, 8, additive);
        for (int row = 0; row < ROWS; row++) {
            cr_assert_leq(cd[row], loop[row] * (1.0 + 1e-5));
            cr_assert_leq(beam[row], loop[row] * (1.0 + 1e-5));
            cr_assert_leq(additive[row], beam[row] * (1.0 + 1e-5));
            sum[0] += greedy[row];
            sum[1] += loop[row];
            sum[2] += cd[row];
            sum[3] += beam[row];
            sum[4] += additive[row];
        }
        end(&b);
    }
    cr_assert_lt(sum[1], 0.97 * sum[0]);
    cr_assert_lt(sum[2], 0.99 * sum[1]);
    cr_assert_lt(sum[3], 0.97 * sum[1]);
    cr_assert_lt(sum[4], 0.97 * sum[3]);
}

/* The least-squares scale and bias of one-bit codes under H, and their loss. */
static double best_fit(const struct bench *b, int row, const double *sign, double *alpha,
                       double *beta) {
    double a = 0, c = 0, d = 0, r = 0, s = 0, q[MAX_N];
    for (int i = 0; i < b->n; i++) {
        for (int j = 0; j < b->n; j++) {
            double h = b->h[i * b->n + j], w = (double)b->w[row * b->n + j];
            a += sign[i] * h * sign[j];
            c += sign[i] * h;
            d += h;
            r += sign[i] * h * w;
            s += h * w;
        }
    }
    double det = a * d - c * c;
    *alpha = det > 1e-9 * a * d ? (r * d - s * c) / det : 0.0;
    *beta = det > 1e-9 * a * d ? (a * s - c * r) / det : s / d;
    for (int k = 0; k < b->n; k++) q[k] = *alpha * sign[k] + *beta;
    return row_loss(b, row, q);
}

Test(codes, additive_codes_fit_their_scales_and_stay_above_the_optimum) {
    static struct bench b;
    double loss[ROWS], ratio = 0.0;
    int count = 0;
    for (uint64_t seed = 31; seed <= 36; seed++) {
        begin(&b, seed, 9, 1, 9);
        find(&b, CODES_ADDITIVE, 256, loss);
        for (int row = 0; row < ROWS; row++) {
            double sign[MAX_N], alpha, beta, least = INFINITY;
            float got[BCQ_MAX_BITS], bias, out[MAX_N];
            bcq_group_params(&b.problem.view, row, 0, got, &bias);
            bcq_expand_row(&b.problem.view, row, out);
            for (int k = 0; k < b.n; k++) sign[k] = out[k] > bias ? 1.0 : -1.0;
            double fitted = best_fit(&b, row, sign, &alpha, &beta);
            cr_assert_leq(loss[row], 1.01 * fitted, "scales fit: %g, not %g", loss[row], fitted);
            for (int all = 0; all < 1 << b.n; all++) {
                for (int k = 0; k < b.n; k++) sign[k] = all >> k & 1 ? 1.0 : -1.0;
                least = fmin(least, best_fit(&b, row, sign, &alpha, &beta));
            }
            cr_assert_geq(loss[row], 0.9999 * least);
            ratio += log(loss[row] / least);
            count++;
        }
        end(&b);
    }
    cr_assert_lt(ratio / count, log(2.0), "%g times the optimum of scales and codes",
                 exp(ratio / count));
}

Test(codes, what_does_not_go_together_is_refused) {
    static const struct {
        enum layer_method method;
        enum bcq_kind kind;
        enum codes_search search;
        int beam, refine;
        const char *words;
    } cases[] = {{LAYER_RTN, BCQ_FREE, CODES_BEAM, 8, 0, "rtn"},
                 {LAYER_BCQ, BCQ_FREE, CODES_GREEDY, 8, 0, "bcq"},
                 {LAYER_GPTQT, BCQ_COMPACT, CODES_ADDITIVE, 8, 0, "params free"},
                 {LAYER_GPTQT, BCQ_COMPACT, CODES_GREEDY, 8, 1, "refine"},
                 {LAYER_GPTQ, BCQ_FREE, CODES_GREEDY, 8, 0, "act-order"},
                 {LAYER_GPTQT, BCQ_COMPACT, CODES_BEAM, 1, 0, "beam"},
                 {LAYER_GPTQT, BCQ_COMPACT, CODES_BEAM, 1025, 0, "beam"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct layer_options o;
        struct error err;
        layer_defaults(&o);
        o.method = cases[i].method;
        o.kind = cases[i].kind;
        o.codes = (struct codes_options){cases[i].search, cases[i].beam};
        o.refine = cases[i].refine;
        o.act_order = o.method != LAYER_GPTQ;
        cr_assert_eq(layer_check(&o, &err), -EINVAL, "case %zu", i);
        cr_assert(strstr(err.text, cases[i].words), "case %zu: %s", i, err.text);
    }
}

/* Loss of a whole layer with outliers, from what is stored and in fp64. */
static double layer_loss(enum codes_search search, bool refine, int n, const float *w,
                         const double *h) {
    static double damped[MAX_N * MAX_N], q[ROWS * MAX_N];
    static float out[MAX_N];
    struct layer_options o;
    struct layer_input *in;
    struct layer_result result;
    struct error err;
    layer_defaults(&o);
    o.kind = BCQ_FREE;
    o.bits = 2;
    o.group = 32;
    o.outliers = 3.0;
    o.refine = refine;
    o.codes.search = search;
    memcpy(damped, h, sizeof damped);
    cr_assert_eq(layer_input_new(&in, damped, n, &o, &err), 0, "%s", err.text);
    cr_assert_eq(layer_quantize(&result, in, w, ROWS, &o, &err), 0, "%s", err.text);
    struct weight_view view = {
        .is_bcq = 1, .bcq = result.view, .rows = ROWS, .cols = n, .outliers = &result.outliers};
    for (int row = 0; row < ROWS; row++) {
        cr_assert_eq(weight_expand(&view, row, 1, out, NULL), 0);
        for (int k = 0; k < n; k++) q[row * n + k] = (double)out[k];
    }
    double loss = support_loss(w, q, damped, ROWS, n);
    cr_assert_float_eq(loss, result.loss, 1e-3 * loss);
    layer_result_free(&result);
    layer_input_free(in);
    return loss;
}

Test(codes, outliers_stay_outside_every_search) {
    static float w[ROWS * MAX_N];
    static double h[MAX_N * MAX_N];
    double sum[4] = {0};
    for (uint64_t seed = 41; seed <= 44; seed++) {
        support_problem(seed, ROWS, 120, w, h);
        sum[0] += layer_loss(CODES_LOOP, false, 120, w, h);
        sum[1] += layer_loss(CODES_BEAM, false, 120, w, h);
        sum[2] += layer_loss(CODES_BEAM, true, 120, w, h);
        sum[3] += layer_loss(CODES_ADDITIVE, false, 120, w, h);
    }
    for (int i = 1; i < 4; i++) cr_assert_lt(sum[i], 0.97 * sum[i == 3 ? 1 : i - 1], "%d", i);
}
