#include "kernels/rounding.h"

#include <stddef.h>
#include <string.h>

static float largest_of(const float *x, int act_bits) {
    float largest = 0;
    for (size_t k = 0; k < ROUNDING_SPAN; k += 4) {
        float a[4] = {fabsf(x[k]), fabsf(x[k + 1]), fabsf(x[k + 2]), fabsf(x[k + 3])};
        if (act_bits > 4) a[0] = (a[0] + a[1]) + (a[2] + a[3]);
        for (size_t i = 0; i < (act_bits > 4 ? 1 : 4); i++) {
            if (!(a[i] < INFINITY)) return NAN;
            if (a[i] > largest) largest = a[i];
        }
    }
    return largest;
}

float rounding_span(float *out, const float *x, int act_bits) {
    struct rounding r;
    rounding_of(&r, largest_of(x, act_bits), act_bits);
    for (size_t k = 0; k < ROUNDING_SPAN; k++) out[k] = r.up > 0 ? rintf(x[k] * r.up) : 0;
    return r.scale;
}

void rounding_row(float *out, const float *x, int cols, int act_bits) {
    for (int k = 0; k < cols; k += ROUNDING_SPAN) {
        size_t n = (size_t)(cols - k < ROUNDING_SPAN ? cols - k : ROUNDING_SPAN);
        float in[ROUNDING_SPAN] = {0}, whole[ROUNDING_SPAN];
        memcpy(in, x + k, n * sizeof *in);
        float scale = rounding_span(whole, in, act_bits);
        for (size_t i = 0; i < n; i++) out[(size_t)k + i] = scale * whole[i];
    }
}
