/* shift.h - products of binary codes without a multiplication by weights.
 *
 * Owns      nothing.
 * Borrows   arguments during the call.
 * Thread    any; no state.
 * Fails     never.
 * Cost      an add per input and plane, a shift per group and plane; not fast.
 *
 * For blocks that pow2_ready() approves and inputs that are rounded (kernels/rounding.h): within a
 * span of 128 inputs a row's sum is made of whole numbers by adds and shifts. Its only product is
 * with the span's scale, which belongs to the activations; the row's own scales are added to an
 * exponent. The result is that of the ordinary product of the same whole numbers. */
#ifndef KERNELS_REF_SHIFT_H
#define KERNELS_REF_SHIFT_H

#include <stdint.h>

#include "kernels/pow2.h"

struct bcq_ops;

/* Inputs of one group in one span. */
struct ref_shift_part {
    const int8_t *x;        /* (n) */
    const uint32_t *planes; /* of the row, (bits, stride) */
    int bits, stride;
    int first, n; /* the first one's column */
    const struct pow2_group *group;
};

/* Adds the share of a part to a row's sums over planes, in units of s0 / 2, and of p, of s1. The
 * largest sum is 128 inputs * 127 * 2^11 * 4 planes < 2^28. */
void ref_shift_sum(const struct ref_shift_part *part, int32_t *ret_planes, int32_t *ret_offset);

/* struct bcq_ops for such blocks; act_bits below 16 alone. */
void ref_shift_init(struct bcq_ops *ops);

#endif
