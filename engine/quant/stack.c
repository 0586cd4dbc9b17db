#include "engine/quant/stack.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/error.h"

static bool is_alike(const struct bcq_spec *a, const struct bcq_spec *b) {
    return a->kind == b->kind && a->cols == b->cols && a->bits == b->bits && a->group == b->group &&
           a->scale_bits == b->scale_bits && a->bias_bits == b->bias_bits &&
           a->n_shapes == b->n_shapes;
}

/* Rows of one section; none where the kind has no such section. */
static void copy_rows(const void *dst, const void *src, size_t row_bytes, int to, int from,
                      int n_rows) {
    if (!dst || !src) return;
    memcpy((uint8_t *)(uintptr_t)dst + (size_t)to * row_bytes,
           (const uint8_t *)src + (size_t)from * row_bytes, (size_t)n_rows * row_bytes);
}

void stack_copy_rows(const struct bcq_view *to, int at, const struct bcq_view *from, int row,
                     int n_rows) {
    const struct bcq_layout *l = &to->layout;
    size_t bits = (size_t)to->spec.bits, groups = (size_t)l->n_groups;
    copy_rows(to->planes, from->planes, bits * (size_t)l->plane_words * sizeof *to->planes, at, row,
              n_rows);
    if (to->spec.kind == BCQ_FREE) {
        copy_rows(to->alpha, from->alpha, groups * bits * sizeof *to->alpha, at, row, n_rows);
        copy_rows(to->beta, from->beta, groups * sizeof *to->beta, at, row, n_rows);
        return;
    }
    copy_rows(to->q, from->q, l->q_stride, at, row, n_rows);
    copy_rows(to->p, from->p, l->p_stride, at, row, n_rows);
    copy_rows(to->row_scale, from->row_scale, 2 * sizeof *to->row_scale, at, row, n_rows);
    copy_rows(to->shape, from->shape, to->spec.kind == BCQ_COMPACT ? bits : l->idx_stride, at, row,
              n_rows);
}

int stack_rows(struct layer_result *ret, const struct layer_result *pieces, int n,
               struct error *err) {
    struct layer_result result = {0};
    struct bcq_spec spec = pieces[0].view.spec;
    struct bcq_layout layout;
    spec.rows = 0;
    for (int i = 0; i < n; i++) {
        if (pieces[i].side || !is_alike(&spec, &pieces[i].view.spec))
            return error_set(err, -EINVAL, "pieces of a matrix are not stored alike");
        spec.rows += pieces[i].view.spec.rows;
    }
    bcq_layout(&layout, &spec);
    result.n_bytes = (size_t)layout.total;
    result.block = aligned_alloc(BCQ_ALIGN, result.n_bytes);
    if (!result.block) return error_set(err, -ENOMEM, "binary-coded block: out of memory");
    memset(result.block, 0, result.n_bytes);
    bcq_format(&result.view, result.block, &spec);
    if (spec.kind == BCQ_COMPACT_GROUP)
        memcpy((uint8_t *)(uintptr_t)result.view.shape_table, pieces[0].view.shape_table,
               (size_t)spec.n_shapes * (size_t)spec.bits);
    for (int i = 0, first = 0; i < n; first += pieces[i].view.spec.rows, i++) {
        stack_copy_rows(&result.view, first, &pieces[i].view, 0, pieces[i].view.spec.rows);
        result.loss += pieces[i].loss;
        result.energy += pieces[i].energy;
    }
    if (result.energy > 0.0)
        result.decibels = 10.0 * log10(fmax(result.loss / result.energy, 1e-20));
    *ret = result;
    return 0;
}
