#include "engine/gguf_llama.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/config.h"
#include "engine/gguf.h"
#include "kernels/error.h"

/* Sizes that shapes are made of. */
enum size { ONE, HIDDEN, WIDE, QUERY, KEY, VOCAB };

struct row {
    const char *stored, *original; /* without ".weight"; blocks' rows follow "blk.N." */
    enum size rows, cols;          /* rows ONE: a vector */
};

static const struct row ends[] = {
    {"token_embd", "model.embed_tokens", VOCAB, HIDDEN},
    {"output_norm", "model.norm", ONE, HIDDEN},
    {"output", "lm_head", VOCAB, HIDDEN},
};

static const struct row blocks[] = {
    {"attn_norm", "input_layernorm", ONE, HIDDEN},
    {"attn_q", "self_attn.q_proj", QUERY, HIDDEN},
    {"attn_k", "self_attn.k_proj", KEY, HIDDEN},
    {"attn_v", "self_attn.v_proj", KEY, HIDDEN},
    {"attn_output", "self_attn.o_proj", HIDDEN, QUERY},
    {"ffn_norm", "post_attention_layernorm", ONE, HIDDEN},
    {"ffn_gate", "mlp.gate_proj", WIDE, HIDDEN},
    {"ffn_up", "mlp.up_proj", WIDE, HIDDEN},
    {"ffn_down", "mlp.down_proj", HIDDEN, WIDE},
};

enum { N_ENDS = sizeof ends / sizeof *ends, N_BLOCKS = sizeof blocks / sizeof *blocks };

static uint64_t size_of(enum size size, const struct model_config *c) {
    const int sizes[] = {
        1,       c->hidden, c->intermediate, c->n_heads * c->head_dim, c->n_kv_heads * c->head_dim,
        c->vocab};
    return (uint64_t)sizes[size];
}

/* Finds the row whose name comes before the last dot. */
static const struct row *find(const struct row *rows, size_t n, const char *name,
                              const char *suffix) {
    size_t length = (size_t)(suffix - name);
    for (size_t i = 0; i < n; i++)
        if (strlen(rows[i].stored) == length && !memcmp(rows[i].stored, name, length))
            return &rows[i];
    return NULL;
}

bool gguf_llama_name(char dst[GGUF_LLAMA_NAME], int *rope_heads, const char *name,
                     const struct model_config *config) {
    const char *suffix = strrchr(name, '.');
    const struct row *row = NULL;
    *rope_heads = 0;
    if (suffix && !strncmp(name, "blk.", 4)) {
        char *rest;
        long layer = strtol(name + 4, &rest, 10);
        if (*rest == '.' && rest < suffix && layer >= 0 && layer < config->n_layers)
            row = find(blocks, N_BLOCKS, rest + 1, suffix);
        if (row)
            snprintf(dst, GGUF_LLAMA_NAME, "model.layers.%ld.%s%s", layer, row->original, suffix);
        if (row && row->rows == QUERY) *rope_heads = config->n_heads;
        if (row && row->rows == KEY && !strcmp(row->stored, "attn_k"))
            *rope_heads = config->n_kv_heads;
    } else if (suffix) {
        row = find(ends, N_ENDS, name, suffix);
        if (row) snprintf(dst, GGUF_LLAMA_NAME, "%s%s", row->original, suffix);
    }
    if (!row) snprintf(dst, GGUF_LLAMA_NAME, "%s", name);
    return row != NULL;
}

int64_t gguf_llama_row(int64_t row, int head_dim) {
    int64_t head = row / head_dim, i = row % head_dim, half = head_dim / 2;
    return head * head_dim + 2 * (i % half) + i / half;
}

int gguf_llama_count(const struct model_config *config) {
    return N_ENDS - config->tie_embeddings + config->n_layers * N_BLOCKS;
}

void gguf_llama_at(struct gguf_llama_tensor *ret, const struct model_config *config, int i) {
    /* The output matrix is the last of the ends: tied, it is left out. */
    int n_ends = N_ENDS - config->tie_embeddings, at = i - n_ends;
    const struct row *row = i < n_ends ? &ends[i] : &blocks[at % N_BLOCKS];
    *ret = (struct gguf_llama_tensor){.is_vector = row->rows == ONE,
                                      .rows = size_of(row->rows, config),
                                      .cols = size_of(row->cols, config)};
    if (i < n_ends)
        snprintf(ret->stored, sizeof ret->stored, "%s", row->stored);
    else
        snprintf(ret->stored, sizeof ret->stored, "blk.%d.%s", at / N_BLOCKS, row->stored);
    char name[GGUF_LLAMA_NAME + 8];
    snprintf(name, sizeof name, "%s.weight", ret->stored);
    gguf_llama_name(ret->original, &ret->rope_heads, name, config);
    *strrchr(ret->original, '.') = 0;
}

static int check_tensor(const struct gguf *g, const struct gguf_llama_tensor *want,
                        struct error *err) {
    char name[GGUF_LLAMA_NAME + 8];
    snprintf(name, sizeof name, "%s.weight", want->stored);
    const struct gguf_tensor *t = gguf_find_tensor(g, name);
    if (!t) return error_set(err, -EBADMSG, "tensor '%s' is missing", name);
    if (t->dims[0] == want->cols && t->dims[1] == want->rows && t->dims[2] * t->dims[3] == 1)
        return 0;
    return error_set(err, -EBADMSG,
                     "tensor '%s': dimensions %" PRIu64 " x %" PRIu64 ", the metadata need %" PRIu64
                     " x %" PRIu64,
                     name, t->dims[0], t->dims[1], want->cols, want->rows);
}

int gguf_llama_check(const struct gguf *g, const struct model_config *config, struct error *err) {
    int r = 0, n = gguf_llama_count(config);
    for (int i = 0; r == 0 && i < n; i++) {
        struct gguf_llama_tensor want;
        gguf_llama_at(&want, config, i);
        r = check_tensor(g, &want, err);
    }
    return r;
}
