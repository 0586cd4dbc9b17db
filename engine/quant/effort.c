#include "engine/quant/effort.h"

#include <stdbool.h>
#include <stddef.h>

#include "engine/quant/quantize.h"

/* Everything a step sets. */
struct step {
    const char *name;
    int windows, ranges, explore, refine;
    int coded_windows; /* on the coded blocks' inputs, to the original's outputs; 0: not so */
    bool mixed;
};

/* What best adds is tuning end to end, which the caller turns on. Inputs of the coded blocks cost more
 * passes over the text, and alone brought SmolLM2 4 % of KL at 2 bits and nothing at 3; with a target
 * at the states behind each block they bring 18 % and 4 % from half the text. Bits by sensitivity
 * bring another tenth at both for a fifth of the time. More text beats more search: at 2 bits 64
 * windows without variants end lower than 48 with 4 or 28 with 8 (README.md). Tokens weigh the
 * same. */
static const struct step steps[] = {
    [EFFORT_FAST] = {"fast", 12, 7, 0, 1, 0, false},
    [EFFORT_NORMAL] = {"normal", 64, 10, 0, 2, 28, true},
    [EFFORT_BEST] = {"best", 64, 10, 0, 2, 48, true},
};

const char *effort_name(enum effort effort) {
    return (size_t)effort < sizeof steps / sizeof *steps ? steps[effort].name : NULL;
}

static bool needs_original(const struct quantize_options *asked) {
    return asked->is_static || asked->moments_folder || asked->first_block || asked->end_block ||
           asked->blockwise.transform != TRANSFORM_NONE ||
           asked->blockwise.hessian == HESSIAN_GUIDED;
}

/* Bits by sensitivity need every block, weights that stay as they are until they are coded, and other
 * options that suit any number of bits. */
static bool can_mix(const struct quantize_options *asked) {
    const struct sensitivity_options as_bits = {.as_bits = true};
    return !asked->first_block && !asked->end_block &&
           asked->blockwise.transform == TRANSFORM_NONE && asked->blockwise.clip_epochs == 0 &&
           sensitivity_check(&as_bits, &asked->layer, NULL) == 0;
}

void effort_apply(enum effort effort, const struct quantize_options *asked,
                  struct quantize_options *o) {
    const struct step *s = &steps[effort];
    bool coded = s->coded_windows && !needs_original(asked);
    o->windows = coded ? s->coded_windows : s->windows;
    o->layer.n_ranges = s->ranges;
    o->layer.explore = s->explore;
    o->layer.refine = s->refine;
    o->is_static = !coded;
    o->target = coded ? QUANTIZE_BLOCK : QUANTIZE_WEIGHTS;
    o->tokens = MOMENTS_EQUAL;
    o->mixed.as_bits = s->mixed && can_mix(asked);
}
