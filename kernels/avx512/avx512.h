/* avx512.h - names the parts that kernels/avx512 overrides in the table of operations.
 *
 * Owns      nothing.
 * Borrows   the table during the call.
 * Thread    any.
 * Fails     never.
 * Cost      a few stores.
 *
 * Call only on a processor with the instruction set; see kernels/cpu/features.h. */
#ifndef KERNELS_AVX512_AVX512_H
#define KERNELS_AVX512_AVX512_H

struct bcq_ops;
struct dense_ops;
struct ops;

void avx512_bcq_init(struct bcq_ops *bcq);
void avx512_whole_init(struct bcq_ops *whole);
void avx512_dense_init(struct dense_ops *dense);
void avx512_outliers_init(struct ops *ops);
void avx512_rotate_init(struct ops *ops);
void avx512_attention_init(struct ops *ops);
void avx512_elementwise_init(struct ops *ops);

#endif
