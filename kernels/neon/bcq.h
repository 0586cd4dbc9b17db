/* bcq.h - the packed forms that the NEON kernels for binary-coded matrices share.
 *
 * Owns      nothing.
 * Borrows   arguments during the call.
 * Thread    any; no state.
 * Fails     never.
 * Cost      as in kernels/ops.h.
 *
 * The method: 128 inputs (a span) become whole numbers on one scale, such that the magnitudes of
 * any aligned four add up to at most 32767. A table holds the 16 signed sums of four of them, exactly, as
 * low and high bytes; TBL looks up both for 16 rows at once. Bytes are widened as they are
 * added, so a part - the inputs that a group and a span have in common - is integer arithmetic
 * throughout, and the few floating-point operations after it are one sequence for every way of
 * splitting the work. Rounded inputs (act_bits below 16) have entries of one byte.
 *
 * Packed: blocks of 16 rows. A byte of code is 8 consecutive inputs of a row and plane, the
 * first input lowest; a vector of code is that of 16 rows. Groups that begin inside a byte of code
 * are kept as fp32 weights: right, but four bytes a weight. */
#ifndef KERNELS_NEON_BCQ_H
#define KERNELS_NEON_BCQ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/weights.h"

enum { NEON_BCQ_ROWS = 16, NEON_BCQ_SPAN = 128, NEON_BCQ_TABLES = 32, NEON_BCQ_COLUMNS = 16 };

/* What a token's 128 inputs look like to the kernels. */
struct neon_bcq_act {
    float scale; /* x = scale * whole number; NaN if an x is not finite */
    float unused[15];
    int32_t sums[NEON_BCQ_COLUMNS]; /* of eight inputs */
    int16_t whole[NEON_BCQ_SPAN];
    int8_t hi[NEON_BCQ_TABLES][16];  /* of rounded inputs: the entries */
    uint8_t lo[NEON_BCQ_TABLES][16]; /* records of rounded inputs end before it */
};
_Static_assert(sizeof(struct neon_bcq_act) % 64 == 0 && offsetof(struct neon_bcq_act, lo) % 64 == 0,
               "records begin at cache lines");

/* Records are (span, token). */
size_t neon_bcq_act_bytes(int act_bits, int cols, int n);
void neon_bcq_act_pack(void *act, int act_bits, const struct bcq_spec *w, const float *x,
                       size_t ldx, int n, int part, int n_parts);

/* Bytes of a packed block, from its start.
 *   floats   weights [cols][16]
 *   compact  s0 / 2 and s1, fp32 [2][16]; d [4][16]; for each part: q [16], p [16], with shapes
 *            per group d [bits][16], then code [plane][column]
 *   free     for each part: alpha [bits][16], beta [16] in fp16, then code [plane][column] */
struct neon_bcq_shape {
    bool floats, compact, own_shapes; /* own_shapes: d for each part */
    int group;
    size_t head, params; /* bytes before the first part; of a part before its code */
    size_t block_bytes;  /* a multiple of 64 */
};
void neon_bcq_shape(struct neon_bcq_shape *ret, const struct bcq_spec *w);

/* The end of the part that begins at input pos. */
static inline int neon_bcq_part_end(const struct neon_bcq_shape *s, int cols, int pos) {
    int span = (pos / NEON_BCQ_SPAN + 1) * NEON_BCQ_SPAN;
    int64_t group = ((int64_t)pos / s->group + 1) * s->group;
    int end = group < span ? (int)group : span;
    return end < cols ? end : cols;
}

size_t neon_bcq_pack_bytes(const struct bcq_spec *w);
void neon_bcq_pack(void *dst, const struct bcq_view *w, int b0, int b1);

static inline const struct neon_bcq_act *neon_bcq_at(const void *act, bool bytes, size_t i) {
    size_t record = bytes ? offsetof(struct neon_bcq_act, lo) : sizeof(struct neon_bcq_act);
    return (const void *)((const uint8_t *)act + i * record);
}

#endif
