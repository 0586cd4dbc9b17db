/* butterfly.h - walks a rotation (ops.rotate) for the levels that do its steps with vectors.
 *
 * Owns      nothing.
 * Borrows   arguments during the call.
 * Thread    any; no state.
 * Fails     never.
 * Cost      as kernels/rotation.h says.
 *
 * Everything is inline: with a level's own constant table of steps no call through a pointer is
 * left. */
#ifndef KERNELS_BUTTERFLY_H
#define KERNELS_BUTTERFLY_H

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include "kernels/ops.h"
#include "kernels/ref/ref.h"

enum { BUTTERFLY_TILE = 4 /* segments that a mixing step makes at once */ };

struct butterfly_steps {
    /* All of x: signs if wanted, scale, and the stages within a register. */
    void (*first_stages)(float *x, const struct rotate_plan *p, bool signs);
    void (*two_stages)(float *x, int half); /* of x: (4 * half) */
    void (*one_stage)(float *x, int half);  /* of x: (2 * half) */
    /* A register's places of n segments from a on, n 1 or BUTTERFLY_TILE and a constant in it. */
    void (*mix_tile)(float *to, const float *x, const struct rotate_plan *p, const float *basis,
                     int a, int n);
    void (*turn_signs)(float *x, const struct rotate_plan *p);
};

#define BUTTERFLY_INLINE static inline __attribute__((always_inline))

BUTTERFLY_INLINE void butterfly_later_stages(float *x, int n, int length, const int lanes,
                                             const struct butterfly_steps *steps) {
    int half = lanes;
    for (; 4 * half <= length; half *= 4)
        for (int i = 0; i < n; i += 4 * half) steps->two_stages(x + i, half);
    if (2 * half <= length)
        for (int i = 0; i < n; i += 2 * half) steps->one_stage(x + i, half);
}

BUTTERFLY_INLINE void butterfly_mix(float *x, float *tmp, const struct rotate_plan *p,
                                    const float *basis, const int lanes,
                                    const struct butterfly_steps *steps) {
    for (int b = 0; b < p->length; b += lanes) {
        int a = 0;
        for (; a + BUTTERFLY_TILE <= p->order; a += BUTTERFLY_TILE)
            steps->mix_tile(tmp + b, x + b, p, basis, a, BUTTERFLY_TILE);
        for (; a < p->order; a++) steps->mix_tile(tmp + b, x + b, p, basis, a, 1);
    }
    memcpy(x, tmp, (size_t)p->n * sizeof *x);
}

/* Segments shorter than a register are rare and left to the reference. */
BUTTERFLY_INLINE void butterfly_rotate(float *x, float *tmp, const struct rotate_plan *p, bool back,
                                       const int lanes, const struct butterfly_steps *steps) {
    if (p->length < lanes) {
        ref_rotate(x, tmp, p, back);
        return;
    }
    steps->first_stages(x, p, !back);
    butterfly_later_stages(x, p->n, p->length, lanes, steps);
    if (p->order > 1) butterfly_mix(x, tmp, p, back ? p->transposed : p->basis, lanes, steps);
    if (back) steps->turn_signs(x, p);
}

#endif
