/* model.h - runs one decoder over batches of tokens on a back end.
 *
 * Owns      its packed weights, activation buffers and KV pool on the back end.
 * Borrows   the back end and the source until model_close().
 * Thread    the back end's.
 * Fails     opening: -EBADMSG (a tensor is missing or has a wrong shape; named), -ENOMEM. After
 *           that only reading results can fail, when a device is lost.
 * Cost      forward is one pass over the weights per batch; nothing is allocated in it.
 *
 * Every architecture is a row of a table (model_arch.c): names of tensors, kind of norm, of
 * positions and of feed-forward part. The forward pass is written once over that row. Its
 * results for a token depend on the tokens of its own sequence alone, not on the batch. */
#ifndef ENGINE_MODEL_H
#define ENGINE_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/backend.h"

struct error;
struct model;
struct model_config;
struct source;

/* The linear layers of a block, by what they do; a block has those its architecture names. */
enum model_role { ROLE_Q, ROLE_K, ROLE_V, ROLE_O, ROLE_GATE, ROLE_UP, ROLE_DOWN, ROLE_COUNT };

/* How far loading has come: bytes read of all the source has, bytes packed of them so far. False
 * stops it: model_open() fails with -ECANCELED. */
typedef bool model_progress(void *arg, size_t read, size_t total, size_t packed);

/* The vectors of a block and of the last norm. VECTOR_BIAS + role is the bias of a linear layer. */
enum model_vector {
    VECTOR_ATTN_NORM,
    VECTOR_ATTN_NORM_BIAS,
    VECTOR_FFN_NORM,
    VECTOR_FFN_NORM_BIAS,
    VECTOR_FINAL_NORM, /* whatever the layer */
    VECTOR_FINAL_NORM_BIAS,
    VECTOR_BIAS,
    VECTOR_COUNT = VECTOR_BIAS + ROLE_COUNT
};

struct model_options {
    enum dtype kv_type;       /* DTYPE_F16 to serve, DTYPE_F32 to compare with references,
                                 DTYPE_I8 for long contexts on the CPU */
    int max_batch_tokens;     /* tokens of one forward() at most */
    int max_logit_rows;       /* rows of one logits() at most */
    int n_kv_blocks;          /* KV pool, in blocks of BACKEND_KV_BLOCK tokens; 0: none yet */
    int act_bits;             /* of the inputs of coded matrices: 16, 8, 4; 0: as the source says */
    bool layers_on_demand;    /* load blocks with model_load_layer() (the quantizer's way) */
    model_progress *progress; /* after each tensor; may be NULL */
    void *progress_arg;
};

int model_open(struct model **ret, struct backend *be, struct source *src,
               const struct model_options *options, struct error *err);
void model_close(struct model *m); /* NULL is allowed */

const struct model_config *model_get_config(const struct model *m);

/* The KV pool of a model that was opened without: how large it may be can depend on what the
 * packed weights leave. */
int model_make_kv(struct model *m, int n_blocks, struct error *err);

/* Takes ahead what steps need on a device besides weights, buffers and pool: of up to
 * max_batch_tokens tokens of n_seqs sequences of up to context positions. Before model_make_kv(). */
int model_reserve(struct model *m, int n_seqs, int context, struct error *err);

/* Bytes of the activation buffers. */
size_t model_work_bytes(const struct model *m);
/* Bytes on the back end: packed weights, KV pool. */
size_t model_weight_bytes(const struct model *m);
/* Of these, what every decode step reads: all but the tables that rows are looked up in. */
size_t model_decode_bytes(const struct model *m);
size_t model_kv_bytes(const struct model *m);
size_t model_kv_block_bytes(const struct model_config *config, enum dtype kv_type);

/* Runs the batch through every block: ids must lie in the vocabulary, positions below the
 * context length, blocks in the pool. The hidden state stays in the model. */
void model_forward(struct model *m, const struct batch *batch);

/* Logits of some tokens of the last batch: rows (n_rows) index its tokens,
 * logits: (n_rows, vocab). Waits. */
int model_logits(struct model *m, float *logits, const int32_t *rows, int n_rows,
                 struct error *err);

/* Whether the back end can choose the best token, and the ids of it for the same rows, at most
 * max_logit_rows: no logits travel. As the sampler does at temperature 0. */
bool model_can_choose(const struct model *m);
int model_best(struct model *m, int32_t *ids, const int32_t *rows, int n_rows, struct error *err);

/* Whether it can tell rows in short, and these rows so, at most max_logit_rows: call's x and width are
 * filled in. Until the next batch or rows, columns of one of them are there to be read. */
bool model_can_shorten(const struct model *m);
int model_top(struct model *m, struct top_call *call, const int32_t *rows, struct error *err);
int model_columns(struct model *m, float *logits, int row, int first, int n, struct error *err);

/* The final hidden state (after the last norm, before the output matrix) of the same rows. */
int model_hidden(struct model *m, float *hidden, const int32_t *rows, int n_rows,
                 struct error *err);

/* -- Block by block, for the quantizer ------------------------------------------------------- */

/* What a tap sees: the input of Q, K, V; of O; of GATE, UP; of DOWN. x: (n, width) host memory,
 * valid during the call. */
typedef void model_tap(void *arg, int layer, enum model_role role, const float *x, int n,
                       int width);
/* Only for a model opened with layers_on_demand; NULL takes it off. */
void model_set_tap(struct model *m, model_tap *tap, void *arg);

int model_load_layer(struct model *m, int layer, struct error *err);
void model_drop_layer(struct model *m, int layer);

/* begin() and embed() start a batch; layer() runs one block on the hidden state, which
 * read_state() and write_state() move to and from x: (n_tokens, hidden). */
void model_begin(struct model *m, const struct batch *batch);
void model_embed(struct model *m);
void model_layer(struct model *m, int layer);
int model_read_state(struct model *m, float *x, struct error *err);
void model_write_state(struct model *m, const float *x);

/* Shape of a linear layer; false where the block has none of that role. */
bool model_linear_shape(const struct model *m, enum model_role role, int *ret_rows, int *ret_cols);
/* The source's weights in fp32, w: (rows, cols). */
int model_read_linear(struct model *m, int layer, enum model_role role, float *w,
                      struct error *err);
/* Runs on these weights from now on (until the layer is dropped). */
int model_replace_linear(struct model *m, int layer, enum model_role role,
                         const struct weight_view *view, struct error *err);

/* Elements of a vector; 0 where the architecture has none of the kind. A linear layer may have a
 * bias whose tensor the source lacks: reading it then fails with -ENOENT. */
int model_vector_size(const struct model *m, enum model_vector v);
int model_read_vector(struct model *m, int layer, enum model_vector v, float *values,
                      struct error *err);
/* Runs on these values from now on, the layer being loaded. */
int model_replace_vector(struct model *m, int layer, enum model_vector v, const float *values,
                         struct error *err);
/* Name of its tensor in a checkpoint; of a fused bias that of the part, which readers prefer. */
void model_vector_name(const struct model *m, int layer, enum model_vector v, char *name,
                       size_t size);

/* Base name in a checkpoint: the matrix is NAME.weight when dense, NAME.bcq when coded. */
void model_linear_name(const struct model *m, int layer, enum model_role role, char *name,
                       size_t size);

/* The same of the output matrix, which is the embedding where they are tied. */
void model_output_name(const struct model *m, char *name, size_t size);

#endif
