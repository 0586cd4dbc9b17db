/* engine_budget.h - divides memory between weights, work areas and the KV pool.
 *
 * Owns      nothing.
 * Borrows   the engine during calls.
 * Thread    engine, while it loads.
 * Fails     -EINVAL when a limit leaves too little; the text has the sums.
 * Cost      arithmetic.
 *
 * With a limit the pool gets what the packed weights and the work areas leave, once both are
 * known; nothing is allocated for it before. A device with memory of its own is such a limit, too:
 * the fraction of it that may be taken, less what is taken already. Memory of single requests (prompts, text, results)
 * is not in these sums: it is bounded by what the server lets in. */
#ifndef ENGINE_ENGINE_BUDGET_H
#define ENGINE_ENGINE_BUDGET_H

#include <stddef.h>

#include "kernels/weights.h"

struct engine;
struct engine_options;
struct error;

/* Positions that a limit must leave room for, if the context has as many. */
enum { ENGINE_BUDGET_LEAST = 256 };

/* The type that options.kv names. */
enum dtype engine_budget_kv(const struct engine_options *options);

/* All that steps need besides weights and pool. */
size_t engine_budget_work(const struct engine *e, int context);

/* Blocks of the pool, the model's weights being packed (with options.null there is none). */
int engine_budget_pool(const struct engine *e, int context, int *ret_blocks, struct error *err);

/* While weights are being packed: whether they still fit. */
int engine_budget_check_weights(const struct engine *e, size_t packed, struct error *err);

#endif
