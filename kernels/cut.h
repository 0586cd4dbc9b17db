/* cut.h - parts of a weight view, for devices that share a matrix.
 *
 * Owns      what a part was copied into, until cut_free().
 * Borrows   the view until cut_free(): a part may point into it.
 * Thread    any.
 * Fails     -EINVAL with what a cut must be a multiple of; -ENOMEM.
 * Cost      a copy of the part, none for rows of a dense matrix.
 *
 * A part's weights are exactly those of the view. Inputs of a binary-coded matrix are cut between
 * words of its planes and between groups; a row that is one group has the same parameters in each
 * part. Outliers and rotations are not cut: the caller has refused them. */
#ifndef KERNELS_CUT_H
#define KERNELS_CUT_H

#include "kernels/weights.h"

struct cut {
    struct weight_view view;
    void *owned;
};

/* Where part i of n begins when size is cut; part n begins at the end. */
static inline int cut_begin(int size, int i, int n) { return (int)((int64_t)size * i / n); }

/* Part i of n of the rows, or of the inputs, which n must divide. The view's rows and cols are its
 * own even when it is coded. */
int cut_rows(struct cut *ret, const struct weight_view *view, int i, int n, struct error *err);
int cut_inputs(struct cut *ret, const struct weight_view *view, int i, int n, struct error *err);
void cut_free(struct cut *cut); /* one that failed is allowed */

#endif
