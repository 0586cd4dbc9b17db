/* examine.h - finds what would end a run in its middle, before the work begins.
 *
 * Owns      nothing beyond the call.
 * Borrows   the source and the model during the call.
 * Thread    one.
 * Fails     -EDOM (a value that is not finite), -EBADMSG (a tensor is missing or has a wrong shape),
 *           -ENOMEM; the tensor is named.
 * Cost      one pass over the weights; examine_layers() packs each block once.
 *
 * A run takes hours on a large model, and what it writes is complete or nothing: a bad value in the
 * last block must not show at the end. */
#ifndef ENGINE_QUANT_EXAMINE_H
#define ENGINE_QUANT_EXAMINE_H

struct error;
struct model;
struct source;

/* Every weight, also of the tensors that stay dense. */
int examine_values(const struct source *src, struct error *err);

/* Every tensor that blocks [0, n_layers) of a model with layers_on_demand need. */
int examine_layers(struct model *m, int n_layers, struct error *err);

#endif
