#include "engine/config.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/fields.h"
#include "engine/gguf.h"
#include "kernels/error.h"

static void take_sizes(struct fields *f, struct model_config *c) {
    c->hidden = (int)fields_int(f, "llama.embedding_length", 1, BCQ_MAX_DIM, FIELDS_REQUIRED);
    c->n_layers = (int)fields_int(f, "llama.block_count", 1, CONFIG_MAX_LAYERS, FIELDS_REQUIRED);
    c->n_heads =
        (int)fields_int(f, "llama.attention.head_count", 1, CONFIG_MAX_HEADS, FIELDS_REQUIRED);
    c->n_kv_heads =
        (int)fields_int(f, "llama.attention.head_count_kv", 1, CONFIG_MAX_HEADS, c->n_heads);
    c->intermediate =
        (int)fields_int(f, "llama.feed_forward_length", 1, BCQ_MAX_DIM, FIELDS_REQUIRED);
    c->max_positions =
        (int)fields_int(f, "llama.context_length", 1, CONFIG_MAX_POSITIONS, FIELDS_REQUIRED);
    c->norm_eps = (float)fields_real(f, "llama.attention.layer_norm_rms_epsilon", 0, 1, NAN);
    c->embed_dim = c->hidden;
    c->final_norm = true;
    if (fields_int(f, "llama.expert_count", 0, INT32_MAX, 0))
        fields_fail(f, -ENOTSUP, "llama.expert_count: mixtures of experts are not supported");
}

static void take_heads(struct fields *f, struct model_config *c) {
    int head_dim = c->hidden % c->n_heads ? 0 : c->hidden / c->n_heads;
    head_dim = (int)fields_int(f, "llama.attention.key_length", 2, CONFIG_MAX_HEAD_DIM, head_dim);
    if (head_dim < 2 || head_dim > CONFIG_MAX_HEAD_DIM || head_dim % 2)
        fields_fail(f, -EBADMSG,
                    "llama.attention.head_count %d: embedding_length %d over it must "
                    "be an even number in 2..%d",
                    c->n_heads, c->hidden, CONFIG_MAX_HEAD_DIM);
    if (fields_int(f, "llama.attention.value_length", 1, INT32_MAX, head_dim) != head_dim)
        fields_fail(f, -ENOTSUP, "llama.attention.value_length differs from key_length");
    if (fields_int(f, "llama.rope.dimension_count", 1, INT32_MAX, head_dim) != head_dim)
        fields_fail(f, -ENOTSUP, "llama.rope.dimension_count differs from the head's %d", head_dim);
    if (c->n_kv_heads > c->n_heads || c->n_heads % c->n_kv_heads)
        fields_fail(f, -EBADMSG, "llama.attention.head_count_kv %d does not divide head_count %d",
                    c->n_kv_heads, c->n_heads);
    if (head_dim * c->n_heads > BCQ_MAX_DIM)
        fields_fail(f, -EBADMSG, "llama.attention.head_count %d times %d: at most %d", c->n_heads,
                    head_dim, BCQ_MAX_DIM);
    c->head_dim = head_dim < 2 ? 2 : head_dim;
}

static void take_rope(struct fields *f, struct config_rope *rope) {
    rope->theta = fields_real(f, "llama.rope.freq_base", 1, 1e12, 10000);
    char type[16];
    fields_text(f, "llama.rope.scaling.type", type, sizeof type, "none");
    rope->factor = fields_real(f, "llama.rope.scaling.factor", 0, 1e4, 1);
    if (!strcmp(type, "linear")) {
        if (!(rope->factor >= 1))
            fields_fail(f, -EBADMSG, "llama.rope.scaling.factor %g: 1..10000", rope->factor);
        rope->scaling = ROPE_LINEAR;
    } else if (strcmp(type, "none") != 0) {
        fields_fail(f, -ENOTSUP, "llama.rope.scaling.type '%s': none and linear are supported",
                    type);
    }
}

/* Llama 3's scaling is stored as one divisor for each frequency. */
static void take_rope_factors(struct fields *f, struct model_config *c) {
    const struct gguf_tensor *t = gguf_find_tensor(f->gguf, "rope_freqs.weight");
    if (!t) return;
    if (t->type->type != GGUF_F32 || t->n_dims != 1 || t->dims[0] != (uint64_t)c->head_dim / 2) {
        fields_fail(f, -EBADMSG, "tensor 'rope_freqs.weight': F32 of %d elements is needed",
                    c->head_dim / 2);
        return;
    }
    c->rope.scaling = ROPE_FACTORS;
    gguf_quants_row(t->type, c->rope.factors, t->data, c->head_dim / 2);
    for (int i = 0; i < c->head_dim / 2; i++)
        if (!(c->rope.factors[i] > 0 && isfinite(c->rope.factors[i])))
            fields_fail(f, -EBADMSG, "tensor 'rope_freqs.weight': element %d is %g", i,
                        (double)c->rope.factors[i]);
}

/* End of text, end of turn, end of message: each ends a generation. */
static void take_tokens(struct fields *f, struct model_config *c) {
    static const char *const ends[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                       "tokenizer.ggml.eom_token_id"};
    const struct gguf_pair *tokens = gguf_find(f->gguf, "tokenizer.ggml.tokens");
    bool usable = tokens && tokens->n > 0 && tokens->n <= BCQ_MAX_DIM;
    int64_t n = usable ? (int64_t)tokens->n : FIELDS_REQUIRED;
    c->vocab = (int)fields_int(f, "llama.vocab_size", 1, BCQ_MAX_DIM, n);
    c->bos = (int32_t)fields_int(f, "tokenizer.ggml.bos_token_id", 0, c->vocab - 1, -1);
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        int32_t id = (int32_t)fields_int(f, ends[i], 0, c->vocab - 1, -1);
        bool known = id < 0;
        for (int k = 0; k < c->n_eos; k++) known |= c->eos[k] == id;
        if (!known) c->eos[c->n_eos++] = id;
    }
}

int config_from_gguf(struct model_config *ret, const struct gguf *g, struct error *err) {
    struct fields f = {.what = "metadata", .gguf = g, .err = err};
    char arch[64];
    fields_text(&f, "general.architecture", arch, sizeof arch, NULL);
    if (!f.code && strcmp(arch, "llama") != 0)
        fields_fail(&f, -ENOTSUP, "general.architecture '%s': llama is supported", arch);
    if (f.code) return f.code;
    struct model_config *c = calloc(1, sizeof *c);
    if (!c) return error_set(err, -ENOMEM, "metadata: out of memory");
    c->arch = ARCH_LLAMA;
    c->generation = (struct config_generation){-1, -1, -1, -1, -1};
    take_sizes(&f, c);
    take_heads(&f, c);
    take_rope(&f, &c->rope);
    if (!f.code) take_rope_factors(&f, c);
    take_tokens(&f, c);
    c->tie_embeddings = !gguf_find_tensor(g, "output.weight");
    c->attention_bias = gguf_find_tensor(g, "blk.0.attn_q.bias") != NULL;
    if (!f.code) *ret = *c;
    free(c);
    return f.code;
}
