/* codebook.h - chooses the binary codebook of every group of weights ("step two").
 *
 * Owns      struct codebook_set until codebook_set_free().
 * Borrows   weights during a search.
 * Thread    any; a set is read-only once made.
 * Fails     codebook_set_new(): -EINVAL names the argument, -ENOMEM; codebook_search(): -ENOMEM.
 * Cost      a search of a group: ranges * candidates * 2^bits multiply-adds, whatever its width;
 *           half of it where a row shares a shape.
 *
 * Step one is an integer grid of step_bits bits over a range of the group. Step two picks m step
 * sizes d_1 <= .. <= d_m and an offset o with o + sum d <= 2^step_bits - 1; the levels are o plus
 * the sums of subsets of d. Seen from the weights that is alpha_i = S d_i / 2 and a bias. All
 * candidates are compared by their exact weighted error: decision borders are multiples of half a
 * grid unit, so the weights are binned once into half units and a candidate costs a table lookup
 * per border. The range is explored anew, since m bits want another span than step_bits bits.
 *
 * Where a row shares a shape, all shapes are compared on every second range only, and the rest is
 * for the few that come out best: the order of shapes hardly depends on how finely ranges are
 * told apart. */
#ifndef ENGINE_QUANT_CODEBOOK_H
#define ENGINE_QUANT_CODEBOOK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/weights.h"

struct error;

enum { CODEBOOK_MAX_STEP_BITS = 6 /* BCQ_MAX_SHAPE_SUM = 2^6 - 1 */ };

/* Between two levels of a candidate: how far they are apart, and which border of the bins it is. */
struct codebook_border {
    float gap;
    int32_t at;
};

struct codebook_set {
    int bits, step_bits;
    int top;      /* 2^step_bits - 1 */
    int n_levels; /* 2^bits */
    int n_shapes, n_candidates;
    uint8_t *shapes;                 /* (n_shapes, bits) d, rising */
    uint16_t *shape_of;              /* (n_candidates) */
    uint8_t *offset;                 /* (n_candidates) */
    uint8_t *levels;                 /* (n_candidates, n_levels) rising */
    int *first_of;                   /* (n_shapes + 1) a shape's candidates stand together */
    struct codebook_border *borders; /* (n_candidates, n_levels - 1) */
};

/* The candidates of every shape whose sum is within some slack of the grid's top, with all
 * offsets. The slack is the largest that keeps the search of a group of this width in proportion:
 * at most 3 and 512 candidates below 256 columns, else 8192 candidates; and never more than
 * max_shapes shapes. A small slack loses next to nothing, since the range is explored. */
int codebook_set_new(struct codebook_set **ret, int bits, int step_bits, int width, int max_shapes,
                     struct error *err);
void codebook_set_free(struct codebook_set *set); /* NULL is allowed */

/* Step bits where nothing else is asked for: two more than bits, one more at 4. */
int codebook_step_bits(int bits);

struct codebook_query {
    const float *w; /* (rows, cols) */
    const float *h; /* (cols) weights of the squared errors, at least 0 */
    int h_stride;   /* 0: those of all rows; cols: h is (rows, cols) */
    int rows, cols;
    int group;       /* columns in a group; the last group may be shorter */
    bool one_shape;  /* all groups of a row share one shape */
    int n_ranks;     /* with one_shape: how many of the row's shapes to answer with; 0 = 1 */
    int n_ranges;    /* range factors from 0.35 to 1.16, at least 2 */
    bool asymmetric; /* low and high ends of the range move on their own: n_ranges^2 pairs */
};

/* What a group gets: alpha_i = scale * d_i / 2 and the bias. */
struct codebook_choice {
    int shape;
    float scale, bias;
    float cost; /* weighted squared error before any rounding of scale and bias */
};

/* ret: (rows, n_ranks, groups), shapes by rising cost. Groups without spread get scale 0 and their value as bias. */
int codebook_search(const struct codebook_set *set, const struct codebook_query *query,
                    struct codebook_choice *ret, struct error *err);

#endif
