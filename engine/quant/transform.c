/* Learned equivalent transformations. The grid form is s_j = rms(x_j)^a / rms(w_j)^b, the search of
 * AWQ (arXiv 2306.00978, section 3.2; a) with a second exponent (b), since columns that differ in
 * size fill a group's levels badly and the importance of inputs is in the weighted cost already.
 * The root mean square stands for the mean magnitude, as the moments hold it. The trained form
 * goes on from there, scale by scale (OmniQuant, 2308.13137, section 3.3). A candidate is judged by
 * coding the matrices with the column loop and measuring their output error on the undamped
 * moments, which no scaling changes, so candidates compare as they are. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/config.h"
#include "engine/quant/blockwise_state.h"
#include "engine/quant/fold.h"
#include "engine/train/gemm.h"
#include "kernels/error.h"
#include "kernels/expand.h"

/* A scaled input must lower the error by so much: less is noise of the calibration text. */
static const double least_gain = 0.005;
static const double step = 0.25;      /* of an exponent, up to 1 */
static const double first_rate = 0.3; /* of a training step on log s */
enum { STEPS = 8 };

struct exponents {
    double input, weight; /* of the root mean square of a column's inputs, and of its weights */
};

/* One input of the block, and copies that a candidate is tried on. */
struct place {
    struct blockwise *b;
    enum calibrate_input input;
    struct layer_options o;
    const double *h;    /* (n, n) undamped */
    int n, width;       /* columns; scales */
    double *h_try;      /* (n, n) */
    float *w_try;       /* the largest reader */
    float *error, *h32; /* (rows, n), (n, n) */
    float *s, *best;    /* (width) */
    double
        *share; /* twice (width): of the error that a scale's columns make, last tried and best */
    double *x_square, *w_square; /* (width) */
};

static void place_free(struct place *p) {
    free(p->h_try);
    free(p->w_try);
    free(p->error);
    free(p->h32);
    free(p->s);
    free(p->best);
    free(p->share);
    free(p->x_square);
    free(p->w_square);
}

/* Mean squares of the inputs and of the weights that share a scale. */
static void sum_squares(struct place *p) {
    const struct model_config *c = p->b->config;
    size_t n = (size_t)p->n;
    for (size_t k = 0; k < n; k++) p->x_square[fold_index(c, p->input, (int)k)] += p->h[k * n + k];
    for (int role = 0; role < ROLE_COUNT; role++) {
        int rows, cols;
        const float *w = p->b->now.linear[role];
        if (!w || calibrate_input_of((enum model_role)role) != p->input) continue;
        block_shape(p->b->block, (enum model_role)role, &rows, &cols);
        for (size_t i = 0; i < (size_t)rows * n; i++)
            p->w_square[fold_index(c, p->input, (int)(i % n))] += (double)w[i] * (double)w[i];
    }
}

static int place_init(struct place *p, struct error *err) {
    size_t n = (size_t)p->n, largest = 0;
    for (int role = 0; role < ROLE_COUNT; role++) {
        int rows, cols;
        if (calibrate_input_of((enum model_role)role) != p->input) continue;
        block_shape(p->b->block, (enum model_role)role, &rows, &cols);
        if ((size_t)rows * n > largest) largest = (size_t)rows * n;
    }
    p->h_try = malloc(n * n * sizeof *p->h_try);
    p->h32 = malloc(n * n * sizeof *p->h32);
    p->w_try = malloc(2 * largest * sizeof *p->w_try);
    p->error = malloc(largest * sizeof *p->error);
    p->s = malloc((size_t)p->width * sizeof *p->s);
    p->best = malloc((size_t)p->width * sizeof *p->best);
    p->share = calloc(2 * (size_t)p->width, sizeof *p->share);
    p->x_square = calloc((size_t)p->width, sizeof *p->x_square);
    p->w_square = calloc((size_t)p->width, sizeof *p->w_square);
    if (!p->h_try || !p->h32 || !p->w_try || !p->error || !p->s || !p->best || !p->x_square ||
        !p->w_square || !p->share)
        return error_set(err, -ENOMEM, "transform: out of memory");
    for (size_t i = 0; i < n * n; i++) p->h32[i] = (float)p->h[i];
    sum_squares(p);
    return 0;
}

/* Geometric mean 1, so that the norm keeps its size. Columns without inputs or weights get the
 * middle. */
static void make_scales(const struct place *p, struct exponents e, float *s) {
    double logs = 0.0;
    for (int i = 0; i < p->width; i++) s[i] = 1.0f;
    for (int i = 0; i < p->width; i++) {
        double x = p->x_square[i], w = p->w_square[i];
        double v = x > 0.0 && w > 0.0 ? 0.5 * (e.input * log(x) + e.weight * log(w)) : 0.0;
        logs += v;
        s[i] = (float)v;
    }
    for (int i = 0; i < p->width; i++)
        s[i] = (float)fmin(fmax(exp((double)s[i] - logs / p->width), 1e-3), 1e3);
}

static void scale_moments(const struct place *p, const float *s, double *h) {
    size_t n = (size_t)p->n;
    const struct model_config *c = p->b->config;
    for (size_t i = 0; i < n; i++) {
        double si = (double)s[fold_index(c, p->input, (int)i)];
        for (size_t j = 0; j < n; j++)
            h[i * n + j] = p->h[i * n + j] / si / (double)s[fold_index(c, p->input, (int)j)];
    }
}

/* Sum over the rows of e H e^T, e what the coded matrix is off seen from the unscaled input. */
static int matrix_error(struct place *p, const struct layer_input *in, enum model_role role,
                        const float *s, double *ret, struct error *err) {
    int rows, cols;
    block_shape(p->b->block, role, &rows, &cols);
    size_t n = (size_t)p->n, count = (size_t)rows * n;
    const float *w = p->b->now.linear[role];
    float *product = p->w_try + count;
    struct layer_result coded = {0};
    for (size_t i = 0; i < count; i++)
        p->w_try[i] = w[i] * s[fold_index(p->b->config, p->input, (int)(i % n))];
    int r = layer_quantize(&coded, in, p->w_try, rows, &p->o, err);
    if (r < 0) return r;
    struct weight_view view = layer_view(&coded);
    r = weight_expand(&view, 0, rows, p->error, err);
    for (int row = 0; r == 0 && row < rows; row++) {
        float *e = p->error + (size_t)row * n;
        for (size_t k = 0; k < n; k++)
            e[k] = (e[k] - p->w_try[(size_t)row * n + k]) /
                   s[fold_index(p->b->config, p->input, (int)k)];
    }
    gemm(GEMM_NN, rows, p->n, p->n, p->error, p->h32, 0.0f, product, p->o.n_threads);
    for (size_t i = 0; i < count; i++) {
        double part = (double)p->error[i] * (double)product[i];
        p->share[fold_index(p->b->config, p->input, (int)(i % n))] += part;
        *ret += part;
    }
    layer_result_free(&coded);
    return r;
}

static int input_error(struct place *p, const float *s, double *ret, struct error *err) {
    struct layer_input *in = NULL;
    *ret = 0.0;
    memset(p->share, 0, (size_t)p->width * sizeof *p->share);
    scale_moments(p, s, p->h_try);
    int r = layer_input_new(&in, p->h_try, p->n, &p->o, err);
    for (int role = 0; r == 0 && role < ROLE_COUNT; role++)
        if (p->b->now.linear[role] && calibrate_input_of((enum model_role)role) == p->input)
            r = matrix_error(p, in, (enum model_role)role, s, ret, err);
    layer_input_free(in);
    return r;
}

/* Climbs along one exponent from *best while the error falls enough. */
static int climb(struct place *p, struct exponents *best, struct exponents along, double *least,
                 struct error *err) {
    for (double at = step; at <= 1.0; at += step) {
        struct exponents e = {best->input + step * along.input, best->weight + step * along.weight};
        double error;
        make_scales(p, e, p->s);
        int r = input_error(p, p->s, &error, err);
        if (r < 0) return r;
        if (!(error < (1.0 - least_gain) * *least)) return 0;
        *least = error;
        *best = e;
    }
    return 0;
}

/* Clips and gives the geometric mean 1. */
static void settle(const struct place *p, float *s) {
    double logs = 0.0;
    for (int i = 0; i < p->width; i++) logs += log((double)s[i]) / p->width;
    for (int i = 0; i < p->width; i++)
        s[i] = (float)fmin(fmax((double)s[i] / exp(logs), 1e-3), 1e3);
}

/* Gradient steps on log s from *best. With what rounding adds on the grid held fixed (straight-
 * through), d error / d log s_j = -2 share_j; along a constant geometric mean that is share_j
 * against the mean share. The grid does move, so a step counts only when the error has fallen. */
static int train(struct place *p, double *least, struct error *err) {
    size_t width = (size_t)p->width;
    double rate = first_rate, error, *share = p->share + width;
    int r = input_error(p, p->best, &error, err);
    memcpy(share, p->share, width * sizeof *share);
    for (int i = 0; r == 0 && i < STEPS; i++) {
        double mean = error > 0.0 ? *least / p->width : 1.0;
        for (size_t k = 0; k < width; k++)
            p->s[k] = p->best[k] * (float)exp(rate * fmin(fmax(share[k] / mean - 1.0, -1.0), 1.0));
        settle(p, p->s);
        r = input_error(p, p->s, &error, err);
        if (r < 0) return r;
        if (!(error < *least)) {
            rate *= 0.5;
            continue;
        }
        *least = error;
        memcpy(p->best, p->s, width * sizeof *p->best);
        memcpy(share, p->share, width * sizeof *share);
    }
    return r;
}

/* Weights first: groups share scales, so columns of like size are coded best. Inputs after, which
 * pays where a method does not weigh its errors. */
static int search(struct place *p, bool *ret_found, struct error *err) {
    static const struct exponents by_weight = {0.0, -1.0}, by_input = {1.0, 0.0};
    struct exponents best = {0.0, 0.0};
    double least;
    make_scales(p, best, p->s);
    int r = input_error(p, p->s, &least, err);
    if (r == 0) r = climb(p, &best, by_weight, &least, err);
    if (r == 0) r = climb(p, &best, by_input, &least, err);
    *ret_found = best.input != 0.0 || best.weight != 0.0;
    make_scales(p, best, p->best);
    if (r < 0 || p->b->o->transform != TRANSFORM_TRAIN) return r;
    double before = least;
    r = train(p, &least, err);
    *ret_found = *ret_found || least < before;
    return r;
}

/* The block, its moments and the model go over to the scaled input. */
static int take(struct place *p, double *h, struct error *err) {
    struct blockwise *b = p->b;
    bool marks[VECTOR_COUNT] = {false};
    int r = 0;
    scale_moments(p, p->best, p->h_try);
    memcpy(h, p->h_try, (size_t)p->n * (size_t)p->n * sizeof *h);
    fold_apply(&b->now, b->config, p->input, p->best);
    fold_marks(&b->now, p->input, marks);
    for (int v = 0; r == 0 && v < VECTOR_COUNT; v++)
        if (marks[v]) r = blockwise_change(b, (enum model_vector)v, err);
    return r;
}

/* p->width is 0 where nothing can be folded; to be freed also when it fails. */
static int place_open(struct place *p, struct blockwise *b, enum calibrate_input input,
                      struct error *err) {
    *p = (struct place){.b = b, .input = input, .o = *b->layer_options};
    p->h = calibrate_moments(b->calibrate, input, &p->n);
    p->o.refine = p->o.explore = 0;
    p->o.codes.search = CODES_LOOP;
    p->width = fold_width(b->config, input);
    return p->width ? place_init(p, err) : 0;
}

int transform_error(struct blockwise *b, enum calibrate_input input, const float *s, double *ret,
                    double *share, struct error *err) {
    struct place p;
    int r = place_open(&p, b, input, err);
    if (r == 0) r = input_error(&p, s, ret, err);
    if (r == 0) memcpy(share, p.share, (size_t)p.width * sizeof *share);
    place_free(&p);
    return r;
}

static int transform_input(struct blockwise *b, enum calibrate_input input, struct error *err) {
    struct place p;
    bool found = false;
    int n, r = place_open(&p, b, input, err);
    if (r == 0 && p.width) r = search(&p, &found, err);
    if (r == 0 && found) r = take(&p, calibrate_moments(b->calibrate, input, &n), err);
    place_free(&p);
    return r;
}

int transform_block(struct blockwise *b, struct error *err) {
    int r = 0;
    for (int input = 0; r == 0 && input < INPUT_COUNT; input++)
        r = transform_input(b, (enum calibrate_input)input, err);
    return r < 0 ? error_prefix(err, r, "block %d", b->layer) : 0;
}
