#include "engine/config.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/fields.h"
#include "engine/json_guard.h"
#include "kernels/error.h"

static const struct json_guard_limits limits = {.max_depth = 16, .max_items = 1u << 16};

/* Ranges that several architectures share. */
enum { MAX_WIDTH = BCQ_MAX_DIM };

static const char *const arch_names[] = {
    [ARCH_LLAMA] = "llama", [ARCH_OPT] = "opt", [ARCH_BLOOM] = "bloom"};

const char *config_arch_name(enum config_arch arch) { return arch_names[arch]; }

static int required(struct fields *f, const char *key, int high) {
    return (int)fields_int(f, key, 1, high, FIELDS_REQUIRED);
}

/* The first of two names that is there; the other is an older or newer spelling. */
static int either(struct fields *f, const char *key, const char *other, int high) {
    return required(f, fields_has(f, key) || !fields_has(f, other) ? key : other, high);
}

static void check_heads(struct fields *f, const struct model_config *c) {
    if (c->n_kv_heads > c->n_heads || c->n_heads % c->n_kv_heads)
        fields_fail(f, -EBADMSG, "num_key_value_heads %d does not divide num_attention_heads %d",
                    c->n_kv_heads, c->n_heads);
    if (c->head_dim * c->n_heads > MAX_WIDTH)
        fields_fail(f, -EBADMSG, "head_dim %d times num_attention_heads %d: at most %d",
                    c->head_dim, c->n_heads, MAX_WIDTH);
}

/* hidden / n_heads, which must divide. */
static int default_head_dim(struct fields *f, const struct model_config *c) {
    if (c->hidden % c->n_heads || c->hidden / c->n_heads > CONFIG_MAX_HEAD_DIM) {
        fields_fail(f, -EBADMSG, "hidden_size %d over num_attention_heads %d: an integer in 1..%d",
                    c->hidden, c->n_heads, CONFIG_MAX_HEAD_DIM);
        return 1;
    }
    return c->hidden / c->n_heads;
}

/* rope_scaling as first published has "type", then "rope_type"; rope_parameters, which follows
 * it, holds rope_theta as well. */
static void take_rope(struct fields *f, struct config_rope *rope) {
    const json_t *scaling = json_object_get(f->json, "rope_scaling");
    if (!json_is_object(scaling)) scaling = json_object_get(f->json, "rope_parameters");
    struct fields s = {.what = "config.json: rope_scaling", .json = scaling, .err = f->err};
    double theta = fields_real(f, "rope_theta", 1, 1e12, 10000);
    rope->theta = fields_real(&s, "rope_theta", 1, 1e12, theta);
    rope->factor = fields_real(&s, "factor", 1, 1e4, 1);

    char type[16];
    fields_text(&s, "rope_type", type, sizeof type, "");
    if (!*type) fields_text(&s, "type", type, sizeof type, "default");
    if (!strcmp(type, "linear")) {
        rope->scaling = ROPE_LINEAR;
    } else if (!strcmp(type, "llama3")) {
        rope->scaling = ROPE_LLAMA3;
        rope->factor = fields_real(&s, "factor", 1, 1e4, NAN);
        rope->low_freq_factor = fields_real(&s, "low_freq_factor", 1e-3, 1e6, NAN);
        rope->high_freq_factor = fields_real(&s, "high_freq_factor", 1e-3, 1e6, NAN);
        rope->original_positions =
            required(&s, "original_max_position_embeddings", CONFIG_MAX_POSITIONS);
        if (rope->high_freq_factor <= rope->low_freq_factor)
            fields_fail(&s, -EBADMSG, "high_freq_factor must exceed low_freq_factor");
    } else if (strcmp(type, "default") != 0) {
        fields_fail(&s, -ENOTSUP, "type '%s': default, linear and llama3 are supported", type);
    }
    if (s.code && !f->code) f->code = s.code;
}

static void take_llama(struct fields *f, struct model_config *c) {
    c->hidden = required(f, "hidden_size", MAX_WIDTH);
    c->n_layers = required(f, "num_hidden_layers", CONFIG_MAX_LAYERS);
    c->n_heads = required(f, "num_attention_heads", CONFIG_MAX_HEADS);
    c->n_kv_heads = (int)fields_int(f, "num_key_value_heads", 1, CONFIG_MAX_HEADS, c->n_heads);
    c->intermediate = required(f, "intermediate_size", MAX_WIDTH);
    c->max_positions = (int)fields_int(f, "max_position_embeddings", 1, CONFIG_MAX_POSITIONS, 2048);
    c->head_dim = (int)fields_int(f, "head_dim", 2, CONFIG_MAX_HEAD_DIM, 0);
    if (!c->head_dim) c->head_dim = default_head_dim(f, c);
    if (c->head_dim % 2)
        fields_fail(f, -EBADMSG, "head_dim %d: must be even for rotary positions", c->head_dim);
    c->norm_eps = (float)fields_real(f, "rms_norm_eps", 0, 1, 1e-6);
    c->tie_embeddings = fields_bool(f, "tie_word_embeddings", false);
    c->attention_bias = fields_bool(f, "attention_bias", false);
    c->mlp_bias = fields_bool(f, "mlp_bias", false);
    c->final_norm = true;
    c->embed_dim = c->hidden;
    take_rope(f, &c->rope);

    char act[32];
    fields_text(f, "hidden_act", act, sizeof act, "silu");
    if (strcmp(act, "silu") != 0 && strcmp(act, "swish") != 0)
        fields_fail(f, -ENOTSUP, "hidden_act '%s': silu is supported", act);
}

static void take_opt(struct fields *f, struct model_config *c) {
    c->hidden = required(f, "hidden_size", MAX_WIDTH);
    c->n_layers = required(f, "num_hidden_layers", CONFIG_MAX_LAYERS);
    c->n_heads = c->n_kv_heads = required(f, "num_attention_heads", CONFIG_MAX_HEADS);
    c->head_dim = default_head_dim(f, c);
    c->intermediate = required(f, "ffn_dim", MAX_WIDTH);
    c->max_positions = (int)fields_int(f, "max_position_embeddings", 1, CONFIG_MAX_POSITIONS, 2048);
    c->embed_dim = (int)fields_int(f, "word_embed_proj_dim", 1, MAX_WIDTH, c->hidden);
    c->norm_eps = 1e-5f; /* fixed in the architecture */
    c->tie_embeddings = fields_bool(f, "tie_word_embeddings", true);
    c->attention_bias = c->mlp_bias = fields_bool(f, "enable_bias", true);
    c->post_norm = !fields_bool(f, "do_layer_norm_before", true);
    c->final_norm = !c->post_norm && !fields_bool(f, "_remove_final_layer_norm", false);
    c->position_offset = 2;
    if (!fields_bool(f, "layer_norm_elementwise_affine", true))
        fields_fail(f, -ENOTSUP, "layer_norm_elementwise_affine false is not supported");

    char act[32];
    fields_text(f, "activation_function", act, sizeof act, "relu");
    if (!strcmp(act, "relu"))
        c->activation = ACT_RELU;
    else if (!strcmp(act, "gelu_new") || !strcmp(act, "gelu_pytorch_tanh"))
        c->activation = ACT_GELU_TANH;
    else
        fields_fail(f, -ENOTSUP,
                    "activation_function '%s': relu, gelu_new and gelu_pytorch_tanh "
                    "are supported",
                    act);
}

static void take_bloom(struct fields *f, struct model_config *c) {
    c->hidden = either(f, "n_embed", "hidden_size", MAX_WIDTH / 4);
    c->n_layers = either(f, "n_layer", "num_hidden_layers", CONFIG_MAX_LAYERS);
    c->n_heads = c->n_kv_heads = either(f, "n_head", "num_attention_heads", CONFIG_MAX_HEADS);
    c->head_dim = default_head_dim(f, c);
    c->intermediate = (int)fields_int(f, "n_inner", 1, MAX_WIDTH, 4 * (int64_t)c->hidden);
    /* ALiBi has no table: the length is the one that it was trained with. */
    c->max_positions = (int)fields_int(f, "seq_length", 1, CONFIG_MAX_POSITIONS, 2048);
    c->embed_dim = c->hidden;
    c->norm_eps = (float)fields_real(f, "layer_norm_epsilon", 0, 1, 1e-5);
    c->tie_embeddings = fields_bool(f, "tie_word_embeddings", true);
    c->attention_bias = c->mlp_bias = true;
    c->residual_after_norm = fields_bool(f, "apply_residual_connection_post_layernorm", false);
    c->activation = ACT_GELU_TANH;
    c->final_norm = true;
}

static const struct {
    void (*take)(struct fields *f, struct model_config *c);
} readers[] = {[ARCH_LLAMA] = {take_llama}, [ARCH_OPT] = {take_opt}, [ARCH_BLOOM] = {take_bloom}};

static bool find_arch(enum config_arch *ret, const char *name) {
    for (size_t i = 0; i < sizeof arch_names / sizeof *arch_names; i++)
        if (!strcmp(name, arch_names[i])) {
            *ret = (enum config_arch)i;
            return true;
        }
    return false;
}

static void take_quantization(struct fields *f, struct config_quantization *q) {
    const json_t *object = json_object_get(f->json, "quantization_config");
    if (!object || json_is_null(object)) return;
    struct fields s = {.what = "config.json: quantization_config", .json = object, .err = f->err};
    if (!json_is_object(object)) {
        fields_fail(&s, -EBADMSG, "is not an object");
    } else {
        char family[32];
        fields_text(&s, "quant_method", family, sizeof family, NULL);
        if (strcmp(family, "gptqt") != 0)
            fields_fail(&s, -ENOTSUP, "quant_method '%s': only gptqt is supported", family);
        if (json_object_get(object, "shard"))
            fields_fail(
                &s, -ENOTSUP,
                "shard: holds some of a model's blocks; gptqt-quantize --merge joins parts");
        fields_text(&s, "method", q->method, sizeof q->method, "gptqt");
        q->bits = (int)fields_int(&s, "bits", 1, BCQ_MAX_BITS, FIELDS_REQUIRED);
        q->group = (int)fields_int(&s, "group_size", 0, MAX_WIDTH, 0);
        fields_text(&s, "params", q->params, sizeof q->params, "");
        q->act_bits = (int)fields_int(&s, "act_bits", 4, 16, 16);
        q->output_bits = (int)fields_int(&s, "output_bits", 4, 16, 16);
        if (!s.code && q->output_bits != 16 && q->output_bits != 8 && q->output_bits != 6 &&
            q->output_bits != 4)
            fields_fail(&s, -ENOTSUP, "output_bits %d: 16, 8, 6 and 4 are supported",
                        q->output_bits);
        if (!s.code && q->act_bits != 4 && q->act_bits != 8 && q->act_bits != 16)
            fields_fail(&s, -ENOTSUP, "act_bits %d: 16, 8 and 4 are supported", q->act_bits);
    }
    if (s.code && !f->code) f->code = s.code;
}

static void take_config(struct fields *f, struct model_config *c) {
    char type[64];
    fields_text(f, "model_type", type, sizeof type, NULL);
    if (f->code) return;
    if (!find_arch(&c->arch, type)) {
        fields_fail(f, -ENOTSUP, "model_type '%s': llama, opt and bloom are supported", type);
        return;
    }
    readers[c->arch].take(f, c);
    c->vocab = required(f, "vocab_size", MAX_WIDTH);
    c->bos = (int32_t)fields_int(f, "bos_token_id", 0, c->vocab - 1, -1);
    c->n_eos = fields_ints(f, "eos_token_id", 0, c->vocab - 1, c->eos, CONFIG_MAX_EOS);
    take_quantization(f, &c->quantization);
    check_heads(f, c);
}

static void take_generation(struct fields *f, struct model_config *c) {
    c->generation = (struct config_generation){
        .temperature = (float)fields_real(f, "temperature", 0, 100, -1),
        .top_p = (float)fields_real(f, "top_p", 0, 1, -1),
        .min_p = (float)fields_real(f, "min_p", 0, 1, -1),
        .top_k = (int)fields_int(f, "top_k", 0, INT32_MAX, -1),
        .do_sample = fields_has(f, "do_sample") ? fields_bool(f, "do_sample", false) : -1,
    };
    int32_t eos[CONFIG_MAX_EOS];
    int n = fields_ints(f, "eos_token_id", 0, c->vocab - 1, eos, CONFIG_MAX_EOS);
    if (n) {
        memcpy(c->eos, eos, sizeof eos[0] * (size_t)n);
        c->n_eos = n;
    }
}

static int parse_part(struct model_config *c, const void *text, size_t n, const char *what,
                      void (*take)(struct fields *f, struct model_config *c), struct error *err) {
    json_t *root = NULL;
    int r = json_guard_parse(&root, text, n, &limits, what, err);
    if (r < 0) return r;
    struct fields f = {.what = what, .json = root, .err = err};
    if (!json_is_object(root))
        fields_fail(&f, -EBADMSG, "is not a JSON object");
    else
        take(&f, c);
    json_decref(root);
    return f.code;
}

int config_parse(struct model_config *ret, const void *text, size_t n, const void *generation,
                 size_t n_generation, struct error *err) {
    struct model_config *c = calloc(1, sizeof *c);
    if (!c) return error_set(err, -ENOMEM, "config.json: out of memory");
    c->generation = (struct config_generation){-1, -1, -1, -1, -1};
    int r = parse_part(c, text, n, "config.json", take_config, err);
    if (!r && generation)
        r = parse_part(c, generation, n_generation, "generation_config.json", take_generation, err);
    if (!r) *ret = *c;
    free(c);
    return r;
}
