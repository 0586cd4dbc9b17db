/* product.h - what the launches of matrix products are told.
 *
 * Owns      nothing.
 * Borrows   device memory for the length of the launch.
 * Thread    the back end's.
 * Fails     launches return the runtime's code.
 * Cost      one launch for all matrices of a set that share form and shape of code.
 *
 * A product is y = W x for n tokens. Sums over inputs are cut into PARTS by the width alone and
 * added in order, each part runs over its inputs in order, and a token's columns never mix with
 * others: so a token's result is the same bits in every launch shape. */
#ifndef KERNELS_CUDA_PRODUCT_H
#define KERNELS_CUDA_PRODUCT_H

#include "kernels/cuda/gpu.h"
#include "kernels/cuda/layout.h"

enum {
    MAX_SET = 4,
    FEW_TOKENS = 32 /* the most that a block for few tokens takes */
};

/* A packed input; see layout.h. */
struct packed_input {
    const uint4 *columns; /* (chunks, 4 pairs of steps, n_cols, 4 lanes) */
    const uint4
        *group_cols; /* OWNED: (pairs, n_cols, 4 lanes), sums of 16 inputs / 16, two halves each */
    const float *sums;    /* SPREAD: 4 levels of (stretches, n_tokens), of 16, 32, 64, 128 */
    const float *unscale; /* (n_tokens) */
    int n_cols;           /* a multiple of TILE_COLS, if wide of WIDE_COLS */
    int n_tokens;
    bool
        wide; /* for wide.cuh: columns (chunks, 8 steps, 2, n_cols), group_cols (pairs, 4, n_cols) */
};

struct product {
    const uint32_t *data;   /* units, row tile after row tile */
    const uint32_t *params; /* PLANES: (tiles, stretches, 16, words) */
    const uint32_t *levels; /* COMPACT: (tiles, 16, 2 or 4) or (shapes, 2 or 4): bytes */
    const float *scales;    /* COMPACT: (rows, 2): s0 / 2, 16 s1 */
    float *dst;             /* (n_tokens, rows) */
    const float *bias;      /* (rows) or NULL */
    int rows, act, accumulate;
    int first_block;
};

/* How more than FEW_TOKENS are multiplied. */
enum product_way {
    WAY_BEST, /* by a model of the device */
    WAY_FEW,  /* in slices of FEW_TOKENS */
    WAY_MANY, /* blocks of 128 rows that share columns */
    WAY_WIDE  /* warp groups, where the card has them; never for planes */
};

struct product_set {
    struct packed_input x;
    struct product each[MAX_SET];
    int n, cols;
    int processors; /* of the device */
    size_t shared;  /* the most that a block there may ask for */
    size_t room;    /* shared memory of a multiprocessor there */
    enum product_way way;
    int width; /* of wide inputs: tokens of a block */
};

/* What tells one kernel from another. */
struct product_kind {
    enum weight_form form;
    int bits;
    int steps;   /* PLANES: of mma() in a stretch with the same alphas: 1, 2, 4, 8 */
    bool shapes; /* COMPACT: levels by group */
};

#endif
