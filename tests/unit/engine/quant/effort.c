#include "engine/quant/effort.h"

#include <criterion/criterion.h>

#include "engine/quant/quantize.h"

Test(effort, every_step_does_more_than_the_last_and_stores_the_same) {
    struct quantize_options last, plain;
    quantize_defaults(&plain);
    for (int i = 0; effort_name((enum effort)i); i++) {
        struct quantize_options o = plain;
        effort_apply((enum effort)i, &o);
        cr_assert_eq(layer_check(&o.layer, NULL), 0);
        cr_assert_not(o.is_static && o.target == QUANTIZE_OUTPUT);
        cr_assert_eq(o.layer.bits, plain.layer.bits);
        cr_assert_eq(o.layer.group, plain.layer.group);
        cr_assert_eq(o.layer.kind, plain.layer.kind);
        if (i > 0) {
            cr_assert(o.windows > last.windows);
            cr_assert(o.layer.n_ranges > last.layer.n_ranges);
            cr_assert(o.layer.explore >= last.layer.explore);
            cr_assert(o.layer.refine > last.layer.refine);
        }
        last = o;
    }
    cr_assert_null(effort_name((enum effort)(EFFORT_BEST + 1)));
}
