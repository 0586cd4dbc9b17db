/* params.h - reads the parameters of blocks and of a model's ends in fp32, whatever holds them.
 *
 * Owns      what params_block_read() and params_ends_read() give, until their free functions.
 * Borrows   the source until params_close().
 * Thread    one at a time.
 * Fails     -EBADMSG naming the tensor that is missing or misshapen, -ENOMEM.
 * Cost      one pass over the tensors read.
 *
 * Binary-coded matrices are expanded to the dense ones they stand for; a fused matrix is split. */
#ifndef ENGINE_TRAIN_PARAMS_H
#define ENGINE_TRAIN_PARAMS_H

#include "engine/train/block.h"

struct params;
struct source;

int params_open(struct params **ret, struct source *src, struct error *err);
void params_close(struct params *p); /* NULL is allowed */

/* A block's own copy of its parameters; the same shapes as in struct block_weights. */
struct params_block {
    float *linear[ROLE_COUNT], *bias[ROLE_COUNT], *norm_w[BLOCK_NORMS], *norm_b[BLOCK_NORMS];
};
int params_block_read(struct params_block *ret, struct params *p, int layer, struct error *err);
/* All but the binary-coded matrices, which stay NULL for who expands them otherwise. */
int params_block_read_rest(struct params_block *ret, struct params *p, int layer,
                           struct error *err);
void params_block_free(struct params_block *block); /* zeroed is allowed */
struct block_weights params_block_view(const struct params_block *block);

/* What comes before the first block and after the last; NULL where the model has no such part. */
struct params_ends {
    float *embed;                       /* (vocab, embed_dim) */
    float *positions;                   /* (max_positions + position_offset, hidden) */
    float *embed_norm_w, *embed_norm_b; /* (hidden) */
    float *project_in;                  /* (hidden, embed_dim) */
    float *final_norm_w, *final_norm_b; /* (hidden) */
    float *project_out;                 /* (embed_dim, hidden) */
    float *head;                        /* (vocab, embed_dim); embed itself when tied */
};
int params_ends_read(struct params_ends *ret, struct params *p, struct error *err);
void params_ends_free(struct params_ends *ends); /* zeroed is allowed */

/* Base name in a checkpoint of a linear layer, as model_linear_name(); of a norm with its suffix,
 * "model.layers.0.input_layernorm.weight". */
void params_linear_name(const struct params *p, int layer, enum model_role role, char *name,
                        size_t size);
void params_norm_name(const struct params *p, int layer, enum block_norm norm, const char *suffix,
                      char *name, size_t size);
void params_final_norm_name(const struct params *p, const char *suffix, char *name, size_t size);

#endif
