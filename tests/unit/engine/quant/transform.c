/* Learned input scales: the error and the slope that steps follow against sums in fp64, the rounding
 * held fixed; the search's scales against a walk over the same grid; less error after than before. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/config.h"
#include "engine/quant/fold.h"
#include "kernels/error.h"
#include "kernels/expand.h"
#include "tests/unit/engine/quant/block_rig.h"

enum { GRID = 5 /* exponents 0, 1/4, ..., 1 */ };

static const char model[] = "llama-bias";

static void begin(struct block_rig *r, enum blockwise_transform form) {
    *r = (struct block_rig){.o = {.transform = form}};
    layer_defaults(&r->layer);
    r->layer.bits = 2;
    r->layer.n_ranges = 4;
    block_rig_open(r, model, 1);
}

static double *copy_moments(struct block_rig *r, enum calibrate_input input, int *ret_n) {
    const double *h = calibrate_moments(r->calibrate, input, ret_n);
    size_t bytes = (size_t)*ret_n * (size_t)*ret_n * sizeof *h;
    double *copy = malloc(bytes);
    cr_assert(copy);
    memcpy(copy, h, bytes);
    return copy;
}

/* -- The error, the slow way ----------------------------------------------------------------- */

/* What coding adds to each weight of a matrix with scaled columns. */
struct rounding {
    int rows, cols;
    double *r; /* (rows, cols) */
};

struct problem {
    struct block_rig *rig;
    enum calibrate_input input;
    double *h; /* (n, n) */
    int n, width;
};

static struct problem problem_of(struct block_rig *r, enum calibrate_input input) {
    struct problem p = {.rig = r, .input = input, .width = fold_width(r->b->config, input)};
    p.h = copy_moments(r, input, &p.n);
    return p;
}

static int scale_of(const struct problem *p, int column) {
    return fold_index(p->rig->b->config, p->input, column);
}

static bool reads(const struct problem *p, int role) {
    return p->rig->b->original.linear[role] &&
           calibrate_input_of((enum model_role)role) == p->input;
}

static struct rounding round_matrix(const struct problem *p, int role, const float *s) {
    struct rounding k;
    struct layer_input *in;
    struct layer_result coded;
    struct error err;
    block_shape(p->rig->b->block, (enum model_role)role, &k.rows, &k.cols);
    size_t count = (size_t)k.rows * (size_t)k.cols;
    double *h = malloc((size_t)p->n * (size_t)p->n * sizeof *h);
    float *w = malloc(count * sizeof *w), *got = malloc(count * sizeof *got);
    k.r = malloc(count * sizeof *k.r);
    cr_assert(h && w && got && k.r);
    for (int i = 0; i < p->n; i++)
        for (int j = 0; j < p->n; j++)
            h[i * p->n + j] =
                p->h[i * p->n + j] / (double)s[scale_of(p, i)] / (double)s[scale_of(p, j)];
    for (size_t i = 0; i < count; i++)
        w[i] = p->rig->b->original.linear[role][i] * s[scale_of(p, (int)i % k.cols)];
    cr_assert_eq(layer_input_new(&in, h, p->n, &p->rig->layer, &err), 0, "%s", err.text);
    cr_assert_eq(layer_quantize(&coded, in, w, k.rows, &p->rig->layer, &err), 0, "%s", err.text);
    struct weight_view view = layer_view(&coded);
    cr_assert_eq(weight_expand(&view, 0, k.rows, got, &err), 0);
    for (size_t i = 0; i < count; i++) k.r[i] = (double)got[i] - (double)w[i];
    layer_result_free(&coded);
    layer_input_free(in);
    free(h);
    free(w);
    free(got);
    return k;
}

/* Sum over the rows of e h e^T with e = r / s. */
static double error_of(const struct problem *p, const struct rounding *k, const double *s) {
    double sum = 0.0;
    for (int row = 0; row < k->rows; row++)
        for (int i = 0; i < k->cols; i++) {
            double e = k->r[row * k->cols + i] / s[scale_of(p, i)], product = 0.0;
            for (int j = 0; j < k->cols; j++)
                product += p->h[i * p->n + j] * k->r[row * k->cols + j] / s[scale_of(p, j)];
            sum += e * product;
        }
    return sum;
}

/* The whole input's, with the codes that s itself leads to. */
static double judged(const struct problem *p, const float *s) {
    double sum = 0.0, *wide = malloc((size_t)p->width * sizeof *wide);
    cr_assert(wide);
    for (int i = 0; i < p->width; i++) wide[i] = (double)s[i];
    for (int role = 0; role < ROLE_COUNT; role++) {
        if (!reads(p, role)) continue;
        struct rounding k = round_matrix(p, role, s);
        sum += error_of(p, &k, wide);
        free(k.r);
    }
    free(wide);
    return sum;
}

/* -- Errors and slopes ----------------------------------------------------------------------- */

static void check_slopes(const struct problem *p, const float *s) {
    struct rounding k[ROLE_COUNT] = {{0}};
    struct error err;
    size_t width = (size_t)p->width;
    double error, want = 0.0, total = 0.0, *share = malloc(2 * width * sizeof *share);
    double *wide = share + width;
    cr_assert(share);
    for (size_t i = 0; i < width; i++) wide[i] = (double)s[i];
    cr_assert_eq(transform_error(p->rig->b, p->input, s, &error, share, &err), 0, "%s", err.text);
    for (int role = 0; role < ROLE_COUNT; role++) {
        if (!reads(p, role)) continue;
        k[role] = round_matrix(p, role, s);
        want += error_of(p, &k[role], wide);
    }
    cr_assert_float_eq(error, want, 1e-4 * want, "%g, not %g", error, want);
    for (size_t i = 0; i < width; i++) {
        double kept = wide[i], step = 1e-4, slope = 0.0;
        for (int sign = 1; sign >= -1; sign -= 2) {
            wide[i] = kept * exp(sign * step);
            for (int role = 0; role < ROLE_COUNT; role++)
                if (k[role].r) slope += sign * error_of(p, &k[role], wide) / (2.0 * step);
        }
        wide[i] = kept;
        total += share[i];
        cr_assert_float_eq(slope, -2.0 * share[i], 1e-3 * want / p->width, "scale %zu: %g, %g", i,
                           slope, share[i]);
    }
    cr_assert_float_eq(total, want, 1e-4 * want);
    for (int role = 0; role < ROLE_COUNT; role++) free(k[role].r);
    free(share);
}

Test(transform, steps_follow_the_slope_of_the_error_with_the_rounding_fixed) {
    struct block_rig r;
    begin(&r, TRANSFORM_TRAIN);
    for (int input = 0; input < INPUT_COUNT; input++) {
        struct problem p = problem_of(&r, (enum calibrate_input)input);
        float s[512];
        cr_assert(p.width > 0 && p.width <= 512);
        /* Heads that share values share scales. */
        cr_assert_eq(p.width, input == INPUT_O ? p.n / 2 : p.n);
        for (int i = 0; i < p.width; i++) s[i] = (float)exp(0.3 * sin(1.7 * i));
        check_slopes(&p, s);
        free(p.h);
    }
    block_rig_close(&r);
}

/* -- The search ------------------------------------------------------------------------------ */

/* rms(x)^a / rms(w)^b of what shares a scale, of geometric mean 1. */
static void scales_at(const struct problem *p, int a, int b, float *s) {
    double x[512] = {0}, w[512] = {0}, logs = 0.0;
    for (int k = 0; k < p->n; k++) x[scale_of(p, k)] += p->h[k * p->n + k];
    for (int role = 0; role < ROLE_COUNT; role++) {
        int rows, cols;
        if (!reads(p, role)) continue;
        block_shape(p->rig->b->block, (enum model_role)role, &rows, &cols);
        for (int i = 0; i < rows * cols; i++)
            w[scale_of(p, i % cols)] += pow((double)p->rig->b->original.linear[role][i], 2.0);
    }
    for (int i = 0; i < p->width; i++)
        logs += (0.125 * a * log(x[i]) - 0.125 * b * log(w[i])) / p->width;
    for (int i = 0; i < p->width; i++)
        s[i] = (float)exp(0.125 * a * log(x[i]) - 0.125 * b * log(w[i]) - logs);
}

/* Errors at every pair of exponents: of the inputs' size, of the weights'. */
static void judge_grid(const struct problem *p, double error[GRID][GRID]) {
    float s[512];
    for (int a = 0; a < GRID; a++)
        for (int b = 0; b < GRID; b++) {
            scales_at(p, a, b, s);
            error[a][b] = judged(p, s);
        }
}

/* Exponents of the weights first, then those of the inputs, each as far as it pays half a per cent. */
static void walk(double error[GRID][GRID], int *ret_a, int *ret_b) {
    int a = 0, b = 0;
    while (b + 1 < GRID && error[a][b + 1] < 0.995 * error[a][b]) b++;
    while (a + 1 < GRID && error[a + 1][b] < 0.995 * error[a][b]) a++;
    *ret_a = a;
    *ret_b = b;
}

/* The scales that a block went over to: what its columns were multiplied with. */
static void scales_taken(const struct problem *p, float *s) {
    const struct blockwise *b = p->rig->b;
    for (int role = 0; role < ROLE_COUNT; role++) {
        int rows, cols;
        if (!reads(p, role)) continue;
        block_shape(b->block, (enum model_role)role, &rows, &cols);
        for (int k = 0; k < cols; k++) {
            double now = 0.0, before = 0.0;
            for (int row = 0; row < rows; row++) {
                now += fabs((double)b->now.linear[role][row * cols + k]);
                before += fabs((double)b->original.linear[role][row * cols + k]);
            }
            s[scale_of(p, k)] = (float)(now / before);
        }
        return;
    }
}

/* Inputs whose makers have scaled outputs as well (V before O, UP before DOWN) are left out: their
 * weights are no longer the original's when it is their turn. */
static const enum calibrate_input inputs[] = {INPUT_QKV, INPUT_UP};

Test(transform, the_grid_is_walked_to_the_end_that_every_point_tells) {
    struct block_rig r;
    struct problem p[2];
    struct error err;
    int a, b, found = 0;
    begin(&r, TRANSFORM_GRID);
    for (int i = 0; i < 2; i++) p[i] = problem_of(&r, inputs[i]);
    cr_assert_eq(blockwise_transform(r.b, &err), 0, "%s", err.text);
    for (int i = 0; i < 2; i++) {
        double error[GRID][GRID];
        float want[512], got[512];
        judge_grid(&p[i], error);
        walk(error, &a, &b);
        scales_at(&p[i], a, b, want);
        scales_taken(&p[i], got);
        for (int k = 0; k < p[i].width; k++)
            cr_assert_float_eq(got[k], want[k], 1e-4 * (double)want[k], "input %d, scale %d", i, k);
        cr_assert_leq(error[a][b], error[0][0]);
        found += a + b > 0;
        free(p[i].h);
    }
    cr_assert_gt(found, 0, "nothing was worth scaling: choose another model");
    block_rig_close(&r);
}

Test(transform, training_lowers_the_error_further) {
    double errors[2][2];
    for (int form = 0; form < 2; form++) {
        struct block_rig r;
        struct error err;
        begin(&r, form ? TRANSFORM_TRAIN : TRANSFORM_GRID);
        struct problem p[2];
        for (int i = 0; i < 2; i++) p[i] = problem_of(&r, inputs[i]);
        cr_assert_eq(blockwise_transform(r.b, &err), 0, "%s", err.text);
        for (int i = 0; i < 2; i++) {
            float s[512];
            scales_taken(&p[i], s);
            errors[form][i] = judged(&p[i], s);
            free(p[i].h);
        }
        block_rig_close(&r);
    }
    for (int i = 0; i < 2; i++)
        cr_assert_lt(errors[1][i], 0.98 * errors[0][i], "%g, %g", errors[1][i], errors[0][i]);
}
