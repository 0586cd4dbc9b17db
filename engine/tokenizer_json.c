#include "engine/tokenizer.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "engine/json_guard.h"
#include "engine/tokenizer_build.h"
#include "kernels/error.h"

/* A merge takes up to 3 elements, a vocabulary entry 2; Gemma's have 2.1 million together. */
static const struct json_guard_limits limits = {
    .max_depth = 16, .max_items = 1u << 22, .allow_nul = true};

enum { NESTING_MAX = 4 /* of Sequence in Sequence; the deepest in use is 1 */ };

static int malformed(struct error *err, const char *field, const char *what) {
    return error_set(err, -EBADMSG, "%s: %s", field, what);
}

static int unsupported(struct error *err, const char *field, const char *value) {
    return error_set(err, -ENOTSUP, "%s '%.60s' is not supported", field, value);
}

/* A member, or NULL when it is absent or null. */
static json_t *member(const json_t *object, const char *name) {
    json_t *value = json_object_get(object, name);
    return json_is_null(value) ? NULL : value;
}

static bool flag(const json_t *object, const char *name, bool otherwise) {
    const json_t *value = member(object, name);
    return value ? json_is_true(value) : otherwise;
}

/* An object's type, or "" (which nothing supports). */
static const char *type_of(const json_t *object) {
    const char *type = json_string_value(json_object_get(object, "type"));
    return type ? type : "";
}

static struct tokenizer_text text_of(const json_t *string) {
    return (struct tokenizer_text){json_string_value(string), json_string_length(string)};
}

static int read_normalizer(struct tokenizer *t, const json_t *node, int depth, struct error *err) {
    if (!node) return 0;
    const char *type = type_of(node);
    if (strcmp(type, "NFC") == 0) {
        t->nfc = true;
        return 0;
    }
    if (strcmp(type, "Sequence") != 0 || depth == NESTING_MAX)
        return unsupported(err, "normalizer.type", type);
    const json_t *list = member(node, "normalizers"), *entry;
    size_t i;
    json_array_foreach(list, i, entry) {
        int r = read_normalizer(t, entry, depth + 1, err);
        if (r < 0) return r;
    }
    return 0;
}

static int read_split(struct tokenizer *t, const json_t *node, struct error *err) {
    const json_t *pattern = member(node, "pattern");
    const json_t *regex = member(pattern, "Regex"), *string = member(pattern, "String");
    const json_t *source = regex ? regex : string;
    if (!json_is_string(source))
        return malformed(err, "pre_tokenizer.pattern", "neither Regex nor String");
    const char *behavior = json_string_value(member(node, "behavior"));
    if (!behavior) behavior = "";
    bool removed = strcmp(behavior, "Removed") == 0;
    if (!removed && strcmp(behavior, "Isolated") != 0)
        return unsupported(err, "pre_tokenizer.behavior", behavior);
    struct tokenizer_text text = text_of(source);
    struct tokenizer_split split = {.text = text.data,
                                    .n = text.n,
                                    .literal = !regex,
                                    .removed = removed,
                                    .invert = flag(node, "invert", false)};
    return tokenizer_add_split(t, &split, err);
}

static int read_pre_tokenizer(struct tokenizer *t, const json_t *node, int depth,
                              struct error *err) {
    const char *type = type_of(node);
    if (strcmp(type, "Split") == 0) return read_split(t, node, err);
    if (strcmp(type, "Digits") == 0)
        return tokenizer_add_digits(t, flag(node, "individual_digits", false), err);
    if (strcmp(type, "ByteLevel") == 0)
        return tokenizer_add_byte_level(t, flag(node, "add_prefix_space", true),
                                        flag(node, "use_regex", true), err);
    if (strcmp(type, "Sequence") != 0 || depth == NESTING_MAX)
        return unsupported(err, "pre_tokenizer.type", type);
    const json_t *list = member(node, "pretokenizers"), *entry;
    size_t i;
    json_array_foreach(list, i, entry) {
        int r = read_pre_tokenizer(t, entry, depth + 1, err);
        if (r < 0) return r;
    }
    return 0;
}

/* One id of a template, to where it belongs. */
static int add_template_id(struct tokenizer *t, const json_t *id, bool before, struct error *err) {
    int *n = before ? &t->n_prefix : &t->n_suffix;
    json_int_t value = json_integer_value(id);
    if (!json_is_integer(id) || value < 0 || value >= VOCAB_MAX)
        return malformed(err, "post_processor.special_tokens", "not a token id");
    if (*n == TOKENIZER_MAX_TEMPLATE)
        return unsupported(err, "post_processor.single", "more than 8 special tokens");
    (before ? t->prefix : t->suffix)[(*n)++] = (int32_t)value;
    return 0;
}

static int read_template(struct tokenizer *t, const json_t *node, struct error *err) {
    const json_t *single = member(node, "single"), *entry;
    size_t i, k;
    int n_sequences = 0;
    json_array_foreach(single, i, entry) {
        const json_t *special = member(entry, "SpecialToken");
        if (!special) {
            if (!member(entry, "Sequence") || n_sequences++)
                return malformed(err, "post_processor.single", "not one Sequence");
            continue;
        }
        const char *name = json_string_value(member(special, "id"));
        const json_t *token = name ? member(member(node, "special_tokens"), name) : NULL;
        const json_t *ids = member(token, "ids"), *id;
        if (!json_is_array(ids))
            return malformed(err, "post_processor.special_tokens", "a token's ids are missing");
        json_array_foreach(ids, k, id) {
            int r = add_template_id(t, id, n_sequences == 0, err);
            if (r < 0) return r;
        }
    }
    return n_sequences == 1 ? 0 : malformed(err, "post_processor.single", "not one Sequence");
}

/* ByteLevel only moves offsets, which nobody here asks for. */
static int read_post_processor(struct tokenizer *t, const json_t *node, int depth,
                               struct error *err) {
    if (!node) return 0;
    const char *type = type_of(node);
    if (strcmp(type, "ByteLevel") == 0) return 0;
    if (strcmp(type, "TemplateProcessing") == 0) {
        if (t->n_prefix || t->n_suffix)
            return unsupported(err, "post_processor.type", "a second TemplateProcessing");
        return read_template(t, node, err);
    }
    if (strcmp(type, "Sequence") != 0 || depth == NESTING_MAX)
        return unsupported(err, "post_processor.type", type);
    const json_t *list = member(node, "processors"), *entry;
    size_t i;
    json_array_foreach(list, i, entry) {
        int r = read_post_processor(t, entry, depth + 1, err);
        if (r < 0) return r;
    }
    return 0;
}

static int check_decoder(const json_t *node, struct error *err) {
    const char *type = type_of(node);
    if (strcmp(type, "Sequence") == 0) {
        const json_t *list = member(node, "decoders");
        if (json_array_size(list) != 1) return unsupported(err, "decoder.type", type);
        type = type_of(json_array_get(list, 0));
    }
    return strcmp(type, "ByteLevel") == 0 ? 0 : unsupported(err, "decoder.type", type);
}

/* Settings of the model that would change its ids, and that no byte-level one has. */
static int check_model(const json_t *model, struct error *err) {
    if (!json_is_object(model)) return malformed(err, "model", "not an object");
    const char *type = type_of(model);
    if (strcmp(type, "BPE") != 0 && json_object_get(model, "type"))
        return unsupported(err, "model.type", type);
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (int i = 0; i < 2; i++)
        if (json_string_length(member(model, affixes[i])))
            return unsupported(err, affixes[i], json_string_value(member(model, affixes[i])));
    if (json_number_value(member(model, "dropout")) > 0)
        return unsupported(err, "model.dropout", "above 0");
    if (flag(model, "byte_fallback", false)) return unsupported(err, "model.byte_fallback", "true");
    if (!json_is_object(member(model, "vocab")))
        return malformed(err, "model.vocab", "not an object");
    if (!json_is_array(member(model, "merges")))
        return malformed(err, "model.merges", "not an array");
    return 0;
}

/* Checks an id and widens source->n_ids to it. */
static int count_id(struct tokenizer_source *source, const json_t *id, const char *field,
                    struct error *err) {
    json_int_t value = json_integer_value(id);
    if (!json_is_integer(id) || value < 0 || value >= VOCAB_MAX)
        return error_set(err, -EBADMSG, "%s: an id is not in 0..%d", field, VOCAB_MAX - 1);
    if ((size_t)value >= source->n_ids) source->n_ids = (size_t)value + 1;
    return 0;
}

static int read_added(struct tokenizer_source *source, const json_t *list, struct error *err) {
    size_t n = json_array_size(list), i;
    if (list && !json_is_array(list)) return malformed(err, "added_tokens", "not an array");
    source->added = calloc(n + 1, sizeof *source->added);
    if (!source->added) return error_set(err, -ENOMEM, "tokenizer: out of memory");
    const json_t *entry;
    json_array_foreach(list, i, entry) {
        const json_t *id = member(entry, "id"), *content = member(entry, "content");
        int r = count_id(source, id, "added_tokens", err);
        if (r < 0) return r;
        if (!json_is_string(content)) return malformed(err, "added_tokens", "content is no string");
        source->added[i] = (struct added_token){.text = json_string_value(content),
                                                .n = json_string_length(content),
                                                .id = (int32_t)json_integer_value(id),
                                                .special = flag(entry, "special", false),
                                                .lstrip = flag(entry, "lstrip", false),
                                                .rstrip = flag(entry, "rstrip", false),
                                                .single_word = flag(entry, "single_word", false),
                                                .normalized = flag(entry, "normalized", true)};
    }
    source->n_added = n;
    return 0;
}

static int read_vocab(struct tokenizer_source *source, json_t *vocab, struct error *err) {
    const char *key;
    json_t *id;
    json_object_foreach(vocab, key, id) {
        int r = count_id(source, id, "model.vocab", err);
        if (r < 0) return r;
    }
    source->tokens = calloc(source->n_ids + 1, sizeof *source->tokens);
    if (!source->tokens) return error_set(err, -ENOMEM, "tokenizer: out of memory");
    json_object_foreach(vocab, key, id) {
        struct tokenizer_text *token = &source->tokens[json_integer_value(id)];
        if (token->data)
            return error_set(err, -EBADMSG, "model.vocab: id %d twice",
                             (int)json_integer_value(id));
        *token = (struct tokenizer_text){key, strlen(key)};
    }
    return 0;
}

static int read_merges(struct tokenizer_source *source, const json_t *list, struct error *err) {
    source->n_merges = json_array_size(list);
    source->merges = calloc(source->n_merges + 1, sizeof *source->merges);
    if (!source->merges) return error_set(err, -ENOMEM, "tokenizer: out of memory");
    size_t i;
    const json_t *entry;
    json_array_foreach(list, i, entry) {
        struct tokenizer_text *pair = source->merges[i];
        const json_t *left = json_array_get(entry, 0), *right = json_array_get(entry, 1);
        if (json_is_string(entry)) {
            struct tokenizer_text line = text_of(entry);
            int r = tokenizer_cut_merge(pair, line.data, line.n, i, err);
            if (r < 0) return error_prefix(err, r, "model");
        } else if (json_array_size(entry) == 2 && json_is_string(left) && json_is_string(right)) {
            pair[0] = text_of(left);
            pair[1] = text_of(right);
        } else {
            return error_set(err, -EBADMSG, "model.merges[%zu]: not a pair", i);
        }
    }
    return 0;
}

static int read_source(struct tokenizer *t, const json_t *root, struct error *err) {
    struct tokenizer_source source = {0};
    const json_t *model = member(root, "model"), *unk = member(model, "unk_token");
    if (json_string_length(unk)) source.unk = text_of(unk);
    source.fuse_unk = flag(model, "fuse_unk", false);
    int r = read_added(&source, member(root, "added_tokens"), err);
    if (r == 0) r = read_vocab(&source, member(model, "vocab"), err);
    if (r == 0) r = read_merges(&source, member(model, "merges"), err);
    if (r == 0) r = tokenizer_build(t, &source, err);
    free(source.tokens);
    free(source.added);
    free(source.merges);
    return r;
}

static int read_root(struct tokenizer *t, const json_t *root, struct error *err) {
    if (!json_is_object(root)) return malformed(err, "root", "not an object");
    const json_t *model = member(root, "model");
    int r = check_model(model, err);
    if (r == 0) r = read_normalizer(t, member(root, "normalizer"), 0, err);
    if (r == 0) r = read_pre_tokenizer(t, member(root, "pre_tokenizer"), 0, err);
    if (r == 0) r = read_post_processor(t, member(root, "post_processor"), 0, err);
    if (r == 0) r = check_decoder(member(root, "decoder"), err);
    if (r < 0) return r;
    t->ignore_merges = flag(model, "ignore_merges", false);
    return read_source(t, root, err);
}

int tokenizer_parse(struct tokenizer **ret, const char *json, size_t n, struct error *err) {
    if (n > TOKENIZER_MAX_JSON)
        return error_set(err, -EBADMSG, "%zu bytes, limit %d", n, TOKENIZER_MAX_JSON);
    json_t *root;
    int r = json_guard_parse(&root, json, n, &limits, "tokenizer", err);
    if (r < 0) return r;
    struct tokenizer *t = calloc(1, sizeof *t);
    r = t ? read_root(t, root, err) : error_set(err, -ENOMEM, "tokenizer: out of memory");
    if (r == 0) {
        *ret = t;
        t = NULL;
    }
    tokenizer_free(t);
    json_decref(root);
    return r;
}
