#include "engine/source_text.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "engine/config.h"
#include "engine/gguf_vocab.h"
#include "engine/map.h"
#include "engine/source.h"
#include "engine/tokenizer.h"
#include "kernels/error.h"

static struct tokenizer_text text_of(struct gguf_text t) {
    return (struct tokenizer_text){.data = t.bytes, .n = t.n};
}

static int copy_texts(struct tokenizer_text **ret, const struct gguf_text *from, int n) {
    *ret = malloc(((size_t)n + 1) * sizeof **ret);
    if (!*ret) return -ENOMEM;
    for (int i = 0; i < n; i++) (*ret)[i] = text_of(from[i]);
    return 0;
}

/* Names of pre-tokenizers are short; a longer one is no name that we know. */
static const char *pre_name(const struct gguf_vocab *v, char *room, size_t size) {
    if (!v->pre.n) return NULL;
    size_t n = v->pre.n < size - 1 ? v->pre.n : size - 1;
    memcpy(room, v->pre.bytes, n);
    room[n] = 0;
    return room;
}

static int from_gguf(struct tokenizer **ret, const struct gguf_vocab *v, struct error *err) {
    if (v->model.n != 4 || memcmp(v->model.bytes, "gpt2", 4))
        return error_set(err, -ENOTSUP,
                         "tokenizer.ggml.model '%.*s': only 'gpt2' (byte-level BPE) is supported",
                         (int)(v->model.n < 40 ? v->model.n : 40), v->model.bytes);
    struct tokenizer_text *tokens = NULL, *merges = NULL;
    int r = copy_texts(&tokens, v->tokens, v->n_tokens);
    if (r == 0) r = copy_texts(&merges, v->merges, v->n_merges);
    char pre[64];
    struct tokenizer_gguf parts = {.tokens = tokens,
                                   .n_tokens = (size_t)v->n_tokens,
                                   .types = v->types,
                                   .merges = merges,
                                   .n_merges = (size_t)v->n_merges,
                                   .pre = pre_name(v, pre, sizeof pre),
                                   .bos_id = v->bos,
                                   .eos_id = v->eos,
                                   .add_bos = v->add_bos,
                                   .add_eos = v->add_eos};
    r = r < 0 ? error_set(err, r, "tokenizer: out of memory")
              : tokenizer_from_gguf(ret, &parts, err);
    free(tokens);
    free(merges);
    return r;
}

int source_text_tokenizer(struct tokenizer **ret, const struct source *src, struct error *err) {
    const struct gguf_vocab *vocab = source_vocab(src);
    if (vocab) return from_gguf(ret, vocab, err);
    const char *json;
    size_t n;
    if (source_file_text(src, "tokenizer.json", &json, &n) < 0)
        return error_set(err, -ENOENT, "the model has no tokenizer.json");
    int r = tokenizer_parse(ret, json, n, err);
    return r < 0 ? error_prefix(err, r, "tokenizer.json") : 0;
}

int source_text_tokenizer_file(struct tokenizer **ret, const char *path, struct error *err) {
    struct map map;
    int r = map_open(&map, path, err);
    if (r < 0) return r;
    r = tokenizer_parse(ret, (const char *)map.bytes, map.size, err);
    map_close(&map);
    return r < 0 ? error_prefix(err, r, "%s", path) : 0;
}

static int copy(char **ret, const char *text, size_t n, struct error *err) {
    char *own = malloc(n + 1);
    if (!own) return error_set(err, -ENOMEM, "out of memory");
    if (n) memcpy(own, text, n);
    own[n] = 0;
    *ret = own;
    return 0;
}

static json_t *tokenizer_config(const struct source *src) {
    const char *json;
    size_t n;
    if (source_file_text(src, "tokenizer_config.json", &json, &n) < 0) return NULL;
    return json_loadb(json, n, JSON_ALLOW_NUL, NULL);
}

/* A string, or a list of {name, template}. */
static const json_t *pick_template(const json_t *value) {
    if (!json_is_array(value)) return value;
    size_t i;
    json_t *item;
    json_array_foreach((json_t *)value, i, item) {
        const char *name = json_string_value(json_object_get(item, "name"));
        if (name && !strcmp(name, "default")) return json_object_get(item, "template");
    }
    return NULL;
}

int source_text_template(char **ret, const struct source *src, struct error *err) {
    const char *text;
    size_t n;
    if (source_file_text(src, "chat_template.jinja", &text, &n) == 0)
        return copy(ret, text, n, err);
    const struct gguf_vocab *vocab = source_vocab(src);
    if (vocab && vocab->chat_template.n)
        return copy(ret, vocab->chat_template.bytes, vocab->chat_template.n, err);
    json_t *config = tokenizer_config(src);
    const json_t *value = pick_template(json_object_get(config, "chat_template"));
    int r = json_is_string(value)
                ? copy(ret, json_string_value(value), json_string_length(value), err)
                : error_set(err, -ENOENT, "the model has no chat template");
    json_decref(config);
    return r;
}

int source_text_special(char **ret, const struct source *src, const struct tokenizer *t,
                        const char *field, struct error *err) {
    json_t *config = tokenizer_config(src);
    const json_t *value = json_object_get(config, field);
    if (json_is_object(value)) value = json_object_get(value, "content");
    const struct model_config *c = source_config(src);
    int32_t id = !strcmp(field, "bos_token") ? c->bos : c->n_eos ? c->eos[0] : -1;
    int r;
    if (json_is_string(value)) {
        r = copy(ret, json_string_value(value), json_string_length(value), err);
    } else if (id >= 0 && t) {
        struct tokenizer_text piece = tokenizer_piece(t, id);
        r = copy(ret, piece.data, piece.n, err);
    } else {
        r = copy(ret, "", 0, err);
    }
    json_decref(config);
    return r;
}
