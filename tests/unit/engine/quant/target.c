#include "engine/quant/target.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/quant/linalg.h"
#include "tests/unit/engine/quant/support.h"

enum { N = 40, TOKENS = 400, ROWS = 70 };

struct streams {
    double x[TOKENS][N], y[TOKENS][N];
    double h[N * N], cross[N * N];
    float w[ROWS * N];
};

/* x is y with noise and one direction bent, as blocks that were coded leave it. */
static struct streams *make_streams(double noise) {
    struct streams *s = calloc(1, sizeof *s);
    uint64_t seed = 77;
    cr_assert(s);
    for (int t = 0; t < TOKENS; t++)
        for (int k = 0; k < N; k++) s->y[t][k] = support_normal(&seed) * (1.0 + k % 5);
    for (int t = 0; t < TOKENS; t++)
        for (int k = 0; k < N; k++)
            s->x[t][k] = s->y[t][k] + noise * (support_normal(&seed) + 0.5 * s->y[t][(k + 1) % N]);
    for (int i = 0; i < N * N; i++) {
        for (int t = 0; t < TOKENS; t++) {
            s->h[i] += s->x[t][i / N] * s->x[t][i % N] / TOKENS;
            s->cross[i] += s->y[t][i / N] * s->x[t][i % N] / TOKENS;
        }
    }
    for (int i = 0; i < ROWS * N; i++) s->w[i] = (float)support_normal(&seed);
    linalg_init();
    return s;
}

static void apply_share(struct streams *s, float *w, double share, double ridge, int n_threads) {
    struct target *t;
    struct target_way way = {share, ridge};
    cr_assert_eq(target_new(&t, s->h, s->cross, N, &way, n_threads, NULL), 0);
    memcpy(w, s->w, sizeof s->w);
    cr_assert_eq(target_apply(t, w, ROWS, n_threads, NULL), 0);
    target_free(t);
}

static void apply(struct streams *s, float *w, double ridge, int n_threads) {
    apply_share(s, w, 1.0, ridge, n_threads);
}

Test(target, solves_the_normal_equations) {
    struct streams *s = make_streams(0.4);
    float w[ROWS * N], again[ROWS * N];
    double mean = 0.0;
    for (int k = 0; k < N; k++) mean += s->h[k * N + k] / N;
    apply(s, w, 0.05, 1);
    apply(s, again, 0.05, 3);
    cr_assert_eq(memcmp(w, again, sizeof w), 0);
    /* (W* - W) (H + ridge I) = W (C - H). */
    for (int r = 0; r < ROWS; r++) {
        for (int j = 0; j < N; j++) {
            double left = 0.0, right = 0.0;
            for (int k = 0; k < N; k++) {
                double h = s->h[k * N + j] + (j == k ? 0.05 * mean : 0.0);
                left += ((double)w[r * N + k] - (double)s->w[r * N + k]) * h;
                right += (double)s->w[r * N + k] * (s->cross[k * N + j] - s->h[k * N + j]);
            }
            cr_assert(fabs(left - right) < 1e-3, "[%d, %d]: %g, not %g", r, j, left, right);
        }
    }
    free(s);
}

static double miss(const struct streams *s, const float *w) {
    double sum = 0.0;
    for (int t = 0; t < TOKENS; t++) {
        for (int r = 0; r < ROWS; r++) {
            double e = 0.0;
            for (int k = 0; k < N; k++)
                e += (double)w[r * N + k] * s->x[t][k] - (double)s->w[r * N + k] * s->y[t][k];
            sum += e * e;
        }
    }
    return sum;
}

Test(target, brings_outputs_back) {
    struct streams *s = make_streams(0.4);
    float w[ROWS * N];
    apply(s, w, 0.01, 2);
    double before = miss(s, s->w), after = miss(s, w);
    cr_assert(after < 0.7 * before, "%g after %g", after, before);
    free(s);
}

Test(target, a_share_goes_that_part_of_the_way) {
    struct streams *s = make_streams(0.4);
    float whole[ROWS * N], part[ROWS * N];
    apply_share(s, whole, 1.0, 0.05, 1);
    apply_share(s, part, 0.25, 0.05, 2);
    for (int i = 0; i < ROWS * N; i++)
        cr_assert(fabsf(s->w[i] + 0.25f * (whole[i] - s->w[i]) - part[i]) < 1e-5f, "[%d]", i);
    free(s);
}

/* What the states lack is a matrix of its own, of which the target's inputs show a part. */
Test(target, states_move_weights_by_what_they_lack) {
    struct streams *s = make_streams(0.4);
    static double lack[ROWS * N];
    struct target_way way = {0.5, 0.05};
    struct target *t;
    uint64_t seed = 3;
    float w[ROWS * N];
    double mean = 0.0;
    for (int i = 0; i < ROWS * N; i++) lack[i] = support_normal(&seed);
    for (int k = 0; k < N; k++) mean += s->h[k * N + k] / N;
    cr_assert_eq(target_new_of_states(&t, s->h, lack, ROWS, N, &way, 2, NULL), 0);
    memcpy(w, s->w, sizeof w);
    cr_assert_eq(target_apply(t, w, ROWS, 2, NULL), 0);
    target_free(t);
    for (int r = 0; r < ROWS; r++) {
        for (int j = 0; j < N; j++) {
            double left = 0.0;
            for (int k = 0; k < N; k++) {
                double h = s->h[k * N + j] + (j == k ? 0.05 * mean : 0.0);
                left += ((double)w[r * N + k] - (double)s->w[r * N + k]) * h;
            }
            cr_assert(fabs(left - 0.5 * lack[r * N + j]) < 1e-3, "[%d, %d]", r, j);
        }
    }
    free(s);
}

Test(target, equal_streams_and_dead_inputs_move_nothing) {
    struct streams *s = make_streams(0.0);
    float w[ROWS * N];
    apply(s, w, 0.05, 2);
    for (int i = 0; i < ROWS * N; i++) cr_assert(fabsf(w[i] - s->w[i]) < 1e-5f);
    memset(s->h, 0, sizeof s->h);
    memset(s->cross, 0, sizeof s->cross);
    apply(s, w, 0.05, 2);
    cr_assert_eq(memcmp(w, s->w, sizeof w), 0);
    free(s);
}
