#include "kernels/float16.h"

#include <criterion/criterion.h>
#include <math.h>

#include "tests/support/random.h"

Test(float16, every_half_survives_the_way_there_and_back) {
    for (unsigned h = 0; h < 65536; h++) {
        float f = f16_to_f32((uint16_t)h), b = bf16_to_f32((uint16_t)h);
        if (isnan(f))
            cr_expect(isnan(f16_to_f32(f32_to_f16(f))));
        else
            cr_expect_eq(f32_to_f16(f), h, "%#x", h);
        if (isnan(b))
            cr_expect(isnan(bf16_to_f32(f32_to_bf16(b))));
        else
            cr_expect_eq(f32_to_bf16(b), h, "%#x", h);
    }
}

Test(float16, values_by_hand) {
    cr_expect_eq(f16_to_f32(0x3c00), 1.0f);
    cr_expect_eq(f16_to_f32(0xc000), -2.0f);
    cr_expect_eq(f16_to_f32(0x7bff), 65504.0f);
    cr_expect_eq(f16_to_f32(0x0001), 0x1p-24f);
    cr_expect_eq(f16_to_f32(0x0400), 0x1p-14f);
    cr_expect_eq(f16_to_f32(0x7c00), INFINITY);
    cr_expect_eq(f32_to_f16(65519.0f), 0x7bff);
    cr_expect_eq(f32_to_f16(65520.0f), 0x7c00);
    cr_expect_eq(f32_to_f16(-1e30f), 0xfc00);
    cr_expect_eq(f32_to_f16(0x1p-25f), 0); /* a tie goes to even */
    cr_expect_eq(f32_to_f16(0x1.8p-24f), 2);
    cr_expect_eq(f32_to_f16(-0.0f), 0x8000);
    cr_expect_eq(f32_to_f16(1.0f + 0x1p-11f), 0x3c00);
    cr_expect_eq(f32_to_f16(1.0f + 0x1.8p-10f), 0x3c02);
    cr_expect_eq(bf16_to_f32(0x3f80), 1.0f);
    cr_expect_eq(f32_to_bf16(1.0f + 0x1p-8f), 0x3f80);
    cr_expect_eq(f32_to_bf16(1.0f + 0x1.8p-7f), 0x3f82);
    cr_expect_eq(f32_to_bf16(3.4e38f), 0x7f80);
}

/* The nearest half is no farther away than its neighbours, whatever the number. */
Test(float16, rounding_is_to_nearest) {
    uint64_t state = 3;
    for (int i = 0; i < 1000000; i++) {
        float f = float_from_bits((uint32_t)random_next(&state) & 0x477fefffu);
        uint16_t h = f32_to_f16(f);
        double d = fabs((double)f16_to_f32(h) - (double)f);
        if (h < 0x7bff) cr_assert(d <= (double)f16_to_f32((uint16_t)(h + 1)) - (double)f);
        if (h > 0) cr_assert(d <= (double)f - (double)f16_to_f32((uint16_t)(h - 1)));
    }
}
