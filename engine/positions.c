#include "engine/positions.h"

#include <math.h>

#include "engine/config.h"

/* ALiBi slopes (Press et al. 2022, section 3 and its reference code): powers of 2^(-8/n) for a
 * power of two n, the gaps filled from the next power's odd members. */
void positions_alibi(float *slopes, int n_heads) {
    int base = 1;
    while (base * 2 <= n_heads) base *= 2;
    for (int i = 0; i < n_heads; i++) {
        double exponent = i < base ? -8.0 * (i + 1) / base : -4.0 * (2 * (i - base) + 1) / base;
        slopes[i] = (float)pow(2.0, exponent);
    }
}

/* "llama3" scaling: long waves are slowed by factor, short ones kept, those between blended. */
static double llama3_scaled(double freq, const struct config_rope *rope) {
    double wavelength = 2 * 3.14159265358979323846 / freq;
    double low = rope->original_positions / rope->low_freq_factor;
    double high = rope->original_positions / rope->high_freq_factor;
    if (wavelength > low) return freq / rope->factor;
    if (wavelength < high) return freq;
    double smooth = (rope->original_positions / wavelength - rope->low_freq_factor) /
                    (rope->high_freq_factor - rope->low_freq_factor);
    return (1 - smooth) * freq / rope->factor + smooth * freq;
}

void positions_rope(double *inv_freq, const struct model_config *c) {
    for (int i = 0; i < c->head_dim / 2; i++) {
        double freq = pow(c->rope.theta, -2.0 * i / c->head_dim);
        if (c->rope.scaling == ROPE_LLAMA3) freq = llama3_scaled(freq, &c->rope);
        if (c->rope.scaling == ROPE_LINEAR) freq /= c->rope.factor;
        if (c->rope.scaling == ROPE_FACTORS) freq /= (double)c->rope.factors[i];
        inv_freq[i] = freq;
    }
}
