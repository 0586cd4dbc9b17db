#include "kernels/rounding.h"

#include <criterion/criterion.h>
#include <string.h>

#include "tests/support/matrix.h"

static void span(float whole[ROUNDING_SPAN], float *scale, int act_bits, const float *x, size_t n) {
    float in[ROUNDING_SPAN] = {0};
    memcpy(in, x, n * sizeof *x);
    *scale = rounding_span(whole, in, act_bits);
}

Test(rounding, four_bits_are_sevenths_of_the_largest_ties_to_even) {
    const float x[] = {-14, 1, 3, 5, -5, 0.99f, 13.1f, 0};
    const float want[] = {-7, 0, 2, 2, -2, 0, 7, 0};
    float whole[ROUNDING_SPAN], scale;
    span(whole, &scale, 4, x, 8);
    cr_assert_eq(scale, 2);
    for (int i = 0; i < 8; i++) cr_expect_eq(whole[i], want[i], "%d: %g", i, (double)whole[i]);
    for (int i = 8; i < ROUNDING_SPAN; i++) cr_expect_eq(whole[i], 0);
}

Test(rounding, eight_bits_are_125ths_of_the_largest_sum_of_four) {
    /* Sums of the fours are 250 and 100. */
    const float x[] = {100, -50, 100, 0, 3, -5, 91, 1};
    const float want[] = {50, -25, 50, 0, 2, -2, 46, 0};
    float whole[ROUNDING_SPAN], scale;
    span(whole, &scale, 8, x, 8);
    cr_assert_eq(scale, 2);
    for (int i = 0; i < 8; i++) cr_expect_eq(whole[i], want[i], "%d: %g", i, (double)whole[i]);
}

Test(rounding, sums_of_four_fit_a_byte_whatever_comes) {
    uint64_t seed = 5;
    for (int turn = 0; turn < 20000; turn++) {
        float x[ROUNDING_SPAN], whole[ROUNDING_SPAN];
        for (int i = 0; i < ROUNDING_SPAN; i++)
            x[i] = turn % 2 ? matrix_normal(&seed) : 1 + 0.01f * matrix_normal(&seed);
        rounding_span(whole, x, 8);
        for (int i = 0; i < ROUNDING_SPAN; i += 4) {
            float sum =
                fabsf(whole[i]) + fabsf(whole[i + 1]) + fabsf(whole[i + 2]) + fabsf(whole[i + 3]);
            cr_assert(sum <= 127, "%g", (double)sum);
        }
    }
}

Test(rounding, nothing_is_far_from_what_it_was) {
    uint64_t seed = 6;
    for (int bits = 4; bits <= 8; bits += 4) {
        float x[ROUNDING_SPAN], whole[ROUNDING_SPAN];
        for (int i = 0; i < ROUNDING_SPAN; i++) x[i] = matrix_normal(&seed);
        float scale = rounding_span(whole, x, bits);
        for (int i = 0; i < ROUNDING_SPAN; i++)
            cr_expect(fabsf(x[i] - scale * whole[i]) <= 0.5001f * scale);
    }
}

Test(rounding, zeros_and_numbers_that_are_hardly_more_become_zero) {
    const float x[] = {1e-31f, -1e-38f, 1e-42f};
    float whole[ROUNDING_SPAN], scale;
    for (int bits = 4; bits <= 8; bits += 4) {
        span(whole, &scale, bits, x, 3);
        for (int i = 0; i < ROUNDING_SPAN; i++) cr_expect_eq(whole[i], 0);
        cr_expect_eq(scale, 0);
    }
}

Test(rounding, what_is_not_finite_spoils_its_span_alone) {
    static const float odd[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++)
        for (int bits = 4; bits <= 8; bits += 4) {
            float x[3 * ROUNDING_SPAN] = {[5] = 1, [ROUNDING_SPAN + 7] = 2}, out[3 * ROUNDING_SPAN];
            x[ROUNDING_SPAN + 100] = odd[i];
            x[2 * ROUNDING_SPAN] = 3;
            rounding_row(out, x, 3 * ROUNDING_SPAN, bits);
            cr_expect(fabsf(out[5] - 1) < 1e-6f && fabsf(out[2 * ROUNDING_SPAN] - 3) < 1e-6f);
            cr_expect(isnan(out[ROUNDING_SPAN + 7]) && isnan(out[ROUNDING_SPAN]));
        }
}

Test(rounding, a_row_is_its_spans_the_last_one_short) {
    enum { COLS = 2 * ROUNDING_SPAN + 3 };
    float x[COLS], out[COLS], whole[ROUNDING_SPAN], scale;
    uint64_t seed = 7;
    for (int i = 0; i < COLS; i++) x[i] = matrix_normal(&seed);
    rounding_row(out, x, COLS, 8);
    for (size_t k = 0; k < COLS; k += ROUNDING_SPAN) {
        size_t n = COLS - k < ROUNDING_SPAN ? COLS - k : ROUNDING_SPAN;
        span(whole, &scale, 8, x + k, n);
        for (size_t i = 0; i < n; i++) cr_expect_eq(out[k + i], scale * whole[i]);
    }
    rounding_row(x, x, COLS, 8);
    cr_expect(memcmp(x, out, sizeof x) == 0, "in place");
}
