#include "engine/quant/codebook.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/error.h"
#include "tests/unit/engine/quant/support.h"

static struct codebook_set *new_set(int bits, int step_bits, int width) {
    struct codebook_set *set = NULL;
    struct error err;
    cr_assert_eq(codebook_set_new(&set, bits, step_bits, width, 65535, &err), 0, "%s", err.text);
    return set;
}

/* Weighted squared error of the best levels of a shape with this scale and bias. */
static double true_cost(const float *w, const float *h, int n, const uint8_t *d, int bits,
                        double scale, double bias) {
    double sum = 0.0;
    for (int k = 0; k < n; k++) {
        double least = INFINITY;
        for (int code = 0; code < 1 << bits; code++) {
            double level = bias;
            for (int i = 0; i < bits; i++)
                level += (code >> i & 1 ? 0.5 : -0.5) * scale * (double)d[i];
            double e = (double)w[k] - level;
            if (e * e < least) least = e * e;
        }
        sum += (double)h[k] * least;
    }
    return sum;
}

static void bounds(const float *w, int n, double *low, double *high) {
    *low = *high = w[0];
    for (int k = 1; k < n; k++) {
        if (w[k] < *low) *low = w[k];
        if (w[k] > *high) *high = w[k];
    }
}

/* The least cost of a shape (or of all, shape < 0) over every range factor and offset. */
static double brute_force(const struct codebook_set *set, const float *w, const float *h, int n,
                          int n_ranges, int shape) {
    double low, high, best = INFINITY;
    bounds(w, n, &low, &high);
    for (int p = 0; p < n_ranges; p++) {
        double factor = 0.35 + 0.81 * p / (n_ranges - 1), half = 0.5 * (high - low);
        double scale = 2.0 * factor * half / set->top;
        for (int c = 0; c < set->n_candidates; c++) {
            if (shape >= 0 && set->shape_of[c] != shape) continue;
            const uint8_t *d = set->shapes + set->shape_of[c] * set->bits;
            double sum = 0.0;
            for (int i = 0; i < set->bits; i++) sum += d[i];
            double bias = 0.5 * (low + high) - factor * half + scale * (set->offset[c] + 0.5 * sum);
            double cost = true_cost(w, h, n, d, set->bits, scale, bias);
            if (cost < best) best = cost;
        }
    }
    return best;
}

static void fill(uint64_t seed, float *w, float *h, int rows, int cols) {
    for (int i = 0; i < rows * cols; i++) w[i] = (float)(0.05 * support_normal(&seed));
    for (int j = 0; j < cols; j++) h[j] = (float)exp(support_normal(&seed));
}

Test(codebook, counts_are_those_of_the_enumeration) {
    /* Full lists: shapes, and shapes with offsets. The last two narrow ones have slack 2 and 3. */
    static const struct {
        int bits, step_bits, width, shapes, candidates;
    } want[] = {{2, 3, 256, 12, 34},    {2, 4, 256, 56, 308}, {3, 4, 256, 102, 441},
                {3, 5, 256, 865, 7225}, {4, 5, 256, 0, 0},    {3, 5, 16, 225, 440},
                {2, 4, 16, 26, 63}};
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        struct codebook_set *set = new_set(want[i].bits, want[i].step_bits, want[i].width);
        if (want[i].shapes) {
            cr_assert_eq(set->n_shapes, want[i].shapes, "case %zu: %d", i, set->n_shapes);
            cr_assert_eq(set->n_candidates, want[i].candidates, "case %zu", i);
        }
        for (int s = 0; s < set->n_shapes; s++) {
            int sum = 0;
            for (int b = 0; b < set->bits; b++) {
                int d = set->shapes[s * set->bits + b];
                cr_assert(d >= 1 && d <= BCQ_MAX_SHAPE);
                sum += d;
            }
            cr_assert_leq(sum, BCQ_MAX_SHAPE_SUM);
        }
        codebook_set_free(set);
    }
}

Test(codebook, search_equals_brute_force) {
    static const struct {
        int bits, step_bits, rows, cols, group;
    } cases[] = {{1, 3, 5, 40, 16}, {2, 4, 3, 64, 16},  {3, 5, 2, 48, 16}, {3, 4, 4, 50, 16},
                 {4, 5, 2, 35, 32}, {2, 4, 19, 48, 48}, {3, 5, 1, 16, 16}, {4, 6, 1, 40, 40}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int rows = cases[i].rows, cols = cases[i].cols, group = cases[i].group;
        int n_groups = (cols + group - 1) / group;
        struct codebook_set *set = new_set(cases[i].bits, cases[i].step_bits, group);
        float *w = calloc((size_t)(rows * cols), sizeof *w), *h = calloc((size_t)cols, sizeof *h);
        struct codebook_choice *got = calloc((size_t)(rows * n_groups), sizeof *got);
        cr_assert(w && h && got);
        fill(100 + i, w, h, rows, cols);
        struct codebook_query q = {
            .w = w, .h = h, .rows = rows, .cols = cols, .group = group, .n_ranges = 5};
        cr_assert_eq(codebook_search(set, &q, got, NULL), 0);
        for (int c = 0; c < rows * n_groups; c++) {
            int first = c % n_groups * group, n = cols - first < group ? cols - first : group;
            const float *x = w + c / n_groups * cols + first;
            double want = brute_force(set, x, h + first, n, 5, -1);
            double cost = true_cost(x, h + first, n, set->shapes + got[c].shape * set->bits,
                                    set->bits, got[c].scale, got[c].bias);
            /* fp32 sums may prefer a candidate that is worse by their rounding. */
            double rounding = 3e-6 * true_cost(x, h + first, n, set->shapes, 0, 0.0, 0.0);
            cr_assert(cost <= want * 1.0001 + rounding, "case %zu cell %d: %g not %g", i, c, cost,
                      want);
            cr_assert(fabs(cost - (double)got[c].cost) <= 1e-4 * cost + rounding);
        }
        free(w);
        free(h);
        free(got);
        codebook_set_free(set);
    }
}

/* Weights on a grid of powers of two: every sum is exact, so the argmin must be the true one. */
Test(codebook, search_is_exact_where_arithmetic_is) {
    uint64_t state = 3;
    struct codebook_set *set = new_set(2, 3, 16);
    for (int trial = 0; trial < 200; trial++) {
        float w[16], h[16];
        struct codebook_choice got;
        for (int k = 0; k < 16; k++) {
            w[k] = (float)(int)(support_uniform(&state) * 15.0);
            h[k] = (float)(1 + (int)(support_uniform(&state) * 3.0));
        }
        w[0] = 0.0f;
        w[1] = 14.0f;
        struct codebook_query q = {
            .w = w, .h = h, .rows = 1, .cols = 16, .group = 16, .n_ranges = 2};
        cr_assert_eq(codebook_search(set, &q, &got, NULL), 0);
        double want = brute_force(set, w, h, 16, 2, -1);
        double cost = true_cost(w, h, 16, set->shapes + got.shape * 2, 2, got.scale, got.bias);
        cr_assert(fabs(cost - want) <= 1e-5 * (1.0 + want), "trial %d: %g not %g", trial, cost,
                  want);
    }
    codebook_set_free(set);
}

Test(codebook, one_shape_minimizes_the_sum_over_the_row) {
    enum { ROWS = 3, COLS = 88, GROUP = 16, GROUPS = 6 };
    float w[ROWS * COLS], h[COLS];
    struct codebook_choice got[ROWS * GROUPS];
    struct codebook_set *set = new_set(2, 4, GROUP);
    fill(5, w, h, ROWS, COLS);
    struct codebook_query q = {.w = w,
                               .h = h,
                               .rows = ROWS,
                               .cols = COLS,
                               .group = GROUP,
                               .one_shape = true,
                               .n_ranges = 4};
    cr_assert_eq(codebook_search(set, &q, got, NULL), 0);
    for (int r = 0; r < ROWS; r++) {
        double least = INFINITY, cost = 0.0;
        for (int s = 0; s < set->n_shapes; s++) {
            double sum = 0.0;
            for (int g = 0; g < GROUPS; g++) {
                int n = COLS - g * GROUP < GROUP ? COLS - g * GROUP : GROUP;
                sum += brute_force(set, w + r * COLS + g * GROUP, h + g * GROUP, n, 4, s);
            }
            if (sum < least) least = sum;
        }
        for (int g = 0; g < GROUPS; g++) {
            cr_assert_eq(got[r * GROUPS + g].shape, got[r * GROUPS].shape);
            cost += (double)got[r * GROUPS + g].cost;
        }
        cr_assert(cost <= least * 1.001, "row %d: %g not %g", r, cost, least);
    }
    codebook_set_free(set);
}

Test(codebook, degenerate_groups_are_defined) {
    enum { COLS = 64 };
    float w[COLS], h[COLS];
    struct codebook_choice got[4], again[4];
    struct codebook_set *set = new_set(3, 5, 16);
    for (int j = 0; j < COLS; j++) h[j] = j < 48 ? 1.0f : 0.0f;
    for (int j = 0; j < 16; j++) w[j] = 0.0f;                  /* zero */
    for (int j = 16; j < 32; j++) w[j] = 0.7f;                 /* constant */
    for (int j = 32; j < 48; j++) w[j] = j % 2 ? 1.0f : -1.0f; /* two values */
    for (int j = 48; j < 64; j++) w[j] = 0.1f * (float)j;      /* no weight at all */
    struct codebook_query q = {.w = w, .h = h, .rows = 1, .cols = COLS, .group = 16, .n_ranges = 9};
    cr_assert_eq(codebook_search(set, &q, got, NULL), 0);
    cr_assert_eq(got[0].scale, 0.0f);
    cr_assert_eq(got[0].bias, 0.0f);
    cr_assert_eq(got[1].scale, 0.0f);
    cr_assert_eq(got[1].bias, 0.7f);
    cr_assert(got[2].cost < 2e-2f, "two values have levels of their own: %g", (double)got[2].cost);
    cr_assert(got[3].scale > 0.0f && isfinite(got[3].bias));
    cr_assert_eq(codebook_search(set, &q, again, NULL), 0);
    cr_assert_eq(memcmp(got, again, sizeof got), 0);
    codebook_set_free(set);
}

Test(codebook, outlier_does_not_waste_the_levels) {
    enum { COLS = 128 };
    float w[COLS], h[COLS];
    struct codebook_choice got;
    struct codebook_set *set = new_set(3, 5, COLS);
    fill(9, w, h, 1, COLS);
    w[17] = 1.0f; /* 20 deviations */
    h[17] = 1e-3f;
    struct codebook_query q = {
        .w = w, .h = h, .rows = 1, .cols = COLS, .group = COLS, .n_ranges = 9};
    cr_assert_eq(codebook_search(set, &q, &got, NULL), 0);
    double low, high;
    static const uint8_t uniform[] = {1, 2, 4};
    bounds(w, COLS, &low, &high);
    double plain = true_cost(w, h, COLS, uniform, 3, (high - low) / 7.0, 0.5 * (low + high));
    cr_assert((double)got.cost < 0.25 * plain, "%g, plain grid %g", (double)got.cost, plain);
    codebook_set_free(set);
}

Test(codebook, asymmetric_ranges_never_lose) {
    enum { COLS = 64 };
    float w[COLS], h[COLS];
    struct codebook_choice even, skewed;
    struct codebook_set *set = new_set(3, 5, COLS);
    fill(11, w, h, 1, COLS);
    for (int j = 0; j < COLS; j++) w[j] = (float)exp(20.0 * (double)w[j]);
    struct codebook_query q = {
        .w = w, .h = h, .rows = 1, .cols = COLS, .group = COLS, .n_ranges = 5};
    cr_assert_eq(codebook_search(set, &q, &even, NULL), 0);
    q.asymmetric = true;
    cr_assert_eq(codebook_search(set, &q, &skewed, NULL), 0);
    cr_assert_leq(skewed.cost, even.cost * 1.0001f);
    codebook_set_free(set);
}

Test(codebook, refuses_sets_out_of_range) {
    struct codebook_set *set = NULL;
    struct error err;
    cr_assert_eq(codebook_set_new(&set, 5, 6, 16, 256, &err), -EINVAL);
    cr_assert_eq(codebook_set_new(&set, 3, 2, 16, 256, &err), -EINVAL);
    cr_assert_eq(codebook_set_new(&set, 3, 7, 16, 256, &err), -EINVAL);
    cr_assert_eq(codebook_set_new(&set, 4, 6, 16, 256, &err), -EINVAL);
    cr_assert(strstr(err.text, "256"), "%s", err.text);
    cr_assert_null(set);
}
