#include "engine/quant/effort.h"

#include <criterion/criterion.h>

#include "engine/quant/quantize.h"

Test(effort, more_effort_does_more_and_stores_the_same) {
    struct quantize_options last, plain;
    quantize_defaults(&plain);
    for (int i = 0; effort_name((enum effort)i); i++) {
        struct quantize_options o = plain;
        effort_apply((enum effort)i, &plain, &o);
        cr_assert_eq(layer_check(&o.layer, NULL), 0);
        cr_assert_not(o.is_static && o.target != QUANTIZE_WEIGHTS);
        cr_assert_eq(o.layer.bits, plain.layer.bits);
        cr_assert_eq(o.layer.group, plain.layer.group);
        cr_assert_eq(o.layer.kind, plain.layer.kind);
        cr_assert_eq(o.mixed.budget, 0.0);
        cr_assert_eq(o.mixed.as_bits, i > EFFORT_FAST);
        if (i > 0) {
            /* The best searches as normal does; tuning follows. */
            bool tuned = i == EFFORT_BEST;
            cr_assert_gt(o.windows, last.windows);
            cr_assert(tuned ? o.layer.n_ranges == last.layer.n_ranges
                            : o.layer.n_ranges > last.layer.n_ranges);
            cr_assert(tuned ? o.layer.refine == last.layer.refine
                            : o.layer.refine > last.layer.refine);
        }
        last = o;
    }
    cr_assert_null(effort_name((enum effort)(EFFORT_BEST + 1)));
}

Test(effort, bits_are_not_mixed_where_they_cannot_be) {
    struct quantize_options plain, asked, o;
    quantize_defaults(&plain);
    for (int i = 0; i < 5; i++) {
        o = asked = plain;
        if (i == 0) asked.end_block = 2;
        if (i == 1) asked.blockwise.transform = TRANSFORM_GRID;
        if (i == 2) asked.blockwise.clip_epochs = 1;
        if (i == 3) asked.layer.step_bits = 3;
        if (i == 4) asked.is_static = true;
        effort_apply(EFFORT_NORMAL, &asked, &o);
        cr_assert_eq(o.mixed.as_bits, i == 4, "%d", i);
    }
}
