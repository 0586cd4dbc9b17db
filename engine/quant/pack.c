#include "engine/quant/pack.h"

#include <math.h>
#include <string.h>

#include "kernels/float16.h"

/* The block is ours; the view is const for its readers. */
static uint8_t *bytes_of(const uint8_t *section) { return (uint8_t *)(uintptr_t)section; }

static uint16_t *halves_of(const uint16_t *section) { return (uint16_t *)(uintptr_t)section; }

static uint16_t finite_f16(float x) {
    /* 65504 is the largest finite half. */
    return f32_to_f16(x > 65504.0f ? 65504.0f : x < -65504.0f ? -65504.0f : x);
}

void pack_group_set(struct pack_group *g, const uint8_t *shapes, int bits, int shape, float scale,
                    float bias) {
    g->shape = shape;
    g->scale = scale;
    g->bias = bias;
    for (int i = 0; i < bits; i++)
        g->alpha[i] = 0.5f * scale * (float)shapes[(size_t)shape * (size_t)bits + (size_t)i];
}

void pack_stretch(const struct bcq_view *v, int row, float factor) {
    uint16_t *super = halves_of(v->row_scale) + 2 * (size_t)row;
    super[0] = finite_f16(f16_to_f32(super[0]) * factor);
}

void pack_supers(const struct bcq_view *v, int row, float scale, float bias, const uint8_t *shape) {
    uint16_t *super = halves_of(v->row_scale) + 2 * (size_t)row;
    size_t bits = (size_t)v->spec.bits;
    super[0] = finite_f16(scale);
    super[1] = finite_f16(bias);
    memcpy(bytes_of(v->shape) + (size_t)row * bits, shape, bits);
}

void pack_compact(const struct bcq_view *v, int row, int group, unsigned q, int p) {
    const struct bcq_layout *l = &v->layout;
    bcq_put(bytes_of(v->q) + (size_t)row * l->q_stride, v->spec.scale_bits, group, q);
    bcq_put(bytes_of(v->p) + (size_t)row * l->p_stride, v->spec.bias_bits, group, (unsigned)p);
}

void pack_shape(const struct bcq_view *v, int row, int group, int shape) {
    const struct bcq_layout *l = &v->layout;
    bcq_put(bytes_of(v->shape) + (size_t)row * l->idx_stride, l->shape_bits, group,
            (unsigned)shape);
}

void pack_free(const struct bcq_view *v, int row, int group, const float *alpha, float bias) {
    size_t at = (size_t)row * (size_t)v->layout.n_groups + (size_t)group;
    size_t bits = (size_t)v->spec.bits;
    for (size_t i = 0; i < bits; i++) halves_of(v->alpha)[at * bits + i] = finite_f16(alpha[i]);
    halves_of(v->beta)[at] = finite_f16(bias);
}

void pack_shape_table(const struct bcq_view *v, const uint8_t *shapes) {
    memcpy(bytes_of(v->shape_table), shapes, (size_t)v->spec.n_shapes * (size_t)v->spec.bits);
}

/* Codes of a value in units of a super-scale. */
static int nearest_code(float value, float unit, int low, int high) {
    double code = unit > 0.0f ? rint((double)value / (double)unit) : 0.0;
    return code < low ? low : code > high ? high : (int)code;
}

static void pack_compact_row(const struct bcq_view *v, int row, const struct pack_group *groups,
                             const uint8_t *shapes) {
    int n = v->layout.n_groups, bits = v->spec.bits;
    int q_max = (1 << v->spec.scale_bits) - 1, p_max = (1 << (v->spec.bias_bits - 1)) - 1;
    float scale = 0.0f, bias = 0.0f;
    for (int g = 0; g < n; g++) {
        scale = fmaxf(scale, groups[g].scale);
        bias = fmaxf(bias, fabsf(groups[g].bias));
    }
    uint16_t *super = halves_of(v->row_scale) + 2 * (size_t)row;
    super[0] = finite_f16(scale / (float)q_max);
    super[1] = finite_f16(bias / (float)p_max);
    for (int g = 0; g < n; g++) {
        /* Only a group without spread has scale 0: one level, its bias. */
        int least = groups[g].scale > 0.0f;
        int q = nearest_code(groups[g].scale, f16_to_f32(super[0]), least, q_max);
        int p = nearest_code(groups[g].bias, f16_to_f32(super[1]), -p_max, p_max);
        pack_compact(v, row, g, (unsigned)q, p);
        if (v->spec.kind == BCQ_COMPACT_GROUP) pack_shape(v, row, g, groups[g].shape);
    }
    if (v->spec.kind == BCQ_COMPACT)
        memcpy(bytes_of(v->shape) + (size_t)row * (size_t)bits,
               shapes + (size_t)groups[0].shape * (size_t)bits, (size_t)bits);
}

void pack_row(const struct bcq_view *v, int row, const struct pack_group *groups,
              const uint8_t *shapes) {
    if (v->spec.kind != BCQ_FREE) {
        pack_compact_row(v, row, groups, shapes);
        return;
    }
    for (int g = 0; g < v->layout.n_groups; g++)
        pack_free(v, row, g, groups[g].alpha, groups[g].bias);
}

void pack_values(const struct bcq_view *v, int row, int group, float *values) {
    float alpha[BCQ_MAX_BITS], beta;
    bcq_group_params(v, row, group, alpha, &beta);
    for (int code = 0; code < 1 << v->spec.bits; code++) {
        double sum = (double)beta;
        for (int i = 0; i < v->spec.bits; i++)
            sum += code >> i & 1 ? (double)alpha[i] : -(double)alpha[i];
        values[code] = (float)sum;
    }
}

void pack_levels(const struct bcq_view *v, int row, int group, float *values, uint8_t *codes,
                 int stride) {
    float value[1 << BCQ_MAX_BITS];
    int n = 1 << v->spec.bits;
    pack_values(v, row, group, value);
    for (int code = 0; code < n; code++) {
        int at = code;
        for (; at > 0 && values[(at - 1) * stride] > value[code]; at--) {
            values[at * stride] = values[(at - 1) * stride];
            codes[at * stride] = codes[(at - 1) * stride];
        }
        values[at * stride] = value[code];
        codes[at * stride] = (uint8_t)code;
    }
    for (int l = 1; l < n; l++)
        if (values[l * stride] == values[(l - 1) * stride])
            codes[l * stride] = codes[(l - 1) * stride];
}

void pack_codes(const struct bcq_view *v, int row, const uint8_t *codes) {
    size_t words = (size_t)v->layout.plane_words, bits = (size_t)v->spec.bits;
    uint32_t *planes = (uint32_t *)(uintptr_t)v->planes + (size_t)row * bits * words;
    memset(planes, 0, bits * words * sizeof *planes);
    for (size_t k = 0; k < (size_t)v->spec.cols; k++)
        for (size_t i = 0; i < bits; i++)
            planes[i * words + k / 32] |= (uint32_t)(codes[k] >> i & 1) << k % 32;
}
