#include "engine/quant/linalg.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/quant/parallel.h"
#include "tests/unit/engine/quant/support.h"

/* Sizes on either side of a tile of 256. */
static const int sizes[] = {1, 2, 37, 255, 256, 257, 530};

enum { N_SIZES = sizeof sizes / sizeof *sizes };

static double *positive_definite(uint64_t seed, int n) {
    double *h = calloc((size_t)(n * n), sizeof *h);
    float *x = malloc((size_t)(n * (n + 20)) * sizeof *x);
    cr_assert(h && x);
    for (int i = 0; i < n * (n + 20); i++) x[i] = (float)support_normal(&seed);
    cr_assert_eq(linalg_gram_add(h, x, (size_t)(n + 20), n, 2, NULL), 0);
    linalg_symmetrize(h, n, 1.0 / (n + 20));
    for (int i = 0; i < n; i++) h[i * n + i] += 0.01;
    free(x);
    return h;
}

Test(linalg, gram_is_the_sum_of_outer_products) {
    linalg_init();
    for (int s = 0; s < N_SIZES; s++) {
        int n = sizes[s], rows = 600; /* more than one part of LINALG_GRAM_ROWS */
        uint64_t state = 5;
        double *h = calloc((size_t)(n * n), sizeof *h);
        float *x = malloc((size_t)(rows * n) * sizeof *x);
        cr_assert(h && x);
        for (int i = 0; i < rows * n; i++) x[i] = (float)support_normal(&state);
        for (int part = 0; part < 2; part++)
            cr_assert_eq(linalg_gram_add(h, x, (size_t)rows, n, 2, NULL), 0);
        linalg_symmetrize(h, n, 0.5);
        for (int i = 0; i < n; i += 1 + n / 17) {
            for (int j = 0; j < n; j += 1 + n / 13) {
                double sum = 0.0;
                for (int r = 0; r < rows; r++) sum += (double)x[r * n + i] * (double)x[r * n + j];
                cr_assert(fabs(h[i * n + j] - sum) < 1e-3, "%d: [%d, %d]", n, i, j);
                cr_assert_eq(h[i * n + j], h[j * n + i]);
            }
        }
        free(h);
        free(x);
    }
}

Test(linalg, cross_products_and_division) {
    linalg_init();
    for (int s = 0; s < N_SIZES; s++) {
        int n = sizes[s], rows = 600, m = n / 2 + 3 * (s % 2) + 1; /* above and below n */
        uint64_t state = 6;
        double *c = calloc((size_t)(m * n), sizeof *c), *a = malloc((size_t)(m * n) * sizeof *a);
        double *h = positive_definite((uint64_t)n, n);
        float *x = malloc((size_t)(rows * n) * sizeof *x);
        float *y = malloc((size_t)(rows * m) * sizeof *y);
        cr_assert(a && c && x && y);
        for (int i = 0; i < rows * n; i++) x[i] = (float)support_normal(&state);
        for (int i = 0; i < rows * m; i++) y[i] = (float)support_normal(&state);
        cr_assert_eq(linalg_cross_add(c, y, m, x, n, (size_t)rows, 2, NULL), 0);
        memcpy(a, c, (size_t)(m * n) * sizeof *a);
        cr_assert_eq(linalg_divide(a, m, h, n, 2, NULL), 0);
        for (int i = 0; i < m; i += 1 + m / 17) {
            for (int j = 0; j < n; j += 1 + n / 13) {
                double sum = 0.0, back = 0.0;
                for (int r = 0; r < rows; r++) sum += (double)y[r * m + i] * (double)x[r * n + j];
                for (int k = 0; k < n; k++) back += a[i * n + k] * h[k * n + j];
                cr_assert(fabs(c[i * n + j] - sum) < 1e-3, "%d: [%d, %d]", n, i, j);
                cr_assert(fabs(back - c[i * n + j]) < 1e-6, "%d: [%d, %d] / h", n, i, j);
            }
        }
        free(a);
        free(c);
        free(h);
        free(x);
        free(y);
    }
}

Test(linalg, factor_squares_to_the_inverse) {
    linalg_init();
    for (int s = 0; s < N_SIZES; s++) {
        int n = sizes[s];
        double *h = positive_definite((uint64_t)n, n), *u = malloc((size_t)(n * n) * sizeof *u);
        double *hu = malloc((size_t)n * sizeof *hu), *used = positive_definite((uint64_t)n, n);
        cr_assert(u && hu);
        cr_assert_eq(linalg_inverse_factor(u, used, n, 2, NULL), 0);
        /* u h u^T = 1. */
        for (int i = 0; i < n; i += 1 + n / 29) {
            for (int k = 0; k < n; k++) {
                hu[k] = 0.0;
                for (int j = 0; j < n; j++) hu[k] += u[i * n + j] * h[j * n + k];
            }
            for (int j = 0; j < n; j++) {
                double sum = 0.0;
                for (int k = 0; k < n; k++) sum += hu[k] * u[j * n + k];
                cr_assert(fabs(sum - (i == j)) < 1e-8, "%d: [%d, %d] %g", n, i, j, sum);
                if (j < i) cr_assert_eq(u[i * n + j], 0.0);
            }
        }
        free(h);
        free(used);
        free(u);
        free(hu);
    }
}

Test(linalg, threads_do_not_change_a_bit) {
    enum { N = 700 };
    linalg_init();
    double *one = malloc(sizeof(double) * N * N), *many = malloc(sizeof(double) * N * N);
    double *h = positive_definite(9, N);
    cr_assert(one && many);
    double *again = positive_definite(9, N);
    cr_assert_eq(linalg_inverse_factor(one, h, N, 1, NULL), 0);
    cr_assert_eq(linalg_inverse_factor(many, again, N, 4, NULL), 0);
    free(again);
    cr_assert_eq(memcmp(one, many, sizeof(double) * N * N), 0);
    free(one);
    free(many);
    free(h);
}

Test(linalg, refuses_what_has_no_factor) {
    double h[9] = {1, 2, 0, 2, 1, 0, 0, 0, 1}, u[9];
    linalg_init();
    cr_assert_eq(linalg_inverse_factor(u, h, 3, 1, NULL), -EDOM);
}

Test(linalg, small_systems_are_solved) {
    uint64_t state = 3;
    for (int n = 1; n <= LINALG_SMALL; n++) {
        double a[64], kept[64], b[8], x[8];
        for (int i = 0; i < n; i++) {
            for (int j = 0; j <= i; j++)
                kept[i * n + j] = kept[j * n + i] = support_normal(&state) + (i == j) * 20.0;
            x[i] = support_normal(&state);
        }
        for (int i = 0; i < n; i++) {
            b[i] = 0.0;
            for (int j = 0; j < n; j++) b[i] += kept[i * n + j] * x[j];
        }
        memcpy(a, kept, sizeof a);
        cr_assert(linalg_solve_small(a, b, n));
        for (int i = 0; i < n; i++) cr_assert_float_eq(b[i], x[i], 1e-9);
    }
    double singular[4] = {1, 1, 1, 1}, b[2] = {1, 1};
    cr_assert_not(linalg_solve_small(singular, b, 2));
}

static void count_piece(void *arg, size_t index) { ((int *)arg)[index]++; }

Test(linalg, parallel_for_does_each_piece_once) {
    int counts[1000] = {0};
    for (int threads = 1; threads <= 8; threads++) {
        parallel_for(threads, 1000, count_piece, counts);
        parallel_for(threads, 0, count_piece, counts);
    }
    for (int i = 0; i < 1000; i++) cr_assert_eq(counts[i], 8);
    cr_assert_geq(parallel_threads(0), 1);
    cr_assert_eq(parallel_threads(3), 3);
}
