#include "engine/quant/moments.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/quant/linalg.h"
#include "kernels/error.h"

struct moments {
    struct moments_options o;
    double *h[INPUT_COUNT], *cross[INPUT_COUNT];
    double mass[INPUT_COUNT];                          /* sum of the tokens' weights */
    float *held[INPUT_COUNT], *reference[INPUT_COUNT]; /* (max_tokens, widths) of this batch */
    float *weight;                                     /* (max_tokens) square roots */
    int n[INPUT_COUNT];                                /* tokens held */
    int failed;
};

static bool weighs(const struct moments *m, enum calibrate_input input) {
    return m->o.tokens == MOMENTS_BY_STATE && (input == INPUT_O || input == INPUT_DOWN);
}

static bool of_states(const struct moments *m, enum calibrate_input input) {
    return m->o.reference == MOMENTS_STATES && input == INPUT_DOWN;
}

/* Width of what a batch keeps of the reference. */
static int reference_width(const struct moments *m, enum calibrate_input input) {
    if (m->o.reference == MOMENTS_ALONE) return 0;
    return of_states(m, input) ? m->o.hidden : m->o.width[input];
}

/* Whether a batch's inputs wait for its end. */
static bool holds(const struct moments *m, enum calibrate_input input) {
    return m->o.reference != MOMENTS_ALONE || weighs(m, input);
}

static int make_input(struct moments *m, enum calibrate_input input) {
    size_t n = (size_t)m->o.width[input], cells = n * (size_t)m->o.max_tokens;
    m->h[input] = malloc(n * n * sizeof *m->h[input]);
    if (!m->h[input]) return -ENOMEM;
    if (holds(m, input) && !(m->held[input] = malloc(cells * sizeof(float)))) return -ENOMEM;
    size_t width = (size_t)reference_width(m, input);
    if (width == 0) return 0;
    m->cross[input] = malloc(width * n * sizeof *m->cross[input]);
    m->reference[input] = malloc(width * (size_t)m->o.max_tokens * sizeof(float));
    return m->cross[input] && m->reference[input] ? 0 : -ENOMEM;
}

int moments_new(struct moments **ret, const struct moments_options *o, struct error *err) {
    struct moments *m = calloc(1, sizeof *m);
    if (!m) return error_set(err, -ENOMEM, "moments: out of memory");
    m->o = *o;
    m->weight = malloc((size_t)o->max_tokens * sizeof *m->weight);
    int r = m->weight ? 0 : -ENOMEM;
    for (int i = 0; i < INPUT_COUNT && r == 0; i++)
        if (o->width[i] > 0) r = make_input(m, (enum calibrate_input)i);
    if (r < 0) {
        moments_free(m);
        return error_set(err, r, "moments: out of memory");
    }
    *ret = m;
    return 0;
}

void moments_free(struct moments *m) {
    if (!m) return;
    for (int i = 0; i < INPUT_COUNT; i++) {
        free(m->h[i]);
        free(m->cross[i]);
        free(m->held[i]);
        free(m->reference[i]);
    }
    free(m->weight);
    free(m);
}

void moments_clear(struct moments *m) {
    m->failed = 0;
    for (int i = 0; i < INPUT_COUNT; i++) {
        size_t n = (size_t)m->o.width[i];
        size_t width = (size_t)reference_width(m, (enum calibrate_input)i);
        m->mass[i] = 0.0;
        m->n[i] = 0;
        if (m->h[i]) memset(m->h[i], 0, n * n * sizeof *m->h[i]);
        if (m->cross[i]) memset(m->cross[i], 0, width * n * sizeof *m->cross[i]);
    }
}

void moments_show(struct moments *m, enum calibrate_input input, bool is_reference, const float *x,
                  int n) {
    int width = m->o.width[input];
    if (m->failed || (is_reference && of_states(m, input))) return;
    float *copy = is_reference ? m->reference[input] : holds(m, input) ? m->held[input] : NULL;
    if (copy) {
        memcpy(copy, x, (size_t)n * (size_t)width * sizeof *x);
    } else {
        m->failed = linalg_gram_add(m->h[input], x, (size_t)n, width, m->o.n_threads, NULL);
        m->mass[input] += (double)n;
    }
    if (copy && !is_reference) m->n[input] = n;
}

/* Square roots of the tokens' weights; their sum of squares. */
static double weigh_tokens(struct moments *m, const float *y, int n) {
    double sum = 0.0;
    for (int t = 0; t < n; t++) {
        double square = 0.0;
        for (int k = 0; k < m->o.hidden; k++) {
            double v = (double)y[(size_t)t * (size_t)m->o.hidden + (size_t)k];
            square += v * v;
        }
        double weight = square > 0.0 ? (double)m->o.hidden / square : 0.0;
        if (!isfinite(weight)) weight = 0.0;
        m->weight[t] = (float)sqrt(weight);
        sum += weight;
    }
    return sum;
}

static void scale_rows(float *x, const float *factor, int n, int width) {
    for (int t = 0; t < n; t++)
        for (int k = 0; k < width; k++) x[(size_t)t * (size_t)width + (size_t)k] *= factor[t];
}

/* What the coded block's output lacks, in place of the reference's input. */
static void keep_lack(struct moments *m, enum calibrate_input input, const float *y,
                      const float *reference) {
    size_t n = (size_t)m->n[input] * (size_t)m->o.hidden;
    for (size_t k = 0; k < n; k++) m->reference[input][k] = reference[k] - y[k];
}

static int add_held(struct moments *m, enum calibrate_input input, const float *y) {
    int n = m->n[input], width = m->o.width[input], other = reference_width(m, input);
    double mass = (double)n;
    if (weighs(m, input)) {
        mass = weigh_tokens(m, y, n);
        scale_rows(m->held[input], m->weight, n, width);
        if (m->reference[input]) scale_rows(m->reference[input], m->weight, n, other);
    }
    m->mass[input] += mass;
    int r = linalg_gram_add(m->h[input], m->held[input], (size_t)n, width, m->o.n_threads, NULL);
    if (r == 0 && m->cross[input])
        r = linalg_cross_add(m->cross[input], m->reference[input], other, m->held[input], width,
                             (size_t)n, m->o.n_threads, NULL);
    m->n[input] = 0;
    return r;
}

int moments_end_batch(struct moments *m, const float *y, const float *reference,
                      struct error *err) {
    if (m->n[INPUT_DOWN] > 0 && of_states(m, INPUT_DOWN)) keep_lack(m, INPUT_DOWN, y, reference);
    for (int i = 0; i < INPUT_COUNT && !m->failed; i++)
        if (m->n[i] > 0) m->failed = add_held(m, (enum calibrate_input)i, y);
    return m->failed ? error_set(err, m->failed, "moments: out of memory") : 0;
}

int moments_finish(struct moments *m, struct error *err) {
    for (int i = 0; i < INPUT_COUNT; i++) {
        size_t n = (size_t)m->o.width[i];
        if (!m->h[i]) continue;
        /* A device that was lost shows nothing to the tap. */
        if (!(m->mass[i] > 0.0)) return error_set(err, -EIO, "the device gave no inputs");
        linalg_symmetrize(m->h[i], m->o.width[i], 1.0 / m->mass[i]);
        size_t cells = n * (size_t)reference_width(m, (enum calibrate_input)i);
        for (size_t k = 0; k < cells; k++) m->cross[i][k] /= m->mass[i];
    }
    return 0;
}

double *moments_h(struct moments *m, enum calibrate_input input, int *ret_n) {
    *ret_n = m->o.width[input];
    return m->h[input];
}

const double *moments_cross(const struct moments *m, enum calibrate_input input) {
    return m->cross[input];
}
