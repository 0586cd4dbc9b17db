#include "engine/quant/moments.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>

#include "engine/quant/linalg.h"
#include "tests/unit/engine/quant/support.h"

enum { WIDTH = 11, HIDDEN = 7, BATCH = 20, BATCHES = 3, TOKENS = BATCH * BATCHES };

struct data {
    float x[TOKENS * WIDTH], y[TOKENS * WIDTH], state[TOKENS * HIDDEN], original[TOKENS * HIDDEN];
};

static void fill(struct data *d) {
    uint64_t seed = 5;
    for (int i = 0; i < TOKENS * WIDTH; i++) {
        d->x[i] = (float)support_normal(&seed);
        d->y[i] = (float)support_normal(&seed);
    }
    for (int i = 0; i < TOKENS * HIDDEN; i++) d->state[i] = 3.0f * (float)support_normal(&seed);
    for (int i = 0; i < TOKENS * HIDDEN; i++) d->original[i] = 3.0f * (float)support_normal(&seed);
    /* One token as large as those that models keep attention sinks in. */
    for (int i = 0; i < HIDDEN; i++) d->state[i] *= 1000.0f;
    linalg_init();
}

static struct moments *sum(const struct data *d, enum moments_tokens tokens,
                           enum moments_reference reference) {
    struct moments_options o = {.width = {WIDTH, 0, 0, WIDTH},
                                .hidden = HIDDEN,
                                .max_tokens = BATCH,
                                .reference = reference,
                                .tokens = tokens,
                                .n_threads = 2};
    struct moments *m;
    cr_assert_eq(moments_new(&m, &o, NULL), 0);
    moments_clear(m);
    for (int b = 0; b < BATCHES; b++) {
        size_t at = (size_t)b * BATCH;
        for (int i = 0; i < INPUT_COUNT; i += INPUT_DOWN) {
            if (reference != MOMENTS_ALONE)
                moments_show(m, (enum calibrate_input)i, true, d->y + at * WIDTH, BATCH);
            moments_show(m, (enum calibrate_input)i, false, d->x + at * WIDTH, BATCH);
        }
        cr_assert_eq(moments_end_batch(m, d->state + at * HIDDEN, d->original + at * HIDDEN, NULL),
                     0);
    }
    cr_assert_eq(moments_finish(m, NULL), 0);
    return m;
}

static double weight_of(const struct data *d, int t) {
    double square = 0.0;
    for (int k = 0; k < HIDDEN; k++)
        square += (double)d->state[t * HIDDEN + k] * (double)d->state[t * HIDDEN + k];
    return HIDDEN / square;
}

static void check(const struct data *d, struct moments *m, enum calibrate_input input,
                  bool weighted) {
    int n;
    const double *h = moments_h(m, input, &n), *c = moments_cross(m, input);
    cr_assert_eq(n, WIDTH);
    for (int i = 0; i < WIDTH; i++) {
        for (int j = 0; j < WIDTH; j++) {
            double mass = 0.0, xx = 0.0, yx = 0.0;
            for (int t = 0; t < TOKENS; t++) {
                double v = weighted ? weight_of(d, t) : 1.0, x = (double)d->x[t * WIDTH + j];
                mass += v;
                xx += v * (double)d->x[t * WIDTH + i] * x;
                yx += v * (double)d->y[t * WIDTH + i] * x;
            }
            cr_assert(fabs(h[i * WIDTH + j] - xx / mass) < 1e-5, "H [%d, %d]", i, j);
            if (c) cr_assert(fabs(c[i * WIDTH + j] - yx / mass) < 1e-5, "C [%d, %d]", i, j);
        }
    }
}

Test(moments, are_weighted_means_of_products) {
    struct data d;
    fill(&d);
    for (int reference = 0; reference < 2; reference++) {
        for (int state = 0; state < 2; state++) {
            struct moments *m = sum(&d, state ? MOMENTS_BY_STATE : MOMENTS_EQUAL,
                                    reference ? MOMENTS_INPUTS : MOMENTS_ALONE);
            check(&d, m, INPUT_QKV, false);
            check(&d, m, INPUT_DOWN, state);
            cr_assert_eq(moments_cross(m, INPUT_QKV) != NULL, reference);
            moments_free(m);
        }
    }
}

Test(moments, of_states_are_what_the_coded_block_lacks) {
    struct data d;
    fill(&d);
    for (int state = 0; state < 2; state++) {
        struct moments *m = sum(&d, state ? MOMENTS_BY_STATE : MOMENTS_EQUAL, MOMENTS_STATES);
        const double *c = moments_cross(m, INPUT_DOWN);
        for (int i = 0; i < HIDDEN; i++) {
            for (int j = 0; j < WIDTH; j++) {
                double mass = 0.0, ex = 0.0;
                for (int t = 0; t < TOKENS; t++) {
                    double v = state ? weight_of(&d, t) : 1.0;
                    double e = (double)d.original[t * HIDDEN + i] - (double)d.state[t * HIDDEN + i];
                    mass += v;
                    ex += v * e * (double)d.x[t * WIDTH + j];
                }
                cr_assert(fabs(c[i * WIDTH + j] - ex / mass) < 1e-5 * (1.0 + fabs(ex / mass)),
                          "E [%d, %d]", i, j);
            }
        }
        check(&d, m, INPUT_QKV, false);
        moments_free(m);
    }
}

Test(moments, no_input_and_no_state_are_defined) {
    struct data d;
    int n;
    fill(&d);
    struct moments *m = sum(&d, MOMENTS_BY_STATE, MOMENTS_ALONE);
    moments_clear(m);
    cr_assert_eq(moments_finish(m, NULL), -EIO);
    /* A token whose state is zero counts nothing, rather than without limit. */
    for (int i = 0; i < HIDDEN; i++) d.state[5 * HIDDEN + i] = 0.0f;
    moments_free(m);
    m = sum(&d, MOMENTS_BY_STATE, MOMENTS_ALONE);
    const double *h = moments_h(m, INPUT_DOWN, &n);
    for (int i = 0; i < n * n; i++) cr_assert(isfinite(h[i]));
    moments_free(m);
}
