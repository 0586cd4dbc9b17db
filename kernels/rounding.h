/* rounding.h - how activations become small whole numbers, for every level alike.
 *
 * Owns      nothing.
 * Borrows   arguments during the call.
 * Thread    any; no state.
 * Fails     never.
 * Cost      a few operations per input.
 *
 * The scheme is that of QUIK (arXiv 2310.09259, section 3.1): symmetric, rounded to nearest, ties to
 * even. A scale serves 128 consecutive inputs of a token (the last 128 are completed with zeros)
 * where QUIK has one per token: an outlier then costs its neighbours alone, and every level of
 * kernels has a scale per 128 inputs anyway.
 *
 *   4 bits   u = 7 / max |x_k|: whole numbers -7..7
 *   8 bits   u = 125 / max (|x_4j| + |x_4j+1|) + (|x_4j+2| + |x_4j+3|): whole numbers -127..127 of
 *            which no aligned four can sum to more than 127 in magnitude (125 and four halves), so
 *            that a table of their signed sums holds bytes. Beside an outlier this is the scale
 *            127 / max |x| up to 2 %; without one it costs up to a bit.
 *
 * round(x_k * u) with the product in fp32; the number stands for round(x_k * u) / u. Inputs of
 * at most TINY count as zero. A span with an input that is not finite has the scale NaN. */
#ifndef KERNELS_ROUNDING_H
#define KERNELS_ROUNDING_H

#include <math.h>

enum { ROUNDING_SPAN = 128 };

struct rounding {
    float up;    /* 0: every number is 0 */
    float scale; /* of the numbers: NaN if an input was not finite */
};

/* limit: what largest becomes, which is not finite if an input is not. */
static inline void rounding_to(struct rounding *ret, float largest, float limit) {
    const float tiny = 1e-30f;
    *ret = (struct rounding){0};
    if (!(largest < INFINITY)) {
        ret->scale = NAN;
    } else if (largest > tiny) {
        ret->up = limit / largest;
        ret->scale = largest / limit;
    }
}

/* largest: the maximum above, or anything not finite if an input is. */
static inline void rounding_of(struct rounding *ret, float largest, int act_bits) {
    rounding_to(ret, largest, act_bits > 4 ? 125.0f : 7.0f);
}

/* out: (ROUNDING_SPAN) whole numbers; returns their scale. */
float rounding_span(float *out, const float *x, int act_bits);

/* What a token's whole numbers stand for; out, x: (cols), may be the same. */
void rounding_row(float *out, const float *x, int cols, int act_bits);

#endif
