#include "engine/quant/layer.h"

#include <errno.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "engine/quant/alternate.h"
#include "engine/quant/codebook.h"
#include "engine/quant/explore.h"
#include "engine/quant/gptq.h"
#include "engine/quant/grid.h"
#include "engine/quant/incoherence.h"
#include "engine/quant/lay.h"
#include "engine/quant/layer_options.h"
#include "engine/quant/outliers.h"
#include "engine/quant/pack.h"
#include "engine/quant/parallel.h"
#include "engine/quant/pow2_fit.h"
#include "engine/quant/refine.h"
#include "engine/quant/stack.h"
#include "engine/quant/strip.h"
#include "kernels/error.h"

struct layer_input {
    int n;
    struct incoherence *turn; /* NULL without */
    struct gptq_factor *factor;
    float *h;         /* (n, n) damped, processing order */
    double *weights;  /* (n) of squared errors, natural order; 0 for dead columns */
    float *weights32; /* the same */
};

static int group_of(const struct layer_options *o, int n) {
    return o->group == 0 || o->group > n ? n : o->group;
}

static void set_weights(struct layer_input *in, enum layer_weighting weighting) {
    const struct gptq_factor *f = in->factor;
    for (int j = 0; j < in->n; j++) {
        double v = 1.0;
        if (weighting == LAYER_BY_DIAG) v = f->diag[j];
        if (weighting == LAYER_BY_METRIC) v = f->pivot[f->place[j]];
        in->weights[j] = f->dead[j] ? 0.0 : v;
        in->weights32[j] = (float)in->weights[j];
    }
}

int layer_input_new(struct layer_input **ret, double *h, int n, const struct layer_options *o,
                    struct error *err) {
    size_t side = (size_t)n;
    struct layer_input *in = calloc(1, sizeof *in);
    if (!in) return error_set(err, -ENOMEM, "layer input: out of memory");
    struct gptq_options options = {.damp = o->damp,
                                   .act_order = o->act_order,
                                   .group = o->group_order ? group_of(o, n) : 0,
                                   .n_threads = o->n_threads};
    int r = o->incoherence != LAYER_NATURAL ? incoherence_new(&in->turn, n, err) : 0;
    if (r == 0 && in->turn) r = incoherence_moments(in->turn, h, o->n_threads, err);
    if (r < 0) goto fail;
    r = gptq_factor_new(&in->factor, h, n, &options, err);
    if (r < 0) goto fail;
    in->n = n;
    in->h = malloc(side * side * sizeof *in->h);
    in->weights = malloc(side * sizeof *in->weights);
    in->weights32 = malloc(side * sizeof *in->weights32);
    if (!in->h || !in->weights || !in->weights32) {
        r = error_set(err, -ENOMEM, "layer input: out of memory");
        goto fail;
    }
    const int *perm = in->factor->perm;
    for (size_t i = 0; i < side; i++)
        for (size_t j = 0; j < side; j++)
            in->h[i * side + j] = (float)h[(size_t)perm[i] * side + (size_t)perm[j]];
    set_weights(in, o->weighting);
    /* Only the classic baseline runs on the factor itself. */
    if (o->method != LAYER_GPTQ) gptq_factor_shrink(in->factor);
    *ret = in;
    return 0;
fail:
    layer_input_free(in);
    return r;
}

void layer_input_free(struct layer_input *in) {
    if (!in) return;
    incoherence_free(in->turn);
    gptq_factor_free(in->factor);
    free(in->h);
    free(in->weights);
    free(in->weights32);
    free(in);
}

/* What all strips of one matrix share. */
struct job {
    const struct layer_input *in;
    const struct layer_options *o;
    const struct codebook_set *set; /* LAYER_GPTQT */
    const uint8_t *shapes;          /* (n_shapes, bits) */
    int n_shapes;
    const float *w; /* (rows, n) */
    float *turned;  /* what w then points to; NULL without incoherence */
    struct incoherence *out;
    int rows, group;
    int *group_of;
    struct strip_problem problem;
    struct outlier_set *outliers; /* NULL without */
    double *loss, *energy;        /* (rows) */
    atomic_int status;            /* first failure */
};

/* Buffers of one strip beside struct strip. */
struct scratch {
    float *rows;               /* (GPTQ_LANES, n) natural order, dead columns 0 */
    float *weights;            /* the same shape, where outliers weigh 0; NULL without */
    struct pack_group *groups; /* (n_groups) of one row */
};

/* Whether rows weigh their columns each in a way of its own. */
static bool has_own_weights(const struct job *j) { return j->outliers || j->o->row_weights; }

static void copy_live_rows(const struct job *j, struct scratch *s, int row, int n_rows) {
    size_t n = (size_t)j->in->n;
    for (size_t r = 0; r < (size_t)n_rows; r++)
        for (size_t k = 0; k < n; k++)
            s->rows[r * n + k] = j->in->factor->dead[k] ? 0.0f : j->w[((size_t)row + r) * n + k];
    if (!has_own_weights(j)) return;
    for (size_t r = 0; r < (size_t)n_rows; r++)
        for (size_t k = 0; k < n; k++)
            s->weights[r * n + k] = j->in->factor->dead[k] ? 0.0f
                                    : j->o->row_weights
                                        ? j->o->row_weights[((size_t)row + r) * n + k]
                                        : j->in->weights32[k];
    if (j->outliers) outlier_blank(j->outliers, row, n_rows, s->rows, s->weights);
}

/* What errors in the columns of the strip's i-th row weigh. */
static const float *weights_of(const struct job *j, const struct scratch *s, int i) {
    return has_own_weights(j) ? s->weights + (size_t)i * (size_t)j->in->n : j->in->weights32;
}

static int pow2_strip(const struct job *j, struct strip *strip, struct scratch *s,
                      struct error *err) {
    int r = 0;
    for (int i = 0; r == 0 && i < strip->n_rows; i++)
        r = pow2_fit_row(&j->problem.view, strip->row + i, s->rows + (size_t)i * (size_t)j->in->n,
                         weights_of(j, s, i), err);
    if (r < 0) return r;
    strip_levels(strip);
    return codes_find(strip, &j->o->codes, err);
}

/* Codebook search, then the column loop: once, or for every variant. */
static int search_strip(const struct job *j, struct strip *strip, struct scratch *s,
                        struct error *err) {
    struct lay_problem p = {.set = j->set,
                            .view = j->problem.view,
                            .weights = weights_of(j, s, 0),
                            .stride = has_own_weights(j) ? (size_t)j->in->n : 0,
                            .n_ranges = j->o->n_ranges,
                            .asymmetric = j->o->asymmetric,
                            .n_variants = j->o->explore > 1 ? j->o->explore : 1};
    struct lay *lay;
    int r = lay_new(&lay, &p, s->rows, strip->row, strip->n_rows, err);
    if (r < 0) return r;
    if (j->o->explore > 0) {
        r = explore_strip(strip, p.n_variants, lay_variant, lay, err);
        if (r == 0 && j->o->codes.search != CODES_LOOP) r = codes_again(strip, &j->o->codes, err);
    } else {
        lay_variant(lay, 0, err);
        strip_levels(strip);
        r = codes_find(strip, &j->o->codes, err);
    }
    lay_free(lay);
    return r;
}

static int group_width(const struct job *j, int group) {
    int rest = j->in->n - group * j->group;
    return rest < j->group ? rest : j->group;
}

static struct grid lay_grid(const struct job *j, const float *w, int group, double *values) {
    int width = group_width(j, group);
    double largest = 0.0;
    for (int k = 0; k < width; k++) {
        values[k] = (double)w[group * j->group + k];
        largest = fmax(largest, fabs(values[k]));
    }
    /* The grid -1..1 of a group of zeros would claim the row's super-scale. */
    if (largest == 0.0) return (struct grid){.bits = j->o->bits};
    if (!j->o->min_mse) return grid_minmax(values, (size_t)width, j->o->bits);
    return grid_min_mse(values, j->in->weights + (size_t)group * (size_t)j->group, (size_t)width,
                        j->o->bits);
}

static int grid_strip(const struct job *j, struct scratch *s, int row, int n_rows,
                      struct error *err) {
    double *values = malloc((size_t)j->group * sizeof *values);
    if (!values) return error_set(err, -ENOMEM, "grids: out of memory");
    for (int i = 0; i < n_rows; i++) {
        for (int g = 0; g < j->problem.view.layout.n_groups; g++) {
            struct grid grid = lay_grid(j, s->rows + (size_t)i * (size_t)j->in->n, g, values);
            pack_group_set(&s->groups[g], j->shapes, j->o->bits, 0, (float)grid.scale,
                           (float)grid_middle(&grid));
        }
        pack_row(&j->problem.view, row + i, s->groups, j->shapes);
    }
    free(values);
    return 0;
}

static void alternate_strip(const struct job *j, struct scratch *s, int row, int n_rows) {
    bool even = j->o->weighting == LAYER_BY_NONE && !j->outliers;
    for (int i = 0; i < n_rows; i++) {
        const float *weights = even ? NULL : weights_of(j, s, i);
        for (int g = 0; g < j->problem.view.layout.n_groups; g++) {
            size_t first = (size_t)g * (size_t)j->group;
            struct alternate_fit fit;
            alternate_fit(&fit, s->rows + (size_t)i * (size_t)j->in->n + first,
                          weights ? weights + first : NULL, group_width(j, g), j->o->bits,
                          j->o->bcq_bias);
            memcpy(s->groups[g].alpha, fit.alpha, sizeof fit.alpha);
            s->groups[g].bias = fit.bias;
        }
        pack_row(&j->problem.view, row + i, s->groups, j->shapes);
    }
}

struct dynamic { /* results of gptq_uniform() */
    double *w, *scales, *zeros, *loss;
    uint8_t *codes;
};

static void store_dynamic(const struct job *j, struct strip *strip, const struct dynamic *d) {
    int n_groups = j->problem.view.layout.n_groups;
    for (int i = 0; i < strip->n_rows; i++) {
        for (int g = 0; g < n_groups; g++) {
            struct pack_group group;
            struct grid grid = {.scale = d->scales[i * n_groups + g],
                                .zero = d->zeros[i * n_groups + g],
                                .bits = j->o->bits};
            pack_group_set(&group, j->shapes, j->o->bits, 0, (float)grid.scale,
                           (float)grid_middle(&grid));
            pack_free(&j->problem.view, strip->row + i, g, group.alpha, group.bias);
        }
    }
    strip_take_codes(strip, d->codes);
}

static int dynamic_strip(const struct job *j, struct strip *strip, const struct scratch *s,
                         struct error *err) {
    size_t n = (size_t)j->in->n, rows = (size_t)strip->n_rows;
    size_t n_grids = rows * (size_t)j->problem.view.layout.n_groups;
    struct gptq_uniform o = {.bits = j->o->bits,
                             .group = j->group,
                             .min_mse = j->o->min_mse,
                             .h = j->in->weights,
                             .round_f16 = true};
    struct dynamic d = {.w = malloc(rows * n * sizeof *d.w),
                        .scales = malloc(n_grids * sizeof *d.scales),
                        .zeros = malloc(n_grids * sizeof *d.zeros),
                        .loss = malloc(rows * sizeof *d.loss),
                        .codes = malloc(rows * n)};
    int r = -ENOMEM;
    if (!d.w || !d.scales || !d.zeros || !d.loss || !d.codes) {
        error_set(err, r, "column loop: out of memory");
    } else {
        for (size_t i = 0; i < rows * n; i++) d.w[i] = (double)s->rows[i];
        r = gptq_uniform(j->in->factor, &o, d.w, strip->n_rows, d.codes, d.scales, d.zeros, d.loss,
                         err);
        if (r == 0) store_dynamic(j, strip, &d);
    }
    free(d.w);
    free(d.scales);
    free(d.zeros);
    free(d.loss);
    free(d.codes);
    return r;
}

/* Parameters first, in their stored form; codes after. */
static int fixed_strip(const struct job *j, struct strip *strip, struct scratch *s,
                       struct error *err) {
    int r = 0, row = strip->row, n_rows = strip->n_rows;
    if (j->o->given)
        stack_copy_rows(&j->problem.view, row, j->o->given, row, n_rows);
    else if (j->o->pow2)
        return pow2_strip(j, strip, s, err);
    else if (j->o->method == LAYER_GPTQT)
        return search_strip(j, strip, s, err);
    if (layer_is_uniform(j->o->method)) r = grid_strip(j, s, row, n_rows, err);
    if (layer_is_alternating(j->o->method)) alternate_strip(j, s, row, n_rows);
    if (r < 0) return r;
    strip_levels(strip);
    if (layer_has_loop(j->o->method)) return codes_find(strip, &j->o->codes, err);
    strip_nearest(strip);
    strip_codes(strip);
    return 0;
}

static int quantize_strip(const struct job *j, struct strip *strip, struct scratch *s,
                          struct error *err) {
    int r = layer_lays_as_it_goes(j->o) ? dynamic_strip(j, strip, s, err)
                                        : fixed_strip(j, strip, s, err);
    if (r == 0 && j->o->refine > 0)
        r = refine_strip(strip, j->shapes, j->n_shapes, j->o->refine, err);
    if (r == 0 && (j->o->refine > 0 || layer_lays_as_it_goes(j->o)))
        r = codes_again(strip, &j->o->codes, err);
    if (r == 0 && j->outliers) outlier_take(j->outliers, strip);
    if (r == 0) strip_store(strip);
    return r;
}

static void measure(const struct job *j, struct strip *strip) {
    double loss[GPTQ_LANES], energy[GPTQ_LANES];
    strip_loss(strip, loss);
    strip_form(strip, strip->w, energy);
    for (int i = 0; i < strip->n_rows; i++) {
        j->loss[strip->row + i] = loss[i];
        j->energy[strip->row + i] = energy[i];
    }
}

static void run_strip(void *arg, size_t index) {
    struct job *j = arg;
    struct strip *strip = NULL;
    struct scratch s = {0};
    struct error err;
    int row = (int)index * GPTQ_LANES, n_groups = j->problem.view.layout.n_groups;
    int n_rows = j->rows - row < GPTQ_LANES ? j->rows - row : GPTQ_LANES;
    int r = strip_new(&strip, &j->problem, &err);
    s.rows = malloc(GPTQ_LANES * (size_t)j->in->n * sizeof *s.rows);
    if (has_own_weights(j)) s.weights = malloc(GPTQ_LANES * (size_t)j->in->n * sizeof *s.weights);
    s.groups = calloc((size_t)n_groups, sizeof *s.groups);
    if (!s.rows || !s.groups || (has_own_weights(j) && !s.weights)) r = -ENOMEM;
    if (r == 0) {
        strip_load(strip, j->w, row, n_rows);
        copy_live_rows(j, &s, row, n_rows);
        r = quantize_strip(j, strip, &s, &err);
        if (r == 0) measure(j, strip);
    }
    int none = 0;
    if (r < 0) atomic_compare_exchange_strong(&j->status, &none, r);
    strip_free(strip);
    free(s.rows);
    free(s.weights);
    free(s.groups);
}

static int check_weights(const float *w, size_t n_rows, size_t n_cols, struct error *err) {
    for (size_t i = 0; i < n_rows * n_cols; i++) {
        if (!isfinite(w[i]))
            return error_set(err, -EDOM, "row %zu, column %zu is not finite", i / n_cols,
                             i % n_cols);
        if (fabsf(w[i]) > 65504.0f)
            return error_set(err, -ERANGE, "row %zu, column %zu is %g, beyond fp16", i / n_cols,
                             i % n_cols, (double)w[i]);
    }
    return 0;
}

static int make_codebook(struct job *j, struct codebook_set **ret, struct error *err) {
    int step = j->o->step_bits ? j->o->step_bits : codebook_step_bits(j->o->bits);
    int most = j->o->kind == BCQ_COMPACT_GROUP ? 256 : 65535;
    int r = codebook_set_new(ret, j->o->bits, step, j->group, most, err);
    if (r < 0) return r;
    j->set = *ret;
    j->shapes = (*ret)->shapes;
    j->n_shapes = (*ret)->n_shapes;
    return 0;
}

static int make_block(struct job *j, struct layer_result *result, struct error *err) {
    struct bcq_spec spec = {.kind = j->o->kind,
                            .rows = j->rows,
                            .cols = j->in->n,
                            .bits = j->o->bits,
                            .group = j->group};
    struct bcq_layout layout;
    if (spec.kind != BCQ_FREE) {
        spec.scale_bits = j->o->scale_bits;
        spec.bias_bits = j->o->bias_bits;
    }
    if (spec.kind == BCQ_COMPACT_GROUP) spec.n_shapes = j->n_shapes;
    int r = bcq_check(&spec, err);
    if (r < 0) return r;
    bcq_layout(&layout, &spec);
    result->block = aligned_alloc(BCQ_ALIGN, (size_t)layout.total);
    if (!result->block) return error_set(err, -ENOMEM, "binary-coded block: out of memory");
    memset(result->block, 0, (size_t)layout.total);
    result->n_bytes = (size_t)layout.total;
    bcq_format(&result->view, result->block, &spec);
    if (spec.kind == BCQ_COMPACT_GROUP) pack_shape_table(&result->view, j->shapes);
    j->problem =
        (struct strip_problem){j->in->factor, j->in->h, j->group_of, result->view, j->outliers};
    return 0;
}

static int turn_weights(struct job *j, struct error *err) {
    const struct incoherence *in = j->in->turn;
    if (!in) return 0;
    int r = j->o->incoherence == LAYER_TURN_BOTH ? incoherence_new(&j->out, j->rows, err) : 0;
    if (r < 0) return r;
    j->turned = malloc((size_t)j->rows * (size_t)j->in->n * sizeof *j->turned);
    if (!j->turned) return error_set(err, -ENOMEM, "incoherence: out of memory");
    r = incoherence_weights(in, j->out, j->turned, j->w, j->rows, j->o->n_threads, err);
    j->w = j->turned;
    return r;
}

/* What lies beside the codes. */
static int make_sides(const struct job *j, struct layer_result *result, struct error *err) {
    int r = 0;
    if (j->outliers)
        r = outlier_block(j->outliers, &result->side, &result->n_side, &result->outliers, err);
    if (r == 0 && j->in->turn)
        r = incoherence_block(j->in->turn, j->out, j->rows, &result->turns, &result->n_turns,
                              &result->rotation, err);
    return r;
}

/* Chosen by the damped diagonal whatever the weighting: which weights matter is another question
 * than how codebooks are fitted to the rest. */
static int choose_outliers(struct job *j, struct error *err) {
    if (!(j->o->outliers > 0.0)) return 0;
    size_t n = (size_t)j->in->n;
    double *h = malloc(n * sizeof *h);
    if (!h) return error_set(err, -ENOMEM, "outliers: out of memory");
    for (size_t k = 0; k < n; k++) h[k] = j->in->factor->dead[k] ? 0.0 : j->in->factor->diag[k];
    int r = outlier_set_new(&j->outliers, j->w, h, j->rows, j->in->n, j->group, j->o->outliers,
                            j->o->whole_outliers, err);
    free(h);
    return r;
}

/* Group of the k-th processed column, and room for the losses of every row. */
static int make_maps(struct job *j, struct error *err) {
    j->group_of = malloc((size_t)j->in->n * sizeof *j->group_of);
    j->loss = calloc((size_t)j->rows, sizeof *j->loss);
    j->energy = calloc((size_t)j->rows, sizeof *j->energy);
    if (!j->group_of || !j->loss || !j->energy)
        return error_set(err, -ENOMEM, "layer: out of memory");
    for (int k = 0; k < j->in->n; k++) j->group_of[k] = j->in->factor->perm[k] / j->group;
    return 0;
}

static void sum_up(const struct job *j, struct layer_result *result) {
    for (int r = 0; r < j->rows; r++) {
        result->loss += j->loss[r];
        result->energy += j->energy[r];
    }
    if (result->energy > 0.0)
        result->decibels = 10.0 * log10(fmax(result->loss / result->energy, 1e-20));
}

int layer_quantize(struct layer_result *ret, const struct layer_input *in, const float *w, int rows,
                   const struct layer_options *o, struct error *err) {
    static const uint8_t powers[BCQ_MAX_BITS] = {1, 2, 4, 8};
    struct layer_result result = {0};
    struct codebook_set *set = NULL;
    struct job j = {.in = in, .o = o, .w = w, .rows = rows, .shapes = powers, .n_shapes = 1};
    atomic_init(&j.status, 0);
    j.group = group_of(o, in->n);
    int r = layer_check(o, err);
    if (r < 0) return r;
    r = check_weights(w, (size_t)rows, (size_t)in->n, err);
    if (r < 0) return r;
    if (o->method == LAYER_GPTQT) r = make_codebook(&j, &set, err);
    if (r == 0) r = make_maps(&j, err);
    if (r == 0) r = turn_weights(&j, err);
    if (r == 0) r = choose_outliers(&j, err);
    if (r == 0) r = make_block(&j, &result, err);
    if (r == 0) {
        parallel_for(o->n_threads, ((size_t)rows + GPTQ_LANES - 1) / GPTQ_LANES, run_strip, &j);
        r = atomic_load(&j.status);
        if (r < 0) error_set(err, r, "quantizing rows: out of memory");
    }
    if (r == 0) r = make_sides(&j, &result, err);
    if (r == 0) {
        sum_up(&j, &result);
        *ret = result;
        result.block = result.side = result.turns = NULL;
    }
    layer_result_free(&result);
    outlier_set_free(j.outliers);
    incoherence_free(j.out);
    free(j.turned);
    codebook_set_free(set);
    free(j.group_of);
    free(j.loss);
    free(j.energy);
    return r;
}
