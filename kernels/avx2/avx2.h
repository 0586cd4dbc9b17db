/* avx2.h - names the parts that kernels/avx2 overrides in the table of operations.
 *
 * Owns      nothing.
 * Borrows   the table during the call.
 * Thread    any.
 * Fails     never.
 * Cost      a few stores.
 *
 * Call only on a processor with the instruction set; see kernels/cpu/features.h. */
#ifndef KERNELS_AVX2_AVX2_H
#define KERNELS_AVX2_AVX2_H

struct bcq_ops;
struct dense_ops;
struct ops;

void avx2_bcq_init(struct bcq_ops *bcq);
void avx2_whole_init(struct bcq_ops *whole);
void avx2_dense_init(struct dense_ops *dense);
void avx2_outliers_init(struct ops *ops);
void avx2_rotate_init(struct ops *ops);
void avx2_attention_init(struct ops *ops);
void avx2_norm_init(struct ops *ops);
void avx2_elementwise_init(struct ops *ops);

#endif
