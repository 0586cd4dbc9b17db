/* moments.h - sums the second moments of a block's inputs over calibration tokens.
 *
 * Owns      the sums and copies of a batch's inputs until moments_free().
 * Borrows   inputs during the call.
 * Thread    one; sums are spread over n_threads.
 * Fails     -ENOMEM; -EIO where no input came.
 * Cost      n^2 / 2 multiply-adds per token and input, and up to n^2 more for the cross moments.
 *
 * H is the weighted mean of x x^T, x being what the coded model will see. With a reference stream,
 * whose tokens are the same, C is the weighted mean of y x^T beside it, y being what the original
 * model sees, or for down what the original's block leaves as state less what the coded one's does.
 * Tokens weigh 1, or 1 / mean(h^2) of the hidden state that an input's matrices add to:
 * what follows is normalised, so an error counts as a share of that state. Sums are cut by batches
 * of fixed size: equal inputs give equal moments, whatever the number of threads. */
#ifndef ENGINE_QUANT_MOMENTS_H
#define ENGINE_QUANT_MOMENTS_H

#include <stdbool.h>
#include <stddef.h>

struct error;
struct moments;

/* Inputs that the linear layers of a block share. */
enum calibrate_input { INPUT_QKV, INPUT_O, INPUT_UP, INPUT_DOWN, INPUT_COUNT };

enum moments_tokens { MOMENTS_EQUAL, MOMENTS_BY_STATE };

enum moments_reference {
    MOMENTS_ALONE,  /* no other stream */
    MOMENTS_INPUTS, /* C of every input */
    MOMENTS_STATES  /* the same, but for down of the states behind the block */
};

struct moments_options {
    int width[INPUT_COUNT]; /* 0: no such input */
    int hidden;
    int max_tokens; /* of a batch */
    enum moments_reference reference;
    enum moments_tokens tokens;
    int n_threads;
};

int moments_new(struct moments **ret, const struct moments_options *options, struct error *err);
void moments_free(struct moments *m); /* NULL is allowed */

void moments_clear(struct moments *m);

/* One batch: x of every input, x: (n, width), then what the block made of the states, y: (n,
 * hidden), and what it made of the reference's (NULL without one). moments_show() of the reference
 * goes first, without an end. A failure is kept until moments_end_batch(). */
void moments_show(struct moments *m, enum calibrate_input input, bool is_reference, const float *x,
                  int n);
int moments_end_batch(struct moments *m, const float *y, const float *reference, struct error *err);

/* Means of all batches; once. */
int moments_finish(struct moments *m, struct error *err);

/* (n, n): H, symmetric, which the caller may write; C by rows of y, (n, n) or (hidden, n), NULL
 * without a reference. */
double *moments_h(struct moments *m, enum calibrate_input input, int *ret_n);
const double *moments_cross(const struct moments *m, enum calibrate_input input);

#endif
