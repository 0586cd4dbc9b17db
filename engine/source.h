/* source.h - gives a model's config, tensors and texts, whatever holds them.
 *
 * Owns      the mappings and tables; everything it hands out lives until source_close().
 * Borrows   memory images until source_close().
 * Thread    any: an open source does not change; source_release() is only a hint to the system.
 * Fails     opening: -EBADMSG and -ENOTSUP naming the file and the field, -ENOENT, -ENOMEM.
 * Cost      open reads headers and the parameters of binary-coded blocks; weights are mapped.
 *
 * A source is a directory in Hugging Face form (dense, or with binary-coded tensors of our own,
 * see engine/CHECKPOINT.md), a GGUF file of the llama architecture, or either in memory. Tensors
 * have the names, shapes and row order of the Hugging Face form in all of them. */
#ifndef ENGINE_SOURCE_H
#define ENGINE_SOURCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/sha256.h"
#include "kernels/outliers.h"
#include "kernels/rotation.h"
#include "kernels/weights.h"

struct error;
struct gguf_quants_type;
struct gguf_vocab;
struct model_config;
struct source;

enum { SOURCE_MAX_DIMS = 8 };

enum source_kind {
    SOURCE_F32,
    SOURCE_F16,
    SOURCE_BF16,
    SOURCE_GGUF,  /* a block-quantized type of GGUF */
    SOURCE_CODED, /* a BCQ block; shape is that of the matrix */
    SOURCE_SIDE,  /* what belongs beside a BCQ block of the same base name; not read by itself */
    SOURCE_OTHER  /* integers and the like: listed, not read */
};

struct source_tensor {
    const char *name;
    enum source_kind kind;
    const char *type_name; /* "BF16", "Q4_K", "BCQ" */
    int n_dims;
    uint64_t shape[SOURCE_MAX_DIMS];
    int64_t rows, cols; /* the last dimension is cols; rows 1 for a vector */
    uint64_t n_bytes;
    const void *data; /* F32, F16, BF16: (rows, cols), aligned; NULL when it cannot be used in
                         place (other kinds, rows to be reordered, odd addresses) */
    bool is_bcq;
    struct bcq_view bcq;                  /* when is_bcq */
    const struct outliers_view *outliers; /* when is_bcq; NULL without */
    const struct rotation_view *rotation;

    /* For source.c. */
    const uint8_t *stored;
    int file;
    int rope_dim; /* rows alternate in heads of this many, see gguf_llama.h; 0 = they do not */
    const struct gguf_quants_type *expand; /* row of the type; NULL for CODED, SIDE and OTHER */
    struct outliers_view side;             /* when kind is SIDE: outliers, */
    struct rotation_view turn;             /* or with cols > 0 rotations */
};

/* A file in memory; bytes at a multiple of 64, so that binary-coded blocks are aligned. */
struct source_file {
    const char *name; /* "config.json", "model.safetensors", ... or "NAME.gguf" */
    const void *bytes;
    size_t n;
};

int source_open(struct source **ret, const char *path, struct error *err);
int source_open_memory(struct source **ret, const struct source_file *files, int n,
                       struct error *err);
void source_close(struct source *src); /* NULL is allowed */

const struct model_config *source_config(const struct source *src);

/* The tokenizer's parts in a GGUF file; NULL for the other form, which has tokenizer.json. */
const struct gguf_vocab *source_vocab(const struct source *src);

/* The bytes of "config.json", "generation_config.json", "tokenizer.json",
 * "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja" or
 * "layer_errors.json"; -ENOENT, without a text in any error, when there is no such file. */
int source_file_text(const struct source *src, const char *name, const char **ret, size_t *ret_n);

/* -ENOENT when there is none. Names are exact: "model.layers.0.mlp.up_proj.weight", or ".bcq". */
int source_find(const struct source *src, const char *name, struct source_tensor *ret);

/* All tensors, by name. */
size_t source_count(const struct source *src);
const struct source_tensor *source_at(const struct source *src, size_t i);

/* Bytes of all tensors as stored. */
size_t source_bytes(const struct source *src);

/* Whether t->data can be used in place, and its type. */
bool source_dense_type(const struct source_tensor *t, enum dtype *ret);

/* dst: (n_rows, cols). Every kind but SOURCE_SIDE and SOURCE_OTHER (-ENOTSUP). */
int source_read_rows(const struct source *src, const struct source_tensor *t, int64_t row0,
                     int64_t n_rows, float *dst, struct error *err);

/* Lets the system drop the pages that hold the tensor. */
void source_release(const struct source *src, const struct source_tensor *t);

/* SHA-256 over the bytes of the weight files, one after the other by name: of a model in one
 * file it is what sha256sum prints. Reads everything. */
void source_hash(const struct source *src, char hex[SHA256_HEX]);

#endif
