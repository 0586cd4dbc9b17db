/* expand.h - gives the dense weights that a coded matrix and what lies beside it stand for.
 *
 * Owns      nothing.
 * Borrows   the view during the call.
 * Thread    any.
 * Fails     -ENOMEM, of rotated matrices alone.
 * Cost      O(cols * bits) a row, O(rows + cols) to find its outliers; rotated matrices the
 *           rotations on top, and all rows for any of them where outputs are rotated. */
#ifndef KERNELS_EXPAND_H
#define KERNELS_EXPAND_H

struct error;
struct weight_view;

/* out: (n_rows, cols). Rows row .. row + n_rows - 1 of a binary-coded matrix. */
int weight_expand(const struct weight_view *w, int row, int n_rows, float *out, struct error *err);

#endif
