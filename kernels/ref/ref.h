/* ref.h - names the parts that kernels/ref fills in the table of operations.
 *
 * Owns      nothing.
 * Borrows   the table during the call.
 * Thread    any.
 * Fails     never.
 * Cost      a few stores.
 *
 * kernels/ref is the specification: obvious loops over the stored values that sum in double. The
 * faster levels are tested against it. */
#ifndef KERNELS_REF_REF_H
#define KERNELS_REF_REF_H

#include <stdbool.h>

struct bcq_ops;
struct dense_ops;
struct ops;
struct rotate_plan;

void ref_bcq_init(struct bcq_ops *bcq);
void ref_whole_init(struct bcq_ops *whole);
void ref_dense_init(struct dense_ops *dense);
void ref_outliers_init(struct ops *ops);
void ref_rotate_init(struct ops *ops);
void ref_attention_init(struct ops *ops);
void ref_norm_init(struct ops *ops);
void ref_elementwise_init(struct ops *ops);

/* ops.rotate, for sizes that a faster level does not take. */
void ref_rotate(float *x, float *tmp, const struct rotate_plan *p, bool back);

#endif
