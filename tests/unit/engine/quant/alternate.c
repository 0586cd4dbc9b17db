#include "engine/quant/alternate.h"

#include <criterion/criterion.h>
#include <math.h>

#include "tests/unit/engine/quant/support.h"

static double cost(const struct alternate_fit *fit, const float *w, const float *h, int n,
                   int bits) {
    double sum = 0.0;
    for (int k = 0; k < n; k++) {
        double least = INFINITY;
        for (int code = 0; code < 1 << bits; code++) {
            double level = (double)fit->bias;
            for (int i = 0; i < bits; i++)
                level += code >> i & 1 ? (double)fit->alpha[i] : -(double)fit->alpha[i];
            least = fmin(least, ((double)w[k] - level) * ((double)w[k] - level));
        }
        sum += (h ? (double)h[k] : 1.0) * least;
    }
    return sum;
}

Test(alternate, one_bit_without_bias_is_the_mean_size) {
    static const float w[] = {1.0f, -2.0f, 3.0f, -6.0f};
    struct alternate_fit fit;
    alternate_fit(&fit, w, NULL, 4, 1, false);
    cr_assert_float_eq(fit.alpha[0], 3.0f, 1e-6f);
    cr_assert_eq(fit.bias, 0.0f);
}

Test(alternate, exact_codes_are_found_again) {
    /* 0.5 +- 1 +- 0.25: four levels, all used. */
    static const float w[] = {-0.75f, -0.25f, 1.25f, 1.75f, -0.75f, 1.75f};
    struct alternate_fit fit;
    alternate_fit(&fit, w, NULL, 6, 2, true);
    cr_assert_float_eq(fit.alpha[0], 0.25f, 1e-5f);
    cr_assert_float_eq(fit.alpha[1], 1.0f, 1e-5f);
    cr_assert_float_eq(fit.bias, 0.5f, 1e-5f);
}

Test(alternate, more_freedom_never_costs) {
    enum { N = 96 };
    uint64_t state = 4;
    float w[N], h[N];
    double with = 0.0, without = 0.0;
    for (int trial = 0; trial < 20; trial++) {
        for (int k = 0; k < N; k++) {
            w[k] = (float)(0.1 * support_normal(&state) + 0.03);
            h[k] = (float)exp(support_normal(&state));
        }
        double last = INFINITY;
        for (int bits = 1; bits <= BCQ_MAX_BITS; bits++) {
            struct alternate_fit plain, weighted;
            alternate_fit(&plain, w, NULL, N, bits, true);
            alternate_fit(&weighted, w, h, N, bits, true);
            double c = cost(&weighted, w, h, N, bits);
            cr_assert_lt(c, last, "a plane more must help");
            with += c;
            without += cost(&plain, w, h, N, bits);
            for (int i = 0; i < bits; i++)
                cr_assert(weighted.alpha[i] >= (i ? weighted.alpha[i - 1] : 0.0f));
            last = c;
        }
    }
    /* Each is a local optimum, so weighting need not win every time. */
    cr_assert_lt(with, without);
}

Test(alternate, degenerate_groups_are_defined) {
    static const float zeros[8] = {0}, same[8] = {2, 2, 2, 2, 2, 2, 2, 2};
    static const float none[8] = {0};
    struct alternate_fit fit;
    for (int bits = 1; bits <= BCQ_MAX_BITS; bits++) {
        alternate_fit(&fit, zeros, NULL, 8, bits, false);
        cr_assert_eq(fit.alpha[bits - 1], 0.0f);
        alternate_fit(&fit, same, NULL, 8, bits, true);
        cr_assert_float_eq(fit.bias, 2.0f, 1e-6f);
        alternate_fit(&fit, same, none, 8, bits, true);
        for (int i = 0; i < bits; i++) cr_assert(isfinite(fit.alpha[i]), "no weight at all");
        alternate_fit(&fit, same, NULL, 1, bits, true);
        cr_assert(isfinite(fit.bias), "one weight");
    }
}
