/* coded.h - a binary-coded matrix whose stored parameters are variables, codes and shapes fixed.
 *
 * Owns      the variables, and the best parameters kept, until coded_free().
 * Borrows   the block it starts from until coded_free().
 * Thread    one at a time; work is spread over n_threads by rows.
 * Fails     coded_new() and coded_block() with -ENOMEM.
 * Cost      five floats a stored parameter; expanding and gradients a few operations a weight.
 *
 * Variables are in units of what is stored: q and p of a group and s0 and s1 of a row, or fp16 alphas
 * and beta. The matrix is always that of the rounded variables, gradients pass the rounding as if it
 * were not there (straight-through, Bengio et al. 2013, 1308.3432): so every state can be stored as it
 * is. A group's scale moves relative to itself, its bias relative to half the sum of its alphas. */
#ifndef ENGINE_TRAIN_CODED_H
#define ENGINE_TRAIN_CODED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/train/adam.h"
#include "kernels/weights.h"

struct coded;

/* row_share: of the rate, for super-scales; 0 keeps them. */
int coded_new(struct coded **ret, const struct bcq_view *start, float row_share, struct error *err);
void coded_free(struct coded *c); /* NULL is allowed */

const struct bcq_spec *coded_spec(const struct coded *c);

/* A group's parameters as they would be stored now. */
void coded_params(const struct coded *c, int row, int group, float alpha[BCQ_MAX_BITS],
                  float *beta);

/* w: (rows, cols). */
void coded_expand(const struct coded *c, float *w, int n_threads);
/* Adds the parameters' gradient for dw (rows, cols), d loss / d W. */
void coded_add_gradient(struct coded *c, const float *dw, int n_threads);
void coded_move(struct coded *c, const struct adam_step *step);

/* The best so far: keep() makes it the present state; back() returns to it, without moments. */
void coded_keep(struct coded *c);
void coded_back(struct coded *c);

/* What a later run needs to go on: variables and moments (3 n floats), and the kept parameters. */
float *coded_state(struct coded *c, size_t *ret_n);
uint8_t *coded_kept(struct coded *c, size_t *ret_bytes);

/* The kept state as a whole block; 64-byte aligned, to be freed. */
int coded_block(const struct coded *c, void **ret, size_t *ret_bytes, struct error *err);

#endif
