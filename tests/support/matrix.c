#include "tests/support/matrix.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/float16.h"
#include "tests/support/random.h"

float matrix_uniform(uint64_t *state) {
    return (float)((double)(random_next(state) >> 40) * 0x1p-23 - 1);
}

float matrix_normal(uint64_t *state) {
    double sum = 0;
    for (int i = 0; i < 12; i++) sum += (double)(random_next(state) >> 40) * 0x1p-24;
    return (float)(sum - 6);
}

static void *block_new(struct bcq_view *ret, const struct bcq_spec *spec) {
    struct bcq_layout layout;
    bcq_layout(&layout, spec);
    void *block = aligned_alloc(BCQ_ALIGN, (size_t)layout.total);
    if (!block) return NULL;
    memset(block, 0, (size_t)layout.total);
    bcq_format(ret, block, spec);
    return block;
}

/* The sections of a view, writable: the block is ours. */
#define WRITABLE(type, section) ((type *)(uintptr_t)(section))

static void fill_planes(const struct bcq_view *w, uint64_t *state) {
    int words = w->layout.plane_words, tail = w->spec.cols % 32;
    uint32_t *plane = WRITABLE(uint32_t, w->planes);
    for (size_t r = 0; r < (size_t)w->spec.rows * (size_t)w->spec.bits; r++, plane += words) {
        for (int i = 0; i < words; i++) plane[i] = state ? (uint32_t)random_next(state) : ~0u;
        if (tail) plane[words - 1] &= (1u << tail) - 1;
    }
}

static void fill_shapes(uint8_t *d, int n, int bits, uint64_t *state) {
    for (int r = 0; r < n; r++, d += bits) {
        int left = BCQ_MAX_SHAPE_SUM;
        for (int i = 0; i < bits; i++) {
            int most = left - (bits - 1 - i);
            if (most > BCQ_MAX_SHAPE) most = BCQ_MAX_SHAPE;
            d[i] = (uint8_t)(state ? random_range(state, 1, most) : most);
            left -= d[i];
        }
    }
}

static void fill_compact(const struct bcq_view *w, uint64_t *state) {
    const struct bcq_spec *s = &w->spec;
    uint8_t *q = WRITABLE(uint8_t, w->q), *p = WRITABLE(uint8_t, w->p);
    uint8_t *shape = WRITABLE(uint8_t, w->shape);
    uint16_t *scale = WRITABLE(uint16_t, w->row_scale);
    if (s->kind == BCQ_COMPACT)
        fill_shapes(shape, s->rows, s->bits, state);
    else
        fill_shapes(WRITABLE(uint8_t, w->shape_table), s->n_shapes, s->bits, state);
    float s0 = 0.1f / (float)(1 << s->scale_bits) / 16, s1 = 0.1f / (float)(1 << s->bias_bits);
    for (int r = 0; r < s->rows; r++) {
        scale[2 * r] = f32_to_f16(s0 * (state ? 1 + 0.5f * matrix_uniform(state) : 1));
        scale[2 * r + 1] = f32_to_f16(s1 * (state ? matrix_uniform(state) : 1));
        for (int g = 0; g < w->layout.n_groups; g++) {
            unsigned all = state ? (unsigned)random_next(state) : ~0u;
            bcq_put(q + (size_t)r * w->layout.q_stride, s->scale_bits, g, all);
            bcq_put(p + (size_t)r * w->layout.p_stride, s->bias_bits, g,
                    state ? all >> 16 : 1u << (s->bias_bits - 1));
            if (s->kind == BCQ_COMPACT_GROUP)
                bcq_put(shape + (size_t)r * w->layout.idx_stride, w->layout.shape_bits, g,
                        (all >> 8) % (unsigned)s->n_shapes);
        }
    }
}

static void fill_free(const struct bcq_view *w, uint64_t *state) {
    size_t groups = (size_t)w->spec.rows * (size_t)w->layout.n_groups;
    uint16_t *alpha = WRITABLE(uint16_t, w->alpha), *beta = WRITABLE(uint16_t, w->beta);
    for (size_t i = 0; i < groups * (size_t)w->spec.bits; i++)
        alpha[i] = f32_to_f16(state ? 0.05f * matrix_normal(state) : 0.1f);
    for (size_t i = 0; i < groups; i++)
        beta[i] = f32_to_f16(state ? 0.02f * matrix_normal(state) : 0.1f);
}

static void fill_whole(const struct bcq_view *w, uint64_t *state) {
    size_t groups = (size_t)w->spec.rows * (size_t)w->layout.n_groups;
    float step = 0.2f / (float)(1 << w->spec.bits);
    for (size_t i = 0; i < groups; i++)
        WRITABLE(uint16_t, w->alpha)[i] = f32_to_f16(step * (state ? matrix_uniform(state) : 1));
}

static void fill(const struct bcq_view *w, uint64_t *state) {
    fill_planes(w, state);
    if (w->spec.kind == BCQ_FREE)
        fill_free(w, state);
    else if (w->spec.kind == BCQ_WHOLE)
        fill_whole(w, state);
    else
        fill_compact(w, state);
}

void *matrix_bcq(struct bcq_view *ret, const struct bcq_spec *spec, uint64_t seed) {
    void *block = block_new(ret, spec);
    if (block) fill(ret, &seed);
    return block;
}

void *matrix_bcq_extreme(struct bcq_view *ret, const struct bcq_spec *spec, bool minus) {
    void *block = block_new(ret, spec);
    if (!block) return NULL;
    fill(ret, NULL);
    size_t words = (size_t)spec->rows * (size_t)spec->bits * (size_t)ret->layout.plane_words;
    if (minus) memset(WRITABLE(uint32_t, ret->planes), 0, words * sizeof *ret->planes);
    return block;
}

void *matrix_dense(struct weight_view *ret, enum dtype type, int rows, int cols, uint64_t seed) {
    size_t n = (size_t)rows * (size_t)cols;
    void *data = malloc(n * dtype_size(type));
    if (!data) return NULL;
    for (size_t i = 0; i < n; i++) {
        float v = 0.1f * matrix_normal(&seed);
        if (type == DTYPE_F32)
            ((float *)data)[i] = v;
        else
            ((uint16_t *)data)[i] = type == DTYPE_F16 ? f32_to_f16(v) : f32_to_bf16(v);
    }
    *ret = (struct weight_view){.type = type, .rows = rows, .cols = cols, .data = data};
    return data;
}

void matrix_row(const struct weight_view *w, int row, float *out) {
    if (w->is_bcq) {
        bcq_expand_row(&w->bcq, row, out);
        return;
    }
    for (int k = 0; k < w->cols; k++) {
        size_t i = (size_t)row * (size_t)w->cols + (size_t)k;
        if (w->type == DTYPE_F32)
            out[k] = ((const float *)w->data)[i];
        else
            out[k] = w->type == DTYPE_F16 ? f16_to_f32(((const uint16_t *)w->data)[i])
                                          : bf16_to_f32(((const uint16_t *)w->data)[i]);
    }
}
