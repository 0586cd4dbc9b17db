#include "engine/quant/layer_options.h"

#include <errno.h>

#include "engine/quant/codebook.h"
#include "engine/quant/lay.h"
#include "engine/quant/outliers.h"
#include "kernels/error.h"

void layer_defaults(struct layer_options *o) {
    *o = (struct layer_options){.method = LAYER_GPTQT,
                                .kind = BCQ_COMPACT,
                                .bits = 3,
                                .group = 16,
                                .scale_bits = 4,
                                .bias_bits = 5,
                                .n_ranges = 10,
                                .weighting = LAYER_BY_DIAG,
                                .act_order = true,
                                .damp = 0.01,
                                .codes = {CODES_LOOP, 8},
                                .n_threads = 1};
}

bool layer_is_uniform(enum layer_method m) { return m == LAYER_RTN || m == LAYER_GPTQ; }

bool layer_is_alternating(enum layer_method m) { return m == LAYER_BCQ || m == LAYER_GPTQ_BCQ; }

bool layer_has_loop(enum layer_method m) { return m != LAYER_RTN && m != LAYER_BCQ; }

bool layer_lays_as_it_goes(const struct layer_options *o) {
    return o->method == LAYER_GPTQ && !o->act_order && o->kind == BCQ_FREE;
}

static int check_codes(const struct layer_options *o, struct error *err) {
    enum codes_search search = o->codes.search;
    if (search != CODES_LOOP && !layer_has_loop(o->method))
        return error_set(err, -EINVAL,
                         "codes: methods rtn and bcq are without a column loop, their "
                         "codes are the nearest levels");
    if (search == CODES_GREEDY && o->refine > 0)
        return error_set(err, -EINVAL,
                         "codes greedy: refine runs the column loop that it is without");
    if (search == CODES_GREEDY && layer_lays_as_it_goes(o))
        return error_set(err, -EINVAL,
                         "codes greedy: method gptq without act-order lays its grids "
                         "as the column loop goes");
    if (search == CODES_ADDITIVE && o->kind != BCQ_FREE)
        return error_set(err, -EINVAL,
                         "codes additive: scales are learned per plane: use params free");
    return codes_check(&o->codes, err);
}

static int check_pow2(const struct layer_options *o, struct error *err) {
    if (!o->pow2) return 0;
    if (o->method != LAYER_GPTQT || o->kind != BCQ_COMPACT)
        return error_set(err, -EINVAL,
                         "pow2: method gptqt with params compact finds and holds powers of two");
    if (o->explore > 0)
        return error_set(err, -EINVAL, "pow2: the variants of explore are no powers of two");
    if (o->refine > 0)
        return error_set(err, -EINVAL,
                         "pow2: refine would move scales off the powers of two; codes cd polishes "
                         "the codes alone");
    return 0;
}

int layer_check(const struct layer_options *o, struct error *err) {
    if (layer_is_alternating(o->method) && o->kind != BCQ_FREE)
        return error_set(err, -EINVAL,
                         "method bcq has scales of its own per plane: use params free");
    if (o->group < 0 || o->group > BCQ_MAX_DIM)
        return error_set(err, -EINVAL, "group: %d is not in 0..%d", o->group, BCQ_MAX_DIM);
    if (o->n_ranges < 2 || o->n_ranges > 40)
        return error_set(err, -EINVAL, "ranges: %d is not in 2..40", o->n_ranges);
    if (!(o->damp >= 0.0 && o->damp <= 10.0))
        return error_set(err, -EINVAL, "damp: %g is not in 0..10", o->damp);
    if (o->explore < 0 || o->explore > LAY_MAX_VARIANTS)
        return error_set(err, -EINVAL, "explore: %d is not in 0..%d", o->explore, LAY_MAX_VARIANTS);
    if (o->explore > 0 && (o->method != LAYER_GPTQT || o->codes.search == CODES_GREEDY ||
                           o->codes.search == CODES_ADDITIVE))
        return error_set(err, -EINVAL,
                         "explore: only method gptqt with codes gptq, cd or beam has variants that "
                         "a column loop can judge");
    if (o->refine < 0 || o->refine > 100)
        return error_set(err, -EINVAL, "refine: %d is not in 0..100", o->refine);
    if (!(o->outliers >= 0.0 && o->outliers <= OUTLIERS_MAX_SHARE))
        return error_set(err, -EINVAL, "outliers: %g is not in 0..%d per cent", o->outliers,
                         OUTLIERS_MAX_SHARE);
    if (o->outliers > 0.0 && layer_lays_as_it_goes(o))
        return error_set(err, -EINVAL,
                         "outliers: gptq with params free and no act-order lays its grids over "
                         "weights that are not known beforehand");
    if (o->whole_outliers && !(o->outliers > 0.0))
        return error_set(err, -EINVAL, "outlier form columns: outliers says how many, and is 0");
    if (o->incoherence != LAYER_NATURAL && o->outliers > 0.0)
        return error_set(err, -EINVAL,
                         "incoherence spreads outliers over all weights: none are left to keep");
    int r = check_codes(o, err);
    if (r == 0) r = check_pow2(o, err);
    if (r < 0) return r;
    if (o->method == LAYER_GPTQT && o->step_bits != 0 &&
        (o->step_bits < o->bits || o->step_bits > CODEBOOK_MAX_STEP_BITS))
        return error_set(err, -EINVAL, "step bits: %d is not in %d..%d", o->step_bits, o->bits,
                         CODEBOOK_MAX_STEP_BITS);
    struct bcq_spec spec = {.kind = o->kind, .rows = 1, .cols = 1, .bits = o->bits, .group = 1};
    if (o->kind != BCQ_FREE) {
        spec.scale_bits = o->scale_bits;
        spec.bias_bits = o->bias_bits;
    }
    spec.n_shapes = o->kind == BCQ_COMPACT_GROUP;
    return bcq_check(&spec, err);
}
