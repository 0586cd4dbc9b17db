/* sampler_state.h - what the parts of the sampler share.
 *
 * Owns      nothing.
 * Borrows   its arguments.
 * Thread    engine.
 * Fails     never.
 * Cost      see sampler.h. */
#ifndef ENGINE_SAMPLER_STATE_H
#define ENGINE_SAMPLER_STATE_H

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "engine/sampler.h"

enum {
    DIGIT_BITS = 11,
    N_DIGITS = 1 << DIGIT_BITS,
    SPAN = 32 /* values that share a maximum */
};

struct sampler_work {
    int n_vocab;
    float *values; /* (n_vocab) logits after penalties, then weights */
    int n;         /* of them, in use while drawing; ids: whose they are where that is not all */
    int32_t *ids;  /* (n_vocab) */
    float *maxima; /* (n_maxima) of SPAN values each */
    int n_maxima;
    uint32_t *counts; /* (n_vocab) of history: bit 0 seen, the rest times generated; 0 between
                         calls */
    uint32_t sizes[N_DIGITS];
    double weights[N_DIGITS];
};

/* e^x for x <= 0, to 11 digits; weights are floats. The C library's differs in last bits between
 * machines, and with it which token a draw meets. x = k ln 2 + r with |r| <= ln 2 / 2, ln 2 in
 * two parts of which the first times k is exact; e^r by its series up to r^9 / 9!. */
static inline double exponential(double x) {
    static const double inverse_factorial[] = {
        1,         1,         1.0 / 2,    1.0 / 6,     1.0 / 24,
        1.0 / 120, 1.0 / 720, 1.0 / 5040, 1.0 / 40320, 1.0 / 362880,
    };
    if (!(x > -700)) return 0;
    double k = floor(x * 1.44269504088896338700e+00 + 0.5);
    double r = (x - k * 6.93147180369123816490e-01) - k * 1.90821492927058770002e-10;
    double sum = inverse_factorial[9];
    for (int i = 8; i >= 0; i--) sum = sum * r + inverse_factorial[i];
    uint64_t bits = (uint64_t)(1023 + (int64_t)k) << 52;
    double scale;
    memcpy(&scale, &bits, sizeof scale);
    return sum * scale;
}

/* NaN becomes minus infinity, plus infinity the largest float: differences stay numbers. */
static inline float tame(float x) { return x != x ? -INFINITY : x > FLT_MAX ? FLT_MAX : x; }

/* A draw from the values, which are logits and have `max` as their largest. */
int sampler_draw(struct sampler *s, struct sampler_work *w, float max);

#endif
