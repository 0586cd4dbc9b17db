#include "tests/support/tiny_source.h"

#include <criterion/criterion.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "engine/source.h"
#include "kernels/error.h"

enum { FILE_BYTES = 16384 };

static _Alignas(64) char config[FILE_BYTES];
static _Alignas(64) char tokenizer[FILE_BYTES];
static _Alignas(64) char weights[256];

static const char tokenizer_config[] =
    "{\"eos_token\": \"<|im_end|>\", \"chat_template\": \"{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}\"}";

static void put(char *file, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void put(char *file, const char *format, ...) {
    size_t n = strlen(file);
    va_list args;
    va_start(args, format);
    vsnprintf(file + n, FILE_BYTES - n, format, args);
    va_end(args);
}

/* GPT-2's alphabet: printable bytes stand for themselves, the rest for U+0100 and up. */
static int byte_letter(int byte) {
    int others = 0;
    for (int b = 0; b <= byte; b++) {
        bool printable = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
        if (b == byte) return printable ? byte : 256 + others;
        others += !printable;
    }
    return 0;
}

static void put_tokenizer(void) {
    tokenizer[0] = 0;
    put(tokenizer, "{\"version\": \"1.0\", \"added_tokens\": [");
    for (int id = 256; id < 258; id++)
        put(tokenizer,
            "%s{\"id\": %d, \"content\": \"%s\", \"single_word\": false, \"lstrip\": false, "
            "\"rstrip\": false, \"normalized\": false, \"special\": true}",
            id > 256 ? ", " : "", id, id > 256 ? "<|im_start|>" : "<|im_end|>");
    put(tokenizer, "], \"normalizer\": null, \"pre_tokenizer\": {\"type\": \"ByteLevel\", "
                   "\"add_prefix_space\": false, \"trim_offsets\": true, \"use_regex\": true}, "
                   "\"post_processor\": null, \"decoder\": {\"type\": \"ByteLevel\", "
                   "\"add_prefix_space\": true, \"trim_offsets\": true, \"use_regex\": true}, "
                   "\"model\": {\"type\": \"BPE\", \"merges\": [], \"vocab\": {");
    for (int b = 0; b < 256; b++)
        put(tokenizer, "%s\"\\u%04x\": %d", b > 0 ? ", " : "", (unsigned)byte_letter(b), b);
    put(tokenizer, "}}}");
}

const char *tiny_source_tokenizer(void) {
    put_tokenizer();
    return tokenizer;
}

static void put_config(int context) {
    config[0] = 0;
    put(config,
        "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", "
        "\"hidden_size\": 64, \"intermediate_size\": 64, \"num_hidden_layers\": 1, "
        "\"num_attention_heads\": 2, \"num_key_value_heads\": 2, \"hidden_act\": \"silu\", "
        "\"rms_norm_eps\": 1e-5, \"rope_theta\": 10000.0, \"vocab_size\": 258, "
        "\"max_position_embeddings\": %d, \"eos_token_id\": 256}",
        context);
}

static size_t put_weights(void) {
    static const char header[] =
        "{\"x\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}     ";
    memset(weights, 0, sizeof weights);
    weights[0] = (char)(sizeof header - 1);
    memcpy(weights + 8, header, sizeof header - 1);
    return 8 + sizeof header - 1 + 4;
}

struct source *tiny_source_open(int context, bool with_tokenizer) {
    struct source *src = NULL;
    struct error err = {""};
    put_config(context);
    put_tokenizer();
    struct source_file files[] = {
        {"config.json", config, strlen(config)},
        {"model.safetensors", weights, put_weights()},
        {"tokenizer.json", tokenizer, strlen(tokenizer)},
        {"tokenizer_config.json", tokenizer_config, sizeof tokenizer_config - 1},
    };
    int r = source_open_memory(&src, files, with_tokenizer ? 4 : 2, &err);
    cr_assert_eq(r, 0, "%s", err.text);
    return src;
}
