#include "kernels/ref/shift.h"

/* This file holds adds, subtractions, shifts and masks; tests/kernels/shift_only.sh looks for multiplications
 * in what the compiler made of it. Places move on by steps, since an index may become a product. */

/* A sum over a plane's bits: x where a bit is set, -x where not. */
static int32_t plane_sum(const int8_t *x, const uint32_t *words, int first, int n) {
    int32_t sum = 0;
    const uint32_t *word = words + (first >> 5);
    uint32_t bits = *word >> (first & 31);
    for (int left = 32 - (first & 31); n > 0; n--, x++) {
        if (left == 0) {
            bits = *++word;
            left = 32;
        }
        int32_t minus = (int32_t)(bits & 1u) - 1; /* all ones where the bit is clear */
        sum += (*x ^ minus) - minus;
        bits >>= 1;
        left--;
    }
    return sum;
}

/* Left shifts of negative numbers are not defined; of their bits they are. */
static int32_t shifted(int32_t v, uint8_t by) { return (int32_t)((uint32_t)v << by); }

void ref_shift_sum(const struct ref_shift_part *part, int32_t *ret_planes, int32_t *ret_offset) {
    int32_t planes = 0, offset = 0, plain = 0;
    const uint32_t *words = part->planes;
    for (int i = 0; i < part->bits; i++, words += part->stride) {
        uint8_t by = part->group->plane[i];
        if (by == POW2_NONE) continue;
        planes += shifted(plane_sum(part->x, words, part->first, part->n), by);
    }
    for (int k = 0; k < part->n; k++) plain += part->x[k];
    if (part->group->offset != POW2_NONE) offset = shifted(plain, part->group->offset);
    if (part->group->is_negative) offset = -offset;
    *ret_planes += planes;
    *ret_offset += offset;
}
