/* params.h - keeps a copy of one row's group parameters.
 *
 * Owns      nothing.
 * Borrows   the block and the copy during the call.
 * Thread    any; rows are independent.
 * Fails     never.
 * Cost      copies a row's parameters, a few bits per group.
 *
 * What params_save() took, params_restore() puts back to the byte: scale, bias and shape of every
 * group and the row's super-scales. The shape table and the codes are not a row's parameters. */
#ifndef ENGINE_QUANT_PARAMS_H
#define ENGINE_QUANT_PARAMS_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/weights.h"

/* Bytes of a copy. */
size_t params_size(const struct bcq_view *view);

void params_save(const struct bcq_view *view, int row, uint8_t *copy);
void params_restore(const struct bcq_view *view, int row, const uint8_t *copy);

#endif
