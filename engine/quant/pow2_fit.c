#include "engine/quant/pow2_fit.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "engine/quant/pack.h"
#include "kernels/error.h"

/* Scales of a row's groups are looked for in so many octaves below the largest that makes sense. */
enum { OCTAVES = 8, MAX_LEVELS = 1 << BCQ_MAX_BITS, MAX_OFFSETS = 15, LANES = 16 };

/* What a group would have at some scale, and what that costs. */
struct choice {
    float cost;
    int p;
};

struct fit {
    const struct bcq_view *v;
    const float *w, *h;
    int n_groups, n_offsets;
    int offset_of[MAX_OFFSETS]; /* values of p */
    float s1;
    int top;               /* logarithm of the largest scale */
    float *low, *high;     /* (n_groups) ends of the weights */
    struct choice *choice; /* (n_groups, OCTAVES + 1); the last: no scale at all */
};

/* The shape in force, its levels in units of the scale, rising. */
struct shape {
    uint8_t d[BCQ_MAX_BITS];
    float level[MAX_LEVELS];
};

static void make_levels(struct shape *s, int bits) {
    for (int code = 0; code < 1 << bits; code++) {
        float level = 0.0f;
        int at = code;
        for (int i = 0; i < bits; i++) level += (code >> i & 1 ? 0.5f : -0.5f) * (float)s->d[i];
        for (; at > 0 && s->level[at - 1] > level; at--) s->level[at] = s->level[at - 1];
        s->level[at] = level;
    }
}

/* The nearest level is found by counting borders below a weight: no branch, so that weights go side by
 * side in vector registers once n_levels is a constant. */
static inline __attribute__((always_inline)) float cost_at(const struct fit *f,
                                                           const struct shape *s,
                                                           const int n_levels, int first, int n,
                                                           float scale, float bias) {
    const float *w = f->w + first, *h = f->h + first;
    float part[LANES] = {0};
    for (int k = 0; k < n; k += LANES)
        for (int i = 0; i < LANES; i++) {
            int at = k + i < n ? k + i : n - 1;
            float x = w[at] - bias, nearest = scale * s->level[0];
            for (int l = 1; l < n_levels; l++)
                nearest = x > 0.5f * scale * (s->level[l - 1] + s->level[l]) ? scale * s->level[l]
                                                                             : nearest;
            part[i] += k + i < n ? h[at] * (x - nearest) * (x - nearest) : 0.0f;
        }
    float sum = 0.0f;
    for (int i = 0; i < LANES; i++) sum += part[i];
    return sum;
}

static float cost_of(const struct fit *f, const struct shape *s, int first, int n, float scale,
                     float bias) {
    switch (f->v->spec.bits) {
    case 1:
        return cost_at(f, s, 2, first, n, scale, bias);
    case 2:
        return cost_at(f, s, 4, first, n, scale, bias);
    case 3:
        return cost_at(f, s, 8, first, n, scale, bias);
    default:
        return cost_at(f, s, 16, first, n, scale, bias);
    }
}

/* Offsets worth a look: 0, and those within 0.4 of the width of a group of its middle. */
static bool is_near(const struct fit *f, int p, float low, float high) {
    return p == 0 || fabsf(f->s1 * (float)p - 0.5f * (low + high)) <= 0.4f * (high - low) ||
           (high == low && fabsf(f->s1 * (float)p - low) <= 0.5f * fabsf(low));
}

static void judge_group(struct fit *f, const struct shape *s, int group) {
    int first = group * f->v->spec.group, rest = f->v->spec.cols - first;
    int n = rest < f->v->spec.group ? rest : f->v->spec.group;
    int bits = f->v->spec.bits;
    float low = f->low[group], high = f->high[group], span = s->level[(1 << bits) - 1] * 2.0f;
    for (int i = 0; i <= OCTAVES; i++) {
        struct choice *c = &f->choice[group * (OCTAVES + 1) + i];
        float scale = i < OCTAVES ? ldexpf(1.0f, f->top - i) : 0.0f;
        *c = (struct choice){INFINITY, 0};
        /* Levels that reach less than a quarter or more than 2.5 times what is there lose. */
        if (i < OCTAVES &&
            (scale * span < 0.25f * (high - low) || scale * span > 2.5f * (high - low)))
            continue;
        for (int j = 0; j < f->n_offsets; j++) {
            if (!is_near(f, f->offset_of[j], low, high)) continue;
            float cost = cost_of(f, s, first, n, scale, f->s1 * (float)f->offset_of[j]);
            if (!(cost < c->cost)) continue;
            *c = (struct choice){cost, f->offset_of[j]};
        }
    }
}

/* Octave of a group's scale when the row's largest is octave first: n_q octaves, or none. */
static int octave_of(const struct fit *f, int group, int first, int n_q) {
    const struct choice *c = f->choice + group * (OCTAVES + 1);
    int best = OCTAVES;
    for (int i = first; i < first + n_q && i < OCTAVES; i++)
        if (c[i].cost < c[best].cost) best = i;
    return best;
}

/* The best window of octaves for a row, and its cost. */
static double judge_row(const struct fit *f, int n_q, int *ret_first) {
    double best = INFINITY;
    for (int first = 0; first + n_q <= OCTAVES; first++) {
        double sum = 0.0;
        for (int g = 0; g < f->n_groups; g++)
            sum += (double)f->choice[g * (OCTAVES + 1) + octave_of(f, g, first, n_q)].cost;
        if (!(sum < best)) continue;
        best = sum;
        *ret_first = first;
    }
    return best;
}

static void write_row(const struct fit *f, int row, const struct shape *s, int first, int n_q) {
    const struct bcq_view *v = f->v;
    /* The smallest scale of the window is q = 1. */
    pack_supers(v, row, ldexpf(1.0f, f->top - first - (n_q - 1)), f->s1, s->d);
    for (int g = 0; g < f->n_groups; g++) {
        int octave = octave_of(f, g, first, n_q);
        unsigned q = octave == OCTAVES ? 0 : 1u << (first + n_q - 1 - octave);
        pack_compact(v, row, g, q, f->choice[g * (OCTAVES + 1) + octave].p);
    }
}

/* Exponents 0 = e_1 <= .. <= e_bits <= bits with steps of 2 at most; false past the last. */
static bool next_shape(struct shape *s, int bits) {
    for (;;) {
        int at = bits - 1;
        bool fits = true;
        while (at > 0 && s->d[at] == 1 << bits) at--;
        if (at == 0) return false;
        uint8_t step = (uint8_t)(2 * s->d[at]);
        for (int i = at; i < bits; i++) s->d[i] = step;
        for (int i = 1; i < bits; i++) fits = fits && s->d[i] <= 4 * s->d[i - 1];
        if (fits) return true;
    }
}

static void lay_scales(struct fit *f) {
    const struct bcq_spec *spec = &f->v->spec;
    float largest = 0.0f, middle = 0.0f;
    for (int g = 0; g < f->n_groups; g++) {
        int first = g * spec->group, end = first + spec->group;
        float low = f->w[first], high = low;
        for (int k = first; k < end && k < spec->cols; k++) {
            low = fminf(low, f->w[k]);
            high = fmaxf(high, f->w[k]);
        }
        f->low[g] = low;
        f->high[g] = high;
        largest = fmaxf(largest, high - low);
        middle = fmaxf(middle, 0.5f * fabsf(high + low));
    }
    /* Two levels are one scale apart: no scale is larger than the widest range. Scales that fp16 can
     * hold as s0 and beyond stay out of what a kernel would lose. */
    f->top = largest > 0.0f ? (int)ceilf(log2f(largest)) : 0;
    int p_max = 1 << (spec->bias_bits - 2);
    int log = middle > 0.0f ? (int)ceilf(log2f(middle / (float)p_max)) : 0;
    if (f->top < OCTAVES - 14) f->top = OCTAVES - 14;
    if (f->top > 15) f->top = 15;
    log = log < -14 ? -14 : log > 10 ? 10 : log;
    f->s1 = middle > 0.0f ? ldexpf(1.0f, log) : 0.0f;
    f->offset_of[f->n_offsets++] = 0;
    for (int p = 1; p <= p_max && f->s1 > 0.0f; p *= 2) {
        f->offset_of[f->n_offsets++] = p;
        f->offset_of[f->n_offsets++] = -p;
    }
}

int pow2_fit_row(const struct bcq_view *v, int row, const float *w, const float *h,
                 struct error *err) {
    struct fit f = {.v = v, .w = w, .h = h, .n_groups = v->layout.n_groups};
    struct shape s = {{1, 1, 1, 1}, {0}}, best = s;
    double least = INFINITY;
    /* At most as many octaves of q as a row's search has. */
    int n_q = v->spec.scale_bits < OCTAVES / 2 ? v->spec.scale_bits : OCTAVES / 2, first = 0;
    size_t n = (size_t)f.n_groups;
    f.choice = malloc(n * (OCTAVES + 1) * sizeof *f.choice);
    f.low = malloc(2 * n * sizeof *f.low);
    if (!f.choice || !f.low) {
        free(f.choice);
        free(f.low);
        return error_set(err, -ENOMEM, "powers of two: out of memory");
    }
    f.high = f.low + n;
    lay_scales(&f);
    do {
        make_levels(&s, v->spec.bits);
        for (int g = 0; g < f.n_groups; g++) judge_group(&f, &s, g);
        double cost = judge_row(&f, n_q, &first);
        if (cost < least) best = s;
        if (cost < least) least = cost;
    } while (next_shape(&s, v->spec.bits));
    for (int g = 0; g < f.n_groups; g++) judge_group(&f, &best, g);
    judge_row(&f, n_q, &first);
    write_row(&f, row, &best, first, n_q);
    free(f.choice);
    free(f.low);
    return 0;
}
