#include "engine/quant/block_tune.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/config.h"
#include "engine/quant/pack.h"
#include "engine/quant/parallel.h"
#include "engine/train/coded.h"
#include "kernels/error.h"

enum { ROWS = 16 /* of a piece of work */, MAX_LEVELS = 1 << BCQ_MAX_BITS };

/* Rates at the start, in each variable's own unit; they fall along a cosine to a twentieth. */
static const float param_rate = 3e-3f, norm_rate = 2e-3f;
static const float code_rate = 2e-2f; /* of the distance between levels */
static const float row_share = 0.25f; /* super-scales move all groups of a row at once */
static const double last_rate = 0.05;

static const enum model_vector norm_vectors[BLOCK_TUNE_NORMS] = {
    VECTOR_ATTN_NORM, VECTOR_ATTN_NORM_BIAS, VECTOR_FFN_NORM, VECTOR_FFN_NORM_BIAS};

/* -- Codes ----------------------------------------------------------------------------------- */

/* Levels of a group by value, with their codes; returns the distance between levels. */
struct levels {
    int n;
    float value[MAX_LEVELS], spacing;
    uint8_t code[MAX_LEVELS];
};

static void read_levels(const struct block_tune_matrix *m, int row, int group, struct levels *l) {
    float alpha[BCQ_MAX_BITS], beta;
    int bits = m->coded->view.spec.bits;
    coded_params(m->params, row, group, alpha, &beta);
    l->n = 1 << bits;
    for (int code = 0; code < l->n; code++) {
        float value = beta;
        for (int i = 0; i < bits; i++) value += code >> i & 1 ? alpha[i] : -alpha[i];
        int at = code;
        for (; at > 0 && l->value[at - 1] > value; at--) {
            l->value[at] = l->value[at - 1];
            l->code[at] = l->code[at - 1];
        }
        l->value[at] = value;
        l->code[at] = (uint8_t)code;
    }
    l->spacing = (l->value[l->n - 1] - l->value[0]) / (float)(l->n - 1);
}

static int nearest(const struct levels *l, float x) {
    int at = 0;
    while (at + 1 < l->n && x > 0.5f * (l->value[at] + l->value[at + 1])) at++;
    return at;
}

struct row_work {
    const struct block_trainer *t;
    struct block_tune_matrix *m;
    const float *w; /* before coding; NULL: recode */
};

static unsigned code_at(const struct bcq_view *v, int row, int column) {
    size_t words = (size_t)v->layout.plane_words, bits = (size_t)v->spec.bits;
    const uint32_t *planes = v->planes + (size_t)row * bits * words + (size_t)(column / 32);
    unsigned code = 0;
    for (size_t i = 0; i < bits; i++) code |= (planes[i * words] >> column % 32 & 1u) << i;
    return code;
}

/* Of step sizes that are alike some sums coincide, but for the last bit. */
static bool is_one_level(const struct levels *l, int at) {
    return l->value[at + 1] - l->value[at] <= 1e-4f * l->spacing;
}

/* A weight behind its code: itself, or where it lies elsewhere the nearest point of the code's
 * cell, a little inside. The codes begin as the column loop left them, errors made up for. */
static float behind(const struct levels *l, unsigned code, float w) {
    static const float margin = 0.02f;
    int at = 0;
    while (at + 1 < l->n && l->code[at] != code) at++;
    int first = at, last = at;
    while (first > 0 && is_one_level(l, first - 1)) first--;
    while (last + 1 < l->n && is_one_level(l, last)) last++;
    float low = first > 0 ? 0.5f * (l->value[first - 1] + l->value[first]) + margin * l->spacing
                          : l->value[0] - 0.5f * l->spacing;
    float high = last + 1 < l->n
                     ? 0.5f * (l->value[last] + l->value[last + 1]) - margin * l->spacing
                     : l->value[last] + 0.5f * l->spacing;
    if (low > high) return l->value[at];
    return w < low ? low : w > high ? high : w;
}

static void begin_row(const struct row_work *k, int row) {
    struct block_tune_matrix *m = k->m;
    const struct bcq_spec *spec = &m->coded->view.spec;
    size_t first = (size_t)row * (size_t)spec->cols;
    bool moves = k->t->o->codes;
    for (int c = 0; c < spec->cols; c++) {
        struct levels l;
        if (c % spec->group == 0) read_levels(m, row, c / spec->group, &l);
        size_t at = first + (size_t)c;
        m->weights.x[at] =
            moves ? behind(&l, code_at(&m->coded->view, row, c), k->w[at]) : k->w[at];
        m->weights.unit[at] = moves ? l.spacing : 0.0f;
    }
}

/* The nearest codes; weights stay within half a step of the outer levels, so that they can come
 * back. */
static void recode_row(const struct row_work *k, int row, uint8_t *codes) {
    struct block_tune_matrix *m = k->m;
    const struct bcq_spec *spec = &m->coded->view.spec;
    float *x = m->weights.x + (size_t)row * (size_t)spec->cols;
    struct levels l = {0};
    for (int c = 0; c < spec->cols; c++) {
        if (c % spec->group == 0) read_levels(m, row, c / spec->group, &l);
        float low = l.value[0] - 0.5f * l.spacing, high = l.value[l.n - 1] + 0.5f * l.spacing;
        if (k->t->o->codes) x[c] = x[c] < low ? low : x[c] > high ? high : x[c];
        codes[c] = l.code[nearest(&l, x[c])];
    }
    pack_codes(&m->coded->view, row, codes);
}

static void row_piece(void *arg, size_t piece) {
    const struct row_work *k = arg;
    const struct bcq_spec *spec = &k->m->coded->view.spec;
    int first = (int)piece * ROWS, end = first + ROWS < spec->rows ? first + ROWS : spec->rows;
    uint8_t *codes = k->w ? NULL : malloc((size_t)spec->cols);
    for (int row = first; row < end; row++) {
        if (k->w)
            begin_row(k, row);
        else if (codes)
            recode_row(k, row, codes);
    }
    free(codes);
}

static void each_row(struct block_trainer *t, struct block_tune_matrix *m, const float *w) {
    struct row_work k = {t, m, w};
    size_t rows = (size_t)m->coded->view.spec.rows;
    parallel_for(t->b->n_threads, (rows + ROWS - 1) / ROWS, row_piece, &k);
}

static void expand(struct block_trainer *t, struct block_tune_matrix *m) {
    coded_expand(m->params, t->b->now.linear[m->role], t->b->n_threads);
}

/* -- The loss -------------------------------------------------------------------------------- */

/* d / dy of the squared distance; its scale is nothing to Adam. */
static void square_gradient(struct block_trainer *t, const float *y, const float *wanted,
                            size_t n) {
    for (size_t i = 0; i < n; i++) t->dy[i] = y[i] - wanted[i];
}

/* Norm Tweaking's channel-wise distance (equation 3), squared and relative to each channel's
 * deviation, so that wide channels are not all that counts. */
static void moment_gradient(struct block_trainer *t, const float *y, const float *wanted,
                            size_t tokens) {
    size_t hidden = (size_t)t->b->config->hidden;
    double *sum = t->channels;
    memset(sum, 0, 4 * hidden * sizeof *sum);
    for (size_t i = 0; i < tokens; i++) {
        for (size_t c = 0; c < hidden; c++) {
            double a = (double)y[i * hidden + c], b = (double)wanted[i * hidden + c];
            sum[c] += a;
            sum[hidden + c] += a * a;
            sum[2 * hidden + c] += b;
            sum[3 * hidden + c] += b * b;
        }
    }
    for (size_t c = 0; c < hidden; c++) {
        double n = (double)tokens, mean = sum[c] / n, target = sum[2 * hidden + c] / n;
        double var = sum[hidden + c] / n - mean * mean;
        double wide = fmax(sum[3 * hidden + c] / n - target * target, 1e-12);
        double pull = (mean - target) / wide, stretch = 2.0 * (var - wide) / (wide * wide);
        for (size_t i = 0; i < tokens; i++)
            t->dy[i * hidden + c] = (float)(pull + stretch * ((double)y[i * hidden + c] - mean));
    }
}

/* -- Steps ----------------------------------------------------------------------------------- */

static struct adam_step step_of(const struct block_trainer *t, float rate) {
    double along = (double)t->step / t->n_steps;
    double fall = last_rate + (1.0 - last_rate) * 0.5 * (1.0 + cos(3.14159265358979323846 * along));
    return (struct adam_step){
        .rate = rate * (float)fall, .step = t->step + 1, .n_threads = t->b->n_threads};
}

static void move_matrix(struct block_trainer *t, struct block_tune_matrix *m) {
    size_t n = m->weights.n;
    struct adam_step params = step_of(t, param_rate), codes = step_of(t, code_rate);
    if (t->o->params) {
        coded_add_gradient(m->params, m->dw, t->b->n_threads);
        coded_move(m->params, &params);
    }
    if (t->o->codes) {
        memcpy(m->weights.g, m->dw, n * sizeof *m->dw);
        adam_move(&m->weights, &codes);
    }
    if (t->o->recode) each_row(t, m, NULL);
    expand(t, m);
}

static void move_norms(struct block_trainer *t) {
    struct adam_step step = step_of(t, norm_rate);
    for (int i = 0; i < BLOCK_TUNE_NORMS; i++) {
        if (!t->norms[i].n) continue;
        adam_move(&t->norms[i], &step);
        memcpy(blockwise_vector(&t->b->now, norm_vectors[i]), t->norms[i].x,
               t->norms[i].n * sizeof(float));
    }
}

static void ask(struct block_trainer *t, struct block_grads *grads) {
    for (int i = 0; i < t->n_matrices; i++) {
        struct block_tune_matrix *m = &t->m[i];
        memset(m->dw, 0, m->weights.n * sizeof *m->dw);
        grads->linear[m->role] = m->dw;
    }
    float **norms[BLOCK_TUNE_NORMS] = {
        &grads->norm_w[BLOCK_ATTN_NORM], &grads->norm_b[BLOCK_ATTN_NORM],
        &grads->norm_w[BLOCK_FFN_NORM], &grads->norm_b[BLOCK_FFN_NORM]};
    for (int i = 0; i < BLOCK_TUNE_NORMS; i++)
        if (t->norms[i].n) *norms[i] = t->norms[i].g;
}

int block_trainer_step(struct blockwise *b, const struct blockwise_windows *w, void *arg) {
    struct block_trainer *t = arg;
    struct block_weights now = params_block_view(&b->now);
    struct block_grads grads = {0};
    size_t tokens = (size_t)w->n * (size_t)b->ctx, n = tokens * (size_t)b->config->hidden;
    block_forward(b->block, &now, w->coded, b->y, w->n, b->ctx, b->cache);
    if (t->o->moments)
        moment_gradient(t, b->y, w->wanted, tokens);
    else
        square_gradient(t, b->y, w->wanted, n);
    ask(t, &grads);
    block_backward(b->block, &now, b->cache, t->dy, t->dy, &grads);
    for (int i = 0; i < t->n_matrices; i++) move_matrix(t, &t->m[i]);
    move_norms(t);
    t->step++;
    return 0;
}

static int count_windows(struct blockwise *b, const struct blockwise_windows *w, void *arg) {
    (void)b, (void)w;
    ++*(int *)arg;
    return 0;
}

/* -- The best state -------------------------------------------------------------------------- */

static void keep(struct block_trainer *t) {
    for (int i = 0; i < t->n_matrices; i++) {
        struct block_tune_matrix *m = &t->m[i];
        coded_keep(m->params);
        memcpy(m->kept, m->coded->view.planes, m->plane_bytes);
    }
    for (int i = 0; i < BLOCK_TUNE_NORMS; i++)
        if (t->norms[i].n)
            memcpy(t->kept_norms[i], blockwise_vector(&t->b->now, norm_vectors[i]),
                   t->norms[i].n * sizeof(float));
}

static int go_back(struct block_trainer *t, struct error *err) {
    int r = 0;
    for (int i = 0; r == 0 && i < t->n_matrices; i++) {
        struct block_tune_matrix *m = &t->m[i];
        void *block;
        size_t n_bytes;
        memcpy((void *)(uintptr_t)m->coded->view.planes, m->kept, m->plane_bytes);
        coded_back(m->params);
        expand(t, m);
        r = coded_block(m->params, &block, &n_bytes, err);
        if (r < 0) return r;
        memcpy(m->coded->block, block, n_bytes);
        free(block);
    }
    for (int i = 0; r == 0 && i < BLOCK_TUNE_NORMS; i++) {
        if (!t->norms[i].n) continue;
        memcpy(blockwise_vector(&t->b->now, norm_vectors[i]), t->kept_norms[i],
               t->norms[i].n * sizeof(float));
        r = blockwise_change(t->b, norm_vectors[i], err);
    }
    return r;
}

/* -- Beginning and end ----------------------------------------------------------------------- */

static int open_matrix(struct block_trainer *t, enum model_role role, struct layer_result *coded,
                       const float *w, struct error *err) {
    struct block_tune_matrix *m = &t->m[t->n_matrices++];
    const struct bcq_spec *spec = &coded->view.spec;
    size_t n = (size_t)spec->rows * (size_t)spec->cols;
    *m = (struct block_tune_matrix){.role = role, .coded = coded};
    m->plane_bytes = (size_t)spec->rows * (size_t)spec->bits *
                     (size_t)coded->view.layout.plane_words * sizeof *m->kept;
    int r = coded_new(&m->params, &coded->view, row_share, err);
    if (r == 0) r = adam_new(&m->weights, n, err);
    if (r < 0) return r;
    m->dw = malloc(n * sizeof *m->dw);
    m->kept = malloc(m->plane_bytes);
    if (!m->dw || !m->kept) return error_set(err, -ENOMEM, "tune: out of memory");
    each_row(t, m, w);
    if (t->o->recode) each_row(t, m, NULL);
    expand(t, m);
    return 0;
}

static int open_norms(struct block_trainer *t, struct error *err) {
    size_t hidden = (size_t)t->b->config->hidden;
    for (int i = 0; i < BLOCK_TUNE_NORMS; i++) {
        const float *x = blockwise_vector(&t->b->now, norm_vectors[i]);
        double size = 0.0;
        if (!x) continue;
        int r = adam_new(&t->norms[i], hidden, err);
        if (r < 0) return r;
        t->kept_norms[i] = malloc(hidden * sizeof(float));
        if (!t->kept_norms[i]) return error_set(err, -ENOMEM, "tune: out of memory");
        /* A bias moves in the unit of its norm's weight. */
        const float *w = blockwise_vector(&t->b->now, norm_vectors[i & ~1]);
        for (size_t c = 0; c < hidden; c++) size += fabs((double)w[c]) / (double)hidden;
        memcpy(t->norms[i].x, x, hidden * sizeof *x);
        for (size_t c = 0; c < hidden; c++) t->norms[i].unit[c] = (float)size;
    }
    return 0;
}

int block_trainer_open(struct block_trainer *t, struct blockwise *b, const struct block_tune *tune,
                       struct layer_result coded[ROLE_COUNT], const struct params_block *w,
                       struct error *err) {
    size_t hidden = (size_t)b->config->hidden;
    *t = (struct block_trainer){.b = b, .o = tune};
    t->dy = malloc((size_t)t->b->batch * (size_t)t->b->ctx * hidden * sizeof *t->dy);
    t->channels = malloc(4 * hidden * sizeof *t->channels);
    if (!t->dy || !t->channels) return error_set(err, -ENOMEM, "tune: out of memory");
    int r = t->o->norms ? open_norms(t, err) : 0;
    bool matrices = t->o->params || t->o->codes;
    for (int role = 0; r == 0 && matrices && role < ROLE_COUNT; role++)
        if (coded[role].block)
            r = open_matrix(t, (enum model_role)role, &coded[role], w->linear[role], err);
    blockwise_each(t->b, PART_FIT, count_windows, &t->n_steps);
    t->n_steps *= t->o->epochs;
    return r;
}

void block_trainer_close(struct block_trainer *t) {
    for (int i = 0; i < t->n_matrices; i++) {
        coded_free(t->m[i].params);
        adam_free(&t->m[i].weights);
        free(t->m[i].dw);
        free(t->m[i].kept);
    }
    for (int i = 0; i < BLOCK_TUNE_NORMS; i++) {
        adam_free(&t->norms[i]);
        free(t->kept_norms[i]);
    }
    free(t->dy);
    free(t->channels);
}

int block_tune(struct blockwise *b, const struct block_tune *tune,
               struct layer_result coded[ROLE_COUNT], const struct params_block *w,
               struct error *err) {
    struct block_trainer t;
    int r = block_trainer_open(&t, b, tune, coded, w, err);
    double best = r == 0 ? blockwise_error(b, &b->now) : 0.0;
    if (r == 0) keep(&t);
    for (int epoch = 0; r == 0 && epoch < tune->epochs; epoch++) {
        r = blockwise_each(b, PART_FIT, block_trainer_step, &t);
        double error = blockwise_error(b, &b->now);
        if (r < 0 || !(error < best)) continue;
        best = error;
        keep(&t);
    }
    if (r == 0) r = go_back(&t, err);
    block_trainer_close(&t);
    return r;
}
