/* The first step's gradients of block training, learned clipping and norm tweaking, which Adam's first
 * moments show, against central differences of their losses on fp64 loops (a rounding counts as
 * not there, codes as constants); codes against a search of all levels; and what clipping ends
 * with against what it began with. */
#include "engine/quant/block_tune.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/config.h"
#include "engine/train/coded.h"
#include "kernels/error.h"
#include "kernels/float16.h"
#include "tests/unit/engine/quant/block_rig.h"

static const char llama[] = "llama-bias", opt[] = "opt-125m-like";
static const struct block_tune tune = {.params = true, .codes = true, .recode = true, .epochs = 1};
static const struct block_tune clip = {.params = true, .recode = true, .epochs = 1};
static const struct block_tune tweak = {.norms = true, .moments = true, .epochs = 1};

/* A block in training: the reference has its parameters as they were before the step. */
struct training {
    struct block_rig rig;
    struct layer_result coded[ROLE_COUNT];
    struct params_block dense;
    struct block_trainer trainer;
    struct reference *ref;
    double *y;
};

static struct layer_options quick(enum bcq_kind kind) {
    struct layer_options o;
    layer_defaults(&o);
    o.kind = kind;
    o.bits = 2;
    o.n_ranges = 4;
    return o;
}

static void begin(struct training *t, const char *model, enum bcq_kind kind,
                  const struct block_tune *what) {
    struct error err;
    *t = (struct training){.rig = {.layer = quick(kind), .o = {.tune_epochs = 1}}};
    block_rig_open(&t->rig, model, 1);
    block_rig_code(&t->rig, t->coded);
    for (int role = 0; role < ROLE_COUNT; role++)
        cr_assert_eq(blockwise_copy(t->rig.b, (enum model_role)role, &t->dense.linear[role], &err),
                     0);
    /* Norms are fitted to the coded block. */
    for (int role = 0; !what->params && role < ROLE_COUNT; role++)
        for (int row = 0; t->coded[role].block && row < t->coded[role].view.spec.rows; row++)
            bcq_expand_row(&t->coded[role].view, row,
                           t->rig.b->now.linear[role] + row * t->coded[role].view.spec.cols);
    cr_assert_eq(block_trainer_open(&t->trainer, t->rig.b, what, t->coded, &t->dense, &err), 0,
                 "%s", err.text);
    t->ref = block_rig_reference(&t->rig);
    t->y = malloc((size_t)t->ref->n_x * sizeof *t->y);
    cr_assert(t->y);
}

static void step(struct training *t) {
    struct blockwise_windows w = block_rig_windows(&t->rig);
    cr_assert_eq(block_trainer_step(t->rig.b, &w, &t->trainer), 0);
}

static void end(struct training *t) {
    block_trainer_close(&t->trainer);
    for (int role = 0; role < ROLE_COUNT; role++) layer_result_free(&t->coded[role]);
    params_block_free(&t->dense);
    reference_free(t->ref);
    free(t->y);
    block_rig_close(&t->rig);
}

/* -- Losses and their slopes ----------------------------------------------------------------- */

typedef double loss_of(struct training *t);

/* Half the squared distance to the original block's output. */
static double distance(struct training *t) {
    struct blockwise_windows w = block_rig_windows(&t->rig);
    double sum = 0.0;
    block_rig_forward(&t->rig, t->ref, t->y);
    for (int i = 0; i < t->ref->n_x; i++) {
        double e = t->y[i] - (double)w.wanted[i];
        sum += 0.5 * e * e;
    }
    return sum;
}

static void spread(const double *x, int hidden, int c, double *mean, double *var) {
    *mean = *var = 0.0;
    for (int i = 0; i < BLOCK_RIG_TOKENS; i++) *mean += x[i * hidden + c] / BLOCK_RIG_TOKENS;
    for (int i = 0; i < BLOCK_RIG_TOKENS; i++) {
        double d = x[i * hidden + c] - *mean;
        *var += d * d / BLOCK_RIG_TOKENS;
    }
}

/* Channels' means and variances against the original's, in units of its variance; half a token. */
static double channel_distance(struct training *t) {
    struct blockwise_windows w = block_rig_windows(&t->rig);
    int hidden = t->rig.b->config->hidden;
    double *wanted = malloc((size_t)t->ref->n_x * sizeof *wanted), sum = 0.0;
    cr_assert(wanted);
    for (int i = 0; i < t->ref->n_x; i++) wanted[i] = (double)w.wanted[i];
    block_rig_forward(&t->rig, t->ref, t->y);
    for (int c = 0; c < hidden; c++) {
        double mean, var, target, wide;
        spread(t->y, hidden, c, &mean, &var);
        spread(wanted, hidden, c, &target, &wide);
        sum += 0.5 * BLOCK_RIG_TOKENS *
               ((mean - target) * (mean - target) / wide + (var / wide - 1.0) * (var / wide - 1.0));
    }
    free(wanted);
    return sum;
}

/* Along params[i] += h along[i] for n of the reference's parameters. */
static double slope(struct training *t, loss_of *loss, double *params, const double *along, int n) {
    double h = 1e-4, sum = 0.0, most = 0.0;
    for (int i = 0; i < n; i++) most = fmax(most, fabs(along[i]));
    if (most == 0.0) return 0.0;
    h /= most;
    for (int sign = 1; sign >= -1; sign -= 2) {
        for (int i = 0; i < n; i++) params[i] += sign * h * along[i];
        sum += sign * loss(t);
        for (int i = 0; i < n; i++) params[i] -= sign * h * along[i];
    }
    return sum / (2.0 * h);
}

/* After a first step Adam's first moment is a tenth of gradient times unit. */
struct compared {
    double worst, largest;
    int n;
};

static void compare(struct compared *c, float moment, double gradient, double unit) {
    double want = 0.1 * gradient * unit;
    c->worst = fmax(c->worst, fabs((double)moment - want));
    c->largest = fmax(c->largest, fabs(want));
    c->n++;
}

static void judge(const struct compared *c, const char *what) {
    cr_assert_gt(c->largest, 0.0, "%s", what);
    cr_assert_gt(c->n, 10, "%s", what);
    cr_assert_lt(c->worst, 2e-3 * c->largest, "%s: off by %g of up to %g", what, c->worst,
                 c->largest);
}

/* -- Stored parameters ----------------------------------------------------------------------- */

static unsigned code_at(const struct bcq_view *v, int row, int k) {
    size_t words = (size_t)v->layout.plane_words, bits = (size_t)v->spec.bits;
    unsigned code = 0;
    for (size_t i = 0; i < bits; i++)
        code |= (v->planes[((size_t)row * bits + i) * words + (size_t)k / 32] >> k % 32 & 1u) << i;
    return code;
}

static double sign_of(unsigned code, int plane) { return code >> plane & 1u ? 1.0 : -1.0; }

struct group {
    int first, n; /* columns */
    double alpha[BCQ_MAX_BITS], beta, half;
    int d[BCQ_MAX_BITS], q, p;
};

static struct group group_at(const struct bcq_view *v, int row, int index) {
    struct group g = {.first = index * v->spec.group, .n = v->spec.group};
    float alpha[BCQ_MAX_BITS], beta;
    if (g.first + g.n > v->spec.cols) g.n = v->spec.cols - g.first;
    bcq_group_params(v, row, index, alpha, &beta);
    for (int i = 0; i < v->spec.bits; i++) {
        g.alpha[i] = (double)alpha[i];
        g.half += 0.5 * fabs(g.alpha[i]);
    }
    g.beta = (double)beta;
    if (v->spec.kind != BCQ_FREE) bcq_group_codes(v, row, index, g.d, &g.q, &g.p);
    return g;
}

/* How a group's weights change with one of its parameters: plane -1 is beta. */
static void change(const struct bcq_view *v, int row, const struct group *g, int plane,
                   double factor, double *along) {
    for (int k = g->first; k < g->first + g->n; k++)
        along[k] += factor * (plane < 0 ? 1.0 : sign_of(code_at(v, row, k), plane));
}

static double row_slope(struct training *t, enum model_role role, int row, const double *along) {
    int cols = t->ref->cols[role];
    return slope(t, distance, t->ref->params + t->ref->linear[role] + row * cols, along, cols);
}

static void check_free(struct training *t, struct compared *c, const struct block_tune_matrix *m,
                       int row, int index, const float *moments) {
    const struct bcq_view *v = &m->coded->view;
    struct group g = group_at(v, row, index);
    for (int plane = -1; plane < v->spec.bits; plane++) {
        double *along = calloc((size_t)v->spec.cols, sizeof *along);
        change(v, row, &g, plane, 1.0, along);
        compare(c, moments[plane < 0 ? v->spec.bits : plane], row_slope(t, m->role, row, along),
                plane < 0 ? g.half : fabs(g.alpha[plane]));
        free(along);
    }
}

/* w = s1 p + sum s0 q d_i / 2 b_i, s0 and s1 the row's. */
static void check_compact(struct training *t, struct compared *c, const struct block_tune_matrix *m,
                          int row, int index, const float *moments) {
    const struct bcq_view *v = &m->coded->view;
    struct group g = group_at(v, row, index);
    double s0 = (double)f16_to_f32(v->row_scale[2 * row]);
    double s1 = (double)f16_to_f32(v->row_scale[2 * row + 1]);
    double *along = calloc(2 * (size_t)v->spec.cols, sizeof *along);
    for (int i = 0; i < v->spec.bits; i++) change(v, row, &g, i, 0.5 * s0 * g.d[i], along);
    change(v, row, &g, -1, s1, along + v->spec.cols);
    compare(c, moments[0], row_slope(t, m->role, row, along), g.q);
    compare(c, moments[1], row_slope(t, m->role, row, along + v->spec.cols),
            s1 > 0.0 ? g.half / s1 : 0.0);
    free(along);
}

static void check_row_scales(struct training *t, struct compared *c,
                             const struct block_tune_matrix *m, int row, const float *moments) {
    const struct bcq_view *v = &m->coded->view;
    size_t cols = (size_t)v->spec.cols;
    double *along = calloc(2 * cols, sizeof *along);
    for (int index = 0; index < v->layout.n_groups; index++) {
        struct group g = group_at(v, row, index);
        for (int i = 0; i < v->spec.bits; i++) change(v, row, &g, i, 0.5 * g.q * g.d[i], along);
        change(v, row, &g, -1, g.p, along + cols);
    }
    for (int k = 0; k < 2; k++)
        compare(c, moments[k], row_slope(t, m->role, row, along + (size_t)k * cols),
                0.25 * fabs((double)f16_to_f32(v->row_scale[2 * row + k])));
    free(along);
}

/* Codes and stored parameters as the step's forward pass had them: it moves variables alone, and
 * codes are put down again by who asks. */
static void check_params(struct training *t, const struct block_tune_matrix *m) {
    const struct bcq_view *v = &m->coded->view;
    struct compared groups = {0}, rows = {0};
    int groups_of_row = v->layout.n_groups, each = v->spec.kind == BCQ_FREE ? v->spec.bits + 1 : 2;
    size_t n;
    const float *moments = coded_state(m->params, &n) + n / 3;
    for (int row = 0, k = 0; row < v->spec.rows; row += v->spec.rows / 16, k++) {
        int index = k % groups_of_row;
        const float *at = moments + (row * groups_of_row + index) * each;
        const float *super = moments + v->spec.rows * groups_of_row * each + 2 * row;
        if (v->spec.kind == BCQ_FREE) {
            check_free(t, &groups, m, row, index, at);
        } else {
            check_compact(t, &groups, m, row, index, at);
            check_row_scales(t, &rows, m, row, super);
        }
    }
    judge(&groups, "groups");
    if (v->spec.kind != BCQ_FREE && rows.n > 10) judge(&rows, "rows");
}

/* The planes that the trainer chose before its step. */
static uint32_t *take_planes(const struct block_tune_matrix *m) {
    uint32_t *planes = malloc(m->plane_bytes);
    cr_assert(planes);
    memcpy(planes, m->coded->view.planes, m->plane_bytes);
    return planes;
}

static void put_planes(const struct block_tune_matrix *m, const uint32_t *planes) {
    memcpy((void *)(uintptr_t)m->coded->view.planes, planes, m->plane_bytes);
}

static void check_step(const char *model, enum bcq_kind kind, const struct block_tune *what) {
    struct training t;
    uint32_t *planes[ROLE_COUNT];
    begin(&t, model, kind, what);
    for (int i = 0; i < t.trainer.n_matrices; i++) planes[i] = take_planes(&t.trainer.m[i]);
    step(&t);
    cr_assert_eq(t.trainer.n_matrices, t.rig.b->now.linear[ROLE_GATE] ? 7 : 6);
    for (int i = 0; i < t.trainer.n_matrices; i++) {
        put_planes(&t.trainer.m[i], planes[i]);
        check_params(&t, &t.trainer.m[i]);
        free(planes[i]);
    }
    end(&t);
}

Test(clip, ranges_move_along_the_slope_of_the_blocks_error) {
    check_step(llama, BCQ_COMPACT, &clip);
    check_step(llama, BCQ_COMPACT_GROUP, &clip);
    check_step(llama, BCQ_FREE, &clip);
}

Test(block_tune, parameters_move_along_the_slope_of_the_blocks_error) {
    check_step(opt, BCQ_COMPACT, &tune);
}

/* -- Codes ----------------------------------------------------------------------------------- */

/* The levels of a group, code by code, and the distance between them. */
static double levels_of(const float *alpha, float beta, int bits, double *level) {
    double low = INFINITY, high = -INFINITY;
    for (unsigned code = 0; code < 1u << bits; code++) {
        level[code] = (double)beta;
        for (int i = 0; i < bits; i++) level[code] += (double)alpha[i] * sign_of(code, i);
        low = fmin(low, level[code]);
        high = fmax(high, level[code]);
    }
    return (high - low) / ((1 << bits) - 1);
}

static double off_by(const double *level, int bits, double x, unsigned code) {
    double least = INFINITY;
    for (unsigned i = 0; i < 1u << bits; i++) least = fmin(least, fabs(x - level[i]));
    return fabs(x - level[code]) - least;
}

/* x stands for the code of each weight; with dense, as near the weight as one can. */
static void check_codes(const struct block_tune_matrix *m, const float *dense) {
    const struct bcq_view *v = &m->coded->view;
    int bits = v->spec.bits, moved = 0;
    for (int row = 0; row < v->spec.rows; row++)
        for (int k = 0; k < v->spec.cols; k++) {
            double level[1 << BCQ_MAX_BITS];
            float alpha[BCQ_MAX_BITS], beta;
            coded_params(m->params, row, k / v->spec.group, alpha, &beta);
            double spacing = levels_of(alpha, beta, bits, level);
            unsigned code = code_at(v, row, k);
            double x = (double)m->weights.x[row * v->spec.cols + k];
            cr_assert_leq(off_by(level, bits, x, code), 1e-6 * spacing);
            if (!dense) continue;
            double w = (double)dense[row * v->spec.cols + k], way = fabs(x - w);
            moved += way > 0.0;
            bool here = off_by(level, bits, w, code) <= 0.0;
            if (!here || fabs(w - level[code]) > 0.5 * spacing)
                cr_assert_leq(way, fabs(level[code] - w) + 1e-6 * spacing, "row %d, %d", row, k);
            else
                cr_assert_leq(way, 0.0201 * spacing, "row %d, %d: %g for %g", row, k, x, w);
        }
    if (dense) cr_assert_gt(moved, v->spec.rows);
}

/* The slope at the level that a weight has is that of the weight behind it. */
static void check_behind(struct training *t, const struct block_tune_matrix *m) {
    const struct bcq_view *v = &m->coded->view;
    struct compared c = {0};
    double *params = t->ref->params + t->ref->linear[m->role];
    for (int row = 0; row < v->spec.rows; row += v->spec.rows / 16) {
        double level[1 << BCQ_MAX_BITS], one = 1.0;
        float alpha[BCQ_MAX_BITS], beta;
        int k = row * 5 % v->spec.cols, at = row * v->spec.cols + k;
        bcq_group_params(v, row, k / v->spec.group, alpha, &beta);
        double spacing = levels_of(alpha, beta, v->spec.bits, level);
        compare(&c, m->weights.m[at], slope(t, distance, params + at, &one, 1), spacing);
    }
    judge(&c, "codes");
}

Test(block_tune, weights_behind_codes_move_along_the_slope_at_their_levels) {
    static const enum bcq_kind kinds[] = {BCQ_COMPACT, BCQ_FREE};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        struct training t;
        begin(&t, llama, kinds[i], &tune);
        for (int k = 0; k < t.trainer.n_matrices; k++)
            check_codes(&t.trainer.m[k], t.dense.linear[t.trainer.m[k].role]);
        step(&t);
        for (int k = 0; k < t.trainer.n_matrices; k++) {
            check_behind(&t, &t.trainer.m[k]);
            check_codes(&t.trainer.m[k], NULL);
        }
        end(&t);
    }
}

/* -- Norms ----------------------------------------------------------------------------------- */

static void check_norm(struct training *t, int i) {
    const struct reference *ref = t->ref;
    int hidden = t->rig.b->config->hidden;
    const int at[] = {ref->norm_w[BLOCK_ATTN_NORM], ref->norm_b[BLOCK_ATTN_NORM],
                      ref->norm_w[BLOCK_FFN_NORM], ref->norm_b[BLOCK_FFN_NORM]};
    struct compared c = {0};
    double unit = 0.0, one = 1.0;
    cr_assert_eq(t->trainer.norms[i].n > 0, at[i] >= 0);
    if (at[i] < 0) return;
    for (int k = 0; k < hidden; k++) unit += fabs(ref->params[at[i & ~1] + k]) / hidden;
    for (int k = 0; k < hidden; k++)
        compare(&c, t->trainer.norms[i].m[k],
                slope(t, channel_distance, ref->params + at[i] + k, &one, 1), unit);
    judge(&c, "norm");
}

Test(norm_tweak, norms_move_along_the_slope_of_the_channels_distance) {
    static const char *const models[] = {llama, opt};
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        struct training t;
        begin(&t, models[i], BCQ_COMPACT, &tweak);
        cr_assert_eq(t.trainer.n_matrices, 0);
        step(&t);
        for (int k = 0; k < BLOCK_TUNE_NORMS; k++) check_norm(&t, k);
        end(&t);
    }
}

/* -- Learned clipping as a whole ------------------------------------------------------------- */

/* The loss of every weight's nearest level. */
static double nearest_distance(struct training *t, const struct layer_result coded[ROLE_COUNT]) {
    for (int role = 0; role < ROLE_COUNT; role++) {
        const struct bcq_view *v = &coded[role].view;
        for (int i = 0; coded[role].block && i < v->spec.rows * v->spec.cols; i++) {
            double level[1 << BCQ_MAX_BITS], x = (double)t->dense.linear[role][i];
            float alpha[BCQ_MAX_BITS], beta;
            unsigned best = 0;
            bcq_group_params(v, i / v->spec.cols, i % v->spec.cols / v->spec.group, alpha, &beta);
            levels_of(alpha, beta, v->spec.bits, level);
            for (unsigned code = 1; code < 1u << v->spec.bits; code++)
                if (fabs(x - level[code]) < fabs(x - level[best])) best = code;
            t->ref->params[t->ref->linear[role] + i] = level[best];
        }
    }
    return distance(t);
}

Test(clip, ends_with_ranges_that_code_the_block_better) {
    static const enum bcq_kind kinds[] = {BCQ_COMPACT, BCQ_COMPACT_GROUP, BCQ_FREE};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        struct training t = {.rig = {.layer = quick(kinds[i]), .o = {.clip_epochs = 12}}};
        struct error err;
        block_rig_open(&t.rig, llama, 1);
        block_rig_code(&t.rig, t.coded);
        t.ref = block_rig_reference(&t.rig);
        t.y = malloc((size_t)t.ref->n_x * sizeof *t.y);
        for (int role = 0; role < ROLE_COUNT; role++)
            cr_assert_eq(
                blockwise_copy(t.rig.b, (enum model_role)role, &t.dense.linear[role], &err), 0);
        cr_assert_eq(blockwise_transform(t.rig.b, &err), 0, "%s", err.text);
        double before = nearest_distance(&t, t.coded);
        double after = nearest_distance(&t, t.rig.b->clipped);
        cr_assert_lt(after, 0.95 * before, "kind %d: %g, not below %g", (int)kinds[i], after,
                     before);
        for (int role = 0; role < ROLE_COUNT; role++)
            if (t.dense.linear[role])
                cr_assert_arr_eq(t.rig.b->now.linear[role], t.dense.linear[role],
                                 (size_t)t.ref->rows[role] * (size_t)t.ref->cols[role] *
                                     sizeof(float),
                                 "weights stay");
        end(&t);
    }
}
