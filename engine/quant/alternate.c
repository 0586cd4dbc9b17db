#include "engine/quant/alternate.h"

#include <math.h>
#include <string.h>

#include "engine/quant/linalg.h"

/* The loss hardly moves after ten rounds; published code uses 15 to 50. */
enum { ROUNDS = 15, MAX_LEVELS = 1 << BCQ_MAX_BITS };

struct problem {
    const float *w, *h;
    int n, bits;
    bool bias;
};

/* Weight and weighted sum of the weights next to each level. */
struct cells {
    double mass[MAX_LEVELS], first[MAX_LEVELS];
};

static double weight_of(const struct problem *p, int k) { return p->h ? (double)p->h[k] : 1.0; }

static double level_of(const double *fit, int bits, int code) {
    double level = fit[bits];
    for (int i = 0; i < bits; i++) level += code >> i & 1 ? fit[i] : -fit[i];
    return level;
}

/* Plane by plane: the mean size of what the planes before it have left. The residuals of a plane
 * follow from the weights, so none are stored. */
static void greedy_start(const struct problem *p, double *fit) {
    double mass = 0.0, sum = 0.0;
    for (int k = 0; k < p->n; k++) {
        mass += weight_of(p, k);
        sum += weight_of(p, k) * (double)p->w[k];
    }
    fit[p->bits] = p->bias && mass > 0.0 ? sum / mass : 0.0;
    for (int plane = 0; plane < p->bits; plane++) {
        sum = 0.0;
        for (int k = 0; k < p->n; k++) {
            double rest = (double)p->w[k] - fit[p->bits];
            for (int i = 0; i < plane; i++) rest -= rest > 0.0 ? fit[i] : -fit[i];
            sum += weight_of(p, k) * fabs(rest);
        }
        fit[plane] = mass > 0.0 ? sum / mass : 0.0;
    }
}

static void assign(const struct problem *p, const double *fit, struct cells *cells) {
    double levels[MAX_LEVELS];
    memset(cells, 0, sizeof *cells);
    for (int code = 0; code < 1 << p->bits; code++) levels[code] = level_of(fit, p->bits, code);
    for (int k = 0; k < p->n; k++) {
        int best = 0;
        for (int code = 1; code < 1 << p->bits; code++)
            if (fabs((double)p->w[k] - levels[code]) < fabs((double)p->w[k] - levels[best]))
                best = code;
        cells->mass[best] += weight_of(p, k);
        cells->first[best] += weight_of(p, k) * (double)p->w[k];
    }
}

/* The scales (and bias) that fit the codes best, by their normal equations. */
static bool fit_scales(const struct problem *p, const struct cells *cells, double *fit) {
    double a[LINALG_SMALL * LINALG_SMALL] = {0}, b[LINALG_SMALL] = {0};
    int n = p->bits + (p->bias ? 1 : 0);
    for (int code = 0; code < 1 << p->bits; code++) {
        for (int i = 0; i < n; i++) {
            double x = i == p->bits || code >> i & 1 ? 1.0 : -1.0;
            b[i] += x * cells->first[code];
            for (int j = 0; j < n; j++) {
                double y = j == p->bits || code >> j & 1 ? 1.0 : -1.0;
                a[i * n + j] += x * y * cells->mass[code];
            }
        }
    }
    if (!linalg_solve_small(a, b, n)) return false;
    memcpy(fit, b, (size_t)n * sizeof *fit);
    return true;
}

static void sort_rising(float *alpha, int bits) {
    for (int i = 1; i < bits; i++) {
        float v = alpha[i];
        int j = i;
        for (; j > 0 && alpha[j - 1] > v; j--) alpha[j] = alpha[j - 1];
        alpha[j] = v;
    }
}

void alternate_fit(struct alternate_fit *ret, const float *w, const float *h, int n, int bits,
                   bool bias) {
    struct problem p = {w, h, n, bits, bias};
    double fit[BCQ_MAX_BITS + 1] = {0};
    greedy_start(&p, fit);
    for (int round = 0; round < ROUNDS; round++) {
        struct cells cells;
        assign(&p, fit, &cells);
        if (!fit_scales(&p, &cells, fit)) break;
    }
    /* A plane with a negative scale is the plane of opposite bits with a positive one. */
    for (int i = 0; i < bits; i++) ret->alpha[i] = (float)fabs(fit[i]);
    sort_rising(ret->alpha, bits);
    ret->bias = (float)fit[bits];
}
