/* whole.h - what the levels' packed forms of whole numbers (BCQ_WHOLE) have in common.
 *
 * Owns      nothing.
 * Borrows   arguments during the call.
 * Thread    any; no state.
 * Fails     never.
 * Cost      a pass over what is packed.
 *
 * Whole numbers times whole numbers: x is rounded to about 16 bits with a scale for each 32 inputs,
 * the group of the weights, so that a group's sum is exact in 32 bits and one multiply-add brings
 * it into the row's. Codes are unsigned; their zero, 2^(m-1), is taken off through the group's sum
 * of x.
 *
 * Matrices are panels of as many rows as a level likes, group by group: the rows' scales in fp16,
 * then words, in which every level places codes as its multiplications want them. Everything is
 * inline: a level's own functions, given here by name, leave no call. */
#ifndef KERNELS_WHOLE_H
#define KERNELS_WHOLE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "kernels/ops.h"
#include "kernels/weights.h"

enum { WHOLE_GROUP = BCQ_WHOLE_GROUP };

/* Bits that a code takes: up to 4 bits 4; 5 and 6 bits 4 and, elsewhere, 2; more bits 8. */
enum whole_form { WHOLE_NIBBLES, WHOLE_SIXES, WHOLE_BYTES };

static inline enum whole_form whole_form_of(int bits) {
    return bits <= 4 ? WHOLE_NIBBLES : bits <= 6 ? WHOLE_SIXES : WHOLE_BYTES;
}

static inline size_t whole_groups(int cols) {
    return ((size_t)cols + WHOLE_GROUP - 1) / WHOLE_GROUP;
}

/* Bytes of a group of a panel: of its scales, and of all. */
static inline size_t whole_scales_bytes(int rows) { return (size_t)rows * sizeof(uint16_t); }
static inline size_t whole_group_bytes(enum whole_form form, int rows) {
    const int row = form == WHOLE_NIBBLES ? 16 : form == WHOLE_SIXES ? 24 : 32;
    return whole_scales_bytes(rows) + (size_t)(rows * row);
}

/* struct bcq_ops.pack_bytes of panels of so many rows. */
static inline size_t whole_pack_bytes(const struct bcq_spec *w, int rows) {
    size_t panels = ((size_t)w->rows + (size_t)rows - 1) / (size_t)rows;
    return panels * whole_groups(w->cols) * whole_group_bytes(whole_form_of(w->bits), rows);
}

/* Adds the codes of a group of row r to words of a panel, whose row it is. */
typedef void whole_place(void *words, int row, const struct bcq_view *w, int r, int group);

/* struct bcq_ops.pack. */
static inline void whole_pack(void *dst, const struct bcq_view *w, int b0, int b1, int rows,
                              whole_place *place) {
    size_t groups = whole_groups(w->spec.cols);
    size_t bytes = whole_group_bytes(whole_form_of(w->spec.bits), rows);
    for (int b = b0; b < b1; b++)
        for (size_t g = 0; g < groups; g++) {
            char *to = (char *)dst + ((size_t)b * groups + g) * bytes;
            for (int i = 0, r = b * rows; i < rows && r < w->spec.rows; i++, r++) {
                ((uint16_t *)(void *)to)[i] = w->alpha[(size_t)r * groups + g];
                place(to + whole_scales_bytes(rows), i, w, r, (int)g);
            }
        }
}

/* -- Inputs ----------------------------------------------------------------------------------- */

/* What a group of a token's x is counted in. */
struct whole_factor {
    float scale; /* NaN if an x was not finite */
    int32_t sum; /* of the whole numbers */
};

/* A group of a token's x; high, low: x = 256 * high + low. */
union whole_input {
    int16_t x[WHOLE_GROUP];
    struct {
        int8_t high[WHOLE_GROUP], low[WHOLE_GROUP];
    };
};

/* All inputs of n tokens, (n, groups), then their factors. */
static inline struct whole_factor *whole_factors(const void *act, size_t groups, int n) {
    return (struct whole_factor *)((const union whole_input *)act + groups * (size_t)n);
}

static inline size_t whole_act_bytes(int cols, int n) {
    return whole_groups(cols) * (size_t)n *
           (sizeof(union whole_input) + sizeof(struct whole_factor));
}

/* x: (WHOLE_GROUP) */
typedef struct whole_factor whole_rounding(union whole_input *to, const float *x);

/* struct bcq_ops.act_pack; inputs past the last are 0. */
static inline void whole_act_pack(void *act, int cols, const float *x, size_t ldx, int n, int part,
                                  int n_parts, whole_rounding *rounding) {
    size_t groups = whole_groups(cols);
    int t0 = bcq_first_token(n, part, n_parts), t1 = bcq_first_token(n, part + 1, n_parts);
    for (int t = t0; t < t1; t++) {
        size_t at = (size_t)t * groups;
        union whole_input *to = (union whole_input *)act + at;
        struct whole_factor *factor = whole_factors(act, groups, n) + at;
        for (size_t g = 0; g < groups; g++) {
            size_t left = (size_t)cols - g * WHOLE_GROUP;
            float last[WHOLE_GROUP] = {0};
            const float *from = x + (size_t)t * ldx + g * WHOLE_GROUP;
            if (left < WHOLE_GROUP) from = memcpy(last, from, left * sizeof *from);
            factor[g] = rounding(&to[g], from);
        }
    }
}

#endif
