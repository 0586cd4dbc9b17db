/* probe.h - runs a few windows through a model to see what a change of one block does to it.
 *
 * Owns      the hidden states of its tokens and the original's logits until probe_close().
 * Borrows   the model, with its blocks loaded, until probe_close(); its tap is set while moments
 *           are summed.
 * Thread    the model's.
 * Fails     -ENOMEM, a lost device.
 * Cost      opening is a forward pass; probe_divergence() one from the present block on.
 *
 * The probe stands before a block, with the states that the original model gives there. Everything
 * fits one batch, and logits are compared at evenly spread positions when there are too many. */
#ifndef ENGINE_QUANT_PROBE_H
#define ENGINE_QUANT_PROBE_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/quant/calibrate.h"

struct error;
struct model;
struct probe;

enum { PROBE_WINDOWS = 4, PROBE_CTX = 256, PROBE_LOGIT_ROWS = 32 };

/* KV blocks and batch tokens that the model needs. */
int probe_kv_blocks(void);
int probe_tokens(void);

/* Windows of at most PROBE_CTX tokens out of tokens: (n_windows, ctx), evenly spread. compares:
 * probe_divergence() will be called; else a block has to be loaded only while the probe is at it. */
int probe_open(struct probe **ret, struct model *m, const int32_t *tokens, int n_windows, int ctx,
               int n_threads, bool compares, struct error *err);
void probe_close(struct probe *p); /* NULL is allowed */

/* Mean of x x^T of the present block's inputs, as calibrate_moments() gives them; and on. */
int probe_collect(struct probe *p, struct error *err);
const double *probe_moments(const struct probe *p, enum calibrate_input input, int *ret_n);
int probe_advance(struct probe *p, struct error *err);

/* Mean KL(original || model as it is now) in nats, at least 0; only the present block and those
 * after it may have changed. */
int probe_divergence(struct probe *p, double *ret, struct error *err);

#endif
