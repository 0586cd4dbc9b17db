/* fold.h - moves scales of activations between neighbouring layers of a block, function unchanged.
 *
 * Owns      nothing.
 * Borrows   the block's parameters during the call, and writes them.
 * Thread    any.
 * Fails     never; fold_width() says 0 where an architecture has no such place.
 * Cost      one pass over the matrices involved.
 *
 * A linear layer that reads x / s and has its columns multiplied by s gives what it gave before
 * (AWQ, arXiv 2306.00978, section 3.2; OmniQuant's equivalent transformation, 2308.13137, section
 * 3.3). The division is folded into whatever makes x linearly: the norm before Q, K, V or before
 * GATE and UP, the rows of UP before DOWN, the rows of V before O. At run time nothing is left of
 * it. No norm can be folded into where its output is the residual stream as well, and no rows of
 * UP where an activation that is not positively homogeneous follows. */
#ifndef ENGINE_QUANT_FOLD_H
#define ENGINE_QUANT_FOLD_H

#include <stdbool.h>

#include "engine/quant/calibrate.h"

struct model_config;
struct params_block;

/* Scales of the input: its width, or that of V's rows for INPUT_O, where heads that share a value
 * head share scales as well. 0: nothing can be folded there. */
int fold_width(const struct model_config *config, enum calibrate_input input);

/* The index of a column's scale, below fold_width(). */
int fold_index(const struct model_config *config, enum calibrate_input input, int column);

/* Columns of the input's readers times s, its maker divided by s; s: (fold_width()) positive. */
void fold_apply(struct params_block *block, const struct model_config *config,
                enum calibrate_input input, const float *s);

/* Which vectors fold_apply() changes: vector[VECTOR_COUNT] are set to true, others kept. */
void fold_marks(const struct params_block *block, enum calibrate_input input, bool *vectors);

#endif
