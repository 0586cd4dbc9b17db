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
