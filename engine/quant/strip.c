#include "engine/quant/strip.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/quant/linalg.h"
#include "engine/quant/outliers.h"
#include "engine/quant/pack.h"
#include "kernels/error.h"

enum { FORM_BLOCK = 32 /* rows of H whose products are held at a time */ };

int strip_new(struct strip **ret, const struct strip_problem *p, struct error *err) {
    struct strip *s = calloc(1, sizeof *s);
    if (!s) return error_set(err, -ENOMEM, "rows: out of memory");
    s->p = p;
    s->n = p->factor->n;
    s->n_groups = p->view.layout.n_groups;
    s->n_levels = 1 << p->view.spec.bits;
    size_t cells = (size_t)s->n * GPTQ_LANES;
    size_t levels = (size_t)s->n_groups * (size_t)s->n_levels * GPTQ_LANES;
    s->w = malloc(cells * sizeof *s->w);
    s->q = malloc(cells * sizeof *s->q);
    s->d = malloc(cells * sizeof *s->d);
    s->rank = malloc(cells);
    s->code = malloc(cells);
    s->values = malloc(levels * sizeof *s->values);
    s->codes = malloc(levels);
    s->row_codes = malloc((size_t)s->n);
    if (p->outliers) s->exact = malloc(cells);
    if (!s->w || !s->q || !s->d || !s->rank || !s->code || !s->values || !s->codes ||
        !s->row_codes || (p->outliers && !s->exact)) {
        strip_free(s);
        return error_set(err, -ENOMEM, "rows: out of memory");
    }
    *ret = s;
    return 0;
}

void strip_free(struct strip *s) {
    if (!s) return;
    free(s->w);
    free(s->q);
    free(s->d);
    free(s->rank);
    free(s->code);
    free(s->values);
    free(s->codes);
    free(s->row_codes);
    free(s->exact);
    free(s);
}

void strip_load(struct strip *s, const float *w, int row, int n_rows) {
    s->row = row;
    s->n_rows = n_rows;
    memset(s->w, 0, (size_t)s->n * GPTQ_LANES * sizeof *s->w);
    for (size_t r = 0; r < (size_t)n_rows; r++) {
        const float *src = w + ((size_t)row + r) * (size_t)s->n;
        for (size_t k = 0; k < (size_t)s->n; k++) {
            int column = s->p->factor->perm[k];
            if (!s->p->factor->dead[column]) s->w[k * GPTQ_LANES + r] = src[column];
        }
    }
    if (s->exact) outlier_mark(s->p->outliers, s, s->exact);
}

static size_t level_at(const struct strip *s, int group, int level) {
    return ((size_t)group * (size_t)s->n_levels + (size_t)level) * GPTQ_LANES;
}

void strip_levels(struct strip *s) {
    size_t levels = level_at(s, s->n_groups, 0);
    memset(s->values, 0, levels * sizeof *s->values);
    memset(s->codes, 0, levels);
    for (int g = 0; g < s->n_groups; g++)
        for (int r = 0; r < s->n_rows; r++)
            pack_levels(&s->p->view, s->row + r, g, s->values + level_at(s, g, 0) + r,
                        s->codes + level_at(s, g, 0) + r, GPTQ_LANES);
}

void strip_nearest(struct strip *s) {
    for (int k = 0; k < s->n; k++) {
        size_t at = (size_t)k * GPTQ_LANES;
        gptq_nearest(s->values + level_at(s, s->p->group_of[k], 0), s->n_levels, s->w + at,
                     s->q + at, s->rank + at);
        if (s->exact) gptq_keep_exact(s->exact + at, s->w + at, s->q + at);
    }
}

void strip_loop(struct strip *s) {
    struct gptq_levels levels = {s->n_levels, s->p->group_of, s->values, s->exact};
    gptq_loop(s->p->factor, &levels, s->w, s->d, s->q, s->rank, NULL);
}

void strip_codes(struct strip *s) {
    for (int k = 0; k < s->n; k++) {
        const uint8_t *codes = s->codes + level_at(s, s->p->group_of[k], 0);
        size_t at = (size_t)k * GPTQ_LANES;
        for (size_t i = 0; i < GPTQ_LANES; i++)
            s->code[at + i] = codes[(size_t)s->rank[at + i] * GPTQ_LANES + i];
    }
}

/* rank_of[code]: the first level with the code's value. Comparing values and not codes, since equal
 * levels share one code. */
static void invert_levels(const struct strip *s, int group, int r, uint8_t *rank_of) {
    float value[1 << BCQ_MAX_BITS];
    pack_values(&s->p->view, s->row + r, group, value);
    for (int code = 0; code < s->n_levels; code++) {
        int l = 0;
        while (l + 1 < s->n_levels && s->values[level_at(s, group, l) + (size_t)r] != value[code])
            l++;
        rank_of[code] = (uint8_t)l;
    }
}

/* Outliers keep their value; their code becomes the one that is next to it now. */
static void follow_exact(struct strip *s) {
    float q[GPTQ_LANES];
    uint8_t rank[GPTQ_LANES];
    for (int k = 0; k < s->n; k++) {
        size_t at = (size_t)k * GPTQ_LANES, group = level_at(s, s->p->group_of[k], 0);
        if (!memchr(s->exact + at, 1, GPTQ_LANES)) continue;
        gptq_nearest(s->values + group, s->n_levels, s->q + at, q, rank);
        for (size_t i = 0; i < GPTQ_LANES; i++) {
            if (!s->exact[at + i]) continue;
            s->rank[at + i] = rank[i];
            s->code[at + i] = s->codes[group + (size_t)rank[i] * GPTQ_LANES + i];
        }
    }
}

float strip_level(const struct strip *s, int k, int lane) {
    int rank = s->rank[(size_t)k * GPTQ_LANES + (size_t)lane];
    return s->values[level_at(s, s->p->group_of[k], rank) + (size_t)lane];
}

void strip_from_codes(struct strip *s) {
    strip_levels(s);
    for (int g = 0; g < s->n_groups; g++) {
        uint8_t rank_of[1 << BCQ_MAX_BITS];
        int first = g * s->p->view.spec.group, end = first + s->p->view.spec.group;
        if (end > s->n) end = s->n;
        for (int r = 0; r < s->n_rows; r++) {
            invert_levels(s, g, r, rank_of);
            for (int j = first; j < end; j++) {
                size_t at = (size_t)s->p->factor->place[j] * GPTQ_LANES + (size_t)r;
                if (s->exact && s->exact[at]) continue;
                s->rank[at] = rank_of[s->code[at]];
                s->q[at] = s->values[level_at(s, g, s->rank[at]) + (size_t)r];
            }
        }
    }
    if (s->exact) follow_exact(s);
}

void strip_store(struct strip *s) {
    for (int r = 0; r < s->n_rows; r++) {
        for (int k = 0; k < s->n; k++)
            s->row_codes[s->p->factor->perm[k]] = s->code[(size_t)k * GPTQ_LANES + (size_t)r];
        pack_codes(&s->p->view, s->row + r, s->row_codes);
    }
}

void strip_take_codes(struct strip *s, const uint8_t *codes) {
    size_t cells = (size_t)s->n * GPTQ_LANES;
    memset(s->q, 0, cells * sizeof *s->q);
    memset(s->rank, 0, cells);
    memset(s->code, 0, cells);
    for (int r = 0; r < s->n_rows; r++)
        for (int k = 0; k < s->n; k++)
            s->code[(size_t)k * GPTQ_LANES + (size_t)r] =
                codes[(size_t)r * (size_t)s->n + (size_t)s->p->factor->perm[k]];
    strip_from_codes(s);
    strip_codes(s);
}

void strip_form(struct strip *s, const float *x, double *ret) {
    float product[FORM_BLOCK * GPTQ_LANES];
    for (int i = 0; i < GPTQ_LANES; i++) ret[i] = 0.0;
    for (int first = 0; first < s->n; first += FORM_BLOCK) {
        int width = s->n - first < FORM_BLOCK ? s->n - first : FORM_BLOCK;
        struct linalg_shape shape = {width, GPTQ_LANES, s->n, s->n, GPTQ_LANES, GPTQ_LANES};
        linalg_gemm_f32(product, s->p->h + (size_t)first * (size_t)s->n, x, &shape, 1.0f, 0.0f);
        for (int k = 0; k < width; k++) {
            const float *row = x + (size_t)(first + k) * GPTQ_LANES;
            for (int i = 0; i < GPTQ_LANES; i++)
                ret[i] += (double)product[k * GPTQ_LANES + i] * (double)row[i];
        }
    }
}

void strip_loss(struct strip *s, double *ret) {
    for (size_t i = 0; i < (size_t)s->n * GPTQ_LANES; i++) s->d[i] = s->q[i] - s->w[i];
    strip_form(s, s->d, ret);
}
