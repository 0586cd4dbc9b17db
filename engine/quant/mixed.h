/* mixed.h - chooses bits for each unit of a model under a budget of bytes.
 *
 * Owns      nothing beyond the call.
 * Borrows   the units during the call.
 * Thread    any.
 * Fails     -ERANGE (the budget is below the least sizes), -ENOMEM.
 * Cost      at most MIXED_STATES partial sums for each unit, four ways on from each.
 *
 * A unit is what gets bits together: a matrix, or the matrices of one input. Its harm at m bits is
 * what the model loses when it alone is coded so; harms are taken to add up (arXiv 2112.11438,
 * section 4, KL form). The least sum under the budget is a knapsack with one choice of each unit:
 * the greedy walk down the lower convex hulls of (bytes, harm) gives a solution and a price of a
 * byte, and a pass over non-dominated partial sums, cut off by what the rest costs at that price
 * at least, finds the optimum, or, when more than MIXED_STATES sums stand, no worse than greedy. */
#ifndef ENGINE_QUANT_MIXED_H
#define ENGINE_QUANT_MIXED_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/weights.h"

struct error;

enum { MIXED_STATES = 4096 };

struct mixed_unit {
    uint64_t bytes[BCQ_MAX_BITS]; /* rising; [m - 1] belongs to m bits */
    double harm[BCQ_MAX_BITS];    /* at least 0 */
};

/* bits: (n). */
int mixed_allocate(int *bits, const struct mixed_unit *units, size_t n, uint64_t budget,
                   struct error *err);

/* The greedy walk alone: what mixed_allocate() starts from. price: harm that a byte saves where the
 * budget ends; 0 when all units have what they want. */
int mixed_greedy(int *bits, double *price, const struct mixed_unit *units, size_t n,
                 uint64_t budget, struct error *err);

#endif
