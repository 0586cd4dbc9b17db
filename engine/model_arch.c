#include "engine/model_arch.h"

#include <stddef.h>

static const struct arch_row rows[] = {
    {
        .id = ARCH_LLAMA,
        .prefixes = {"model.", "", NULL},
        .norm = NORM_RMS,
        .positions = POSITIONS_ROPE,
        .ffn = FFN_GATED_SILU,
        .embed = "embed_tokens",
        .final_norm = "norm",
        .head = "lm_head",
        .attn_norm = "layers.%d.input_layernorm",
        .ffn_norm = "layers.%d.post_attention_layernorm",
        .linear =
            {
                [ROLE_Q] = "layers.%d.self_attn.q_proj",
                [ROLE_K] = "layers.%d.self_attn.k_proj",
                [ROLE_V] = "layers.%d.self_attn.v_proj",
                [ROLE_O] = "layers.%d.self_attn.o_proj",
                [ROLE_GATE] = "layers.%d.mlp.gate_proj",
                [ROLE_UP] = "layers.%d.mlp.up_proj",
                [ROLE_DOWN] = "layers.%d.mlp.down_proj",
            },
    },
    {
        .id = ARCH_OPT,
        .prefixes = {"model.decoder.", "decoder.", NULL},
        .norm = NORM_LAYER,
        .positions = POSITIONS_LEARNED,
        .ffn = FFN_PLAIN,
        .embed = "embed_tokens",
        .embed_positions = "embed_positions",
        .project_in = "project_in",
        .project_out = "project_out",
        .final_norm = "final_layer_norm",
        .head = "lm_head",
        .attn_norm = "layers.%d.self_attn_layer_norm",
        .ffn_norm = "layers.%d.final_layer_norm",
        .linear =
            {
                [ROLE_Q] = "layers.%d.self_attn.q_proj",
                [ROLE_K] = "layers.%d.self_attn.k_proj",
                [ROLE_V] = "layers.%d.self_attn.v_proj",
                [ROLE_O] = "layers.%d.self_attn.out_proj",
                [ROLE_UP] = "layers.%d.fc1",
                [ROLE_DOWN] = "layers.%d.fc2",
            },
    },
    {
        .id = ARCH_BLOOM,
        .prefixes = {"transformer.", "", NULL},
        .norm = NORM_LAYER,
        .positions = POSITIONS_ALIBI,
        .ffn = FFN_PLAIN,
        .fused_qkv = "h.%d.self_attention.query_key_value",
        .embed = "word_embeddings",
        .embed_norm = "word_embeddings_layernorm",
        .final_norm = "ln_f",
        .head = "lm_head",
        .attn_norm = "h.%d.input_layernorm",
        .ffn_norm = "h.%d.post_attention_layernorm",
        .linear =
            {
                /* The parts of the fused matrix, under names of our own. */
                [ROLE_Q] = "h.%d.self_attention.query",
                [ROLE_K] = "h.%d.self_attention.key",
                [ROLE_V] = "h.%d.self_attention.value",
                [ROLE_O] = "h.%d.self_attention.dense",
                [ROLE_UP] = "h.%d.mlp.dense_h_to_4h",
                [ROLE_DOWN] = "h.%d.mlp.dense_4h_to_h",
            },
    },
};

const struct arch_row *model_arch_find(enum config_arch id) {
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (rows[i].id == id) return &rows[i];
    return NULL;
}
