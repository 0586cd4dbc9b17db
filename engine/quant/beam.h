/* beam.h - finds codes by a beam search over the column loop.
 *
 * Owns      nothing beyond the call.
 * Borrows   the factor, levels and weights during the call.
 * Thread    any.
 * Fails     -ENOMEM.
 * Cost      width column loops and a choice among width * levels a column.
 *
 * The loop's loss is a sum over columns, sum_k d_k^2 / U_kk^2, whose terms depend on the columns
 * before alone. So a partial assignment has an exact loss, which its completions can only raise,
 * and keeping the best `width` of them column by column is the K-best search of a lattice decoder.
 * AQLM (arXiv 2401.06118, section 3.2) keeps a beam as well but changes one code of a whole
 * assignment at a time: that ranks candidates by a loss to which the columns not yet visited add
 * their old errors. On random problems of 192 columns and four levels AQLM's beam left 0.70, 0.68,
 * 0.65 of the loop's loss with widths 4, 8, 32 in four sweeps, this one with sweeps of descent after
 * it 0.70, 0.65, 0.60. With width 1 it is gptq_loop(). */
#ifndef ENGINE_QUANT_BEAM_H
#define ENGINE_QUANT_BEAM_H

#include <stdint.h>

#include "engine/quant/gptq.h"

struct error;

enum { BEAM_MAX = 1024 };

/* w, q, rank: (n, GPTQ_LANES) in processing order, of which n_rows lanes are used. A lane of q and
 * rank is written where the search ends below loss: (GPTQ_LANES), which then holds its loss. */
int beam_search(const struct gptq_factor *f, const struct gptq_levels *levels, const float *w,
                int n_rows, int width, float *q, uint8_t *rank, double *loss, struct error *err);

#endif
