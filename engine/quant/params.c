#include "engine/quant/params.h"

#include <string.h>

enum { MAX_SECTIONS = 4 };

/* A row's bytes in one section. */
struct section {
    const void *start;
    size_t n_bytes;
};

static struct section row_of(const void *section, size_t row, size_t n_bytes) {
    return (struct section){section ? (const uint8_t *)section + row * n_bytes : NULL, n_bytes};
}

static int sections_of(const struct bcq_view *v, size_t row, struct section *ret) {
    size_t n_groups = (size_t)v->layout.n_groups, bits = (size_t)v->spec.bits;
    if (v->spec.kind == BCQ_FREE) {
        ret[0] = row_of(v->alpha, row, n_groups * bits * sizeof *v->alpha);
        ret[1] = row_of(v->beta, row, n_groups * sizeof *v->beta);
        return 2;
    }
    ret[0] = row_of(v->q, row, v->layout.q_stride);
    ret[1] = row_of(v->p, row, v->layout.p_stride);
    ret[2] = row_of(v->shape, row, v->spec.kind == BCQ_COMPACT ? bits : v->layout.idx_stride);
    ret[3] = row_of(v->row_scale, row, 2 * sizeof *v->row_scale);
    return 4;
}

size_t params_size(const struct bcq_view *v) {
    struct section sections[MAX_SECTIONS];
    size_t sum = 0;
    int n = sections_of(v, 0, sections);
    for (int i = 0; i < n; i++) sum += sections[i].n_bytes;
    return sum;
}

void params_save(const struct bcq_view *v, int row, uint8_t *copy) {
    struct section sections[MAX_SECTIONS];
    int n = sections_of(v, (size_t)row, sections);
    for (int i = 0; i < n; copy += sections[i++].n_bytes)
        memcpy(copy, sections[i].start, sections[i].n_bytes);
}

void params_restore(const struct bcq_view *v, int row, const uint8_t *copy) {
    struct section sections[MAX_SECTIONS];
    int n = sections_of(v, (size_t)row, sections);
    for (int i = 0; i < n; copy += sections[i++].n_bytes)
        /* The block is the quantizer's own; the view is const for its readers. */
        memcpy((void *)(uintptr_t)sections[i].start, copy, sections[i].n_bytes);
}
