/* loss.h - the output matrix with a loss on it, and the loss's gradient at its input.
 *
 * Owns      logits of a few hundred rows until loss_free().
 * Borrows   output matrices until loss_free(); the rest during a call.
 * Thread    one at a time; work is spread over n_threads.
 * Fails     loss_new() with -ENOMEM.
 * Cost      a product with the output matrix for each set of states, one more for the gradient.
 *
 * Both are means over the rows given. Rows go through in chunks of fixed size. */
#ifndef ENGINE_TRAIN_LOSS_H
#define ENGINE_TRAIN_LOSS_H

#include <stdint.h>

struct error;
struct loss;

/* head, teacher_head: (vocab, dim), of the two models; the second may be NULL for cross-entropy. */
int loss_new(struct loss **ret, const float *head, const float *teacher_head, int vocab, int dim,
             int n_threads, struct error *err);
void loss_free(struct loss *l); /* NULL is allowed */

/* Mean of KL(teacher || student) in nats; teacher, student: (n, dim). grad (n, dim): of the mean at
 * student; NULL: not wanted. */
double loss_divergence(struct loss *l, const float *teacher, const float *student, int n,
                       float *grad);

/* Mean of -log p(target); rows whose target is negative count as nothing in sum and gradient, but
 * do count in n. */
double loss_cross_entropy(struct loss *l, const int32_t *targets, const float *student, int n,
                          float *grad);

/* tokens: (n), drawn from each row's own distribution, with splitmix64 of the seed. */
void loss_draw(struct loss *l, int32_t *tokens, const float *student, int n, uint64_t seed);

#endif
