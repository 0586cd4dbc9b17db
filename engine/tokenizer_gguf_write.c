#include "engine/tokenizer.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/buf.h"
#include "engine/gguf_vocab.h"
#include "engine/gguf_write.h"
#include "engine/pattern.h"
#include "engine/tokenizer_build.h"
#include "kernels/error.h"

static bool same_step(const struct tokenizer_step *a, const struct tokenizer_step *b) {
    return a->kind == b->kind && !a->pattern == !b->pattern && a->literal == b->literal &&
           a->removed == b->removed && a->invert == b->invert && a->individual == b->individual &&
           a->prefix_space == b->prefix_space && a->n_source == b->n_source &&
           (a->n_source == 0 || memcmp(a->source, b->source, a->n_source) == 0);
}

/* Normalization has no name in that format: llama.cpp never does it. ignore_merges is the name's
 * business there, and makes no difference where every token is made by the merges. */
static bool same_splits(const struct tokenizer *a, const struct tokenizer *b) {
    if (a->n_steps != b->n_steps || (a->ignore_merges && !b->ignore_merges)) return false;
    for (int i = 0; i < a->n_steps; i++)
        if (!same_step(&a->steps[i], &b->steps[i])) return false;
    return true;
}

/* The name whose steps are the tokenizer's. */
static int find_name(const char **ret, const struct tokenizer *t, struct error *err) {
    int r = 0;
    for (size_t i = 0; tokenizer_pre_name(i); i++) {
        struct tokenizer *named = calloc(1, sizeof *named);
        if (!named) return error_set(err, -ENOMEM, "tokenizer: out of memory");
        r = tokenizer_add_named(named, tokenizer_pre_name(i), err);
        bool same = r == 0 && same_splits(t, named);
        tokenizer_free(named);
        if (r < 0) return r;
        if (!same) continue;
        *ret = tokenizer_pre_name(i);
        return 0;
    }
    return error_set(err, -ENOTSUP, "tokenizer: GGUF has no name for how it splits text");
}

static int32_t type_of(const struct tokenizer *t, int id) {
    unsigned flags = id < t->vocab.n && t->vocab.tokens[id].bytes ? t->vocab.tokens[id].flags : 0;
    if (flags & VOCAB_SPECIAL) return GGUF_VOCAB_CONTROL;
    if (flags & VOCAB_ADDED) return GGUF_VOCAB_USER;
    return flags ? GGUF_VOCAB_NORMAL : GGUF_VOCAB_UNUSED;
}

/* An id without a token still needs a text that no other has, as llama.cpp's converter makes. */
static int spell(const struct tokenizer *t, int id, struct buf *out) {
    out->len = 0;
    if (type_of(t, id) == GGUF_VOCAB_UNUSED) return buf_printf(out, "[PAD%d]", id);
    return vocab_spell(&t->vocab, id, out);
}

static int put_tokens(const struct tokenizer *t, int n_ids, struct gguf_write *out) {
    struct buf text = {0};
    int32_t *types = malloc((size_t)n_ids * sizeof *types);
    int r = types ? 0 : -ENOMEM;
    gguf_write_texts(out, "tokenizer.ggml.tokens", (size_t)n_ids);
    for (int id = 0; r == 0 && id < n_ids; id++) {
        types[id] = type_of(t, id);
        r = spell(t, id, &text);
        if (r == 0) gguf_write_element(out, text.data ? text.data : "", text.len);
    }
    if (r == 0) gguf_write_i32s(out, "tokenizer.ggml.token_type", types, (size_t)n_ids);
    buf_free(&text);
    free(types);
    return r;
}

static int put_merges(const struct tokenizer *t, struct gguf_write *out) {
    struct buf text = {0};
    int r = 0;
    gguf_write_texts(out, "tokenizer.ggml.merges", t->bpe.n_merges);
    for (uint32_t i = 0; r == 0 && i < t->bpe.n_merges; i++) {
        text.len = 0;
        r = vocab_spell(&t->vocab, t->bpe.merges[i].left, &text);
        if (r == 0) r = buf_puts(&text, " ");
        if (r == 0) r = vocab_spell(&t->vocab, t->bpe.merges[i].right, &text);
        if (r == 0) gguf_write_element(out, text.data, text.len);
    }
    buf_free(&text);
    return r;
}

/* Where the file may say what is put around a text, and with which token. */
static int put_around(const char *which, const int32_t *ids, int n, int32_t model_id,
                      struct gguf_write *out, struct error *err) {
    char key[48];
    /* A start token that only the tokenizer knows is one that the model gets, too. */
    int32_t id = n && model_id < 0 ? ids[0] : model_id;
    if (n > 1 || (n && ids[0] != id))
        return error_set(err, -ENOTSUP,
                         "tokenizer: what it puts around a text is not the model's %s token alone, "
                         "which is all that GGUF can say",
                         which);
    snprintf(key, sizeof key, "tokenizer.ggml.%s_token_id", which);
    if (id >= 0) gguf_write_u32(out, key, (uint32_t)id);
    snprintf(key, sizeof key, "tokenizer.ggml.add_%s_token", which);
    gguf_write_bool(out, key, n > 0);
    return 0;
}

int tokenizer_write_gguf(const struct tokenizer *t, int n_ids, int32_t bos, int32_t eos,
                         struct gguf_write *out, struct error *err) {
    const char *pre = NULL;
    if (tokenizer_vocab_size(t) > n_ids)
        return error_set(err, -EBADMSG, "tokenizer: %d tokens, the model has %d",
                         tokenizer_vocab_size(t), n_ids);
    int r = find_name(&pre, t, err);
    if (r < 0) return r;
    gguf_write_text(out, "tokenizer.ggml.model", "gpt2", 4);
    gguf_write_text(out, "tokenizer.ggml.pre", pre, strlen(pre));
    r = put_around("bos", t->prefix, t->n_prefix, bos, out, err);
    if (r == 0) r = put_around("eos", t->suffix, t->n_suffix, eos, out, err);
    if (r < 0) return r;
    r = put_tokens(t, n_ids, out);
    if (r == 0) r = put_merges(t, out);
    return r < 0 ? error_set(err, r, "tokenizer: out of memory") : 0;
}
