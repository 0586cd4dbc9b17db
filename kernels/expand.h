/* expand.h - gives the dense weights that a coded matrix and what lies beside it stand for.
 *
 * Owns      nothing.
 * Borrows   the view during the call.
 * Thread    any.
 * Fails     never.
 * Cost      O(cols * bits) a row, O(rows + cols) to find its outliers. */
#ifndef KERNELS_EXPAND_H
#define KERNELS_EXPAND_H

struct weight_view;

/* out: (cols). One row of a binary-coded matrix. */
void weight_expand_row(const struct weight_view *w, int row, float *out);

#endif
