/* blockwise.h - the quantizer's methods that look at a whole block's output, in one place.
 *
 * Owns      the original model's hidden states, one block's parameters twice, until
 *           blockwise_close().
 * Borrows   model, source, calibration states and options until blockwise_close().
 * Thread    one; work inside is spread over n_threads.
 * Fails     blockwise_check(): -EINVAL with the reason; -ENOMEM, errors of source and writer.
 * Cost      a forward pass of the original block over the calibration text, and what each method
 *           says in its own header.
 *
 * Beside the states of the coded prefix, which calibrate.h holds, those of the original model move
 * on from block to block: what they become is what the coded block should give. For each block
 * the quantizer calls begin, then (unless an earlier run has made it) input, transform, codes,
 * store or else restore, and end. Windows with index 7 mod 8 judge and are never fitted to. */
#ifndef ENGINE_QUANT_BLOCKWISE_H
#define ENGINE_QUANT_BLOCKWISE_H

#include <jansson.h>
#include <stdbool.h>

#include "engine/quant/calibrate.h"
#include "engine/quant/layer.h"

struct blockwise;
struct checkpoint_writer;
struct error;
struct source;

enum blockwise_tweak { TWEAK_NONE, TWEAK_MOMENTS, TWEAK_FIT, TWEAK_TRAIN };
enum blockwise_transform { TRANSFORM_NONE, TRANSFORM_GRID, TRANSFORM_TRAIN };
enum blockwise_hessian { HESSIAN_PLAIN, HESSIAN_FISHER, HESSIAN_GUIDED };

struct blockwise_options {
    enum blockwise_tweak tweak;
    enum blockwise_transform transform;
    enum blockwise_hessian hessian;
    int clip_epochs; /* of learned clipping; 0: none */
    int tune_epochs; /* of training each block; 0: none */
    int groups;      /* of a matrix's rows with guided moments; 0 = 4 */
};

/* "none", "fit", ...: as flags and files name them; NULL past the last. */
const char *blockwise_tweak_name(enum blockwise_tweak tweak);
const char *blockwise_transform_name(enum blockwise_transform transform);
const char *blockwise_hessian_name(enum blockwise_hessian hessian);

enum { BLOCKWISE_EPOCHS = 4 /* where training is asked for without a number */ };

/* Whether any method is asked for: without one there is no struct blockwise. */
bool blockwise_wanted(const struct blockwise_options *o);

/* -EINVAL says why a combination makes no sense. */
int blockwise_check(const struct blockwise_options *o, const struct layer_options *layer,
                    bool is_static, struct error *err);

/* The same for what else steers the codes: a target at the original's outputs, tokens that count
 * unequally. */
int blockwise_check_moments(const struct blockwise_options *o, bool output_target,
                            bool weighs_tokens, struct error *err);

/* Adds what was asked for to the settings; those left out keep old checkpoints' settings. */
int blockwise_describe(const struct blockwise_options *o, json_t *settings);

struct blockwise_setup {
    struct model *model; /* layers on demand */
    struct source *source;
    struct calibrate *calibrate; /* at the embeddings */
    const int32_t *tokens;       /* its windows */
    const struct blockwise_options *options;
    const struct layer_options *layer;
    const int *bits; /* (n_layers, ROLE_COUNT) of each matrix; NULL: those of layer */
    bool is_static;
    size_t memory; /* bytes of each array of states kept in memory at most */
};
int blockwise_open(struct blockwise **ret, const struct blockwise_setup *setup, struct error *err);
void blockwise_close(struct blockwise *b); /* NULL is allowed */

/* The layer has just been loaded into the model. */
int blockwise_begin(struct blockwise *b, int layer, struct error *err);

/* Before the moments are collected: what changes about the block's input. */
int blockwise_input(struct blockwise *b, struct error *err);

/* With the moments collected, which are scaled along. */
int blockwise_transform(struct blockwise *b, struct error *err);

/* The weights to code: (rows, cols), the block's. */
const float *blockwise_linear(const struct blockwise *b, enum model_role role);

/* Group parameters that were learned, for struct layer_options; NULL: none. */
const struct bcq_view *blockwise_given(const struct blockwise *b, enum model_role role);

/* What errors in single weights cost, for struct layer_options; NULL: no more than the moments
 * say. */
const float *blockwise_row_weights(const struct blockwise *b, enum model_role role);

/* Codes the matrices of an input in place of the plain way; 1 when the plain way is wanted. */
int blockwise_code(struct blockwise *b, enum calibrate_input input,
                   struct layer_result coded[ROLE_COUNT], struct error *err);

/* The block as coded; its parameters may change inside the stored form. */
int blockwise_codes(struct blockwise *b, struct layer_result coded[ROLE_COUNT], struct error *err);

/* Writes the vectors that were changed; or puts those that an earlier run wrote into the model. */
int blockwise_store(struct blockwise *b, struct checkpoint_writer *writer, struct error *err);
int blockwise_restore(struct blockwise *b, struct checkpoint_writer *writer, struct error *err);

void blockwise_end(struct blockwise *b);

#endif
