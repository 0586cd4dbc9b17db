#include "engine/quant/refine.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/quant/descend.h"
#include "engine/quant/linalg.h"
#include "engine/quant/pack.h"
#include "engine/quant/rescale.h"
#include "engine/quant/strip.h"
#include "kernels/error.h"
#include "kernels/float16.h"

enum {
    MAX_TERMS = BCQ_MAX_BITS + 1,
    TERM_PAIRS = MAX_TERMS * (MAX_TERMS + 1) / 2,
    SCALE_WINDOW = 2 /* scale codes tried on either side of the continuous optimum */
};

/* Keeps the systems of groups with few distinct codes solvable. */
static const double ridge = 1e-4;

/* Buffers for one group of every lane. Terms are the planes, in order, then the bias. */
struct refit {
    struct strip *s;
    const uint8_t *shapes;
    int n_shapes, n_terms;
    float *rows;     /* (group, n) H of the group's columns, processing order along n */
    float *gradient; /* (group, GPTQ_LANES) H (q - w) */
    float *sign;     /* (n_terms, group, GPTQ_LANES) what a unit of a term adds to each column */
    float *inner;    /* (group, group) H among the group's columns */
    float *product;  /* (group, GPTQ_LANES) inner * sign of one term */
};

/* The quadratic of one group of one row: the loss falls by 2 r.a - a.A.a, up to a constant, when
 * the terms' coefficients are a. */
struct quadratic {
    double a[MAX_TERMS][MAX_TERMS], r[MAX_TERMS];
    int n;
};

static double gain(const struct quadratic *z, const double *x) {
    double sum = 0.0;
    for (int i = 0; i < z->n; i++) {
        double ax = 0.0;
        for (int j = 0; j < z->n; j++) ax += z->a[i][j] * x[j];
        sum += x[i] * (2.0 * z->r[i] - ax);
    }
    return sum;
}

static void refit_free(struct refit *f) {
    free(f->rows);
    free(f->gradient);
    free(f->sign);
    free(f->inner);
    free(f->product);
}

static int refit_init(struct refit *f, struct strip *s, const uint8_t *shapes, int n_shapes,
                      struct error *err) {
    size_t group = (size_t)s->p->view.spec.group;
    *f = (struct refit){
        .s = s, .shapes = shapes, .n_shapes = n_shapes, .n_terms = s->p->view.spec.bits + 1};
    f->rows = malloc(group * (size_t)s->n * sizeof *f->rows);
    f->gradient = malloc(group * GPTQ_LANES * sizeof *f->gradient);
    f->sign = malloc((size_t)f->n_terms * group * GPTQ_LANES * sizeof *f->sign);
    f->inner = malloc(group * group * sizeof *f->inner);
    f->product = malloc(group * GPTQ_LANES * sizeof *f->product);
    if (f->rows && f->gradient && f->sign && f->inner && f->product) return 0;
    refit_free(f);
    return error_set(err, -ENOMEM, "refinement: out of memory");
}

/* Processing position of column c of a group. */
static size_t position(const struct refit *f, int group, int c) {
    return (size_t)f->s->p->factor->place[group * f->s->p->view.spec.group + c];
}

static void gather_group(struct refit *f, int group, int width) {
    size_t n = (size_t)f->s->n;
    for (int c = 0; c < width; c++) {
        const float *h = f->s->p->h + position(f, group, c) * n;
        memcpy(f->rows + (size_t)c * n, h, n * sizeof *h);
        for (int k = 0; k < width; k++) f->inner[c * width + k] = h[position(f, group, k)];
        const uint8_t *code = f->s->code + position(f, group, c) * GPTQ_LANES;
        const uint8_t *exact = f->s->exact ? f->s->exact + (code - f->s->code) : NULL;
        for (int t = 0; t < f->n_terms; t++) {
            float *sign = f->sign + ((size_t)t * (size_t)width + (size_t)c) * GPTQ_LANES;
            for (int i = 0; i < GPTQ_LANES; i++)
                sign[i] = t == f->n_terms - 1 || code[i] >> t & 1 ? 1.0f : -1.0f;
            for (int i = 0; exact && i < GPTQ_LANES; i++)
                if (exact[i]) sign[i] = 0.0f; /* no term moves an outlier */
        }
    }
    struct linalg_shape shape = {width, GPTQ_LANES, f->s->n, f->s->n, GPTQ_LANES, GPTQ_LANES};
    linalg_gemm_f32(f->gradient, f->rows, f->s->d, &shape, 1.0f, 0.0f);
}

/* sum[lane] = sum over the group's columns of x * y. */
static void dot_lanes(const float *x, const float *y, int width, float sum[GPTQ_LANES]) {
    for (int i = 0; i < GPTQ_LANES; i++) sum[i] = 0.0f;
    for (int c = 0; c < width; c++)
        for (int i = 0; i < GPTQ_LANES; i++)
            sum[i] += x[c * GPTQ_LANES + i] * y[c * GPTQ_LANES + i];
}

/* Matrix and right side of every lane, symmetric pairs packed by rows. */
struct systems {
    float a[TERM_PAIRS][GPTQ_LANES], r[MAX_TERMS][GPTQ_LANES];
};

static void make_systems(struct refit *f, int width, struct systems *z) {
    size_t term = (size_t)width * GPTQ_LANES;
    int pair = 0;
    for (int t = 0; t < f->n_terms; t++) {
        struct linalg_shape shape = {width, GPTQ_LANES, width, width, GPTQ_LANES, GPTQ_LANES};
        linalg_gemm_f32(f->product, f->inner, f->sign + (size_t)t * term, &shape, 1.0f, 0.0f);
        dot_lanes(f->sign + (size_t)t * term, f->gradient, width, z->r[t]);
        for (int u = 0; u <= t; u++)
            dot_lanes(f->sign + (size_t)u * term, f->product, width, z->a[pair++]);
    }
}

static struct quadratic quadratic_of(const struct systems *z, int lane, int n_terms,
                                     const double *now) {
    struct quadratic q = {.n = n_terms};
    int pair = 0;
    for (int t = 0; t < n_terms; t++)
        for (int u = 0; u <= t; u++, pair++) q.a[t][u] = q.a[u][t] = (double)z->a[pair][lane];
    for (int t = 0; t < n_terms; t++) {
        q.r[t] = -(double)z->r[t][lane];
        for (int u = 0; u < n_terms; u++) q.r[t] += q.a[t][u] * now[u];
    }
    return q;
}

static void read_terms(const struct bcq_view *v, int row, int group, double *ret) {
    float alpha[BCQ_MAX_BITS], beta;
    bcq_group_params(v, row, group, alpha, &beta);
    for (int i = 0; i < v->spec.bits; i++) ret[i] = (double)alpha[i];
    ret[v->spec.bits] = (double)beta;
}

/* Free form: least squares, rounded to fp16. Scales must stay at least 0 and rising, which makes
 * the block canonical. */
static void refit_free_group(const struct refit *f, int row, int group, const struct quadratic *z) {
    const struct bcq_view *v = &f->s->p->view;
    double a[MAX_TERMS * MAX_TERMS], x[MAX_TERMS], now[MAX_TERMS];
    int n = z->n;
    read_terms(v, row, group, now);
    for (int i = 0; i < n; i++) {
        for (int j = 0; j < n; j++) a[i * n + j] = z->a[i][j];
        a[i * n + i] += ridge * z->a[i][i];
        x[i] = z->r[i] + ridge * z->a[i][i] * now[i];
    }
    if (!linalg_solve_small(a, x, n)) return;
    float alpha[BCQ_MAX_BITS];
    for (int i = 0; i < n; i++) {
        if (!(fabs(x[i]) < 65504.0)) return;
        x[i] = (double)f16_to_f32(f32_to_f16((float)x[i]));
        if (i < n - 1 && (x[i] < 0.0 || (i > 0 && x[i] < x[i - 1]))) return;
        if (i < n - 1) alpha[i] = (float)x[i];
    }
    if (gain(z, x) > gain(z, now)) pack_free(v, row, group, alpha, (float)x[n - 1]);
}

/* The best stored scale and bias of one shape. */
struct compact_fit {
    int shape, q, p;
    double gain;
};

struct supers {
    double scale, bias; /* per unit of q and p */
    int q_max, p_max;
};

static double clamp(double x, double low, double high) {
    return x < low ? low : x > high ? high : x;
}

/* With d fixed, alpha_i = scale * q * d_i / 2 leaves two unknowns. */
static void fit_shape(const struct quadratic *z, const uint8_t *d, const struct supers *u,
                      int window, struct compact_fit *best, int shape) {
    int last = z->n - 1;
    double a11 = 0.0, a12 = 0.0, a22 = z->a[last][last], r1 = 0.0, r2 = z->r[last];
    for (int i = 0; i < last; i++) {
        a12 += 0.5 * d[i] * z->a[i][last];
        r1 += 0.5 * d[i] * z->r[i];
        for (int j = 0; j < last; j++) a11 += 0.25 * d[i] * d[j] * z->a[i][j];
    }
    if (!(a22 > 0.0)) return;
    double reduced = a11 - a12 * a12 / a22 + ridge * a11;
    double scale = reduced > 0.0 ? (r1 - r2 * a12 / a22) / reduced : 0.0;
    int middle = (int)clamp(rint(scale / u->scale), 1.0, u->q_max);
    for (int q = middle - window; q <= middle + window; q++) {
        if (q < 1 || q > u->q_max) continue;
        double s = q * u->scale, p = 0.0;
        if (u->bias > 0.0) p = clamp(rint((r2 - a12 * s) / a22 / u->bias), -u->p_max, u->p_max);
        double b = p * u->bias;
        double value = 2.0 * (r1 * s + r2 * b) - (a11 * s * s + 2.0 * a12 * s * b + a22 * b * b);
        if (value > best->gain) *best = (struct compact_fit){shape, q, (int)p, value};
    }
}

static void refit_compact_group(const struct refit *f, int row, int group,
                                const struct quadratic *z) {
    const struct bcq_view *v = &f->s->p->view;
    const uint16_t *super = v->row_scale + 2 * (size_t)row;
    struct supers u = {.scale = (double)f16_to_f32(super[0]),
                       .bias = (double)f16_to_f32(super[1]),
                       .q_max = (1 << v->spec.scale_bits) - 1,
                       .p_max = (1 << (v->spec.bias_bits - 1)) - 1};
    double now[MAX_TERMS];
    read_terms(v, row, group, now);
    /* A group of one level stays one: its codes say nothing about a scale. */
    if (!(u.scale > 0.0) || now[0] == 0.0) return;
    /* A gain must be more than the noise of fp32 sums. */
    double before = gain(z, now);
    struct compact_fit best = {.shape = -1, .gain = before + 1e-6 * fabs(before)};
    if (v->spec.kind == BCQ_COMPACT) {
        fit_shape(z, v->shape + (size_t)row * (size_t)v->spec.bits, &u, SCALE_WINDOW, &best, 0);
    } else {
        for (int shape = 0; shape < f->n_shapes; shape++)
            fit_shape(z, f->shapes + (size_t)shape * (size_t)v->spec.bits, &u, 0, &best, shape);
    }
    if (best.shape < 0) return;
    pack_compact(v, row, group, (unsigned)best.q, best.p);
    if (v->spec.kind == BCQ_COMPACT_GROUP) pack_shape(v, row, group, best.shape);
}

/* Adds what changed parameters do to q - w in every column of the group. */
static void move_lane(struct refit *f, int group, int width, int lane, const double *before,
                      const double *after) {
    for (int c = 0; c < width; c++) {
        float step = 0.0f;
        for (int t = 0; t < f->n_terms; t++)
            step += (float)(after[t] - before[t]) *
                    f->sign[((size_t)t * (size_t)width + (size_t)c) * GPTQ_LANES + (size_t)lane];
        f->s->d[position(f, group, c) * GPTQ_LANES + (size_t)lane] += step;
    }
}

/* One Gauss-Seidel sweep over the groups. s->d is q - w throughout. */
static void refit_sweep(struct refit *f) {
    const struct bcq_view *v = &f->s->p->view;
    for (int g = 0; g < f->s->n_groups; g++) {
        int rest = f->s->n - g * v->spec.group;
        int width = rest < v->spec.group ? rest : v->spec.group;
        struct systems systems;
        gather_group(f, g, width);
        make_systems(f, width, &systems);
        for (int i = 0; i < f->s->n_rows; i++) {
            double before[MAX_TERMS], after[MAX_TERMS];
            int row = f->s->row + i;
            read_terms(v, row, g, before);
            struct quadratic z = quadratic_of(&systems, i, f->n_terms, before);
            if (v->spec.kind == BCQ_FREE)
                refit_free_group(f, row, g, &z);
            else
                refit_compact_group(f, row, g, &z);
            read_terms(v, row, g, after);
            move_lane(f, g, width, i, before, after);
        }
    }
}

/* Runs the column loop and a sweep on the present levels; rows that come out worse than the codes
 * they had go back to these. */
static int try_afresh(struct strip *s, struct error *err) {
    size_t cells = (size_t)s->n * GPTQ_LANES;
    double before[GPTQ_LANES], after[GPTQ_LANES];
    uint8_t *saved = malloc(cells);
    float *values = s->exact ? malloc(cells * sizeof *values) : NULL; /* outliers have no code */
    if (!saved || (s->exact && !values)) {
        free(saved);
        free(values);
        return error_set(err, -ENOMEM, "refinement: out of memory");
    }
    memcpy(saved, s->code, cells);
    if (values) memcpy(values, s->q, cells * sizeof *values);
    strip_loss(s, before);
    strip_loop(s);
    descend_codes(s);
    strip_loss(s, after);
    for (size_t k = 0; k < cells; k++) {
        size_t i = k % GPTQ_LANES;
        if (after[i] < before[i]) continue;
        s->code[k] = saved[k];
        if (values) s->q[k] = values[k];
    }
    free(saved);
    free(values);
    strip_from_codes(s);
    return 0;
}

static void refit(struct refit *f, int sweeps) {
    descend_difference(f->s);
    for (int i = 0; i < sweeps; i++) refit_sweep(f);
    strip_from_codes(f->s);
}

int refine_strip(struct strip *s, const uint8_t *shapes, int n_shapes, int rounds,
                 struct error *err) {
    struct refit f;
    int r = refit_init(&f, s, shapes, n_shapes, err);
    if (r < 0) return r;
    for (int round = 0; round < rounds && r == 0; round++) {
        refit(&f, round == 0 ? 2 : 1);
        r = rescale_strip(s, err);
        if (r < 0) break;
        descend_codes(s);
        if (round == 0) r = try_afresh(s, err);
    }
    if (r == 0) refit(&f, 1);
    refit_free(&f);
    return r;
}
