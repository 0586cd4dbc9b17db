#include "engine/quant/incoherence.h"

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

enum { ROWS = 72, COLS = 96 };

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

static double trace(const double *h) {
    double sum = 0.0;
    for (int i = 0; i < COLS; i++) sum += h[i * COLS + i];
    return sum;
}

/* Largest weight over the root of the mean square: what a shared grid has to span. */
static double peak(const float *w) {
    double most = 0.0, sum = 0.0;
    for (int i = 0; i < ROWS * COLS; i++) {
        most = fmax(most, fabs((double)w[i]));
        sum += (double)w[i] * (double)w[i];
    }
    return most / sqrt(sum / (ROWS * COLS));
}

Test(incoherence, the_loss_is_the_same_and_nothing_stands_out) {
    struct problem *p = problem_new(3);
    static double h[COLS * COLS], zero[ROWS * COLS];
    static float w[ROWS * COLS];
    struct incoherence *v, *u;
    cr_assert_eq(incoherence_new(&v, COLS, NULL), 0);
    cr_assert_eq(incoherence_new(&u, ROWS, NULL), 0);
    memcpy(h, p->h, sizeof h);
    p->w[17] = 60.0f;
    double energy = support_loss(p->w, zero, p->h, ROWS, COLS);
    cr_assert_eq(incoherence_moments(v, h, 2, NULL), 0);
    cr_expect(fabs(trace(h) - trace(p->h)) < 1e-9 * trace(h));
    for (int i = 0; i < COLS * COLS; i++)
        cr_assert_eq(h[i], h[i % COLS * COLS + i / COLS], "symmetric to the bit");
    double before = peak(p->w);
    for (int both = 0; both < 2; both++) {
        cr_assert_eq(incoherence_weights(v, both ? u : NULL, w, p->w, ROWS, 3, NULL), 0);
        double turned = support_loss(w, zero, h, ROWS, COLS);
        cr_expect(fabs(turned - energy) < 1e-5 * energy, "%g, was %g", turned, energy);
        cr_expect(peak(w) < (both ? 0.3 : 0.6) * before, "%d: %g, was %g", both, peak(w), before);
    }
    incoherence_free(v);
    incoherence_free(u);
    free(p);
}

static struct layer_result quantize(const struct problem *p, const struct layer_options *o) {
    static double h[COLS * COLS];
    struct layer_result result;
    struct layer_input *in;
    struct error err;
    memcpy(h, p->h, sizeof h);
    cr_assert_eq(layer_input_new(&in, h, COLS, o, &err), 0, "%s", err.text);
    cr_assert_eq(layer_quantize(&result, in, p->w, ROWS, o, &err), 0, "%s", err.text);
    layer_input_free(in);
    return result;
}

static struct layer_options options_of(enum layer_incoherence incoherence) {
    struct layer_options o;
    layer_defaults(&o);
    o.bits = 2;
    o.n_ranges = 4;
    o.incoherence = incoherence;
    return o;
}

/* In the natural basis, with the damping that the module added there: a rotation leaves a multiple
 * of the identity alone. */
Test(incoherence, the_reported_loss_is_that_of_the_stored_matrix) {
    struct problem *p = problem_new(5);
    static float dense[ROWS * COLS];
    static double q[ROWS * COLS], h[COLS * COLS];
    memcpy(h, p->h, sizeof h);
    for (int i = 0; i < COLS; i++) h[i * COLS + i] += 0.01 * trace(p->h) / COLS;
    for (int turn = LAYER_TURN_INPUT; turn <= LAYER_TURN_BOTH; turn++) {
        struct layer_options o = options_of((enum layer_incoherence)turn);
        for (o.refine = 0; o.refine < 2; o.refine++) {
            struct layer_result result = quantize(p, &o);
            struct weight_view view = layer_view(&result);
            struct rotation_view parsed;
            cr_assert_eq(rotation_parse(&parsed, result.turns, result.n_turns, NULL), 0);
            cr_assert_eq(parsed.out.n, turn == LAYER_TURN_BOTH ? ROWS : 0);
            cr_assert_eq(weight_expand(&view, 0, ROWS, dense, NULL), 0);
            for (int i = 0; i < ROWS * COLS; i++) q[i] = (double)dense[i];
            double loss = support_loss(p->w, q, h, ROWS, COLS);
            cr_assert(fabs(loss - result.loss) <= 1e-4 * loss, "%g, reported %g", loss,
                      result.loss);
            cr_assert_lt(result.decibels, -8.0);
            layer_result_free(&result);
        }
    }
    free(p);
}

/* One scale a row cannot serve rows with weights that stand out. */
Test(incoherence, rows_with_one_scale_gain) {
    struct problem *p = problem_new(9);
    for (int r = 0; r < ROWS; r++) p->w[r * COLS + r % COLS] *= 20.0f;
    struct layer_options o = options_of(LAYER_NATURAL);
    o.kind = BCQ_FREE;
    o.group = 0;
    struct layer_result natural = quantize(p, &o);
    o.incoherence = LAYER_TURN_BOTH;
    struct layer_result turned = quantize(p, &o);
    cr_expect_lt(turned.decibels, natural.decibels - 1.0, "%g, not turned %g", turned.decibels,
                 natural.decibels);
    layer_result_free(&natural);
    layer_result_free(&turned);
    free(p);
}

Test(incoherence, threads_do_not_change_a_byte) {
    struct problem *p = problem_new(13);
    struct layer_options o = options_of(LAYER_TURN_BOTH);
    struct layer_result one = quantize(p, &o);
    o.n_threads = 3;
    struct layer_result many = quantize(p, &o);
    cr_assert_eq(one.n_turns, many.n_turns);
    cr_assert_eq(memcmp(one.turns, many.turns, one.n_turns), 0);
    cr_assert_eq(memcmp(one.block, many.block, one.n_bytes), 0);
    double bits = 8.0 * (double)(one.n_turns + one.n_bytes) / (ROWS * COLS);
    cr_assert(fabs(layer_bits_per_weight(&one) - bits) < 1e-9);
    layer_result_free(&one);
    layer_result_free(&many);
    free(p);
}

Test(incoherence, what_cannot_be_is_refused) {
    struct layer_options o = options_of(LAYER_TURN_INPUT);
    struct layer_input *in = NULL;
    struct error err;
    o.outliers = 0.5;
    cr_assert_eq(layer_check(&o, &err), -EINVAL);
    cr_assert(strstr(err.text, "outliers"), "%s", err.text);
    o.outliers = 0.0;
    double *h = calloc((size_t)257 * 257, sizeof *h);
    cr_assert(h);
    cr_assert_eq(layer_input_new(&in, h, 257, &o, &err), -ENOTSUP);
    cr_assert(strstr(err.text, "257"), "%s", err.text);
    cr_assert_null(in);
    free(h);
}
