#include "engine/quant/lay.h"

#include <errno.h>
#include <stdlib.h>

#include "engine/quant/fit.h"
#include "engine/quant/pack.h"
#include "kernels/error.h"

/* What a variant changes: the place of its shape among the row's, and the scales. */
struct variant {
    int rank;
    float stretch;
};

struct lay {
    struct lay_problem p;
    const float *w;
    int row, n_rows, n_groups, n_ranks;
    struct codebook_choice *choices; /* (n_rows, n_ranks, n_groups) */
    struct pack_group *groups;       /* (n_groups) */
};

/* By falling use on real layers; the order decides what a smaller number of variants leaves out. */
static const struct variant row_variants[LAY_MAX_VARIANTS] = {
    {0, 1.00f}, {1, 1.00f}, {0, 1.06f}, {2, 1.00f}, {0, 0.94f}, {1, 1.06f}, {3, 1.00f}, {1, 0.94f},
    {2, 1.06f}, {4, 1.00f}, {3, 1.06f}, {0, 1.12f}, {5, 1.00f}, {2, 0.94f}, {6, 1.00f}, {7, 1.00f},
    {4, 1.06f}, {0, 1.03f}, {1, 1.03f}, {2, 1.03f}, {3, 0.94f}, {5, 1.06f}, {6, 1.06f}, {7, 1.06f},
    {0, 0.97f}, {1, 0.97f}, {1, 1.12f}, {2, 0.97f}, {2, 1.12f}, {3, 1.03f}, {4, 1.03f}, {5, 1.03f},
};

/* Where every group has its own shape, or a whole row is one group, scales alone are left. */
static const float stretches[LAY_MAX_VARIANTS] = {
    1.00f, 1.06f, 0.94f, 1.03f, 0.97f, 1.09f, 0.91f, 1.12f, 0.88f, 1.15f, 1.02f,
    0.98f, 1.04f, 0.96f, 1.05f, 0.95f, 1.07f, 0.93f, 1.08f, 0.92f, 1.01f, 0.99f,
    1.10f, 0.90f, 1.11f, 0.89f, 1.13f, 0.87f, 1.14f, 0.86f, 1.18f, 0.84f,
};

static bool has_ranks(const struct lay_problem *p) {
    return p->view.spec.kind == BCQ_COMPACT && p->view.layout.n_groups > 1;
}

static struct variant variant_of(const struct lay_problem *p, int v) {
    return has_ranks(p) ? row_variants[v] : (struct variant){0, stretches[v]};
}

int lay_new(struct lay **ret, const struct lay_problem *p, const float *w, int row, int n_rows,
            struct error *err) {
    struct lay *lay = calloc(1, sizeof *lay);
    if (!lay) return error_set(err, -ENOMEM, "codebooks: out of memory");
    *lay = (struct lay){.p = *p,
                        .w = w,
                        .row = row,
                        .n_rows = n_rows,
                        .n_groups = p->view.layout.n_groups,
                        .n_ranks = 1};
    for (int v = 0; v < p->n_variants; v++)
        if (variant_of(p, v).rank >= lay->n_ranks) lay->n_ranks = variant_of(p, v).rank + 1;
    size_t n = (size_t)n_rows * (size_t)lay->n_ranks * (size_t)lay->n_groups;
    struct codebook_query q = {.w = w,
                               .h = p->weights,
                               .h_stride = p->stride,
                               .rows = n_rows,
                               .cols = p->view.spec.cols,
                               .group = p->view.spec.group,
                               .one_shape = p->view.spec.kind == BCQ_COMPACT,
                               .n_ranks = lay->n_ranks,
                               .n_ranges = p->n_ranges,
                               .asymmetric = p->asymmetric};
    lay->choices = malloc(n * sizeof *lay->choices);
    lay->groups = calloc((size_t)lay->n_groups, sizeof *lay->groups);
    int r = lay->choices && lay->groups ? codebook_search(p->set, &q, lay->choices, err)
                                        : error_set(err, -ENOMEM, "codebooks: out of memory");
    if (r < 0)
        lay_free(lay);
    else
        *ret = lay;
    return r;
}

void lay_free(struct lay *lay) {
    if (!lay) return;
    free(lay->choices);
    free(lay->groups);
    free(lay);
}

/* A compact row stretches in its super-scale, after the codes were fitted: the grid of scales moves
 * with it, and no group rounds its stretch away. */
static void lay_row(const struct lay *lay, int i, const struct variant *variant) {
    const struct bcq_view *v = &lay->p.view;
    const struct codebook_set *set = lay->p.set;
    const struct codebook_choice *c =
        lay->choices +
        ((size_t)i * (size_t)lay->n_ranks + (size_t)variant->rank) * (size_t)lay->n_groups;
    bool is_free = v->spec.kind == BCQ_FREE;
    for (int g = 0; g < lay->n_groups; g++)
        pack_group_set(&lay->groups[g], set->shapes, set->bits, c[g].shape,
                       is_free ? c[g].scale * variant->stretch : c[g].scale, c[g].bias);
    pack_row(v, lay->row + i, lay->groups, set->shapes);
    if (is_free) return;
    fit_row(v, lay->row + i, lay->w + (size_t)i * (size_t)v->spec.cols,
            lay->p.weights + (size_t)i * lay->p.stride);
    if (variant->stretch != 1.0f) pack_stretch(v, lay->row + i, variant->stretch);
}

int lay_variant(void *arg, int v, struct error *err) {
    const struct lay *lay = arg;
    struct variant variant = variant_of(&lay->p, v);
    (void)err;
    for (int i = 0; i < lay->n_rows; i++) lay_row(lay, i, &variant);
    return 0;
}
