#include "engine/quant/fit.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/quant/pack.h"
#include "kernels/float16.h"
#include "tests/unit/engine/quant/support.h"

enum { COLS = 90, GROUP = 16, GROUPS = 6 };

static double row_cost(const struct bcq_view *v, const float *w, const float *h) {
    double sum = 0.0;
    for (int k = 0; k < COLS; k++) {
        float value[1 << BCQ_MAX_BITS];
        double least = INFINITY;
        pack_values(v, 0, k / GROUP, value);
        for (int code = 0; code < 1 << v->spec.bits; code++) {
            double e = (double)w[k] - (double)value[code];
            least = fmin(least, e * e);
        }
        sum += (double)h[k] * least;
    }
    return sum;
}

/* A compact block of one row with bits planes, shapes 2, 5, 9, 13 and codes that fit badly. */
static void *new_row(struct bcq_view *v, enum bcq_kind kind, int bits) {
    static const uint8_t shape[] = {2, 5, 9, 13};
    struct bcq_spec spec = {.kind = kind,
                            .rows = 1,
                            .cols = COLS,
                            .bits = bits,
                            .group = GROUP,
                            .scale_bits = 4,
                            .bias_bits = 5,
                            .n_shapes = kind == BCQ_COMPACT_GROUP};
    struct bcq_layout layout;
    struct pack_group groups[GROUPS];
    bcq_layout(&layout, &spec);
    void *block = aligned_alloc(BCQ_ALIGN, (size_t)layout.total);
    cr_assert(block);
    memset(block, 0, (size_t)layout.total);
    bcq_format(v, block, &spec);
    if (kind == BCQ_COMPACT_GROUP) pack_shape_table(v, shape);
    for (int g = 0; g < GROUPS; g++)
        groups[g] = (struct pack_group){.scale = 0.2f / (float)(1 << bits) * (float)(g + 1) / 6.0f,
                                        .bias = 0.02f * (float)(g - 2)};
    groups[5].scale = 0.0f;
    pack_row(v, 0, groups, shape);
    return block;
}

Test(fit, cost_falls_to_a_local_optimum_and_stays) {
    uint64_t state = 8;
    float w[COLS], h[COLS];
    for (int trial = 0; trial < 24; trial++) {
        struct bcq_view v;
        int bits = 1 + trial % 4;
        void *block = new_row(&v, trial % 2 ? BCQ_COMPACT : BCQ_COMPACT_GROUP, bits);
        for (int k = 0; k < COLS; k++) {
            w[k] = (float)(0.05 * support_normal(&state));
            h[k] = (float)exp(support_normal(&state));
        }
        double last = row_cost(&v, w, h), first = last;
        for (int round = 0; round < 60; round++) {
            fit_row(&v, 0, w, h);
            double cost = row_cost(&v, w, h);
            cr_assert(cost <= last * 1.000001, "round %d: %g after %g", round, cost, last);
            last = cost;
        }
        cr_assert_lt(last, first);
        fit_row(&v, 0, w, h);
        cr_assert(row_cost(&v, w, h) >= last * 0.999999, "nothing more to gain nearby");
        int d[BCQ_MAX_BITS], q, p;
        bcq_group_codes(&v, 0, 5, d, &q, &p);
        cr_assert_eq(q, 0, "a group of one level stays one");
        free(block);
    }
}
