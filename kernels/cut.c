#include "kernels/cut.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/error.h"

enum { WORD = 32 /* inputs of a word of a plane */ };

/* Which rows and inputs of the view. */
struct range {
    int row, rows, col, cols;
};

static void copy_fields(uint8_t *to, const uint8_t *from, int width, int first, int n) {
    for (int i = 0; i < n; i++) bcq_put(to, width, i, bcq_get(from, width, first + i));
}

/* One section's rows, each a stretch of bytes of the view's rows. The part's block is ours to write. */
static void copy_rows(const void *to, const void *from, size_t stride, size_t at, size_t bytes,
                      const struct range *part) {
    for (int r = 0; r < part->rows; r++)
        memcpy((char *)to + (size_t)r * bytes,
               (const char *)from + (size_t)(part->row + r) * stride + at, bytes);
}

static void copy_packed(const uint8_t *to, size_t to_stride, const uint8_t *from,
                        size_t from_stride, int width, int group, int n, const struct range *part) {
    for (int r = 0; r < part->rows; r++)
        copy_fields((uint8_t *)to + (size_t)r * to_stride,
                    from + (size_t)(part->row + r) * from_stride, width, group, n);
}

static void copy_planes(const struct bcq_view *to, const struct bcq_view *from,
                        const struct range *part) {
    int bits = from->spec.bits;
    const struct range planes = {.row = part->row * bits, .rows = part->rows * bits};
    copy_rows(to->planes, from->planes, (size_t)from->layout.plane_words * 4,
              (size_t)(part->col / WORD) * 4, (size_t)to->layout.plane_words * 4, &planes);
}

static void copy_compact(const struct bcq_view *to, const struct bcq_view *from, int group,
                         const struct range *part) {
    const struct bcq_spec *s = &from->spec;
    const struct bcq_layout *l = &from->layout, *own = &to->layout;
    size_t bits = (size_t)s->bits;
    copy_packed(to->q, own->q_stride, from->q, l->q_stride, s->scale_bits, group, own->n_groups,
                part);
    copy_packed(to->p, own->p_stride, from->p, l->p_stride, s->bias_bits, group, own->n_groups,
                part);
    copy_rows(to->row_scale, from->row_scale, 4, 0, 4, part);
    if (s->kind == BCQ_COMPACT) {
        copy_rows(to->shape, from->shape, bits, 0, bits, part);
        return;
    }
    copy_packed(to->shape, own->idx_stride, from->shape, l->idx_stride, l->shape_bits, group,
                own->n_groups, part);
    memcpy((uint8_t *)to->shape_table, from->shape_table, (size_t)s->n_shapes * bits);
}

static void copy_params(const struct bcq_view *to, const struct bcq_view *from, int group,
                        const struct range *part) {
    size_t groups = (size_t)from->layout.n_groups, own = (size_t)to->layout.n_groups;
    size_t alphas = from->spec.kind == BCQ_FREE ? (size_t)from->spec.bits : 1;
    size_t each = alphas * sizeof *from->alpha;
    copy_rows(to->alpha, from->alpha, groups * each, (size_t)group * each, own * each, part);
    if (from->spec.kind != BCQ_FREE) return;
    each = sizeof *from->beta;
    copy_rows(to->beta, from->beta, groups * each, (size_t)group * each, own * each, part);
}

static int cut_coded(struct cut *ret, const struct bcq_view *from, const struct range *part,
                     struct error *err) {
    struct bcq_spec spec = from->spec;
    struct bcq_layout layout;
    spec.rows = part->rows;
    spec.cols = part->cols;
    if (spec.group > spec.cols && spec.kind != BCQ_WHOLE) spec.group = spec.cols;
    bcq_layout(&layout, &spec);
    int group = from->layout.n_groups == 1 ? 0 : part->col / from->spec.group;
    ret->owned = aligned_alloc(BCQ_ALIGN, (size_t)layout.total);
    if (!ret->owned) return error_set(err, -ENOMEM, "no memory for a part of a matrix");
    memset(ret->owned, 0, (size_t)layout.total);
    struct bcq_view *to = &ret->view.bcq;
    bcq_format(to, ret->owned, &spec);
    copy_planes(to, from, part);
    if (spec.kind == BCQ_FREE || spec.kind == BCQ_WHOLE)
        copy_params(to, from, group, part);
    else
        copy_compact(to, from, group, part);
    return 0;
}

static int cut_dense(struct cut *ret, const struct weight_view *view, const struct range *part,
                     struct error *err) {
    size_t each = dtype_size(view->type), stride = (size_t)view->cols * each;
    if (part->cols == view->cols) {
        ret->view.data = (const char *)view->data + (size_t)part->row * stride;
        return 0;
    }
    size_t bytes = (size_t)part->cols * each;
    ret->owned = malloc((size_t)part->rows * bytes);
    if (!ret->owned) return error_set(err, -ENOMEM, "no memory for a part of a matrix");
    copy_rows(ret->owned, view->data, stride, (size_t)part->col * each, bytes, part);
    ret->view.data = ret->owned;
    return 0;
}

static int cut(struct cut *ret, const struct weight_view *view, const struct range *part,
               struct error *err) {
    *ret = (struct cut){.view = *view};
    ret->view.rows = part->rows;
    ret->view.cols = part->cols;
    return view->is_bcq ? cut_coded(ret, &view->bcq, part, err) : cut_dense(ret, view, part, err);
}

int cut_rows(struct cut *ret, const struct weight_view *view, int i, int n, struct error *err) {
    int row = cut_begin(view->rows, i, n);
    const struct range part = {
        .row = row, .rows = cut_begin(view->rows, i + 1, n) - row, .cols = view->cols};
    *ret = (struct cut){0};
    if (!part.rows) return error_set(err, -EINVAL, "%d rows are too few for %d", view->rows, n);
    return cut(ret, view, &part, err);
}

int cut_inputs(struct cut *ret, const struct weight_view *view, int i, int n, struct error *err) {
    int cols = view->cols / n, group = view->is_bcq ? view->bcq.spec.group : 1;
    const struct range part = {.rows = view->rows, .col = i * cols, .cols = cols};
    *ret = (struct cut){0};
    if (!cols || view->cols % n)
        return error_set(err, -EINVAL, "%d inputs do not divide by %d", view->cols, n);
    if (view->is_bcq && cols % WORD)
        return error_set(err, -EINVAL, "%d inputs in %d parts: codes are cut at multiples of %d",
                         view->cols, n, (int)WORD);
    if (view->is_bcq && view->bcq.layout.n_groups > 1 && cols % group)
        return error_set(err, -EINVAL, "%d inputs in %d parts: groups of %d would be cut",
                         view->cols, n, group);
    return cut(ret, view, &part, err);
}

void cut_free(struct cut *cut) { free(cut->owned); }
