#include "engine/train/coded.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/quant/pack.h"
#include "engine/quant/parallel.h"
#include "engine/train/wide.h"
#include "kernels/error.h"
#include "kernels/float16.h"

enum { ROWS = 16 /* of a piece of work */, WORD = 32 };

struct coded {
    const struct bcq_view *start;
    struct bcq_view view; /* the kept parameters; planes and shapes are those of start */
    uint8_t *kept;        /* the sections that view points at */
    size_t kept_bytes;
    float row_share;
    int n_groups, per_group; /* variables of a group: 2, or bits + 1 */
    size_t at_rows;          /* of s0, s1 of row 0 among the variables */
    struct adam vars;
};

static bool is_free(const struct coded *c) { return c->start->spec.kind == BCQ_FREE; }

/* A group as it stands: rounded, with what the gradients need. */
struct group {
    float alpha[BCQ_MAX_BITS], beta;
    float d[BCQ_MAX_BITS]; /* alpha = scale * d; compact kinds */
    float q, p, s0, s1;
};

static float *group_vars(const struct coded *c, int row, int group) {
    return c->vars.x + ((size_t)row * (size_t)c->n_groups + (size_t)group) * (size_t)c->per_group;
}

static size_t row_vars(const struct coded *c, int row) { return c->at_rows + 2 * (size_t)row; }

static float rounded_half(float x) {
    float most = x > 65504.0f ? 65504.0f : x < -65504.0f ? -65504.0f : x;
    return f16_to_f32(f32_to_f16(most));
}

/* A group without spread has q 0 from the start, and stays so. */
static float rounded_q(const struct coded *c, float x, int start_q) {
    float most = (float)((1 << c->start->spec.scale_bits) - 1), least = start_q > 0 ? 1.0f : 0.0f;
    float q = rintf(x);
    return q < least ? least : q > most ? most : q;
}

static float rounded_p(const struct coded *c, float x) {
    float most = (float)((1 << (c->start->spec.bias_bits - 1)) - 1), p = rintf(x);
    return p < -most ? -most : p > most ? most : p;
}

static void read_free(const struct coded *c, int row, int group, struct group *g) {
    const float *x = group_vars(c, row, group);
    for (int i = 0; i < c->start->spec.bits; i++) g->alpha[i] = rounded_half(x[i]);
    g->beta = rounded_half(x[c->start->spec.bits]);
}

static void read_group(const struct coded *c, int row, int group, struct group *g) {
    if (is_free(c)) {
        read_free(c, row, group, g);
        return;
    }
    const float *x = group_vars(c, row, group);
    int d[BCQ_MAX_BITS], q, p;
    bcq_group_codes(c->start, row, group, d, &q, &p);
    g->s0 = rounded_half(c->vars.x[row_vars(c, row)]);
    g->s1 = rounded_half(c->vars.x[row_vars(c, row) + 1]);
    g->q = rounded_q(c, x[0], q);
    g->p = rounded_p(c, x[1]);
    for (int i = 0; i < c->start->spec.bits; i++) {
        g->d[i] = 0.5f * (float)d[i];
        g->alpha[i] = g->s0 * g->q * g->d[i];
    }
    g->beta = g->s1 * g->p;
}

void coded_params(const struct coded *c, int row, int group, float alpha[BCQ_MAX_BITS],
                  float *beta) {
    struct group g;
    read_group(c, row, group, &g);
    memcpy(alpha, g.alpha, (size_t)c->start->spec.bits * sizeof *alpha);
    *beta = g.beta;
}

/* -- Making one ------------------------------------------------------------------------------ */

/* Puts the variables to what a view stores. */
static void read_view(struct coded *c, const struct bcq_view *v) {
    int bits = v->spec.bits;
    for (int row = 0; row < v->spec.rows; row++) {
        for (int group = 0; group < c->n_groups; group++) {
            float *x = group_vars(c, row, group);
            int d[BCQ_MAX_BITS], q, p;
            if (is_free(c)) {
                float alpha[BCQ_MAX_BITS];
                bcq_group_params(v, row, group, alpha, &x[bits]);
                memcpy(x, alpha, (size_t)bits * sizeof *x);
                continue;
            }
            bcq_group_codes(v, row, group, d, &q, &p);
            x[0] = (float)q;
            x[1] = (float)p;
        }
        for (int k = 0; k < 2 && !is_free(c); k++)
            c->vars.x[row_vars(c, row) + (size_t)k] =
                f16_to_f32(v->row_scale[2 * (size_t)row + (size_t)k]);
    }
}

static void set_units(struct coded *c) {
    const struct bcq_view *v = c->start;
    int bits = v->spec.bits;
    for (int row = 0; row < v->spec.rows; row++) {
        for (int group = 0; group < c->n_groups; group++) {
            float *x = group_vars(c, row, group), *unit = c->vars.unit + (x - c->vars.x);
            float alpha[BCQ_MAX_BITS], beta, half = 0.0f;
            bcq_group_params(v, row, group, alpha, &beta);
            for (int i = 0; i < bits; i++) half += 0.5f * fabsf(alpha[i]);
            for (int i = 0; is_free(c) && i < bits; i++) unit[i] = fabsf(alpha[i]);
            if (is_free(c)) {
                unit[bits] = half;
                continue;
            }
            float s1 = f16_to_f32(v->row_scale[2 * (size_t)row + 1]);
            unit[0] = x[0];
            unit[1] = s1 > 0.0f ? half / s1 : 0.0f;
        }
        for (size_t k = 0; k < 2 && !is_free(c); k++)
            c->vars.unit[row_vars(c, row) + k] =
                c->row_share * fabsf(c->vars.x[row_vars(c, row) + k]);
    }
}

static int copy_sections(struct coded *c, struct error *err) {
    const struct bcq_view *s = c->start;
    size_t rows = (size_t)s->spec.rows, groups = rows * (size_t)c->n_groups;
    const struct {
        const void *from;
        size_t bytes;
        size_t offset; /* of the pointer in a view */
    } parts[] = {
        {s->q, rows * s->layout.q_stride, offsetof(struct bcq_view, q)},
        {s->p, rows * s->layout.p_stride, offsetof(struct bcq_view, p)},
        {s->row_scale, rows * 4, offsetof(struct bcq_view, row_scale)},
        {s->alpha, groups * (size_t)s->spec.bits * 2, offsetof(struct bcq_view, alpha)},
        {s->beta, groups * 2, offsetof(struct bcq_view, beta)},
    };
    enum { PARTS = sizeof parts / sizeof *parts };
    bool has[PARTS];
    for (size_t i = 0; i < PARTS; i++) {
        has[i] = (i >= 3) == is_free(c);
        /* Each at an even address, for the halves. */
        if (has[i]) c->kept_bytes += (parts[i].bytes + 7) / 8 * 8;
    }
    c->kept = calloc(c->kept_bytes, 1);
    if (!c->kept) return error_set(err, -ENOMEM, "tune: out of memory");
    c->view = *s;
    uint8_t *at = c->kept;
    for (size_t i = 0; i < PARTS; i++) {
        if (!has[i]) continue;
        memcpy(at, parts[i].from, parts[i].bytes);
        memcpy((char *)&c->view + parts[i].offset, &at, sizeof at);
        at += (parts[i].bytes + 7) / 8 * 8;
    }
    return 0;
}

int coded_new(struct coded **ret, const struct bcq_view *start, float row_share,
              struct error *err) {
    if (start->spec.kind == BCQ_WHOLE)
        return error_set(err, -ENOTSUP, "tune: whole numbers have no parameters to train");
    struct coded *c = calloc(1, sizeof *c);
    if (!c) return error_set(err, -ENOMEM, "tune: out of memory");
    c->start = start;
    c->row_share = row_share;
    c->n_groups = start->layout.n_groups;
    c->per_group = is_free(c) ? start->spec.bits + 1 : 2;
    c->at_rows = (size_t)start->spec.rows * (size_t)c->n_groups * (size_t)c->per_group;
    size_t n = c->at_rows + (is_free(c) ? 0 : 2 * (size_t)start->spec.rows);
    int r = adam_new(&c->vars, n, err);
    if (r == 0) r = copy_sections(c, err);
    if (r < 0) {
        coded_free(c);
        return r;
    }
    read_view(c, start);
    set_units(c);
    *ret = c;
    return 0;
}

void coded_free(struct coded *c) {
    if (!c) return;
    adam_free(&c->vars);
    free(c->kept);
    free(c);
}

const struct bcq_spec *coded_spec(const struct coded *c) { return &c->start->spec; }

/* -- To weights and back --------------------------------------------------------------------- */

struct work {
    struct coded *c;
    float *w;
    const float *dw;
};

/* w = base + twice the alphas whose bit is set, for n columns from bit `first` of a word. */
WIDE_VERSIONS static void expand_word(const uint32_t *planes, size_t plane_words, int bits,
                                      int first, int n, const float *alpha, float base, float *w) {
    float sums[WORD];
    for (int j = 0; j < WORD; j++) sums[j] = base;
    for (int i = 0; i < bits; i++) {
        uint32_t word = planes[(size_t)i * plane_words] >> first;
        float twice = 2.0f * alpha[i];
        for (int j = 0; j < WORD; j++) sums[j] += (word >> j & 1u) ? twice : 0.0f;
    }
    memcpy(w, sums, (size_t)n * sizeof *w);
}

/* Sums of dw over n columns: of all, and of those whose bit is set in each plane. */
WIDE_VERSIONS static void sum_word(const uint32_t *planes, size_t plane_words, int bits, int first,
                                   int n, const float *dw, float *all, float *set) {
    float part[WORD] = {0}, lanes[WORD];
    memcpy(part, dw, (size_t)n * sizeof *dw);
    for (int i = -1; i < bits; i++) {
        uint32_t word = i < 0 ? UINT32_MAX : planes[(size_t)i * plane_words] >> first;
        for (int j = 0; j < WORD; j++) lanes[j] = (word >> j & 1u) ? part[j] : 0.0f;
        for (int half = WORD / 2; half > 0; half /= 2)
            for (int j = 0; j < half; j++) lanes[j] += lanes[j + half];
        *(i < 0 ? all : &set[i]) += lanes[0];
    }
}

/* Columns of a group that lie in one word of a plane. */
struct run {
    int column, n;
};

static struct run run_at(const struct coded *c, int group, int column) {
    int size = c->start->spec.group, end = (group + 1) * size, cols = c->start->spec.cols;
    if (end > cols) end = cols;
    int word_end = (column / WORD + 1) * WORD;
    return (struct run){column, (word_end < end ? word_end : end) - column};
}

static bool has_more(const struct coded *c, int group, int column) {
    return column < (group + 1) * c->start->spec.group && column < c->start->spec.cols;
}

static const uint32_t *planes_at(const struct coded *c, int row, int column) {
    size_t words = (size_t)c->start->layout.plane_words;
    return c->start->planes + (size_t)row * (size_t)c->start->spec.bits * words +
           (size_t)(column / WORD);
}

static void expand_rows(void *arg, size_t piece) {
    const struct work *k = arg;
    const struct coded *c = k->c;
    const struct bcq_spec *spec = &c->start->spec;
    size_t words = (size_t)c->start->layout.plane_words;
    int first = (int)piece * ROWS, end = first + ROWS < spec->rows ? first + ROWS : spec->rows;
    for (int row = first; row < end; row++) {
        float *w = k->w + (size_t)row * (size_t)spec->cols;
        for (int group = 0; group < c->n_groups; group++) {
            struct group g;
            read_group(c, row, group, &g);
            float base = g.beta;
            for (int i = 0; i < spec->bits; i++) base -= g.alpha[i];
            for (int at = group * spec->group; has_more(c, group, at);) {
                struct run run = run_at(c, group, at);
                expand_word(planes_at(c, row, at), words, spec->bits, at % WORD, run.n, g.alpha,
                            base, w + at);
                at += run.n;
            }
        }
    }
}

void coded_expand(const struct coded *c, float *w, int n_threads) {
    struct work k = {.c = (struct coded *)(uintptr_t)c, .w = w};
    parallel_for(n_threads, ((size_t)c->start->spec.rows + ROWS - 1) / ROWS, expand_rows, &k);
}

static void add_group(struct coded *c, int row, int group, const float *dalpha, float dbeta) {
    float *x = group_vars(c, row, group), *g = c->vars.g + (x - c->vars.x);
    int bits = c->start->spec.bits;
    if (is_free(c)) {
        for (int i = 0; i < bits; i++) g[i] += dalpha[i];
        g[bits] += dbeta;
        return;
    }
    struct group now;
    float dscale = 0.0f, *super = c->vars.g + row_vars(c, row);
    read_group(c, row, group, &now);
    for (int i = 0; i < bits; i++) dscale += dalpha[i] * now.d[i];
    g[0] += dscale * now.s0;
    g[1] += dbeta * now.s1;
    super[0] += dscale * now.q;
    super[1] += dbeta * now.p;
}

static void gradient_rows(void *arg, size_t piece) {
    const struct work *k = arg;
    struct coded *c = k->c;
    const struct bcq_spec *spec = &c->start->spec;
    size_t words = (size_t)c->start->layout.plane_words;
    int first = (int)piece * ROWS, end = first + ROWS < spec->rows ? first + ROWS : spec->rows;
    for (int row = first; row < end; row++) {
        const float *dw = k->dw + (size_t)row * (size_t)spec->cols;
        for (int group = 0; group < c->n_groups; group++) {
            float all = 0.0f, set[BCQ_MAX_BITS] = {0}, dalpha[BCQ_MAX_BITS];
            for (int at = group * spec->group; has_more(c, group, at);) {
                struct run run = run_at(c, group, at);
                sum_word(planes_at(c, row, at), words, spec->bits, at % WORD, run.n, dw + at, &all,
                         set);
                at += run.n;
            }
            /* A weight has +alpha where the bit is set and -alpha where it is not. */
            for (int i = 0; i < spec->bits; i++) dalpha[i] = 2.0f * set[i] - all;
            add_group(c, row, group, dalpha, all);
        }
    }
}

void coded_add_gradient(struct coded *c, const float *dw, int n_threads) {
    struct work k = {.c = c, .dw = dw};
    parallel_for(n_threads, ((size_t)c->start->spec.rows + ROWS - 1) / ROWS, gradient_rows, &k);
}

/* Keeps integers within half a unit of their range, so that they can come back at once. */
static void confine(struct coded *c) {
    float q_most = (float)((1 << c->start->spec.scale_bits) - 1) + 0.49f;
    float p_most = (float)((1 << (c->start->spec.bias_bits - 1)) - 1) + 0.49f;
    for (float *x = c->vars.x; x < c->vars.x + c->at_rows; x += 2) {
        /* Groups that begin at 0 have unit 0. */
        if (x[0] != 0.0f) x[0] = x[0] < 0.51f ? 0.51f : x[0] > q_most ? q_most : x[0];
        x[1] = x[1] < -p_most ? -p_most : x[1] > p_most ? p_most : x[1];
    }
}

void coded_move(struct coded *c, const struct adam_step *step) {
    adam_move(&c->vars, step);
    if (!is_free(c)) confine(c);
}

/* -- The kept state -------------------------------------------------------------------------- */

void coded_keep(struct coded *c) {
    const struct bcq_spec *spec = &c->start->spec;
    for (int row = 0; row < spec->rows; row++) {
        struct group g = {0};
        for (int group = 0; group < c->n_groups; group++) {
            read_group(c, row, group, &g);
            if (is_free(c))
                pack_free(&c->view, row, group, g.alpha, g.beta);
            else
                pack_compact(&c->view, row, group, (unsigned)g.q, (int)g.p);
        }
        if (is_free(c)) continue;
        uint16_t *super = (uint16_t *)(uintptr_t)c->view.row_scale + 2 * (size_t)row;
        super[0] = f32_to_f16(g.s0);
        super[1] = f32_to_f16(g.s1);
    }
}

void coded_back(struct coded *c) {
    read_view(c, &c->view);
    adam_reset(&c->vars);
}

float *coded_state(struct coded *c, size_t *ret_n) {
    *ret_n = 3 * c->vars.n;
    return c->vars.x;
}

uint8_t *coded_kept(struct coded *c, size_t *ret_bytes) {
    *ret_bytes = c->kept_bytes;
    return c->kept;
}

static void copy_section(const void *dst, const void *src, size_t bytes) {
    if (src) memcpy((void *)(uintptr_t)dst, src, bytes);
}

int coded_block(const struct coded *c, void **ret, size_t *ret_bytes, struct error *err) {
    const struct bcq_view *v = &c->view;
    const struct bcq_layout *l = &v->layout;
    size_t bytes = (size_t)l->total, rows = (size_t)v->spec.rows, bits = (size_t)v->spec.bits;
    void *block = aligned_alloc(BCQ_ALIGN, bytes);
    if (!block) return error_set(err, -ENOMEM, "tune: out of memory");
    struct bcq_view out;
    memset(block, 0, bytes);
    bcq_format(&out, block, &v->spec);
    copy_section(out.planes, v->planes, rows * bits * (size_t)l->plane_words * sizeof *v->planes);
    copy_section(out.q, v->q, rows * l->q_stride);
    copy_section(out.p, v->p, rows * l->p_stride);
    copy_section(out.shape, v->shape, rows * (v->spec.kind == BCQ_COMPACT ? bits : l->idx_stride));
    copy_section(out.shape_table, v->shape_table, (size_t)v->spec.n_shapes * bits);
    copy_section(out.row_scale, v->row_scale, rows * 4);
    copy_section(out.alpha, v->alpha, rows * (size_t)c->n_groups * bits * 2);
    copy_section(out.beta, v->beta, rows * (size_t)c->n_groups * 2);
    *ret = block;
    *ret_bytes = bytes;
    return 0;
}
