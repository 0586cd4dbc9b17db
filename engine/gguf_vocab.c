#include "engine/gguf_vocab.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "engine/fields.h"
#include "kernels/error.h"
#include "kernels/weights.h"

enum { MAX_MERGES = 1 << 22 };

static struct gguf_text text(struct fields *f, const char *key) {
    struct gguf_text t = {"", 0};
    const struct gguf_pair *pair = gguf_find(f->gguf, key);
    if (pair && !gguf_get_text(&t, pair)) fields_fail(f, -EBADMSG, "%s is not a string", key);
    return t;
}

/* An array of strings with at most max elements; NULL when it is absent or wrong. */
static struct gguf_text *texts(struct fields *f, const char *key, uint64_t max, int *ret_n) {
    const struct gguf_pair *pair = gguf_find(f->gguf, key);
    if (!pair) return NULL;
    if (pair->n > max) {
        fields_fail(f, -E2BIG, "%s has %" PRIu64 " elements: at most %" PRIu64, key, pair->n, max);
        return NULL;
    }
    struct gguf_text *t = calloc(pair->n ? (size_t)pair->n : 1, sizeof *t);
    if (!t) {
        fields_fail(f, -ENOMEM, "%s: out of memory", key);
        return NULL;
    }
    if (pair->kind != GGUF_KIND_ARRAY || !gguf_get_texts(t, pair))
        fields_fail(f, -EBADMSG, "%s is not an array of strings", key);
    else
        *ret_n = (int)pair->n;
    return t;
}

/* The pair when it is an array as long as the tokens; NULL when absent or wrong. */
static const struct gguf_pair *beside_tokens(struct fields *f, const char *key, int n_tokens) {
    const struct gguf_pair *pair = gguf_find(f->gguf, key);
    if (!pair) return NULL;
    if (pair->kind == GGUF_KIND_ARRAY && pair->n == (uint64_t)n_tokens) return pair;
    fields_fail(f, -EBADMSG, "%s: an array of %d elements is needed, as many as tokens", key,
                n_tokens);
    return NULL;
}

static void take_types(struct fields *f, struct gguf_vocab *v) {
    static const char key[] = "tokenizer.ggml.token_type";
    const struct gguf_pair *pair = beside_tokens(f, key, v->n_tokens);
    if (!pair || f->code) return;
    v->types = calloc((size_t)v->n_tokens, sizeof *v->types);
    if (!v->types) fields_fail(f, -ENOMEM, "%s: out of memory", key);
    for (int i = 0; i < v->n_tokens && !f->code; i++) {
        int64_t type;
        if (!gguf_get_int(&type, pair, (uint64_t)i) || type < 0 || type > GGUF_VOCAB_BYTE)
            fields_fail(f, -EBADMSG, "%s[%d]: an integer in 0..%d", key, i, GGUF_VOCAB_BYTE);
        else
            v->types[i] = (int32_t)type;
    }
}

static void take_scores(struct fields *f, struct gguf_vocab *v) {
    static const char key[] = "tokenizer.ggml.scores";
    const struct gguf_pair *pair = beside_tokens(f, key, v->n_tokens);
    if (!pair || f->code) return;
    v->scores = calloc((size_t)v->n_tokens, sizeof *v->scores);
    if (!v->scores) fields_fail(f, -ENOMEM, "%s: out of memory", key);
    for (int i = 0; i < v->n_tokens && !f->code; i++) {
        double score;
        if (!gguf_get_real(&score, pair, (uint64_t)i))
            fields_fail(f, -EBADMSG, "%s is not an array of floats", key);
        else
            v->scores[i] = (float)score;
    }
}

static int32_t id(struct fields *f, const char *key, int vocab) {
    return (int32_t)fields_int(f, key, 0, vocab - 1, -1);
}

static int flag(struct fields *f, const char *key) {
    return fields_has(f, key) ? fields_bool(f, key, false) : -1;
}

int gguf_vocab_parse(struct gguf_vocab *ret, const struct gguf *g, int vocab, struct error *err) {
    struct fields f = {.what = "metadata", .gguf = g, .err = err};
    struct gguf_vocab v = {
        .model = text(&f, "tokenizer.ggml.model"),
        .pre = text(&f, "tokenizer.ggml.pre"),
        .chat_template = text(&f, "tokenizer.chat_template"),
        .bos = id(&f, "tokenizer.ggml.bos_token_id", vocab),
        .eos = id(&f, "tokenizer.ggml.eos_token_id", vocab),
        .unk = id(&f, "tokenizer.ggml.unknown_token_id", vocab),
        .pad = id(&f, "tokenizer.ggml.padding_token_id", vocab),
        .add_bos = flag(&f, "tokenizer.ggml.add_bos_token"),
        .add_eos = flag(&f, "tokenizer.ggml.add_eos_token"),
        .add_space_prefix = flag(&f, "tokenizer.ggml.add_space_prefix"),
    };
    v.tokens = texts(&f, "tokenizer.ggml.tokens", (uint64_t)BCQ_MAX_DIM, &v.n_tokens);
    v.merges = texts(&f, "tokenizer.ggml.merges", MAX_MERGES, &v.n_merges);
    if (v.n_tokens != vocab)
        fields_fail(&f, -EBADMSG,
                    "tokenizer.ggml.tokens has %d elements, the model's vocabulary %d", v.n_tokens,
                    vocab);
    take_types(&f, &v);
    take_scores(&f, &v);
    if (f.code)
        gguf_vocab_free(&v);
    else
        *ret = v;
    return f.code;
}

void gguf_vocab_free(struct gguf_vocab *v) {
    free(v->tokens);
    free(v->types);
    free(v->scores);
    free(v->merges);
    *v = (struct gguf_vocab){0};
}
