/* backward.h - runs text through a model and the gradient of its loss back, for who looks at layers.
 *
 * Owns      the model's ends, one block and activations until backward_free().
 * Borrows   the source until backward_free(); tokens during a run; what it shows is its own, and
 *           valid during the call only.
 * Thread    one; work inside is spread over n_threads.
 * Fails     -ENOMEM, -EBADMSG (a tensor), -EDOM (a loss that is not finite), what callbacks return.
 * Cost      a run: a forward and a backward pass, and where the blocks' caches exceed `memory` another
 *           forward pass.
 *
 * The loss is -log p of a target at each token, and gradients are those of each token's own loss, not
 * of a mean: squares of small numbers vanish. */
#ifndef ENGINE_QUANT_BACKWARD_H
#define ENGINE_QUANT_BACKWARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/model.h"

struct backward;
struct error;
struct source;

struct backward_setup {
    struct source *source;
    int n_windows, ctx; /* side by side at most; tokens of each */
    int n_threads;
    size_t memory; /* bytes of the blocks' caches */
    bool drawn;    /* targets are drawn from the model; else they are the text's next tokens */
};
int backward_new(struct backward **ret, const struct backward_setup *setup, struct error *err);
void backward_free(struct backward *b); /* NULL is allowed */

/* A linear layer: y = x w^T. */
struct backward_layer {
    int layer;
    enum model_role role;
    int n_tokens, rows, cols;
    const float *w, *x, *dy; /* (rows, cols), (n_tokens, cols), (n_tokens, rows) d loss / d y */
};

/* What is called, from the last block to the first; in a block as struct block_grads says. Once one fails
 * no more are, and the run fails as it did. done may be NULL. */
struct backward_calls {
    int (*see)(void *arg, const struct backward_layer *l, struct error *err);
    int (*done)(void *arg, int layer, struct error *err); /* every linear layer was shown */
    void *arg;
};

/* tokens: (n_windows, ctx). */
int backward_run(struct backward *b, const int32_t *tokens, int n_windows,
                 const struct backward_calls *calls, struct error *err);

#endif
