#include "engine/quant/pow2_fit.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/pow2.h"
#include "tests/support/matrix.h"

static void *block_of(struct bcq_view *v, const struct bcq_spec *s) {
    struct bcq_layout l;
    bcq_layout(&l, s);
    void *block = aligned_alloc(BCQ_ALIGN, (size_t)l.total);
    cr_assert(block);
    memset(block, 0, (size_t)l.total);
    bcq_format(v, block, s);
    return block;
}

static double nearest_error(const struct bcq_view *v, int group, const float *w, const float *h,
                            int n) {
    float alpha[BCQ_MAX_BITS], beta;
    double sum = 0;
    bcq_group_params(v, 0, group, alpha, &beta);
    for (int k = 0; k < n; k++) {
        double least = INFINITY;
        for (int code = 0; code < 1 << v->spec.bits; code++) {
            double x = (double)beta - (double)w[k];
            for (int i = 0; i < v->spec.bits; i++)
                x += code >> i & 1 ? (double)alpha[i] : -(double)alpha[i];
            least = fmin(least, x * x);
        }
        sum += (double)h[k] * least;
    }
    return sum;
}

static double row_error(const struct bcq_view *v, const float *w, const float *h) {
    double sum = 0;
    for (int g = 0; g < v->layout.n_groups; g++) {
        int first = g * v->spec.group, rest = v->spec.cols - first;
        sum +=
            nearest_error(v, g, w + first, h + first, rest < v->spec.group ? rest : v->spec.group);
    }
    return sum;
}

/* One plane, one group: every scale and offset that powers of two can be, even far from what is there. */
Test(pow2_fit, one_bit_is_as_good_as_trying_everything) {
    const struct bcq_spec s = {BCQ_COMPACT, 1, 16, 1, 16, 4, 5, 0};
    struct bcq_view v;
    void *block = block_of(&v, &s);
    uint64_t seed = 9;
    double ours = 0, all = 0;
    for (int turn = 0; turn < 200; turn++) {
        float w[16], h[16];
        for (int k = 0; k < 16; k++) {
            w[k] = matrix_normal(&seed) + 0.3f * (float)(turn % 5 - 2);
            h[k] = 0.1f + fabsf(matrix_normal(&seed));
        }
        cr_assert_eq(pow2_fit_row(&v, 0, w, h, NULL), 0);
        cr_assert(pow2_ready(&v));
        ours += row_error(&v, w, h);
        double best = INFINITY;
        for (int e = -8; e <= 4; e++)
            for (int b = -16; b <= 32; b++) {
                double alpha = ldexp(1, e), beta = b == -16 ? 0 : ldexp(b % 2 ? 1 : -1, b / 2 - 8);
                double sum = 0;
                for (int k = 0; k < 16; k++) {
                    double x = (double)w[k] - beta;
                    sum += (double)h[k] * pow(fabs(x) - alpha, 2);
                }
                best = fmin(best, sum);
            }
        all += best;
    }
    cr_expect(ours <= 1.05 * all, "%g of %g", ours, all);
    free(block);
}

Test(pow2_fit, a_row_of_powers_of_two_is_found_again) {
    const struct bcq_spec s = {BCQ_COMPACT, 1, 40, 3, 16, 4, 5, 0};
    struct bcq_view v;
    void *block = block_of(&v, &s);
    float w[40], h[40];
    static const float scale[] = {0.25f, 0.5f, 1.0f}, bias[] = {0.0f, 0.5f, -1.0f};
    for (int k = 0; k < 40; k++) {
        int code = k % 8;
        float level =
            -3.5f + (float)(code & 1) + 2.0f * (float)(code >> 1 & 1) + 4.0f * (float)(code >> 2);
        w[k] = bias[k / 16] + scale[k / 16] * level;
        h[k] = 1.0f + (float)(k % 3);
    }
    cr_assert_eq(pow2_fit_row(&v, 0, w, h, NULL), 0);
    cr_expect(pow2_ready(&v));
    cr_expect(row_error(&v, w, h) < 1e-9, "%g", row_error(&v, w, h));
    free(block);
}

Test(pow2_fit, odd_rows_stay_powers_of_two) {
    static const struct bcq_spec specs[] = {{BCQ_COMPACT, 1, 33, 2, 16, 4, 5, 0},
                                            {BCQ_COMPACT, 1, 33, 4, 33, 1, 2, 0},
                                            {BCQ_COMPACT, 1, 64, 3, 16, 8, 8, 0}};
    for (int i = 0; i < 3; i++)
        for (int what = 0; what < 5; what++) {
            struct bcq_view v;
            void *block = block_of(&v, &specs[i]);
            uint64_t seed = 2;
            float w[64], h[64];
            for (int k = 0; k < 64; k++) {
                w[k] = matrix_normal(&seed);
                if (what == 1) w[k] = 0;
                if (what == 2) w[k] = k < 16 ? 0.0f : 0.5f;
                if (what == 3) w[k] *= k == 5 ? 60000.0f : 1e-6f;
                if (what == 4) w[k] *= 1e-7f;
                h[k] = what == 2 && k < 32 ? 0.0f : 1.0f;
            }
            cr_assert_eq(pow2_fit_row(&v, 0, w, h, NULL), 0);
            cr_expect(pow2_ready(&v), "spec %d, case %d", i, what);
            double error = row_error(&v, w, h), size = 0;
            for (int k = 0; k < specs[i].cols; k++) size += (double)h[k] * pow((double)w[k], 2);
            cr_expect(error <= size + 1e-12, "spec %d, case %d: %g of %g", i, what, error, size);
            free(block);
        }
}
