/* config.h - describes a model by its hyper-parameters.
 *
 * Owns      nothing; struct model_config is plain memory and may be copied.
 * Borrows   the texts or the GGUF file during the call.
 * Thread    any.
 * Fails     -EBADMSG naming the field and its range, -ENOTSUP naming what is supported.
 * Cost      one JSON parse.
 *
 * A config that came from here has been checked as a whole: n_kv_heads divides n_heads, every
 * size is positive and below BCQ_MAX_DIM, token ids lie in the vocabulary. */
#ifndef ENGINE_CONFIG_H
#define ENGINE_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/backend.h"

struct error;
struct gguf;

enum config_arch { ARCH_LLAMA, ARCH_OPT, ARCH_BLOOM };

enum config_scaling {
    ROPE_PLAIN,
    ROPE_LINEAR, /* frequencies divided by factor */
    ROPE_LLAMA3, /* long waves divided by factor, see the four fields */
    ROPE_FACTORS /* frequency i divided by factors[i]: llama3 as GGUF files store it */
};

enum {
    CONFIG_MAX_LAYERS = 1024,
    CONFIG_MAX_HEADS = 4096,
    CONFIG_MAX_HEAD_DIM = 512,
    CONFIG_MAX_POSITIONS = 1 << 24,
    CONFIG_MAX_EOS = 8
};

struct config_rope {
    double theta;
    enum config_scaling scaling;
    double factor, low_freq_factor, high_freq_factor, original_positions;
    float factors[CONFIG_MAX_HEAD_DIM / 2]; /* (head_dim / 2), ROPE_FACTORS only */
};

/* What generation_config.json proposes; negative: it says nothing. */
struct config_generation {
    float temperature; /* 0..100 */
    float top_p;       /* 0..1 */
    float min_p;       /* 0..1 */
    int top_k;         /* 0 = off */
    int do_sample;     /* 0 or 1 */
};

/* From "quantization_config", whose other fields are for people (`gptqt inspect` shows them);
 * method is "" for a model that is not quantized. */
struct config_quantization {
    char method[32]; /* "gptqt", "gptq", "rtn", ... */
    int bits, group; /* group 0 = a whole row */
    char params[32]; /* "compact", "compact_group", "free" */
    int output_bits; /* of the output matrix, 16 = dense; its block says its own */
    int act_bits;    /* what coded matrices are multiplied by: 16 = as it is, 8, 4 = rounded */
};

struct model_config {
    enum config_arch arch;
    int hidden, n_layers, n_heads, n_kv_heads, head_dim, intermediate, vocab;
    int max_positions; /* context length */
    int embed_dim;     /* width of the embeddings: hidden, or less with projections (OPT) */
    float norm_eps;
    struct config_rope rope;    /* Llama */
    enum activation activation; /* OPT, BLOOM; ACT_NONE where the block is gated (SiLU) */
    bool tie_embeddings;
    bool attention_bias, mlp_bias; /* what the file says; a bias is there if its tensor is */
    bool final_norm;               /* a norm follows the last block */
    bool post_norm;                /* OPT: norms follow the sums instead of preceding the layers */
    bool residual_after_norm;      /* BLOOM: the residual is taken after the norm */
    int position_offset;           /* OPT: row of the table that holds position 0 */
    int32_t bos;                   /* -1 = none */
    int32_t eos[CONFIG_MAX_EOS];
    int n_eos;
    struct config_generation generation;
    struct config_quantization quantization;
};

/* text: config.json; generation: generation_config.json, NULL when there is none. End tokens
 * are generation's when it names any, else config.json's. */
int config_parse(struct model_config *ret, const void *text, size_t n, const void *generation,
                 size_t n_generation, struct error *err);

/* The vocabulary's size is that of the token list when the metadata do not say it. */
int config_from_gguf(struct model_config *ret, const struct gguf *g, struct error *err);

/* "llama", "opt", "bloom". */
const char *config_arch_name(enum config_arch arch);

#endif
