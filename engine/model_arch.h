/* model_arch.h - the table of architectures that the forward pass reads.
 *
 * Owns      nothing; rows are constant.
 * Borrows   nothing.
 * Thread    any.
 * Fails     never; config.c has refused unknown architectures.
 * Cost      none.
 *
 * A new architecture is a new row here (and its hyper-parameters in config.c), never a second
 * forward pass. Tensor names are those of the Hugging Face files; a file may put one of
 * `prefixes` before them. */
#ifndef ENGINE_MODEL_ARCH_H
#define ENGINE_MODEL_ARCH_H

#include <stdbool.h>

#include "engine/config.h"
#include "engine/model.h"

enum arch_norm { NORM_RMS, NORM_LAYER };
enum arch_positions { POSITIONS_ROPE, POSITIONS_LEARNED, POSITIONS_ALIBI };
enum arch_ffn { FFN_GATED_SILU, FFN_PLAIN };

struct arch_row {
    enum config_arch id;
    const char *prefixes[4]; /* tried in order; NULL ends */
    enum arch_norm norm;
    enum arch_positions positions;
    enum arch_ffn ffn;
    /* One matrix holds Q, K, V, rows ordered (head, q|k|v, head_dim). */
    const char *fused_qkv;

    const char *embed, *embed_positions, *embed_norm, *project_in;
    const char *final_norm, *project_out, *head;
    const char *attn_norm, *ffn_norm; /* "%d" is the layer */
    const char *linear[ROLE_COUNT];   /* "%d" is the layer; NULL = the block has none */
};

const struct arch_row *model_arch_find(enum config_arch id);

#endif
