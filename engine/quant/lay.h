/* lay.h - lays the parameters of a strip's groups from the codebook search.
 *
 * Owns      its choices until lay_free().
 * Borrows   the codebooks, the view and the weights until lay_free(); writes the view's block.
 * Thread    one per strip.
 * Fails     -ENOMEM.
 * Cost      lay_new() as codebook_search(); a variant O(cols) per row.
 *
 * Variant 0 is the search's own choice. The others take the row's next best shapes and stretch the
 * scales of all groups, both of which only the true loss can judge (explore.h). */
#ifndef ENGINE_QUANT_LAY_H
#define ENGINE_QUANT_LAY_H

#include <stddef.h>

#include "engine/quant/codebook.h"
#include "kernels/weights.h"

struct error;
struct lay;

enum { LAY_MAX_VARIANTS = 32 };

struct lay_problem {
    const struct codebook_set *set;
    struct bcq_view view;
    const float *weights; /* (cols) of squared errors, or (n_rows, cols) */
    size_t stride;        /* from row to row; 0 = all the same */
    int n_ranges;
    bool asymmetric;
    int n_variants; /* 1 .. LAY_MAX_VARIANTS */
};

/* w: (n_rows, cols) natural order, rows row .. row + n_rows - 1 of the block. */
int lay_new(struct lay **ret, const struct lay_problem *p, const float *w, int row, int n_rows,
            struct error *err);
void lay_free(struct lay *lay); /* NULL is allowed */

/* Writes variant v into the block. Never fails; arg is a struct lay, see explore_lay. */
int lay_variant(void *arg, int v, struct error *err);

#endif
