/* fit.h - chooses the stored scale and bias codes of groups by their weighted error.
 *
 * Owns      nothing.
 * Borrows   the block, whose codes it rewrites, and the weights during the call.
 * Thread    any; rows are independent.
 * Fails     never.
 * Cost      nine evaluations of a group, 2^bits compares a weight each.
 *
 * Rounding scale and bias on their own misses pairs of codes that serve the weights better
 * together; in four bits that is worth looking for. Super-scales and shapes stay. */
#ifndef ENGINE_QUANT_FIT_H
#define ENGINE_QUANT_FIT_H

#include "kernels/weights.h"

/* w: (cols) one row; h: (cols) weights of the squared errors. A compact block only. */
void fit_row(const struct bcq_view *view, int row, const float *w, const float *h);

#endif
