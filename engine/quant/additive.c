#include "engine/quant/additive.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "engine/quant/codes.h"
#include "engine/quant/linalg.h"
#include "engine/quant/pack.h"
#include "engine/quant/strip.h"
#include "kernels/error.h"

enum { ROUNDS = 6, MAX_TERMS = BCQ_MAX_BITS + 1 };

/* Pulls scales to what they are where codes say little about them; and the gain of a round, as a
 * share of the loss, below which no other follows. */
static const double ridge = 1e-4, least_gain = 1e-3;

/* One row's problem: its scales and biases, group by group, planes first. */
struct additive {
    struct strip *s;
    int terms;     /* of a group: planes and bias */
    int n_unknown; /* groups * terms */
    float *image;  /* (n_unknown, n) H times what a unit of each unknown adds to the row */
    double *a, *x; /* (n_unknown, n_unknown), (n_unknown) */
    double *now;   /* (n_unknown) as stored */
    float *old;    /* (GPTQ_LANES, n_unknown) of every row, to go back to */
};

static void additive_free(struct additive *t) {
    free(t->image);
    free(t->a);
    free(t->x);
    free(t->now);
    free(t->old);
}

static int additive_init(struct additive *t, struct strip *s, struct error *err) {
    *t = (struct additive){.s = s, .terms = s->p->view.spec.bits + 1};
    t->n_unknown = s->n_groups * t->terms;
    size_t u = (size_t)t->n_unknown, n = (size_t)s->n;
    t->image = malloc(u * n * sizeof *t->image);
    t->a = malloc(u * u * sizeof *t->a);
    t->x = malloc(u * sizeof *t->x);
    t->now = malloc(u * sizeof *t->now);
    t->old = malloc(GPTQ_LANES * u * sizeof *t->old);
    if (t->image && t->a && t->x && t->now && t->old) return 0;
    additive_free(t);
    return error_set(err, -ENOMEM, "additive codes: out of memory");
}

static float sign_of(const struct additive *t, int k, int lane, int term) {
    size_t at = (size_t)k * GPTQ_LANES + (size_t)lane;
    int code = t->s->code[at];
    if (t->s->exact && t->s->exact[at]) return 0.0f; /* no scale moves an outlier */
    return term == t->terms - 1 || code >> term & 1 ? 1.0f : -1.0f;
}

/* What the scales are to make of column k: outliers have made their part already. */
static double target_of(const struct additive *t, int k, int lane) {
    size_t at = (size_t)k * GPTQ_LANES + (size_t)lane;
    double done = t->s->exact && t->s->exact[at] ? (double)t->s->q[at] : 0.0;
    return (double)t->s->w[at] - done;
}

static void make_images(struct additive *t, int lane) {
    size_t n = (size_t)t->s->n;
    memset(t->image, 0, (size_t)t->n_unknown * n * sizeof *t->image);
    for (int k = 0; k < t->s->n; k++) {
        const float *h = t->s->p->h + (size_t)k * n;
        for (int term = 0; term < t->terms; term++) {
            float *image = t->image + (size_t)(t->s->p->group_of[k] * t->terms + term) * n;
            float sign = sign_of(t, k, lane, term);
            for (size_t j = 0; j < n; j++) image[j] += sign * h[j];
        }
    }
}

/* The normal equations, pulled to what is stored. */
static void make_system(struct additive *t, int lane) {
    size_t u = (size_t)t->n_unknown, n = (size_t)t->s->n;
    memset(t->a, 0, u * u * sizeof *t->a);
    for (size_t i = 0; i < u; i++) {
        const float *image = t->image + i * n;
        double right = 0.0;
        for (int k = 0; k < t->s->n; k++) {
            double *a = t->a + i * u + (size_t)(t->s->p->group_of[k] * t->terms);
            right += (double)image[k] * target_of(t, k, lane);
            for (int term = 0; term < t->terms; term++)
                a[term] += (double)(sign_of(t, k, lane, term) * image[k]);
        }
        double pull = ridge * t->a[i * u + i];
        t->a[i * u + i] += pull;
        t->x[i] = right + pull * t->now[i];
    }
}

static void read_row(struct additive *t, int lane) {
    for (int g = 0; g < t->s->n_groups; g++) {
        float alpha[BCQ_MAX_BITS], beta;
        bcq_group_params(&t->s->p->view, t->s->row + lane, g, alpha, &beta);
        for (int i = 0; i < t->terms; i++) {
            float value = i == t->terms - 1 ? beta : alpha[i];
            t->now[g * t->terms + i] = (double)value;
            t->old[(size_t)lane * (size_t)t->n_unknown + (size_t)(g * t->terms + i)] = value;
        }
    }
}

/* A plane with a negative scale is the plane of opposite bits with a positive one, and planes lie
 * by rising scale: place[i] is where plane i of the solution goes. */
static unsigned canonical(const double *x, int bits, float *alpha, int *place) {
    unsigned flipped = 0;
    for (int i = 0; i < bits; i++) {
        place[i] = 0;
        if (x[i] < 0.0) flipped |= 1u << i;
        for (int j = 0; j < bits; j++)
            place[i] += fabs(x[j]) < fabs(x[i]) || (fabs(x[j]) == fabs(x[i]) && j < i);
        alpha[place[i]] = (float)fabs(x[i]);
    }
    return flipped;
}

static void write_group(struct additive *t, int lane, int group) {
    const struct bcq_view *v = &t->s->p->view;
    int bits = v->spec.bits, place[BCQ_MAX_BITS];
    int first = group * v->spec.group, end = first + v->spec.group;
    float alpha[BCQ_MAX_BITS];
    const double *x = t->x + group * t->terms;
    unsigned flipped = canonical(x, bits, alpha, place);
    pack_free(v, t->s->row + lane, group, alpha, (float)x[bits]);
    for (int j = first; j < end && j < t->s->n; j++) {
        size_t at = (size_t)t->s->p->factor->place[j] * GPTQ_LANES + (size_t)lane;
        unsigned from = t->s->code[at] ^ flipped, to = 0;
        for (int i = 0; i < bits; i++) to |= (from >> i & 1) << place[i];
        t->s->code[at] = (uint8_t)to;
    }
}

static bool all_finite(const double *x, int n) {
    for (int i = 0; i < n; i++)
        if (!(fabs(x[i]) <= 65504.0)) return false;
    return true;
}

static void refit_row(struct additive *t, int lane) {
    read_row(t, lane);
    make_images(t, lane);
    make_system(t, lane);
    if (!linalg_solve(t->a, t->x, t->n_unknown) || !all_finite(t->x, t->n_unknown)) return;
    for (int g = 0; g < t->s->n_groups; g++) write_group(t, lane, g);
}

static void go_back(struct additive *t, const struct codes_saved *saved, int lane) {
    for (int g = 0; g < t->s->n_groups; g++) {
        const float *old = t->old + (size_t)lane * (size_t)t->n_unknown + (size_t)(g * t->terms);
        pack_free(&t->s->p->view, t->s->row + lane, g, old, old[t->terms - 1]);
    }
    codes_restore(t->s, saved, lane);
}

/* Scales, then codes. Gives the loss of all rows before and after. */
static int do_round(struct additive *t, int width, double *before, double *after,
                    struct error *err) {
    struct codes_options search = {CODES_BEAM, width};
    double was[GPTQ_LANES], is[GPTQ_LANES];
    struct codes_saved *saved;
    int r = codes_save(&saved, t->s, err);
    if (r < 0) return r;
    strip_loss(t->s, was);
    for (int i = 0; i < t->s->n_rows; i++) refit_row(t, i);
    strip_from_codes(t->s);
    r = codes_again(t->s, &search, err);
    strip_loss(t->s, is);
    *before = *after = 0.0;
    for (int i = 0; i < t->s->n_rows; i++) {
        if (!(is[i] < was[i])) go_back(t, saved, i);
        *before += was[i];
        *after += is[i] < was[i] ? is[i] : was[i];
    }
    strip_from_codes(t->s);
    codes_saved_free(saved);
    return r;
}

int additive_strip(struct strip *s, int width, struct error *err) {
    struct additive t;
    double before = 1.0, after = 0.0;
    int r = additive_init(&t, s, err);
    if (r < 0) return r;
    for (int round = 0; r == 0 && round < ROUNDS && before - after > least_gain * before; round++)
        r = do_round(&t, width, &before, &after, err);
    additive_free(&t);
    return r;
}
