/* block_tune.h - trains the stored form of one block towards the original block's output.
 *
 * Owns      nothing beyond the call.
 * Borrows   the block's state and the coded matrices, and changes them.
 * Thread    one; work inside is spread over n_threads.
 * Fails     -ENOMEM.
 * Cost      per epoch a forward and a backward pass of the block over the text; eleven floats a
 *           weight with codes, six without.
 *
 * EfficientQAT's first phase (Block-AP, arXiv 2407.11062, section 3.2) on binary codes: scales and
 * biases move in units of their stored codes, codes follow continuous weights behind them, and
 * gradients pass every rounding (straight-through). The loss is the squared distance of the
 * block's output to the original's. What is kept is the best state seen on the held-out windows
 * after any epoch, the first included, so that a block never ends worse than it began. */
#ifndef ENGINE_QUANT_BLOCK_TUNE_H
#define ENGINE_QUANT_BLOCK_TUNE_H

#include "engine/quant/blockwise_state.h"
#include "engine/train/adam.h"

struct coded;

/* What moves, and how. */
struct block_tune {
    bool params; /* scales and biases of groups and rows */
    bool codes;  /* the weights behind the codes; else these stay, and codes are their nearest */
    bool norms;
    bool moments; /* the loss is that of channels' means and deviations (Norm Tweaking) */
    bool recode;  /* codes are chosen anew after every step */
    int epochs;
};

/* w[role]: (rows, cols) the weights that coded[] stands for, before coding. */
int block_tune(struct blockwise *b, const struct block_tune *tune,
               struct layer_result coded[ROLE_COUNT], const struct params_block *w,
               struct error *err);

/* -- Its parts, for the tests to look between ------------------------------------------------- */

enum { BLOCK_TUNE_NORMS = 4 /* weight and bias of either norm */ };

struct block_tune_matrix {
    enum model_role role;
    struct layer_result *coded;
    struct coded *params;
    struct adam weights; /* behind the codes; x alone is used when they stay */
    float *dw;           /* (rows, cols) */
    uint32_t *kept;      /* planes of the best state */
    size_t plane_bytes;
};

struct block_trainer {
    struct blockwise *b;
    const struct block_tune *o;
    struct block_tune_matrix m[ROLE_COUNT];
    int n_matrices;
    struct adam norms[BLOCK_TUNE_NORMS];
    float *kept_norms[BLOCK_TUNE_NORMS];
    float *dy;        /* (batch * ctx, hidden) */
    double *channels; /* (4, hidden) sums of outputs and wanted ones, and of squares */
    int step, n_steps;
};

/* Arguments as block_tune(); to be closed also when it fails. */
int block_trainer_open(struct block_trainer *ret, struct blockwise *b,
                       const struct block_tune *tune, struct layer_result coded[ROLE_COUNT],
                       const struct params_block *w, struct error *err);
void block_trainer_close(struct block_trainer *t);

/* A step on some windows; arg: the struct block_trainer. */
int block_trainer_step(struct blockwise *b, const struct blockwise_windows *w, void *arg);

#endif
