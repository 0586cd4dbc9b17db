/* shard.h - a checkpoint's part: some blocks of a model, to be joined with the others.
 *
 * Owns      nothing; JSON values are the caller's.
 * Borrows   arguments during the call.
 * Thread    any.
 * Fails     shard_check() with -EINVAL; shard_describe() with NULL when out of memory.
 * Cost      none to speak of.
 *
 * A part is a directory as a checkpoint is, but holds the tensors of its own blocks alone; those of
 * no block (embeddings, the last norm) are with block 0. Its quantization_config has the object
 * "shard" besides, which a reader of models refuses and merge.c reads. Every tensor of the model is
 * in exactly one part. */
#ifndef ENGINE_QUANT_SHARD_H
#define ENGINE_QUANT_SHARD_H

#include <jansson.h>
#include <stdbool.h>

struct error;

struct shard {
    int first, end; /* blocks first .. end - 1 */
    int n_layers;   /* of the whole model */
};

bool shard_is_whole(const struct shard *s);

int shard_check(const struct shard *s, struct error *err);

/* The block that a tensor's name puts it in, "model.layers.3.input_layernorm.weight": 3; -1 when
 * in none. */
int shard_block_of(const char *tensor, int n_layers);

bool shard_owns(const struct shard *s, const char *tensor);

/* The object "shard" without matrices, which shard_add_matrix() adds. Hashes are in hexadecimal:
 * of the source's tensors and of the calibration tokens. */
json_t *shard_describe(const struct shard *s, const char *model, const char *tokens);
int shard_add_matrix(json_t *shard, const char *name, const char *role, int layer);

#endif
