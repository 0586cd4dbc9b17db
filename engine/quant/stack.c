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

/* One section's rows; none where the kind has no such section. */
static void copy_rows(const void *dst, const void *src, size_t row_bytes, int first, int rows) {
    if (!dst || !src) return;
    memcpy((uint8_t *)(uintptr_t)dst + (size_t)first * row_bytes, src, (size_t)rows * row_bytes);
}

static void copy_piece(const struct bcq_view *to, const struct bcq_view *from, int first) {
    const struct bcq_layout *l = &to->layout;
    size_t bits = (size_t)to->spec.bits, groups = (size_t)l->n_groups;
    int rows = from->spec.rows;
    copy_rows(to->planes, from->planes, bits * (size_t)l->plane_words * sizeof *to->planes, first,
              rows);
    if (to->spec.kind == BCQ_FREE) {
        copy_rows(to->alpha, from->alpha, groups * bits * sizeof *to->alpha, first, rows);
        copy_rows(to->beta, from->beta, groups * sizeof *to->beta, first, rows);
        return;
    }
    copy_rows(to->q, from->q, l->q_stride, first, rows);
    copy_rows(to->p, from->p, l->p_stride, first, rows);
    copy_rows(to->row_scale, from->row_scale, 2 * sizeof *to->row_scale, first, rows);
    copy_rows(to->shape, from->shape, to->spec.kind == BCQ_COMPACT ? bits : l->idx_stride, first,
              rows);
    if (to->spec.kind == BCQ_COMPACT_GROUP)
        copy_rows(to->shape_table, from->shape_table, bits, 0, to->spec.n_shapes);
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
    for (int i = 0, first = 0; i < n; first += pieces[i].view.spec.rows, i++) {
        copy_piece(&result.view, &pieces[i].view, first);
        result.loss += pieces[i].loss;
        result.energy += pieces[i].energy;
    }
    if (result.energy > 0.0)
        result.decibels = 10.0 * log10(fmax(result.loss / result.energy, 1e-20));
    *ret = result;
    return 0;
}
