/* quantize.h - quantizes a model into a checkpoint, block by block.
 *
 * Owns      nothing beyond the call.
 * Borrows   the source, options and events during the call.
 * Thread    one; work inside is spread over options.layer.n_threads.
 * Fails     -EINVAL (an option), -ENOTSUP (the source is coded already), -ECANCELED (stopped as
 *           asked), and what its parts fail with; tensors are named.
 * Cost      memory of one block, the hidden states of the calibration text (or a file), second
 *           moments of one block's inputs; time mostly the forward passes over the text.
 *
 * Every matrix is written as soon as it is made. A run that was interrupted, by whatever, goes on
 * where it stopped when started again with the same options, and the result is the same to the
 * byte. */
#ifndef ENGINE_QUANT_QUANTIZE_H
#define ENGINE_QUANT_QUANTIZE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/model.h"
#include "engine/quant/blockwise.h"
#include "engine/quant/layer.h"
#include "engine/quant/moments.h"
#include "engine/quant/parts.h"
#include "engine/quant/sensitivity.h"

struct error;
struct source;

enum quantize_stage {
    QUANTIZE_WRITING_TEXT, /* tokens of calibration text that the model has written */
    QUANTIZE_BLOCKS,       /* blocks done, with fractions */
    QUANTIZE_SENSITIVITIES /* blocks whose matrices were tried with all numbers of bits */
};

struct quantize_matrix {
    const char *name; /* "model.layers.0.self_attn.q_proj" */
    int layer, rows, cols;
    double decibels; /* loss on the damped second moments, relative to the output's energy */
    bool resumed;    /* made by an earlier run */
};

struct quantize_events {
    void (*progress)(void *arg, enum quantize_stage stage, double done, double total);
    void (*matrix)(void *arg, const struct quantize_matrix *matrix);
    void (*note)(void *arg, const char *text); /* something that the user should know */
    void *arg;
};

/* What a matrix is to reproduce. */
enum quantize_target {
    QUANTIZE_WEIGHTS, /* its own outputs on the inputs that it will see */
    QUANTIZE_OUTPUT,  /* the original model's outputs, from the inputs that it will see */
    QUANTIZE_BLOCK    /* the same, and down the states that the original's block leaves */
};

/* With 8 bits rounded inputs measured better, with 4 plain ones (README.md). */
enum quantize_moments {
    QUANTIZE_MOMENTS_DEFAULT,
    QUANTIZE_MOMENTS_PLAIN,
    QUANTIZE_MOMENTS_ROUNDED
};

struct quantize_options {
    enum parts_codec codec;           /* how blocks are stored */
    struct sensitivity_options mixed; /* bits of each matrix; with a budget, layer.bits is unused */
    struct layer_options layer;
    struct blockwise_options blockwise;
    struct backend_options backend;
    const char *calibration; /* UTF-8 text file; NULL: the model writes its own */
    int output_bits; /* of the output matrix: 16 (or 0) as it is, 8, 6, 4 as output.h says */
    int act_bits;    /* inputs of the coded matrices when they run: 16, 8, 4; 0 = 16 */
    enum quantize_moments moments; /* of which inputs; counts below 16 act bits */
    int windows;                   /* 0 = 64; fewer when the text is short */
    int ctx;        /* tokens of a window; 0 = 1024 (own text: 512), or the model's limit */
    uint64_t seed;  /* of the own text */
    bool is_static; /* inputs come from the unquantized model, not from the coded blocks */
    enum quantize_target target;
    double target_share;        /* of the way there, up to 1; 0 = 0.25, with QUANTIZE_BLOCK 0.3 */
    enum moments_tokens tokens; /* how tokens count in the second moments */
    const char *moments_folder; /* second moments are kept there, see moments_file.h; static inputs
                                   only. NULL: nowhere */
    bool force;                 /* replace whatever is at the output path */
    size_t state_memory;        /* bytes of hidden states kept in memory; 0 = 2 GiB */
    int stop_after;             /* blocks; then -ECANCELED. 0 = do all */
    int first_block; /* only blocks first_block .. end_block - 1, as a part that merge.h joins; */
    int end_block;   /* static inputs only. 0 = to the last */
};

struct quantize_summary {
    int n_layers, windows, ctx; /* blocks: of the part that was made */
    bool own_text;
    bool has_role[ROLE_COUNT];
    double decibels[ROLE_COUNT]; /* mean over the blocks */
    double bits_per_weight;      /* of the coded matrices, everything included */
    int64_t n_weights;
};

void quantize_defaults(struct quantize_options *options);

int quantize_run(struct quantize_summary *ret, const char *out, struct source *src,
                 const struct quantize_options *options, const struct quantize_events *events,
                 struct error *err);

/* "gptqt", "compact", "q": as flags, files and tables name them; NULL past the last. */
const char *quantize_method_name(enum layer_method method);
const char *quantize_kind_name(enum bcq_kind kind);
const char *quantize_weighting_name(enum layer_weighting weighting);
const char *quantize_target_name(enum quantize_target target);
const char *quantize_tokens_name(enum moments_tokens tokens);
const char *quantize_moments_name(enum quantize_moments moments);
const char *quantize_incoherence_name(enum layer_incoherence incoherence);
const char *quantize_role_name(enum model_role role);

#endif
