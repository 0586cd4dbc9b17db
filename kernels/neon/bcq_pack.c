#include <string.h>

#include "kernels/float16.h"
#include "kernels/neon/bcq.h"

void neon_bcq_shape(struct neon_bcq_shape *ret, const struct bcq_spec *w) {
    size_t bits = (size_t)w->bits, size = 0;
    *ret = (struct neon_bcq_shape){.floats = w->group % 8 != 0 && w->group < w->cols,
                                   .compact = w->kind != BCQ_FREE,
                                   .own_shapes = w->kind == BCQ_COMPACT_GROUP,
                                   .group = w->group};
    if (ret->floats) {
        size = (size_t)w->cols * NEON_BCQ_ROWS * sizeof(float);
    } else {
        size_t d = ret->own_shapes ? bits * NEON_BCQ_ROWS : 0;
        ret->head = ret->compact ? 2 * NEON_BCQ_ROWS * sizeof(float) + 4 * NEON_BCQ_ROWS : 0;
        ret->params = ret->compact ? 2 * NEON_BCQ_ROWS + d : (bits + 1) * NEON_BCQ_ROWS * 2;
        size = ret->head;
        for (int pos = 0, end; pos < w->cols; pos = end) {
            end = neon_bcq_part_end(ret, w->cols, pos);
            size += ret->params + (size_t)(end - pos + 7) / 8 * bits * NEON_BCQ_ROWS;
        }
    }
    ret->block_bytes = (size + 63) / 64 * 64;
}

size_t neon_bcq_pack_bytes(const struct bcq_spec *w) {
    struct neon_bcq_shape s;
    neon_bcq_shape(&s, w);
    return s.block_bytes * (((size_t)w->rows + NEON_BCQ_ROWS - 1) / NEON_BCQ_ROWS);
}

/* Four bytes a weight, one row at a time: bcq_expand_row() wants a whole row's room. */
static void pack_floats(float *block, const struct bcq_view *w, int row, int lane) {
    const struct bcq_spec *s = &w->spec;
    for (int pos = 0; pos < s->cols; pos += s->group) {
        int end = pos + s->group < s->cols ? pos + s->group : s->cols;
        float alpha[BCQ_MAX_BITS], beta;
        bcq_group_params(w, row, pos / s->group, alpha, &beta);
        for (int k = pos; k < end; k++) {
            float v = beta;
            for (int i = 0; i < s->bits; i++) {
                size_t plane = (size_t)row * (size_t)s->bits + (size_t)i;
                uint32_t word = w->planes[plane * (size_t)w->layout.plane_words + (size_t)k / 32];
                v += word >> k % 32 & 1 ? alpha[i] : -alpha[i];
            }
            block[(size_t)k * NEON_BCQ_ROWS + (size_t)lane] = v;
        }
    }
}

static void pack_params(uint8_t *to, const struct neon_bcq_shape *s, const struct bcq_view *w,
                        int row, int lane, int group) {
    const int bits = w->spec.bits;
    if (s->compact) {
        int d[BCQ_MAX_BITS], q, p;
        bcq_group_codes(w, row, group, d, &q, &p);
        to[lane] = (uint8_t)q;
        to[NEON_BCQ_ROWS + lane] = (uint8_t)p;
        for (int i = 0; s->own_shapes && i < bits; i++)
            to[(2 + i) * NEON_BCQ_ROWS + lane] = (uint8_t)d[i];
        return;
    }
    float params[BCQ_MAX_BITS + 1];
    bcq_group_params(w, row, group, params, &params[bits]);
    for (int i = 0; i <= bits; i++)
        ((uint16_t *)(void *)to)[i * NEON_BCQ_ROWS + lane] = f32_to_f16(params[i]);
}

static void pack_head(uint8_t *block, const struct bcq_view *w, int row, int lane) {
    float *scales = (float *)(void *)block;
    int d[BCQ_MAX_BITS], q, p;
    scales[lane] = 0.5f * f16_to_f32(w->row_scale[2 * (size_t)row]);
    scales[NEON_BCQ_ROWS + lane] = f16_to_f32(w->row_scale[2 * (size_t)row + 1]);
    bcq_group_codes(w, row, 0, d, &q, &p);
    for (int i = 0; i < w->spec.bits; i++)
        block[2 * NEON_BCQ_ROWS * sizeof(float) + (size_t)(i * NEON_BCQ_ROWS + lane)] =
            (uint8_t)d[i];
}

static void pack_row(uint8_t *block, const struct neon_bcq_shape *s, const struct bcq_view *w,
                     int row, int lane) {
    const int bits = w->spec.bits, cols = w->spec.cols;
    const uint32_t *planes = w->planes + (size_t)row * (size_t)bits * (size_t)w->layout.plane_words;
    uint8_t *to = block + s->head;
    if (s->compact) pack_head(block, w, row, lane);
    for (int pos = 0, end; pos < cols; pos = end) {
        end = neon_bcq_part_end(s, cols, pos);
        pack_params(to, s, w, row, lane, pos / s->group);
        to += s->params;
        for (int i = 0; i < bits; i++)
            for (int k = pos; k < end; k += 8, to += NEON_BCQ_ROWS)
                to[lane] = (uint8_t)(planes[i * w->layout.plane_words + k / 32] >> k % 32);
    }
}

void neon_bcq_pack(void *dst, const struct bcq_view *w, int b0, int b1) {
    struct neon_bcq_shape s;
    neon_bcq_shape(&s, &w->spec);
    for (int b = b0; b < b1; b++) {
        uint8_t *block = (uint8_t *)dst + (size_t)b * s.block_bytes;
        for (int lane = 0; lane < NEON_BCQ_ROWS; lane++) {
            int row = b * NEON_BCQ_ROWS + lane;
            if (row >= w->spec.rows) break;
            if (s.floats)
                pack_floats((float *)(void *)block, w, row, lane);
            else
                pack_row(block, &s, w, row, lane);
        }
    }
}
