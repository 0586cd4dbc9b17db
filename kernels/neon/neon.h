/* neon.h - names the parts that kernels/neon overrides in the table of operations.
 *
 * Owns      nothing.
 * Borrows   the table during the call.
 * Thread    any.
 * Fails     never.
 * Cost      a few stores.
 *
 * Call only on a processor with the instruction set; see kernels/cpu/features.h. What is missing
 * here (storing int8) stays with kernels/ref. */
#ifndef KERNELS_NEON_NEON_H
#define KERNELS_NEON_NEON_H

struct bcq_ops;
struct dense_ops;
struct ops;

void neon_bcq_init(struct bcq_ops *bcq);
void neon_whole_init(struct bcq_ops *whole);
void neon_dense_init(struct dense_ops *dense);
void neon_outliers_init(struct ops *ops);
void neon_rotate_init(struct ops *ops);
void neon_attention_init(struct ops *ops);
void neon_norm_init(struct ops *ops);
void neon_elementwise_init(struct ops *ops);

#endif
