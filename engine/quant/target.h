/* target.h - moves weights to where their outputs on the coded model's inputs are right.
 *
 * Owns      struct target until target_free().
 * Borrows   moments and weights during the call.
 * Thread    any; a target is read-only once made.
 * Fails     -ENOMEM; -EDOM where the moments are not finite.
 * Cost      making about 5 n^3 in fp64; applying rows * n^2 in fp32.
 *
 * Blocks before have changed the inputs from y to x. What comes closest to W y from x is
 * W* = W C inverse(H), C = mean of y x^T, H = mean of x x^T; here as a step from W under a ridge,
 * W* = W + share W (C - H) inverse(H + ridge mean(diag H) I), so that what the text does not
 * determine stays as it was. With x = y nothing moves.
 *
 * Down's output ends in the block's state, and can make up for all that this lacks: with e the
 * original's state less the coded one's, W* = W + share E inverse(H + ridge ...), E = mean of e x^T.
 *
 * The whole way is right for one matrix and wrong for many in a row: a regression onto noisy inputs
 * shrinks what it predicts, each block's activations then shrink those of the next, and 30 blocks
 * of SmolLM2 end with nothing. A part of the way (the strength of QEP, arXiv 2504.09629) keeps most
 * of the gain; README.md, The target. The states are the aim of LoaQ (arXiv 2509.06297) as well. */
#ifndef ENGINE_QUANT_TARGET_H
#define ENGINE_QUANT_TARGET_H

struct error;
struct target;

struct target_way {
    double share; /* of the step, up to 1 */
    double ridge; /* on the mean diagonal of H */
};

/* h, cross: (n, n), h not damped yet. */
int target_new(struct target **ret, const double *h, const double *cross, int n,
               const struct target_way *way, int n_threads, struct error *err);
/* lack: (rows, n), E; the target is for weights of as many rows. */
int target_new_of_states(struct target **ret, const double *h, const double *lack, int rows, int n,
                         const struct target_way *way, int n_threads, struct error *err);
void target_free(struct target *t); /* NULL is allowed */

/* w: (rows, n). */
int target_apply(const struct target *t, float *w, int rows, int n_threads, struct error *err);

#endif
