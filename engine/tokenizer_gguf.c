#include "engine/tokenizer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/tokenizer_build.h"
#include "kernels/error.h"

/* tokenizer.ggml.token_type */
enum { TYPE_UNKNOWN = 2, TYPE_CONTROL = 3, TYPE_USER = 4 };

/* The patterns that a pre name stands for, as llama.cpp reads them. */
#define CONTRACTIONS    "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define WORDS_TO_SPACES "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
static const char llama3_regex[] =
    CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}" WORDS_TO_SPACES;
static const char qwen2_regex[] =
    CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}" WORDS_TO_SPACES;
static const char *const default_regexes[] = {
    "[\\p{P}\\$\\+<=>\\^~\\|]+",
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)",
    "\\p{N}+",
    "[0-9][0-9][0-9]",
};

static int add_regex(struct tokenizer *t, const char *regex, struct error *err) {
    struct tokenizer_split split = {.text = regex, .n = strlen(regex)};
    return tokenizer_add_split(t, &split, err);
}

static int add_gpt2(struct tokenizer *t, struct error *err) {
    return tokenizer_add_byte_level(t, false, true, err);
}

static int add_smollm(struct tokenizer *t, struct error *err) {
    int r = tokenizer_add_digits(t, true, err);
    return r < 0 ? r : tokenizer_add_byte_level(t, false, true, err);
}

static int add_llama_bpe(struct tokenizer *t, struct error *err) {
    t->ignore_merges = true;
    int r = add_regex(t, llama3_regex, err);
    return r < 0 ? r : tokenizer_add_byte_level(t, false, false, err);
}

/* llama.cpp does not normalize; the model's own tokenizer does. */
static int add_qwen2(struct tokenizer *t, struct error *err) {
    t->nfc = true;
    int r = add_regex(t, qwen2_regex, err);
    return r < 0 ? r : tokenizer_add_byte_level(t, false, false, err);
}

static int add_default(struct tokenizer *t, struct error *err) {
    int r = 0;
    for (size_t i = 0; i < sizeof default_regexes / sizeof *default_regexes && r == 0; i++)
        r = add_regex(t, default_regexes[i], err);
    return r < 0 ? r : tokenizer_add_byte_level(t, false, false, err);
}

static const struct {
    const char *name;
    int (*add)(struct tokenizer *t, struct error *err);
} known[] = {
    {"gpt-2", add_gpt2},       {"smollm", add_smollm}, {"llama-bpe", add_llama_bpe},
    {"llama3", add_llama_bpe}, {"qwen2", add_qwen2},   {"default", add_default},
};

const char *tokenizer_pre_name(size_t i) {
    return i < sizeof known / sizeof *known ? known[i].name : NULL;
}

int tokenizer_add_named(struct tokenizer *t, const char *name, struct error *err) {
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(name, known[i].name) == 0) return known[i].add(t, err);
    return error_set(err, -ENOTSUP,
                     "tokenizer.ggml.pre '%.40s' is not supported (gpt-2, smollm, llama-bpe, "
                     "qwen2, default are)",
                     name);
}

/* Control and user-defined tokens are matched as a whole; the text of both stands for itself. */
static int fill_tokens(struct tokenizer_source *source, const struct tokenizer_gguf *parts,
                       struct error *err) {
    for (size_t i = 0; i < parts->n_tokens; i++) {
        const struct tokenizer_text *token = &parts->tokens[i];
        source->tokens[i] = (struct tokenizer_text){token->data ? token->data : "", token->n};
        int32_t type = parts->types ? parts->types[i] : 1;
        if (type < 0 || type > 6)
            return error_set(err, -EBADMSG, "tokenizer.ggml.token_type[%zu]: %d", i, (int)type);
        if (type != TYPE_UNKNOWN && type != TYPE_CONTROL && type != TYPE_USER) continue;
        source->added[source->n_added++] = (struct added_token){.text = source->tokens[i].data,
                                                                .n = token->n,
                                                                .id = (int32_t)i,
                                                                .special = type != TYPE_USER};
    }
    return 0;
}

static int fill_source(struct tokenizer_source *source, const struct tokenizer_gguf *parts,
                       struct error *err) {
    if (parts->n_tokens == 0 || parts->n_tokens > VOCAB_MAX)
        return error_set(err, -EBADMSG, "tokenizer.ggml.tokens: %zu, limit %d", parts->n_tokens,
                         VOCAB_MAX);
    if (parts->n_merges > TOKENIZER_MAX_JSON)
        return error_set(err, -EBADMSG, "tokenizer.ggml.merges: %zu, limit %d", parts->n_merges,
                         TOKENIZER_MAX_JSON);
    source->n_ids = parts->n_tokens;
    source->n_merges = parts->n_merges;
    source->tokens = calloc(parts->n_tokens, sizeof *source->tokens);
    source->added = calloc(parts->n_tokens, sizeof *source->added);
    source->merges = calloc(parts->n_merges + 1, sizeof *source->merges);
    if (!source->tokens || !source->added || !source->merges)
        return error_set(err, -ENOMEM, "tokenizer: out of memory");
    int r = fill_tokens(source, parts, err);
    for (size_t i = 0; i < parts->n_merges && r == 0; i++)
        r = tokenizer_cut_merge(source->merges[i], parts->merges[i].data, parts->merges[i].n, i,
                                err);
    return r;
}

/* llama.cpp lets the pre name decide where the file does not say. */
static bool adds_bos(const struct tokenizer_gguf *parts) {
    if (parts->add_bos >= 0) return parts->add_bos;
    const char *pre = parts->pre ? parts->pre : "";
    return parts->bos_id >= 0 && (strcmp(pre, "llama-bpe") == 0 || strcmp(pre, "llama3") == 0);
}

static int build(struct tokenizer *t, const struct tokenizer_gguf *parts, struct error *err) {
    struct tokenizer_source source = {0};
    int r = tokenizer_add_named(t, parts->pre ? parts->pre : "default", err);
    if (r == 0) r = fill_source(&source, parts, err);
    if (r == 0) {
        if (adds_bos(parts)) t->prefix[t->n_prefix++] = parts->bos_id;
        if (parts->add_eos > 0) t->suffix[t->n_suffix++] = parts->eos_id;
        r = tokenizer_build(t, &source, err);
    }
    free(source.tokens);
    free(source.added);
    free(source.merges);
    return r;
}

int tokenizer_from_gguf(struct tokenizer **ret, const struct tokenizer_gguf *parts,
                        struct error *err) {
    struct tokenizer *t = calloc(1, sizeof *t);
    int r = t ? build(t, parts, err) : error_set(err, -ENOMEM, "tokenizer: out of memory");
    if (r == 0) {
        *ret = t;
        t = NULL;
    }
    tokenizer_free(t);
    return r;
}
