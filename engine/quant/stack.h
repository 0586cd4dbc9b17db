/* stack.h - puts coded matrices of equal columns on top of each other.
 *
 * Owns      nothing; the result is the caller's.
 * Borrows   the pieces during the call.
 * Thread    any.
 * Fails     -ENOMEM; -EINVAL where pieces are not stored alike or have outliers.
 * Cost      copies everything once. */
#ifndef ENGINE_QUANT_STACK_H
#define ENGINE_QUANT_STACK_H

#include "engine/quant/layer.h"

/* Rows of one coded matrix into another that is stored alike. */
void stack_copy_rows(const struct bcq_view *to, int to_row, const struct bcq_view *from, int row,
                     int n_rows);

/* ret: to be freed by layer_result_free(); losses and energies are summed. */
int stack_rows(struct layer_result *ret, const struct layer_result *pieces, int n,
               struct error *err);

#endif
