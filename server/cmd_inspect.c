#include <argp.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/config.h"
#include "engine/source.h"
#include "engine/source_text.h"
#include "engine/tokenizer.h"
#include "kernels/error.h"
#include "server/cli.h"
#include "server/commands.h"
#include "server/model_source.h"

static const char name[] = "gptqt inspect";

struct args {
    const char *model;
    bool json;
};

enum { OPT_JSON = 256 };

static const struct argp_option options[] = {
    {"json", OPT_JSON, NULL, 0, "Print the facts as JSON", 0},
    {0},
};

static error_t parse(int key, char *value, struct argp_state *state) {
    struct args *args = state->input;
    switch (key) {
    case OPT_JSON:
        args->json = true;
        return 0;
    case ARGP_KEY_ARG:
        return cli_model(&args->model, value, state);
    case ARGP_KEY_END:
        if (!args->model) argp_error(state, "MODEL is missing");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp argp = {
    options, parse,
    "MODEL", "Describes a model: shapes, size in bits and bytes, how it was quantized.",
    NULL,    NULL,
    NULL};

/* Sums over the tensors. */
struct sizes {
    int64_t parameters, bytes;
    int64_t linear_weights, linear_bytes;
    int64_t whole_weights, whole_bytes; /* of the output matrix, where it is coded */
    json_t *by_type;                    /* type name -> bytes */
};

static bool is_whole(const struct source_tensor *t) {
    return t->is_bcq && t->bcq.spec.kind == BCQ_WHOLE;
}

/* The matrices of the blocks: what quantization is about. Embeddings and output are not. */
static bool is_linear(const struct source_tensor *t) {
    if (t->n_dims != 2) return false;
    if (is_whole(t)) return false;
    if (t->is_bcq || t->kind == SOURCE_SIDE) return true;
    return strstr(t->name, "layers.") || !strncmp(t->name, "h.", 2) || strstr(t->name, ".h.");
}

static void add_sizes(struct sizes *s, const struct source_tensor *t) {
    int64_t weights = t->kind == SOURCE_SIDE ? 0 : t->rows * t->cols;
    s->parameters += weights;
    s->bytes += (int64_t)t->n_bytes;
    if (is_linear(t)) {
        s->linear_weights += weights;
        s->linear_bytes += (int64_t)t->n_bytes;
    }
    if (is_whole(t)) {
        s->whole_weights += weights;
        s->whole_bytes += (int64_t)t->n_bytes;
    }
    json_int_t so_far = json_integer_value(json_object_get(s->by_type, t->type_name));
    json_object_set_new(s->by_type, t->type_name, json_integer(so_far + (json_int_t)t->n_bytes));
}

static double bits(int64_t bytes, int64_t weights) {
    return weights ? 8.0 * (double)bytes / (double)weights : 0;
}

static json_t *shapes(const struct model_config *c) {
    return json_pack("{s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:b}", "hidden", c->hidden, "layers",
                     c->n_layers, "heads", c->n_heads, "kv_heads", c->n_kv_heads, "head_dim",
                     c->head_dim, "intermediate", c->intermediate, "vocabulary", c->vocab,
                     "context", c->max_positions, "tied_embeddings", c->tie_embeddings);
}

/* A text of the source as JSON; NULL when there is none. */
static json_t *load(const struct source *src, const char *file) {
    const char *text;
    size_t n;
    if (source_file_text(src, file, &text, &n) < 0) return NULL;
    return json_loadb(text, n, 0, NULL);
}

/* quantization_config as the file has it; null for other models. */
static json_t *quantization(const struct source *src) {
    json_t *config = load(src, "config.json");
    json_t *q = json_incref(json_object_get(config, "quantization_config"));
    json_decref(config);
    return q ? q : json_null();
}

static json_t *describe(const struct source *src) {
    const struct model_config *c = source_config(src);
    struct sizes sizes = {.by_type = json_object()};
    for (size_t i = 0; i < source_count(src); i++) add_sizes(&sizes, source_at(src, i));
    struct tokenizer *tokenizer = NULL;
    bool has_tokenizer = source_text_tokenizer(&tokenizer, src, NULL) == 0;
    char *template = NULL;
    bool has_template = source_text_template(&template, src, NULL) == 0;
    char hash[SHA256_HEX];
    source_hash(src, hash);
    json_t *errors = load(src, "layer_errors.json");
    json_t *out = json_pack("{s:s, s:o, s:I, s:f, s:f, s:I, s:o, s:o, s:s, s:b, s:s}",
                            "architecture", config_arch_name(c->arch), "shapes", shapes(c),
                            "parameters", (json_int_t)sizes.parameters, "bits_per_weight",
                            bits(sizes.linear_bytes, sizes.linear_weights), "bits_per_weight_total",
                            bits(sizes.bytes, sizes.parameters), "bytes", (json_int_t)sizes.bytes,
                            "bytes_by_type", sizes.by_type, "quantization", quantization(src),
                            "tokenizer", has_tokenizer ? tokenizer_kind(tokenizer) : "none",
                            "chat_template", has_template, "content_hash", hash);
    if (sizes.whole_weights)
        json_object_set_new(out, "bits_per_weight_output",
                            json_real(bits(sizes.whole_bytes, sizes.whole_weights)));
    if (errors) json_object_set_new(out, "layer_errors", errors);
    tokenizer_free(tokenizer);
    free(template);
    return out;
}

static void print_value(const char *key, const json_t *value, int indent) {
    if (json_is_object(value)) {
        printf("%*s%s\n", indent, "", key);
        const char *inner;
        json_t *item;
        json_object_foreach((json_t *)value, inner, item) print_value(inner, item, indent + 2);
        return;
    }
    char *text = json_is_string(value)
                     ? NULL
                     : json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(5));
    printf("%*s%-*s %s\n", indent, "", 24 - indent, key, text ? text : json_string_value(value));
    free(text);
}

static void print_text(const json_t *facts) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)facts, key, value) {
        if (strcmp(key, "layer_errors")) print_value(key, value, 0);
    }
    const json_t *errors = json_object_get(facts, "layer_errors");
    if (errors) printf("\n%-44s %8s %8s\n", "output error on the calibration text", "dB", "bits");
    json_object_foreach((json_t *)errors, key, value) {
        printf("%-44s %8.2f %8.3f\n", key, json_number_value(json_object_get(value, "decibels")),
               json_number_value(json_object_get(value, "bits_per_weight")));
    }
}

int cmd_inspect(int argc, char **argv) {
    struct args args = {0};
    argp_parse(&argp, argc, argv, 0, NULL, &args);
    struct error err = {{0}};
    struct source *src;
    int r = model_source_open(&src, args.model, &err);
    if (r < 0) return cli_end(CLI_FAILED, name, &err);
    json_t *facts = describe(src);
    source_close(src);
    if (args.json) {
        json_dumpf(facts, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(8));
        putchar('\n');
    } else {
        print_text(facts);
    }
    json_decref(facts);
    return 0;
}
