#include "engine/quant/gptq.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/quant/grid.h"
#include "engine/quant/linalg.h"
#include "kernels/error.h"

enum {
    LOOP_BLOCK = 32,     /* columns whose feedback on each other is done by hand, not by gemm */
    UNIFORM_BLOCK = 128, /* the least width between two gemms of gptq_uniform() */
    MAX_DAMPINGS = 6
};

/* What sorting columns needs to know; an explicit struct because qsort() has no context. */
struct column {
    double group; /* sum of the group's diagonal; 0 where groups do not count */
    double diag;
    int index, first; /* first column of the group */
};

static int by_falling_diagonal(const void *a, const void *b) {
    const struct column *x = a, *y = b;
    if (x->group != y->group) return x->group > y->group ? -1 : 1;
    if (x->first != y->first) return x->first - y->first;
    if (x->diag != y->diag) return x->diag > y->diag ? -1 : 1;
    return x->index - y->index;
}

/* Groups of equal energy stay apart by their first columns. */
static void set_groups(struct column *columns, size_t n, size_t group) {
    for (size_t first = 0; first < n; first += group) {
        size_t end = first + group < n ? first + group : n;
        double sum = 0.0;
        for (size_t j = first; j < end; j++) sum += columns[j].diag;
        for (size_t j = first; j < end; j++) {
            columns[j].group = sum;
            columns[j].first = (int)first;
        }
    }
}

static int order_columns(struct gptq_factor *f, const struct gptq_options *o, struct error *err) {
    size_t n = (size_t)f->n;
    struct column *columns = malloc(n * sizeof *columns);
    if (!columns) return error_set(err, -ENOMEM, "column order: out of memory");
    for (size_t j = 0; j < n; j++)
        columns[j] = (struct column){.diag = f->diag[j], .index = (int)j};
    if (o->group > 0) set_groups(columns, n, (size_t)o->group);
    if (o->act_order) qsort(columns, n, sizeof *columns, by_falling_diagonal);
    for (size_t k = 0; k < n; k++) {
        f->perm[k] = columns[k].index;
        f->place[columns[k].index] = (int)k;
    }
    free(columns);
    return 0;
}

/* Sets the diagonal of dead columns to 1 and returns the mean diagonal after that. */
static double revive_dead(struct gptq_factor *f, double *h) {
    size_t n = (size_t)f->n;
    double sum = 0.0;
    for (size_t j = 0; j < n; j++) {
        f->dead[j] = h[j * n + j] == 0.0;
        if (f->dead[j]) h[j * n + j] = 1.0;
        sum += h[j * n + j];
    }
    return sum / (double)n;
}

static void add_damping(struct gptq_factor *f, double *h, double amount) {
    size_t n = (size_t)f->n;
    for (size_t j = 0; j < n; j++) h[j * n + j] += amount;
    f->damping += amount;
}

static int factorize(struct gptq_factor *f, double *h, double mean, const struct gptq_options *o,
                     struct error *err) {
    size_t n = (size_t)f->n;
    double *ordered = malloc(n * n * sizeof *ordered);
    if (!ordered) return error_set(err, -ENOMEM, "factor: out of memory");
    int r = 0;
    for (int attempt = 0; attempt < MAX_DAMPINGS; attempt++) {
        for (size_t i = 0; i < n; i++)
            for (size_t j = 0; j < n; j++)
                ordered[i * n + j] = h[(size_t)f->perm[i] * n + (size_t)f->perm[j]];
        r = linalg_inverse_factor(f->u, ordered, f->n, o->n_threads, err);
        if (r != -EDOM) break;
        add_damping(f, h, f->damping > 0.0 ? 9.0 * f->damping : 1e-4 * mean);
    }
    free(ordered);
    return r;
}

/* v[k][j] = u[j][k] / u[j][j]: transposed, so that the loop reads rows. */
static void normalize(struct gptq_factor *f) {
    size_t n = (size_t)f->n;
    for (size_t j = 0; j < n; j++) {
        double inverse = 1.0 / f->u[j * n + j];
        f->pivot[j] = inverse * inverse;
        for (size_t k = j + 1; k < n; k++) f->v[k * n + j] = (float)(f->u[j * n + k] * inverse);
    }
}

static int all_finite(const double *h, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (!isfinite(h[i])) return 0;
    return 1;
}

int gptq_factor_new(struct gptq_factor **ret, double *h, int n, const struct gptq_options *options,
                    struct error *err) {
    size_t side = (size_t)n;
    if (!all_finite(h, side * side))
        return error_set(err, -EDOM, "second moments of the inputs are not finite");
    struct gptq_factor *f = calloc(1, sizeof *f);
    if (!f) return error_set(err, -ENOMEM, "factor: out of memory");
    int r = -ENOMEM;
    f->n = n;
    f->perm = malloc(side * sizeof *f->perm);
    f->place = malloc(side * sizeof *f->place);
    f->dead = calloc(side, sizeof *f->dead);
    f->diag = malloc(side * sizeof *f->diag);
    f->pivot = malloc(side * sizeof *f->pivot);
    f->u = malloc(side * side * sizeof *f->u);
    f->v = calloc(side * side, sizeof *f->v);
    if (!f->perm || !f->place || !f->dead || !f->diag || !f->pivot || !f->u || !f->v) {
        error_set(err, r, "factor: out of memory");
        goto fail;
    }
    double mean = revive_dead(f, h);
    add_damping(f, h, options->damp * mean);
    for (size_t j = 0; j < side; j++) f->diag[j] = h[j * side + j];
    r = order_columns(f, options, err);
    if (r < 0) goto fail;
    r = factorize(f, h, mean, options, err);
    if (r < 0) goto fail;
    for (size_t j = 0; j < side; j++) f->diag[j] = h[j * side + j];
    normalize(f);
    *ret = f;
    return 0;
fail:
    gptq_factor_free(f);
    return r;
}

void gptq_factor_free(struct gptq_factor *f) {
    if (!f) return;
    free(f->perm);
    free(f->place);
    free(f->dead);
    free(f->diag);
    free(f->pivot);
    free(f->u);
    free(f->v);
    free(f);
}

void gptq_factor_shrink(struct gptq_factor *f) {
    free(f->u);
    f->u = NULL;
}

void gptq_nearest(const float *levels, int n_levels, const float x[GPTQ_LANES], float q[GPTQ_LANES],
                  uint8_t rank[GPTQ_LANES]) {
    int32_t count[GPTQ_LANES] = {0};
    for (int i = 0; i < GPTQ_LANES; i++) q[i] = levels[i];
    for (int l = 1; l < n_levels; l++) {
        const float *below = levels + (size_t)(l - 1) * GPTQ_LANES, *above = below + GPTQ_LANES;
        for (int i = 0; i < GPTQ_LANES; i++) {
            int up = x[i] > 0.5f * (below[i] + above[i]);
            q[i] = up ? above[i] : q[i];
            count[i] += up;
        }
    }
    for (int i = 0; i < GPTQ_LANES; i++) rank[i] = (uint8_t)count[i];
}

void gptq_keep_exact(const uint8_t *exact, const float x[GPTQ_LANES], float q[GPTQ_LANES]) {
    for (int i = 0; i < GPTQ_LANES; i++) q[i] = exact[i] ? x[i] : q[i];
}

/* x -= sum over columns first..k-1 of v[k][j] * d[j]. */
static void subtract_feedback(float x[GPTQ_LANES], const float *v, const float *d, int first,
                              int k) {
    for (int j = first; j < k; j++) {
        const float *dj = d + (size_t)j * GPTQ_LANES;
        for (int i = 0; i < GPTQ_LANES; i++) x[i] -= v[j] * dj[i];
    }
}

void gptq_loop(const struct gptq_factor *f, const struct gptq_levels *levels, const float *w,
               float *d, float *q, uint8_t *rank, double *loss) {
    size_t n = (size_t)f->n, stride = (size_t)levels->n_levels * GPTQ_LANES;
    float sum[LOOP_BLOCK * GPTQ_LANES];
    double total[GPTQ_LANES] = {0};
    for (int first = 0; first < f->n; first += LOOP_BLOCK) {
        int width = f->n - first < LOOP_BLOCK ? f->n - first : LOOP_BLOCK;
        struct linalg_shape shape = {width, GPTQ_LANES, first, f->n, GPTQ_LANES, GPTQ_LANES};
        if (first > 0) linalg_gemm_f32(sum, f->v + (size_t)first * n, d, &shape, 1.0f, 0.0f);
        for (int k = first; k < first + width; k++) {
            const float *feedback = sum + (size_t)(k - first) * GPTQ_LANES;
            size_t at = (size_t)k * GPTQ_LANES;
            float x[GPTQ_LANES];
            for (int i = 0; i < GPTQ_LANES; i++)
                x[i] = first > 0 ? w[at + (size_t)i] - feedback[i] : w[at + (size_t)i];
            subtract_feedback(x, f->v + (size_t)k * n, d, first, k);
            gptq_nearest(levels->values + (size_t)levels->group_of[k] * stride, levels->n_levels, x,
                         q + at, rank + at);
            if (levels->exact) gptq_keep_exact(levels->exact + at, x, q + at);
            for (int i = 0; i < GPTQ_LANES; i++) {
                float e = x[i] - q[at + (size_t)i];
                d[at + (size_t)i] = e;
                total[i] += (double)e * (double)e * f->pivot[k];
            }
        }
    }
    if (loss) memcpy(loss, total, sizeof total);
}

/* State of gptq_uniform() for one block of rows. */
struct uniform {
    const struct gptq_factor *f;
    const struct gptq_uniform *o;
    int rows, n_groups;
    double *w;          /* (rows, n) processing order, as the feedback leaves them */
    double *err;        /* (rows, width of the block) */
    struct grid *grids; /* (rows) of the present group */
    uint8_t *codes;
    double *scales, *zeros, *loss;
};

static void lay_grids(struct uniform *s, int k) {
    int size = s->f->n - k < s->o->group ? s->f->n - k : s->o->group;
    size_t group = (size_t)(k / s->o->group), n = (size_t)s->f->n;
    for (size_t r = 0; r < (size_t)s->rows; r++) {
        const double *w = s->w + r * n + (size_t)k;
        struct grid g =
            s->o->min_mse ? grid_min_mse(w, s->o->h ? s->o->h + k : NULL, (size_t)size, s->o->bits)
                          : grid_minmax(w, (size_t)size, s->o->bits);
        if (s->o->round_f16) grid_round_f16(&g);
        s->grids[r] = g;
        s->scales[r * (size_t)s->n_groups + group] = g.scale;
        s->zeros[r * (size_t)s->n_groups + group] = g.zero;
    }
}

static void round_column(struct uniform *s, int k, int first, int width) {
    size_t n = (size_t)s->f->n;
    const double *u = s->f->u + (size_t)k * n;
    for (size_t r = 0; r < (size_t)s->rows; r++) {
        double *w = s->w + r * n;
        unsigned code = grid_code(&s->grids[r], w[k]);
        double e = (w[k] - grid_value(&s->grids[r], code)) / u[k];
        s->codes[r * n + (size_t)s->f->perm[k]] = (uint8_t)code;
        s->err[r * (size_t)width + (size_t)(k - first)] = e;
        s->loss[r] += e * e;
        for (int j = k + 1; j < first + width; j++) w[j] -= e * u[j];
    }
}

/* Columns first..first+width-1, then their feedback on all later ones. */
static void uniform_block(struct uniform *s, int first, int width) {
    int n = s->f->n, end = first + width;
    for (int k = first; k < end; k++) {
        if (k % s->o->group == 0) lay_grids(s, k);
        round_column(s, k, first, width);
    }
    struct linalg_shape shape = {s->rows, n - end, width, width, n, n};
    if (end < n)
        linalg_gemm_f64(s->w + end, s->err, s->f->u + (size_t)first * (size_t)n + end, &shape, -1.0,
                        1.0);
}

static void to_processing_order(struct uniform *s, const double *w) {
    size_t n = (size_t)s->f->n;
    for (size_t r = 0; r < (size_t)s->rows; r++) {
        for (size_t k = 0; k < n; k++) {
            size_t j = (size_t)s->f->perm[k];
            s->w[r * n + k] = s->f->dead[j] ? 0.0 : w[r * n + j];
        }
    }
}

int gptq_uniform(const struct gptq_factor *f, const struct gptq_uniform *o, const double *w,
                 int rows, uint8_t *codes, double *scales, double *zeros, double *loss,
                 struct error *err) {
    /* A block ends where a group ends, so that a group's first column finds all of its columns
     * compensated. A group of the whole row is laid before the loop starts and needs no such
     * care. */
    int n = f->n, block = UNIFORM_BLOCK;
    if (o->group < n) block = (UNIFORM_BLOCK + o->group - 1) / o->group * o->group;
    if (block > n) block = n;
    struct uniform s = {.f = f,
                        .o = o,
                        .rows = rows,
                        .n_groups = (n + o->group - 1) / o->group,
                        .codes = codes,
                        .scales = scales,
                        .zeros = zeros,
                        .loss = loss};
    s.w = malloc((size_t)rows * (size_t)n * sizeof *s.w);
    s.err = malloc((size_t)rows * (size_t)block * sizeof *s.err);
    s.grids = malloc((size_t)rows * sizeof *s.grids);
    int r = 0;
    if (!s.w || !s.err || !s.grids) {
        r = error_set(err, -ENOMEM, "column loop: out of memory");
    } else {
        to_processing_order(&s, w);
        memset(loss, 0, (size_t)rows * sizeof *loss);
        for (int first = 0; first < n; first += block)
            uniform_block(&s, first, n - first < block ? n - first : block);
    }
    free(s.w);
    free(s.err);
    free(s.grids);
    return r;
}
