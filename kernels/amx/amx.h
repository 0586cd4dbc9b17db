/* amx.h - names the parts that kernels/amx overrides in the table of operations.
 *
 * Owns      nothing.
 * Borrows   the table during the call.
 * Thread    any.
 * Fails     never.
 * Cost      a few stores.
 *
 * Call only where the processor has the instructions and the kernel lets this process use tiles; see
 * kernels/cpu/features.h. */
#ifndef KERNELS_AMX_AMX_H
#define KERNELS_AMX_AMX_H

struct bcq_ops;

void amx_bcq_init(struct bcq_ops *bcq);
void amx_whole_init(struct bcq_ops *whole);

#endif
