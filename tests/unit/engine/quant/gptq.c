#include "engine/quant/gptq.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/quant/grid.h"
#include "engine/quant/linalg.h"
#include "kernels/error.h"
#include "tests/unit/engine/quant/support.h"

/* As results.json of each case lists them. */
static const struct setting {
    const char *file;
    int bits, group; /* 0 = row */
    bool act;
} settings[] = {
    {"gptq-b2-grow", 2, 0, false},   {"gptq-b2-grow-act", 2, 0, true},
    {"gptq-b2-g128", 2, 128, false}, {"gptq-b2-g128-act", 2, 128, true},
    {"gptq-b3-grow", 3, 0, false},   {"gptq-b3-grow-act", 3, 0, true},
    {"gptq-b3-g128", 3, 128, false}, {"gptq-b3-g128-act", 3, 128, true},
    {"gptq-b4-grow", 4, 0, false},   {"gptq-b4-grow-act", 4, 0, true},
    {"gptq-b4-g128", 4, 128, false}, {"gptq-b4-g128-act", 4, 128, true},
};

static const char *const cases[] = {"w96x256", "w64x384", "w32x256-dead", "w16x256-few-samples"};

struct outcome { /* of one run of gptq_uniform() */
    uint8_t *codes;
    double *scales, *zeros, *loss, *q;
    int n_groups;
};

static struct outcome outcome_new(int rows, int cols, int group) {
    struct outcome o = {.n_groups = (cols + group - 1) / group};
    size_t n = (size_t)rows * (size_t)cols, n_grids = (size_t)rows * (size_t)o.n_groups;
    o.codes = calloc(n, 1);
    o.q = calloc(n, sizeof *o.q);
    o.scales = calloc(n_grids, sizeof *o.scales);
    o.zeros = calloc(n_grids, sizeof *o.zeros);
    o.loss = calloc((size_t)rows, sizeof *o.loss);
    cr_assert(o.codes && o.q && o.scales && o.zeros && o.loss);
    return o;
}

static void outcome_free(struct outcome *o) {
    free(o->codes);
    free(o->q);
    free(o->scales);
    free(o->zeros);
    free(o->loss);
}

static double *widened(const float *w, size_t n) {
    double *ret = malloc(n * sizeof *ret);
    cr_assert(ret);
    for (size_t i = 0; i < n; i++) ret[i] = w[i];
    return ret;
}

/* What the codes stand for; grid of a column = run of the permuted order it lies in. */
static void dequantize(struct outcome *o, const struct gptq_factor *f, int rows, int group) {
    for (int r = 0; r < rows; r++) {
        for (int j = 0; j < f->n; j++) {
            size_t at = (size_t)r * (size_t)f->n + (size_t)j;
            size_t g = (size_t)(r * o->n_groups + f->place[j] / group);
            o->q[at] = ((double)o->codes[at] - o->zeros[g]) * o->scales[g];
        }
    }
}

static int differing(const uint8_t *a, const uint8_t *b, size_t n) {
    int count = 0;
    for (size_t i = 0; i < n; i++) count += a[i] != b[i];
    return count;
}

static void expect_near(const double *got, const double *want, size_t n, const char *what) {
    for (size_t i = 0; i < n; i++)
        cr_assert(fabs(got[i] - want[i]) <= 1e-9 * (1.0 + fabs(want[i])), "%s[%zu] %.17g not %.17g",
                  what, i, got[i], want[i]);
}

static void check_setting(struct golden *g, const struct setting *s, int *n_checked) {
    char path[600];
    struct safetensors want;
    struct gptq_factor *f;
    struct error err;
    snprintf(path, sizeof path, "%s/%s.safetensors", g->folder, s->file);
    if (safetensors_open(&want, path, NULL) < 0) return;
    size_t n = (size_t)g->rows * (size_t)g->cols;
    struct gptq_options options = {.damp = 0.01, .act_order = s->act, .n_threads = 2};
    struct gptq_uniform uniform = {.bits = s->bits, .group = s->group ? s->group : g->cols};
    struct outcome o = outcome_new(g->rows, g->cols, uniform.group);
    double *w = widened(g->w, n);
    support_golden_reset(g);
    cr_assert_eq(gptq_factor_new(&f, g->h, g->cols, &options, &err), 0, "%s", err.text);
    cr_assert_eq(gptq_uniform(f, &uniform, w, g->rows, o.codes, o.scales, o.zeros, o.loss, &err),
                 0);
    const int32_t *perm = support_tensor(&want, "perm", (size_t)g->cols * sizeof *perm);
    cr_assert_eq(memcmp(perm, f->perm, (size_t)g->cols * sizeof *perm), 0, "%s: order", path);
    cr_assert_eq(differing(o.codes, support_tensor(&want, "codes", n), n), 0, "%s: codes", path);
    size_t n_grids = (size_t)g->rows * (size_t)o.n_groups;
    expect_near(o.scales, support_tensor(&want, "scales", n_grids * 8), n_grids, path);
    expect_near(o.zeros, support_tensor(&want, "zeros", n_grids * 8), n_grids, path);

    /* Dead columns count as 0 in the loop and lose nothing in the undamped H. */
    dequantize(&o, f, g->rows, uniform.group);
    double sum = 0.0;
    for (int r = 0; r < g->rows; r++) sum += o.loss[r];
    for (size_t i = 0; i < n; i++)
        if (f->dead[i % (size_t)g->cols]) w[i] = 0.0;
    float *zeroed = malloc(n * sizeof *zeroed);
    cr_assert(zeroed);
    for (size_t i = 0; i < n; i++) zeroed[i] = (float)w[i];
    double damped = support_loss(zeroed, o.q, g->h, g->rows, g->cols);
    cr_assert(fabs(sum - damped) <= 1e-9 * damped, "%s: identity %.12g %.12g", path, sum, damped);
    free(zeroed);
    free(w);
    outcome_free(&o);
    gptq_factor_free(f);
    safetensors_close(&want);
    ++*n_checked;
}

/* Order [group of 4 by sum][column by diagonal], worked out by hand. */
Test(gptq, whole_groups_go_by_falling_energy) {
    static const double diag[10] = {1, 2, 3, 4, 9, 1, 1, 1, 5, 5};
    static const int want[10] = {4, 5, 6, 7, 3, 2, 1, 0, 8, 9};
    double h[100] = {0};
    struct gptq_options options = {.act_order = true, .group = 4, .n_threads = 1};
    struct gptq_factor *f;
    for (int j = 0; j < 10; j++) h[j * 11] = diag[j];
    linalg_init();
    cr_assert_eq(gptq_factor_new(&f, h, 10, &options, NULL), 0);
    for (int k = 0; k < 10; k++) {
        cr_assert_eq(f->perm[k], want[k], "place %d: column %d", k, f->perm[k]);
        cr_assert_eq(f->place[want[k]], k);
    }
    gptq_factor_free(f);
}

Test(gptq, matches_every_golden_code) {
    int n_checked = 0;
    linalg_init();
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        struct golden g;
        if (!support_golden_open(&g, cases[c])) continue;
        for (size_t i = 0; i < sizeof settings / sizeof *settings; i++)
            check_setting(&g, &settings[i], &n_checked);
        support_golden_close(&g);
    }
    cr_assert_geq(n_checked, 12);
}

/* Loss in the undamped H, as results.json states it. */
Test(gptq, loss_matches_golden) {
    static const double want[][2] = {{2, 176.561986069352}, {2, 47.750057465195816}};
    struct golden g;
    linalg_init();
    cr_assert(support_golden_open(&g, "w96x256"));
    size_t n = (size_t)g.rows * (size_t)g.cols;
    double *w = widened(g.w, n), *h = malloc((size_t)g.cols * (size_t)g.cols * sizeof *h);
    cr_assert(h);
    memcpy(h, g.h, (size_t)g.cols * (size_t)g.cols * sizeof *h);
    for (int act = 0; act < 2; act++) {
        struct gptq_factor *f;
        struct gptq_options options = {.damp = 0.01, .act_order = act == 1, .n_threads = 1};
        struct gptq_uniform uniform = {.bits = (int)want[act][0], .group = g.cols};
        struct outcome o = outcome_new(g.rows, g.cols, g.cols);
        support_golden_reset(&g);
        cr_assert_eq(gptq_factor_new(&f, g.h, g.cols, &options, NULL), 0);
        cr_assert_eq(gptq_uniform(f, &uniform, w, g.rows, o.codes, o.scales, o.zeros, o.loss, NULL),
                     0);
        dequantize(&o, f, g.rows, g.cols);
        double loss = support_loss(g.w, o.q, h, g.rows, g.cols);
        cr_assert(fabs(loss / want[act][1] - 1.0) < 1e-6, "%.12g", loss);
        outcome_free(&o);
        gptq_factor_free(f);
    }
    free(h);
    free(w);
    support_golden_close(&g);
}

static void check_rtn(struct golden *g, int bits, int group, int *n_checked) {
    char path[600], name[16];
    struct safetensors want;
    snprintf(name, sizeof name, group ? "g%d" : "grow", group);
    snprintf(path, sizeof path, "%s/rtn-b%d-%s.safetensors", g->folder, bits, name);
    if (safetensors_open(&want, path, NULL) < 0) return;
    size_t n = (size_t)g->rows * (size_t)g->cols;
    const uint8_t *codes = support_tensor(&want, "codes", n);
    double *w = widened(g->w, n);
    int wrong = 0, width = group ? group : g->cols;
    for (int r = 0; r < g->rows; r++) {
        for (int first = 0; first < g->cols; first += width) {
            size_t at = (size_t)r * (size_t)g->cols + (size_t)first;
            struct grid grid = grid_minmax(w + at, (size_t)width, bits);
            for (int j = 0; j < width; j++)
                wrong += grid_code(&grid, w[at + (size_t)j]) != codes[at + (size_t)j];
        }
    }
    cr_assert_eq(wrong, 0, "%s", path);
    free(w);
    safetensors_close(&want);
    ++*n_checked;
}

Test(gptq, rounding_to_nearest_matches_golden) {
    int n_checked = 0;
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        struct golden g;
        if (!support_golden_open(&g, cases[c])) continue;
        for (int bits = 2; bits <= 4; bits++)
            for (int group = 0; group <= 128; group += 128) check_rtn(&g, bits, group, &n_checked);
        support_golden_close(&g);
    }
    cr_assert_geq(n_checked, 6);
}

/* Levels of static groups on the natural order, one set of 2^bits for every lane. */
static float *minmax_levels(const float *w, int rows, int cols, int group, int bits) {
    int n_groups = (cols + group - 1) / group, n_levels = 1 << bits;
    float *ret = calloc((size_t)n_groups * (size_t)n_levels * GPTQ_LANES, sizeof *ret);
    cr_assert(ret);
    for (int r = 0; r < rows; r++) {
        for (int g = 0; g < n_groups; g++) {
            double v[512];
            int size = cols - g * group < group ? cols - g * group : group;
            for (int j = 0; j < size; j++) v[j] = w[r * cols + g * group + j];
            struct grid grid = grid_minmax(v, (size_t)size, bits);
            for (int l = 0; l < n_levels; l++)
                ret[(g * n_levels + l) * GPTQ_LANES + r] = (float)grid_value(&grid, (unsigned)l);
        }
    }
    return ret;
}

Test(gptq, loop_loss_is_the_quadratic_form) {
    enum { ROWS = 33, COLS = 203, GROUP = 24, BITS = 3 };
    struct gptq_factor *f;
    struct gptq_options options = {.damp = 0.01, .act_order = true, .n_threads = 1};
    float *w = calloc(ROWS * COLS, sizeof *w), *lanes = calloc(COLS * GPTQ_LANES, sizeof *lanes);
    float *d = calloc(COLS * GPTQ_LANES, sizeof *d), *q = calloc(COLS * GPTQ_LANES, sizeof *q);
    double *h = calloc(COLS * COLS, sizeof *h), *back = calloc(ROWS * COLS, sizeof *back);
    uint8_t *rank = calloc(COLS * GPTQ_LANES, 1);
    double loss[GPTQ_LANES], sum = 0.0;
    int group_of[COLS];
    cr_assert(w && lanes && d && q && h && back && rank);
    linalg_init();
    support_problem(7, ROWS, COLS, w, h);
    cr_assert_eq(gptq_factor_new(&f, h, COLS, &options, NULL), 0);
    float *values = minmax_levels(w, ROWS, COLS, GROUP, BITS);
    for (int k = 0; k < COLS; k++) {
        group_of[k] = f->perm[k] / GROUP;
        for (int r = 0; r < ROWS; r++) lanes[k * GPTQ_LANES + r] = w[r * COLS + f->perm[k]];
    }
    struct gptq_levels levels = {1 << BITS, group_of, values, NULL};
    gptq_loop(f, &levels, lanes, d, q, rank, loss);
    for (int r = 0; r < ROWS; r++) {
        sum += loss[r];
        for (int k = 0; k < COLS; k++) back[r * COLS + f->perm[k]] = q[k * GPTQ_LANES + r];
    }
    double form = support_loss(w, back, h, ROWS, COLS);
    cr_assert(fabs(sum - form) <= 1e-5 * form, "%.9g %.9g", sum, form);
    gptq_factor_free(f);
    free(values);
    free(w);
    free(lanes);
    free(d);
    free(q);
    free(h);
    free(back);
    free(rank);
}

Test(gptq, nearest_level_is_the_lower_one_at_a_tie) {
    static const float rising[] = {-1.0f, -1.0f, 0.0f, 2.0f};
    float levels[4 * GPTQ_LANES], x[GPTQ_LANES], q[GPTQ_LANES];
    uint8_t rank[GPTQ_LANES];
    for (int l = 0; l < 4; l++)
        for (int i = 0; i < GPTQ_LANES; i++) levels[l * GPTQ_LANES + i] = rising[l];
    for (int i = 0; i < GPTQ_LANES; i++) x[i] = -2.0f + 0.125f * (float)i;
    x[63] = NAN;
    gptq_nearest(levels, 4, x, q, rank);
    cr_assert_eq(rank[0], 0);
    cr_assert_eq(q[8], -1.0f);
    cr_assert_eq(q[12], -1.0f, "halfway between -1 and 0");
    cr_assert_eq(q[13], 0.0f);
    cr_assert_eq(q[24], 0.0f, "halfway between 0 and 2");
    cr_assert_eq(rank[25], 3);
    cr_assert_eq(rank[63], 0, "not a number goes to the lowest level");
}

Test(gptq, refuses_what_is_not_finite) {
    double h[4] = {1.0, 0.0, 0.0, INFINITY};
    struct gptq_factor *f = NULL;
    struct gptq_options options = {.damp = 0.01};
    struct error err;
    linalg_init();
    cr_assert_lt(gptq_factor_new(&f, h, 2, &options, &err), 0);
    cr_assert_null(f);
    cr_assert(strstr(err.text, "finite"));
}

Test(gptq, raises_the_damping_of_a_singular_matrix) {
    /* Rank one, no damping asked for. */
    double h[9] = {1, 2, 3, 2, 4, 6, 3, 6, 9};
    struct gptq_factor *f;
    struct gptq_options options = {.damp = 0.0, .act_order = true, .n_threads = 1};
    linalg_init();
    cr_assert_eq(gptq_factor_new(&f, h, 3, &options, NULL), 0);
    cr_assert_gt(f->damping, 0.0);
    cr_assert_lt(f->damping, 0.1);
    cr_assert_eq(f->perm[0], 2);
    gptq_factor_free(f);
}
