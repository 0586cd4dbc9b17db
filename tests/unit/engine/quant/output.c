#include "engine/quant/output.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <math.h>
#include <string.h>

#include "kernels/error.h"
#include "kernels/float16.h"
#include "tests/support/random.h"

enum { N = BCQ_WHOLE_GROUP };

static float value(uint64_t *state) {
    double sum = 0;
    for (int i = 0; i < 12; i++) sum += (double)(random_next(state) >> 40) * 0x1p-24;
    return (float)(0.05 * (sum - 6));
}

static double error_of(const uint8_t *codes, float scale, const float *w, int n, int bits) {
    double error = 0;
    for (int k = 0; k < n; k++)
        error += pow((double)w[k] - (double)scale * (codes[k] - (1 << (bits - 1))), 2);
    return error;
}

/* No worse than the scale that just covers the largest weight on both sides, and fp16 holds it. */
Test(output, groups_are_near_and_say_how_near) {
    uint64_t state = 7;
    for (int turn = 0; turn < 300; turn++) {
        int bits = 4 + turn % 3 * 2, n = turn % 7 ? N : 1 + turn % N;
        double plain = 0, all = 0, top = (1 << (bits - 1)) - 1;
        float w[N], scale, most = 0;
        uint8_t codes[N];
        for (int k = 0; k < n; k++) {
            w[k] = value(&state);
            most = fmaxf(most, fabsf(w[k]));
            all += pow((double)w[k], 2);
        }
        double left = output_group(codes, &scale, w, n, bits);
        for (int k = 0; k < n; k++)
            plain +=
                pow((double)w[k] - (double)most / top * rint((double)w[k] * top / (double)most), 2);
        /* fp16 rounds a scale by up to 1/2048. */
        cr_assert_leq(left, plain * 1.0001 + 3e-7 * all, "%d bits: %g, %g", bits, left, plain);
        cr_assert_float_eq(left, error_of(codes, scale, w, n, bits), 1e-9);
        cr_assert_eq(f16_to_f32(f32_to_f16(scale)), scale);
        for (int k = 0; k < n; k++) cr_assert_lt(codes[k], 1 << bits);
    }
}

/* What llama.cpp's Q8_0 stores comes back as it was. */
Test(output, weights_of_eight_bits_stay_themselves) {
    uint64_t state = 3;
    for (int turn = 0; turn < 100; turn++) {
        float w[N], scale, step = f16_to_f32((uint16_t)(0x1000 + turn * 37));
        uint8_t codes[N];
        for (int k = 0; k < N; k++) w[k] = step * (float)random_range(&state, -127, 127);
        w[5] = step * (turn % 2 ? 127.0f : -127.0f);
        cr_assert_eq(output_group(codes, &scale, w, N, 8), 0.0, "%d", turn);
    }
}

Test(output, zeros_and_single_weights_have_codes) {
    float w[N] = {0}, scale;
    uint8_t codes[N];
    cr_assert_eq(output_group(codes, &scale, w, N, 4), 0.0);
    cr_assert_eq(scale * (float)(codes[3] - 8), 0.0f);
    w[9] = -3;
    cr_assert_lt(output_group(codes, &scale, w, N, 6), 1e-6);
    cr_assert_float_eq(scale * (float)(codes[9] - 32), -3, 2e-3);
    cr_assert_eq(scale * (float)(codes[8] - 32), 0.0f);
}

Test(output, other_bits_are_refused_by_name) {
    struct error err;
    for (int bits = 0; bits < 20; bits++) {
        int good = bits == 16 || bits == 8 || bits == 6 || bits == 4;
        cr_expect_eq(output_check(bits, &err), good ? 0 : -EINVAL, "%d", bits);
    }
    cr_expect(strstr(err.text, "output bits: 19"), "%s", err.text);
}
