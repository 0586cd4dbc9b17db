/* alternate.h - fits binary codes to a group of weights by alternating least squares.
 *
 * Owns      nothing.
 * Borrows   its arguments during the call.
 * Thread    any.
 * Fails     never; where the least squares are singular the last good fit stays.
 * Cost      rounds * n * 2^bits.
 *
 * The classic binary coding (BCQ), kept as a baseline: a greedy start, then by turns the codes
 * nearest to the weights and the scales that fit these codes best. It finds a local optimum, where
 * codebook.h compares all. */
#ifndef ENGINE_QUANT_ALTERNATE_H
#define ENGINE_QUANT_ALTERNATE_H

#include <stdbool.h>

#include "kernels/weights.h"

struct alternate_fit {
    float alpha[BCQ_MAX_BITS]; /* at least 0, rising */
    float bias;                /* 0 without one */
};

/* w: (n); h: (n) weights of the squared errors, or NULL for all 1. */
void alternate_fit(struct alternate_fit *ret, const float *w, const float *h, int n, int bits,
                   bool bias);

#endif
