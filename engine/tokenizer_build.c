#include "engine/tokenizer_build.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/buf.h"
#include "engine/nfc.h"
#include "engine/pattern.h"
#include "kernels/error.h"

/* What ByteLevel splits by (GPT-2's pattern). */
static const char byte_level_regex[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

static int out_of_memory(struct error *err) {
    return error_set(err, -ENOMEM, "tokenizer: out of memory");
}

static int add_step(struct tokenizer *t, const struct tokenizer_step *step, const char *text,
                    size_t n, struct error *err) {
    if (t->n_steps && t->steps[t->n_steps - 1].kind == STEP_BYTE_LEVEL)
        return error_set(err, -ENOTSUP, "pre_tokenizer: a step after ByteLevel");
    if (t->n_steps == TOKENIZER_MAX_STEPS)
        return error_set(err, -ENOTSUP, "pre_tokenizer: more than %d steps", TOKENIZER_MAX_STEPS);
    struct tokenizer_step *s = &t->steps[t->n_steps];
    *s = *step;
    if (text) {
        int r = pattern_new(&s->pattern, text, n, step->literal, err);
        if (r < 0) return error_prefix(err, r, "pre_tokenizer");
    }
    t->n_steps++;
    return 0;
}

int tokenizer_add_split(struct tokenizer *t, const struct tokenizer_split *split,
                        struct error *err) {
    struct tokenizer_step step = {
        .kind = STEP_SPLIT,
        .literal = split->literal,
        .removed = split->removed,
        .invert = split->invert,
        .n_source = split->n,
        .source = malloc(split->n + 1),
    };
    if (!step.source) return out_of_memory(err);
    memcpy(step.source, split->text, split->n);
    int r = add_step(t, &step, split->text, split->n, err);
    if (r < 0) free(step.source);
    return r;
}

int tokenizer_add_digits(struct tokenizer *t, bool individual, struct error *err) {
    struct tokenizer_step step = {.kind = STEP_DIGITS, .individual = individual};
    const char *regex = individual ? "\\p{N}" : "\\p{N}+";
    return add_step(t, &step, regex, strlen(regex), err);
}

int tokenizer_add_byte_level(struct tokenizer *t, bool prefix_space, bool use_regex,
                             struct error *err) {
    struct tokenizer_step step = {.kind = STEP_BYTE_LEVEL, .prefix_space = prefix_space};
    return add_step(t, &step, use_regex ? byte_level_regex : NULL, strlen(byte_level_regex), err);
}

int tokenizer_cut_merge(struct tokenizer_text ret[2], const char *text, size_t n, size_t index,
                        struct error *err) {
    const char *space = n ? memchr(text, ' ', n) : NULL;
    size_t left = space ? (size_t)(space - text) : 0;
    if (!space || left == 0 || left + 1 == n || memchr(space + 1, ' ', n - left - 1))
        return error_set(err, -EBADMSG, "merges[%zu]: not two tokens with a space between", index);
    ret[0] = (struct tokenizer_text){text, left};
    ret[1] = (struct tokenizer_text){space + 1, n - left - 1};
    return 0;
}

static int build_vocab(struct vocab *v, const struct tokenizer_source *source, struct error *err) {
    size_t n_bytes = 0;
    for (size_t i = 0; i < source->n_ids; i++)
        if (source->tokens[i].data) n_bytes += source->tokens[i].n;
    for (size_t i = 0; i < source->n_added; i++) n_bytes += source->added[i].n;
    if (n_bytes > TOKENIZER_MAX_JSON)
        return error_set(err, -EBADMSG, "vocabulary: %zu bytes, limit %d", n_bytes,
                         TOKENIZER_MAX_JSON);
    int r = vocab_init(v, source->n_ids, n_bytes, err);
    for (size_t i = 0; i < source->n_ids && r == 0; i++)
        if (source->tokens[i].data)
            r = vocab_add(v, (int32_t)i, source->tokens[i].data, source->tokens[i].n, err);
    for (size_t i = 0; i < source->n_added && r == 0; i++) {
        const struct added_token *a = &source->added[i];
        r = vocab_add_whole(v, a->id, a->text, a->n, a->special, err);
    }
    return r < 0 ? r : vocab_index(v, err);
}

/* An added token with a model entry's text but another id would make one text two tokens. */
static int check_added(const struct vocab *v, const struct tokenizer_source *source,
                       struct error *err) {
    for (size_t i = 0; i < source->n_added; i++) {
        const struct added_token *a = &source->added[i];
        int32_t id = vocab_find_spelling(v, a->text, a->n);
        if (id >= 0 && id != a->id)
            return error_set(err, -EBADMSG, "added_tokens: id %d is id %d in model.vocab",
                             (int)a->id, (int)id);
    }
    return 0;
}

/* Texts of tokens looked for in normalized text must be normalized themselves. */
static int normalize_added(struct added_token *token, char **ret_text) {
    struct buf text = {0};
    int r = nfc_append(&text, token->text, token->n);
    if (r < 0) {
        buf_free(&text);
        return r;
    }
    *ret_text = text.data;
    token->text = text.data;
    token->n = text.len;
    return 0;
}

static int build_added(struct tokenizer *t, const struct tokenizer_source *source,
                       struct error *err) {
    size_t n = source->n_added;
    struct added_token *chosen = calloc(n + 1, sizeof *chosen);
    char **texts = calloc(n + 1, sizeof *texts);
    int r = chosen && texts ? 0 : -ENOMEM;
    for (int normalized = 0; normalized < 2 && r == 0; normalized++) {
        size_t count = 0;
        for (size_t i = 0; i < n && r == 0; i++) {
            if (source->added[i].normalized != (normalized == 1)) continue;
            chosen[count] = source->added[i];
            if (normalized && t->nfc) r = normalize_added(&chosen[count], &texts[i]);
            count++;
        }
        if (r == 0) r = added_init(&t->added[normalized], chosen, count, err);
    }
    for (size_t i = 0; texts && i < n; i++) free(texts[i]);
    free(texts);
    free(chosen);
    return r < 0 ? error_set(err, r, "added_tokens: out of memory") : 0;
}

/* The ids of a merge's tokens and of what they make. */
static int resolve_merge(const struct vocab *v, const struct tokenizer_text pair[2], size_t index,
                         struct buf *joined, struct bpe_merge *ret, struct error *err) {
    int32_t ids[2];
    joined->len = 0;
    for (int i = 0; i < 2; i++) {
        ids[i] = vocab_find_spelling(v, pair[i].data, pair[i].n);
        if (ids[i] < 0)
            return error_set(err, -EBADMSG, "merges[%zu]: '%.*s' is not in the vocabulary", index,
                             (int)(pair[i].n < 40 ? pair[i].n : 40), pair[i].data);
        int r = buf_append(joined, pair[i].data, pair[i].n);
        if (r < 0) return out_of_memory(err);
    }
    int32_t id = vocab_find_spelling(v, joined->data, joined->len);
    if (id < 0)
        return error_set(err, -EBADMSG, "merges[%zu]: '%.*s' is not in the vocabulary", index,
                         (int)(joined->len < 40 ? joined->len : 40), joined->data);
    *ret = (struct bpe_merge){ids[0], ids[1], id};
    return 0;
}

static int build_merges(struct tokenizer *t, const struct tokenizer_source *source,
                        struct error *err) {
    /* Ranks are 32 bits wide; a merge takes at least 5 bytes of a file. */
    if (source->n_merges > TOKENIZER_MAX_JSON)
        return error_set(err, -EBADMSG, "merges: %zu, limit %d", source->n_merges,
                         TOKENIZER_MAX_JSON);
    struct buf joined = {0};
    struct bpe_merge *merges = calloc(source->n_merges + 1, sizeof *merges);
    int r = merges ? 0 : out_of_memory(err);
    for (size_t i = 0; i < source->n_merges && r == 0; i++)
        r = resolve_merge(&t->vocab, source->merges[i], i, &joined, &merges[i], err);
    if (r == 0) {
        r = bpe_init(&t->bpe, merges, (uint32_t)source->n_merges, t->vocab.n);
        if (r < 0) out_of_memory(err);
    }
    if (r < 0) free(merges);
    buf_free(&joined);
    return r;
}

static int build_bytes(struct tokenizer *t, const struct tokenizer_source *source,
                       struct error *err) {
    int n_found = 0;
    for (int byte = 0; byte < 256; byte++) {
        char c = (char)byte;
        t->bpe.byte_id[byte] = vocab_find(&t->vocab, &c, 1);
        n_found += t->bpe.byte_id[byte] >= 0;
    }
    if (n_found == 0)
        return error_set(err, -ENOTSUP,
                         "model.vocab: no byte-level token (only byte-level BPE is "
                         "supported)");
    t->bpe.unk = -1;
    t->bpe.fuse_unk = source->fuse_unk;
    if (!source->unk.data) return 0;
    t->bpe.unk = vocab_find_spelling(&t->vocab, source->unk.data, source->unk.n);
    if (t->bpe.unk >= 0) return 0;
    return error_set(err, -EBADMSG, "model.unk_token: not in the vocabulary");
}

static int check_template(const struct tokenizer *t, const int32_t *ids, int n, struct error *err) {
    for (int i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= t->vocab.n || !t->vocab.tokens[ids[i]].bytes)
            return error_set(err, -EBADMSG, "post_processor: there is no token %d", (int)ids[i]);
    return 0;
}

int tokenizer_build(struct tokenizer *t, const struct tokenizer_source *source, struct error *err) {
    if (t->n_steps == 0 || t->steps[t->n_steps - 1].kind != STEP_BYTE_LEVEL)
        return error_set(err, -ENOTSUP,
                         "pre_tokenizer: no ByteLevel step (only byte-level BPE is supported)");
    if (t->nfc && !nfc_available())
        return error_set(err, -ENOTSUP, "normalizer: NFC needs a build with libutf8proc");
    int r = build_vocab(&t->vocab, source, err);
    if (r == 0) r = check_added(&t->vocab, source, err);
    if (r == 0) r = build_added(t, source, err);
    if (r == 0) r = build_merges(t, source, err);
    if (r == 0) r = build_bytes(t, source, err);
    if (r == 0) r = check_template(t, t->prefix, t->n_prefix, err);
    if (r == 0) r = check_template(t, t->suffix, t->n_suffix, err);
    return r;
}
