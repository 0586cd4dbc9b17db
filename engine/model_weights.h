/* model_weights.h - loads a model's tensors into a back end, by the architecture's table.
 *
 * Owns      the packed weights.
 * Borrows   the back end and the source until model_weights_close().
 * Thread    the back end's.
 * Fails     -EBADMSG names a tensor that is missing or misshapen; -ENOMEM; -ECANCELED.
 * Cost      loading reads every weight once and gives the source's pages back behind it.
 *
 * A linear layer is taken from NAME.bcq when there is one, else from NAME.weight. Q, K and V of
 * an architecture with one fused matrix are split here, so that everything after sees three. */
#ifndef ENGINE_MODEL_WEIGHTS_H
#define ENGINE_MODEL_WEIGHTS_H

#include "engine/model.h"
#include "engine/model_arch.h"

struct model_norm {
    struct weight *w, *b; /* (1, dim); w NULL: there is no such norm, b NULL: RMSNorm */
    int dim;
};

struct model_layer {
    struct model_norm attn_norm, ffn_norm;
    struct weight *linear[ROLE_COUNT], *bias[ROLE_COUNT];
};

struct model_weights {
    struct backend *be;
    struct source *src;
    const struct model_config *config;
    const struct arch_row *arch;
    const char *prefix; /* the one that this file uses */

    struct weight *embed;           /* (vocab, embed_dim) table */
    struct weight *embed_positions; /* NULL unless positions are learned */
    struct weight *project_in, *project_out;
    struct weight *head; /* (vocab, embed_dim) linear */
    struct model_norm embed_norm, final_norm;
    struct model_layer *layers; /* (n_layers) */

    int act_bits;       /* of coded matrices */
    size_t bytes;       /* packed so far */
    size_t read, total; /* bytes of the source's tensors, for progress */
    model_progress *progress;
    void *progress_arg;
};

int model_weights_open(struct model_weights *w, struct backend *be, struct source *src,
                       const struct model_options *options, struct error *err);
void model_weights_close(struct model_weights *w); /* half-opened is allowed */

/* Names and shapes alone, without a back end: what model_weights_shape(), _read(), _name() and
 * _tensor_name() need. Nothing to close. */
int model_weights_names(struct model_weights *w, struct source *src, struct error *err);
/* The prefix, one of the architecture's patterns for a layer, and a suffix such as ".weight". */
void model_weights_tensor_name(const struct model_weights *w, const char *pattern, int layer,
                               const char *suffix, char *name, size_t size);

/* Base name of the output matrix, which is the embedding where they are tied. */
void model_weights_output_name(const struct model_weights *w, char *name, size_t size);

int model_weights_load_layer(struct model_weights *w, int layer, struct error *err);
void model_weights_drop_layer(struct model_weights *w, int layer);

/* How devices share a block's matrix and its bias: each has its heads, or its columns of the wide part,
 * and what it makes of them is summed up. */
enum weight_split model_weights_split(enum model_role role);

size_t model_weights_bytes(const struct model_weights *w);
bool model_weights_shape(const struct model_weights *w, enum model_role role, int *ret_rows,
                         int *ret_cols);
int model_weights_read(struct model_weights *w, int layer, enum model_role role, float *dst,
                       struct error *err);
int model_weights_replace(struct model_weights *w, int layer, enum model_role role,
                          const struct weight_view *view, struct error *err);
void model_weights_name(const struct model_weights *w, int layer, enum model_role role, char *name,
                        size_t size);

/* -- Vectors, in model_vectors.c; see model.h ------------------------------------------------ */

int model_weights_vector_size(const struct model_weights *w, enum model_vector v);
int model_weights_read_vector(struct model_weights *w, int layer, enum model_vector v, float *dst,
                              struct error *err);
int model_weights_replace_vector(struct model_weights *w, int layer, enum model_vector v,
                                 const float *values, struct error *err);
void model_weights_vector_name(const struct model_weights *w, int layer, enum model_vector v,
                               char *name, size_t size);

/* One role's part of a fused bias: dst (rows of the role). */
int model_weights_read_fused_bias(struct model_weights *w, int layer, enum model_role role,
                                  float *dst, struct error *err);

#endif
