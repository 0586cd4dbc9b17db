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

#endif
