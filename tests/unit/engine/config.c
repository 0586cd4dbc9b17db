#include "engine/config.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/error.h"

static const char llama[] =
    "{\"model_type\":\"llama\",\"hidden_size\":96,\"num_hidden_layers\":3,"
    "\"num_attention_heads\":6,\"num_key_value_heads\":2,\"head_dim\":16,"
    "\"intermediate_size\":256,\"max_position_embeddings\":512,\"rms_norm_eps\":1e-5,"
    "\"rope_theta\":500000.0,\"tie_word_embeddings\":false,\"hidden_act\":\"silu\","
    "\"rope_scaling\":{\"factor\":8.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,"
    "\"original_max_position_embeddings\":64,\"rope_type\":\"llama3\"},"
    "\"vocab_size\":352,\"bos_token_id\":1,\"eos_token_id\":[2,5,6]}";

static const char opt[] =
    "{\"model_type\":\"opt\",\"hidden_size\":64,\"num_hidden_layers\":3,"
    "\"num_attention_heads\":4,\"ffn_dim\":256,\"max_position_embeddings\":200,"
    "\"word_embed_proj_dim\":32,\"do_layer_norm_before\":false,"
    "\"_remove_final_layer_norm\":false,\"activation_function\":\"relu\","
    "\"vocab_size\":272,\"bos_token_id\":2,\"eos_token_id\":2}";

static const char bloom[] =
    "{\"model_type\":\"bloom\",\"n_embed\":96,\"n_layer\":2,\"n_head\":6,\"n_inner\":null,"
    "\"seq_length\":512,\"layer_norm_epsilon\":1e-5,"
    "\"apply_residual_connection_post_layernorm\":true,"
    "\"vocab_size\":300,\"bos_token_id\":null,\"eos_token_id\":2}";

static int parse(struct model_config *c, const char *text, struct error *err) {
    return config_parse(c, text, strlen(text), NULL, 0, err);
}

Test(config, llama_fields_are_read) {
    struct model_config c;
    struct error err = {""};
    cr_assert_eq(parse(&c, llama, &err), 0, "%s", err.text);
    cr_expect(c.arch == ARCH_LLAMA && c.hidden == 96 && c.n_layers == 3 && c.n_heads == 6);
    cr_expect(c.n_kv_heads == 2 && c.head_dim == 16 && c.intermediate == 256 && c.vocab == 352);
    cr_expect(c.max_positions == 512 && c.embed_dim == 96 && c.final_norm && !c.tie_embeddings);
    cr_expect(c.rope.scaling == ROPE_LLAMA3 && c.rope.theta == 500000 && c.rope.factor == 8);
    cr_expect(c.rope.low_freq_factor == 1 && c.rope.high_freq_factor == 4);
    cr_expect(c.rope.original_positions == 64);
    cr_expect(c.bos == 1 && c.n_eos == 3 && c.eos[1] == 5);
    cr_expect(c.generation.temperature < 0 && c.generation.do_sample < 0);
    cr_expect_str_empty(c.quantization.method);
}

Test(config, opt_fields_are_read) {
    struct model_config c;
    struct error err = {""};
    cr_assert_eq(parse(&c, opt, &err), 0, "%s", err.text);
    cr_expect(c.arch == ARCH_OPT && c.embed_dim == 32 && c.post_norm && !c.final_norm);
    cr_expect(c.position_offset == 2 && c.head_dim == 16 && c.activation == ACT_RELU);
    cr_expect(c.tie_embeddings && c.norm_eps == 1e-5f && c.n_eos == 1);
}

Test(config, bloom_fields_are_read) {
    struct model_config c;
    struct error err = {""};
    cr_assert_eq(parse(&c, bloom, &err), 0, "%s", err.text);
    cr_expect(c.arch == ARCH_BLOOM && c.intermediate == 384 && c.activation == ACT_GELU_TANH);
    cr_expect(c.residual_after_norm && c.tie_embeddings && c.bos == -1 && c.n_kv_heads == 6);
}

Test(config, newer_form_of_rope_parameters_is_read) {
    static const char text[] =
        "{\"model_type\":\"llama\",\"hidden_size\":64,\"num_hidden_layers\":1,"
        "\"num_attention_heads\":4,\"intermediate_size\":64,\"vocab_size\":32,"
        "\"rope_parameters\":{\"rope_theta\":1000000.0,\"rope_type\":\"linear\",\"factor\":2}}";
    struct model_config c;
    struct error err = {""};
    cr_assert_eq(parse(&c, text, &err), 0, "%s", err.text);
    cr_expect(c.rope.theta == 1e6 && c.rope.scaling == ROPE_LINEAR && c.rope.factor == 2);
    cr_expect(c.n_kv_heads == 4, "first Llama configs have no num_key_value_heads");
}

/* A valid config with one member replaced (NULL: removed), and what the message contains. */
static const struct {
    const char *base, *key, *value, *text;
    int code;
} wrong[] = {
    {llama, "num_attention_heads", "0", "config.json: num_attention_heads 0: 1..4096", -EBADMSG},
    {llama, "num_attention_heads", "5", "num_key_value_heads 2 does not divide", -EBADMSG},
    {llama, "num_attention_heads", "6.0", "num_attention_heads is not an integer", -EBADMSG},
    {llama, "num_attention_heads", NULL, "num_attention_heads is missing", -EBADMSG},
    {llama, "num_key_value_heads", "4", "num_key_value_heads 4 does not divide", -EBADMSG},
    {llama, "num_key_value_heads", "12", "num_key_value_heads 12 does not divide", -EBADMSG},
    {llama, "hidden_size", "-1", "hidden_size -1: 1..1048576", -EBADMSG},
    {llama, "hidden_size", "4611686018427387904", "hidden_size 4611686018427387904", -EBADMSG},
    {llama, "hidden_size", "\"96\"", "hidden_size is not an integer", -EBADMSG},
    {llama, "head_dim", "15", "head_dim 15: must be even", -EBADMSG},
    {llama, "head_dim", "100000", "head_dim 100000: 2..512", -EBADMSG},
    {llama, "num_hidden_layers", "4294967296", "num_hidden_layers 4294967296: 1..1024", -EBADMSG},
    {llama, "vocab_size", "2", "eos_token_id[0]: an integer in 0..1", -EBADMSG},
    {llama, "bos_token_id", "352", "bos_token_id 352: 0..351", -EBADMSG},
    {llama, "eos_token_id", "[1,2,3,4,5,6,7,8,9]", "eos_token_id has 9 elements", -E2BIG},
    {llama, "rms_norm_eps", "-1", "rms_norm_eps -1: 0..1", -EBADMSG},
    {llama, "rms_norm_eps", "\"x\"", "rms_norm_eps is not a number", -EBADMSG},
    {llama, "rope_theta", "0", "rope_theta 0: 1..", -EBADMSG},
    {llama, "rope_scaling", "{\"type\":\"yarn\"}", "rope_scaling: type 'yarn'", -ENOTSUP},
    {llama, "rope_scaling", "{\"rope_type\":\"llama3\",\"factor\":8}", "low_freq_factor is missing",
     -EBADMSG},
    {llama, "hidden_act", "\"gelu\"", "hidden_act 'gelu': silu", -ENOTSUP},
    {llama, "tie_word_embeddings", "1", "tie_word_embeddings is not true or false", -EBADMSG},
    {llama, "model_type", "\"mamba\"", "model_type 'mamba': llama, opt and bloom", -ENOTSUP},
    {llama, "model_type", "3", "model_type is not a string", -EBADMSG},
    {llama, "quantization_config", "{\"quant_method\":\"awq\"}", "quant_method 'awq'", -ENOTSUP},
    {llama, "quantization_config", "{\"quant_method\":\"gptqt\",\"bits\":9}", "bits 9: 1..4",
     -EBADMSG},
    {llama, "quantization_config", "[]", "quantization_config: is not an object", -EBADMSG},
    {opt, "num_attention_heads", "7", "hidden_size 64 over num_attention_heads 7", -EBADMSG},
    {opt, "activation_function", "\"gelu\"", "activation_function 'gelu'", -ENOTSUP},
    {opt, "layer_norm_elementwise_affine", "false", "layer_norm_elementwise_affine", -ENOTSUP},
    {bloom, "n_embed", "1048576", "n_embed 1048576: 1..262144", -EBADMSG},
    {bloom, "n_head", NULL, "n_head is missing", -EBADMSG},
};

Test(config, messages_name_the_field_and_its_range) {
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        json_t *root = json_loads(wrong[i].base, 0, NULL);
        if (wrong[i].value)
            json_object_set_new(root, wrong[i].key,
                                json_loads(wrong[i].value, JSON_DECODE_ANY, NULL));
        else
            json_object_del(root, wrong[i].key);
        char *text = json_dumps(root, 0);
        struct model_config c = {.hidden = 77};
        struct error err = {""};
        cr_expect_eq(parse(&c, text, &err), wrong[i].code, "%s: %s", wrong[i].key, err.text);
        cr_expect_not_null(strstr(err.text, wrong[i].text), "%s: %s", wrong[i].key, err.text);
        cr_expect_eq(c.hidden, 77, "%s: the output was written", wrong[i].key);
        free(text);
        json_decref(root);
    }
}

Test(config, texts_that_are_no_object_are_refused) {
    static const char *const texts[] = {"", "[]", "5", "{", "{\"model_type\":\"llama\"}x", "\"a\""};
    struct model_config c;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        cr_expect_lt(parse(&c, texts[i], NULL), 0, "%s", texts[i]);
}

Test(config, generation_defaults_and_end_tokens_come_from_generation_config) {
    static const char generation[] =
        "{\"eos_token_id\":[7,8],\"temperature\":0.6,\"top_p\":0.95,\"top_k\":20,"
        "\"do_sample\":true,\"pad_token_id\":null}";
    struct model_config c;
    struct error err = {""};
    int r = config_parse(&c, llama, strlen(llama), generation, strlen(generation), &err);
    cr_assert_eq(r, 0, "%s", err.text);
    cr_expect(c.n_eos == 2 && c.eos[0] == 7 && c.eos[1] == 8);
    cr_expect(c.generation.temperature == 0.6f && c.generation.top_p == 0.95f);
    cr_expect(c.generation.top_k == 20 && c.generation.do_sample == 1);
    cr_expect(c.generation.min_p < 0);

    static const char bad[] = "{\"temperature\":-1}";
    cr_assert_eq(config_parse(&c, llama, strlen(llama), bad, strlen(bad), &err), -EBADMSG);
    cr_expect_not_null(strstr(err.text, "generation_config.json: temperature -1: 0..100"), "%s",
                       err.text);
}

Test(config, quantization_facts_are_read_and_other_keys_allowed) {
    json_t *root = json_loads(llama, 0, NULL);
    static const char settings[] = "{\"quant_method\":\"gptqt\",\"method\":\"rtn\",\"bits\":3,"
                                   "\"group_size\":128,\"params\":\"compact\",\"seed\":7}";
    json_object_set_new(root, "quantization_config", json_loads(settings, 0, NULL));
    char *text = json_dumps(root, 0);
    struct model_config c;
    struct error err = {""};
    cr_assert_eq(parse(&c, text, &err), 0, "%s", err.text);
    cr_expect_str_eq(c.quantization.method, "rtn");
    cr_expect(c.quantization.bits == 3 && c.quantization.group == 128);
    cr_expect_str_eq(c.quantization.params, "compact");
    cr_expect_eq(c.quantization.act_bits, 16);
    free(text);
    json_t *q = json_object_get(root, "quantization_config");
    static const struct {
        int bits, r;
    } cases[] = {{4, 0}, {8, 0}, {16, 0}, {6, -ENOTSUP}, {3, -EBADMSG}, {32, -EBADMSG}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_object_set_new(q, "act_bits", json_integer(cases[i].bits));
        text = json_dumps(root, 0);
        cr_expect_eq(parse(&c, text, &err), cases[i].r, "%d", cases[i].bits);
        cr_expect(cases[i].r ? strstr(err.text, "act_bits") != NULL
                             : c.quantization.act_bits == cases[i].bits);
        free(text);
    }
    json_object_del(q, "act_bits");
    static const struct {
        int bits, r;
    } outputs[] = {{16, 0}, {8, 0}, {6, 0}, {4, 0}, {7, -ENOTSUP}, {3, -EBADMSG}, {32, -EBADMSG}};
    for (size_t i = 0; i < sizeof outputs / sizeof *outputs; i++) {
        json_object_set_new(q, "output_bits", json_integer(outputs[i].bits));
        text = json_dumps(root, 0);
        cr_expect_eq(parse(&c, text, &err), outputs[i].r, "%d", outputs[i].bits);
        cr_expect(outputs[i].r ? strstr(err.text, "output_bits") != NULL
                               : c.quantization.output_bits == outputs[i].bits);
        free(text);
    }
    json_decref(root);
}
