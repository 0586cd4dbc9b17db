#include "engine/quant/effort.h"

#include <stddef.h>

#include "engine/quant/quantize.h"

/* Everything a step sets. */
struct step {
    const char *name;
    int windows, ranges, explore, refine;
    bool is_static;
    enum quantize_target target;
    enum moments_tokens tokens;
};

/* QUANTIZE_OUTPUT is no step's: where a token of giant states gets lost in the coded blocks, as on
 * SmolLM2 at 2 bits, it ruins the model (RESULTS.md). */
static const struct step steps[] = {
    [EFFORT_FAST] = {"fast", 12, 7, 0, 1, true, QUANTIZE_WEIGHTS, MOMENTS_BY_STATE},
    [EFFORT_NORMAL] = {"normal", 28, 10, 8, 2, false, QUANTIZE_WEIGHTS, MOMENTS_BY_STATE},
    [EFFORT_BEST] = {"best", 128, 16, 24, 5, false, QUANTIZE_WEIGHTS, MOMENTS_BY_STATE},
};

const char *effort_name(enum effort effort) {
    return (size_t)effort < sizeof steps / sizeof *steps ? steps[effort].name : NULL;
}

void effort_apply(enum effort effort, struct quantize_options *o) {
    const struct step *s = &steps[effort];
    o->windows = s->windows;
    o->layer.n_ranges = s->ranges;
    o->layer.explore = s->explore;
    o->layer.refine = s->refine;
    o->is_static = s->is_static;
    o->target = s->target;
    o->tokens = s->tokens;
}
