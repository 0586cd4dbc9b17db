#include "engine/quant/effort.h"

#include <stddef.h>

#include "engine/quant/quantize.h"

/* Everything a step sets. */
struct step {
    const char *name;
    int windows, ranges, explore, refine;
};

/* What best adds is tuning end to end, which the caller turns on. Inputs are the original's on every
 * step: those of the coded blocks cost a second pass over the text, and brought SmolLM2 4 % of KL at
 * 2 bits and nothing at 3; tuning wins more in that time. More text beats more search: at 2 bits 64
 * windows without variants end lower than 48 with 4 or 28 with 8 (README.md). Tokens weigh the same,
 * and QUANTIZE_OUTPUT is no step's: where a token of giant states gets lost in the coded blocks it
 * ruins the model. */
static const struct step steps[] = {
    [EFFORT_FAST] = {"fast", 12, 7, 0, 1},
    [EFFORT_NORMAL] = {"normal", 64, 10, 0, 2},
    [EFFORT_BEST] = {"best", 64, 10, 0, 2},
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
    o->is_static = true;
    o->target = QUANTIZE_WEIGHTS;
    o->tokens = MOMENTS_EQUAL;
}
