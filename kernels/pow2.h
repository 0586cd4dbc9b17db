/* pow2.h - blocks whose parameters are powers of two, so that products need shifts alone.
 *
 * Owns      nothing.
 * Borrows   the view during the call.
 * Thread    any; no state.
 * Fails     never.
 * Cost      one pass over a block's parameters.
 *
 * Power-of-two step sizes: arXiv 2203.05025; binary codes multiplied by shifts and adds:
 * ShiftAddLLM, arXiv 2406.05981. The compact kind holds them exactly: s0 and s1 are powers of two,
 * so are every d_i, every q and every |p|, or q or p is 0. Then alpha_i = 2^(log s0 - 1 + log q +
 * log d_i), and an integer sum over a plane is weighed by one shift. */
#ifndef KERNELS_POW2_H
#define KERNELS_POW2_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/weights.h"

enum { POW2_NONE = 255 /* in place of the logarithm of 0 */ };

/* A group's parameters as logarithms. */
struct pow2_group {
    uint8_t plane[BCQ_MAX_BITS]; /* of q d_i; POW2_NONE: q is 0 */
    uint8_t offset;              /* of |p| */
    uint8_t is_negative;         /* p is */
};

/* Whether every parameter of a block is a power of two or 0. */
bool pow2_ready(const struct bcq_view *view);

/* Of a block that is ready. */
void pow2_group(const struct bcq_view *view, int row, int group, struct pow2_group *ret);

/* Logarithms of s0 / 2 and s1; a scale that is 0 gives INT16_MIN. */
void pow2_row(const struct bcq_view *view, int row, int16_t *ret_scale, int16_t *ret_offset);

#endif
