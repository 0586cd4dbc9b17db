/* pow2_fit.h - finds the parameters of a compact row among powers of two.
 *
 * Owns      nothing.
 * Borrows   the block, whose parameters of the row it writes, and the weights during the call.
 * Thread    any; rows are independent.
 * Fails     -ENOMEM.
 * Cost      shapes (3 to 30) * 10 evaluations of every group, 2^bits compares a weight each.
 *
 * Step sizes that are powers of two: arXiv 2203.05025; binary codes with them: ShiftAddLLM, arXiv
 * 2406.05981. Of a row, d is 2^e_i with e_1 = 0, s0 and s1 are powers of two; of a group, q is 1, 2,
 * 4, .. and p is 0 or +-1, +-2, ..: every combination is judged by its weighted error, so nothing
 * is rounded afterwards. */
#ifndef ENGINE_QUANT_POW2_FIT_H
#define ENGINE_QUANT_POW2_FIT_H

#include "kernels/weights.h"

struct error;

/* w: (cols) one row; h: (cols) weights of the squared errors. */
int pow2_fit_row(const struct bcq_view *view, int row, const float *w, const float *h,
                 struct error *err);

#endif
