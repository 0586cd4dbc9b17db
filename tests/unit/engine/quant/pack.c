#include "engine/quant/pack.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/engine/quant/support.h"

static void *new_block(struct bcq_view *view, const struct bcq_spec *spec) {
    struct bcq_layout layout;
    bcq_layout(&layout, spec);
    void *block = aligned_alloc(BCQ_ALIGN, (size_t)layout.total);
    cr_assert(block);
    memset(block, 0, (size_t)layout.total);
    bcq_format(view, block, spec);
    return block;
}

static const uint8_t shapes[] = {1, 2, 4, 3, 5, 9};

Test(pack, rounding_stays_within_half_a_unit) {
    struct bcq_spec spec = {.kind = BCQ_COMPACT,
                            .rows = 1,
                            .cols = 100,
                            .bits = 3,
                            .group = 16,
                            .scale_bits = 4,
                            .bias_bits = 5};
    struct bcq_view v;
    struct pack_group groups[7];
    uint64_t state = 1;
    void *block = new_block(&v, &spec);
    for (int g = 0; g < 7; g++)
        groups[g] = (struct pack_group){.shape = 1,
                                        .scale = (float)(0.01 + 0.1 * support_uniform(&state)),
                                        .bias = (float)support_normal(&state)};
    groups[3].scale = 0.0f;
    groups[4].scale = 1e-5f;
    pack_row(&v, 0, groups, shapes);
    float scale_unit = 0.0f, bias_unit = 0.0f;
    for (int g = 0; g < 7; g++) {
        scale_unit = fmaxf(scale_unit, groups[g].scale / 15.0f);
        bias_unit = fmaxf(bias_unit, fabsf(groups[g].bias) / 15.0f);
    }
    for (int g = 0; g < 7; g++) {
        float alpha[BCQ_MAX_BITS], beta;
        int d[BCQ_MAX_BITS], q, p;
        bcq_group_params(&v, 0, g, alpha, &beta);
        bcq_group_codes(&v, 0, g, d, &q, &p);
        cr_assert(d[0] == 3 && d[1] == 5 && d[2] == 9);
        cr_assert_leq(fabsf(beta - groups[g].bias), 0.51f * bias_unit);
        if (g == 3)
            cr_assert_eq(q, 0, "no spread: one level");
        else if (g == 4)
            cr_assert_eq(q, 1, "spread must not vanish");
        else
            cr_assert_leq(fabsf(alpha[0] / 1.5f - groups[g].scale), 0.51f * scale_unit);
    }
    free(block);
}

Test(pack, levels_rise_and_codes_mean_what_the_block_says) {
    struct bcq_spec spec = {.kind = BCQ_FREE, .rows = 2, .cols = 40, .bits = 4, .group = 32};
    struct bcq_view v;
    float values[16 * 3], row[40];
    uint8_t codes[16 * 3], chosen[40];
    uint64_t state = 2;
    void *block = new_block(&v, &spec);
    for (int g = 0; g < 2; g++) {
        float alpha[BCQ_MAX_BITS] = {0.1f, 0.1f, 0.35f, 0.9f};
        pack_free(&v, 1, g, alpha, 0.2f * (float)g);
    }
    pack_levels(&v, 1, 1, values, codes, 3);
    for (int l = 1; l < 16; l++) {
        cr_assert_geq(values[l * 3], values[(l - 1) * 3]);
        if (values[l * 3] == values[(l - 1) * 3])
            cr_assert_eq(codes[l * 3], codes[(l - 1) * 3], "equal levels share a code");
    }
    for (int k = 0; k < 40; k++) chosen[k] = codes[3 * (int)(16.0 * support_uniform(&state))];
    pack_codes(&v, 1, chosen);
    bcq_expand_row(&v, 1, row);
    for (int k = 32; k < 40; k++)
        for (int l = 0; l < 16; l++)
            if (codes[l * 3] == chosen[k]) cr_assert_eq(row[k], values[l * 3], "column %d", k);
    free(block);
}

Test(pack, extremes_stay_finite) {
    struct bcq_spec spec = {.kind = BCQ_FREE, .rows = 1, .cols = 16, .bits = 1, .group = 16};
    struct bcq_view v;
    void *block = new_block(&v, &spec);
    float big = 1e9f, tiny = 1e-12f, alpha[BCQ_MAX_BITS], beta;
    pack_free(&v, 0, 0, &big, -1e9f);
    bcq_group_params(&v, 0, 0, alpha, &beta);
    cr_assert_eq(alpha[0], 65504.0f);
    cr_assert_eq(beta, -65504.0f);
    pack_free(&v, 0, 0, &tiny, 6e-8f);
    bcq_group_params(&v, 0, 0, alpha, &beta);
    cr_assert_eq(alpha[0], 0.0f, "below the smallest half");
    cr_assert_eq(beta, 0x1p-24f, "the smallest half");
    free(block);
}
