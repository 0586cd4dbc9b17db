#include "engine/quant/grid.h"

#include <math.h>

#include "kernels/float16.h"

static unsigned top(const struct grid *g) { return (1u << g->bits) - 1u; }

static struct grid from_range(double low, double high, int bits) {
    struct grid g = {.bits = bits};
    if (low == 0.0 && high == 0.0) {
        low = -1.0;
        high = 1.0;
    }
    g.scale = (high - low) / (double)top(&g);
    g.zero = rint(-low / g.scale);
    return g;
}

static void range(const double *w, size_t n, double *low, double *high) {
    *low = *high = 0.0;
    for (size_t i = 0; i < n; i++) {
        if (w[i] < *low) *low = w[i];
        if (w[i] > *high) *high = w[i];
    }
}

struct grid grid_minmax(const double *w, size_t n, int bits) {
    double low, high;
    range(w, n, &low, &high);
    return from_range(low, high, bits);
}

static double weighted_error(const struct grid *g, const double *w, const double *h, size_t n) {
    double sum = 0.0;
    for (size_t i = 0; i < n; i++) {
        double e = w[i] - grid_value(g, grid_code(g, w[i]));
        sum += (h ? h[i] : 1.0) * e * e;
    }
    return sum;
}

struct grid grid_min_mse(const double *w, const double *h, size_t n, int bits) {
    double low, high;
    range(w, n, &low, &high);
    struct grid best = from_range(low, high, bits);
    double least = weighted_error(&best, w, h, n);
    for (int i = 1; i < 40; i++) {
        double shrink = 1.0 - 0.02 * i;
        struct grid g = from_range(low * shrink, high * shrink, bits);
        double error = weighted_error(&g, w, h, n);
        if (error < least) {
            least = error;
            best = g;
        }
    }
    return best;
}

unsigned grid_code(const struct grid *g, double w) {
    double c = rint(w / g->scale + g->zero);
    if (!(c > 0.0)) return 0;
    return c < (double)top(g) ? (unsigned)c : top(g);
}

double grid_value(const struct grid *g, unsigned code) {
    return ((double)code - g->zero) * g->scale;
}

double grid_middle(const struct grid *g) { return g->scale * (0.5 * (double)top(g) - g->zero); }

static double rounded_f16(double x) {
    /* 65504 is the largest finite half. */
    double limit = x > 65504.0 ? 65504.0 : x < -65504.0 ? -65504.0 : x;
    return (double)f16_to_f32(f32_to_f16((float)limit));
}

void grid_round_f16(struct grid *g) {
    double middle = rounded_f16(grid_middle(g));
    double step = 2.0 * rounded_f16(0.5 * g->scale);
    /* A step below half's smallest leaves one level, the middle; 1 keeps the division defined. */
    g->scale = step > 0.0 ? step : 1.0;
    g->zero = 0.5 * (double)top(g) - middle / g->scale;
}
