#include "engine/tokenizer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/buf.h"
#include "engine/nfc.h"
#include "engine/pattern.h"
#include "engine/tokenizer_build.h"
#include "engine/utf8.h"
#include "kernels/error.h"

/* DESIGN. Text goes down a chain of functions, each of which cuts it and hands the parts on:
 * raw text -> (added tokens out) -> normalized text -> (added tokens out) -> runs of valid
 * UTF-8 -> steps 0, 1, .. -> words -> BPE. Nothing is collected on the way but the ids. */
struct encoder {
    const struct tokenizer *t;
    bool parse_special;
    struct pattern_work *pattern_work;
    struct bpe_work bpe_work;
    struct buf normal; /* the raw part in hand, normalized */
    struct buf spaced; /* the piece in hand, with a space before it */
    struct buf ids;
};

void tokenizer_free(struct tokenizer *t) {
    if (!t) return;
    for (int i = 0; i < t->n_steps; i++) {
        pattern_free(t->steps[i].pattern);
        free(t->steps[i].source);
    }
    vocab_free(&t->vocab);
    added_free(&t->added[0]);
    added_free(&t->added[1]);
    bpe_free(&t->bpe);
    free(t);
}

static int emit(struct encoder *e, int32_t id) { return buf_append(&e->ids, &id, sizeof id); }

static int encode_word(struct encoder *e, const char *text, size_t n) {
    int32_t id = e->t->ignore_merges ? vocab_find(&e->t->vocab, text, n) : -1;
    if (id >= 0) return emit(e, id);
    return bpe_encode(&e->t->bpe, &e->bpe_work, text, n, &e->ids);
}

static int encode_piece(struct encoder *e, int step, const char *text, size_t n);

static int split_piece(struct encoder *e, int step, const char *text, size_t n) {
    const struct tokenizer_step *s = &e->t->steps[step];
    bool keep_match = !s->removed || s->invert, keep_gap = !s->removed || !s->invert;
    size_t done = 0, from = 0, start, end;
    while (from <= n) {
        int r = pattern_find(s->pattern, e->pattern_work, text, n, from, &start, &end);
        if (r < 0) return r;
        if (r == 0) break;
        r = keep_gap ? encode_piece(e, step + 1, text + done, start - done) : 0;
        if (r == 0 && keep_match) r = encode_piece(e, step + 1, text + start, end - start);
        if (r < 0) return r;
        done = end;
        /* An empty match parts the text; looking on at the same place would find it again. */
        from = end > start || end == n ? end : end + (size_t)utf8_next(text + end, n - end).len;
        if (end == n) break;
    }
    return keep_gap ? encode_piece(e, step + 1, text + done, n - done) : 0;
}

/* The recursion is as deep as there are steps. */
static int encode_piece(struct encoder *e, int step, const char *text, size_t n) {
    if (n == 0) return 0;
    if (step == e->t->n_steps) return encode_word(e, text, n);
    const struct tokenizer_step *s = &e->t->steps[step];
    if (s->prefix_space && text[0] != ' ') {
        e->spaced.len = 0;
        int r = buf_append(&e->spaced, " ", 1);
        if (r == 0) r = buf_append(&e->spaced, text, n);
        if (r < 0) return r;
        text = e->spaced.data;
        n = e->spaced.len;
    }
    if (!s->pattern) return encode_piece(e, step + 1, text, n);
    return split_piece(e, step, text, n);
}

/* text: without added tokens. */
static int encode_plain(struct encoder *e, const char *text, size_t n) {
    int r = 0;
    for (size_t i = 0; i < n && r == 0;) {
        size_t end = i;
        bool ok = utf8_next(text + i, n - i).ok;
        while (end < n) {
            struct utf8_char c = utf8_next(text + end, n - end);
            if (c.ok != ok) break;
            end += (size_t)c.len;
        }
        r = ok ? encode_piece(e, 0, text + i, end - i) : encode_word(e, text + i, end - i);
        i = end;
    }
    return r;
}

typedef int encode_fn(struct encoder *e, const char *text, size_t n);

/* Emits the added tokens of one kind, and hands on what is between them. */
static int take_added(struct encoder *e, const struct added *added, const char *text, size_t n,
                      encode_fn *rest) {
    struct added_scan scan = {0};
    struct added_match match;
    size_t done = 0;
    while (added_next(added, e->pattern_work, &scan, text, n, e->parse_special, &match)) {
        int r = match.start > done ? rest(e, text + done, match.start - done) : 0;
        if (r == 0) r = emit(e, match.id);
        if (r < 0) return r;
        done = match.end;
    }
    return rest(e, text + done, n - done);
}

static int encode_raw(struct encoder *e, const char *text, size_t n) {
    if (n == 0) return 0;
    if (e->t->nfc) {
        e->normal.len = 0;
        int r = nfc_append(&e->normal, text, n);
        if (r < 0) return r;
        text = e->normal.data;
        n = e->normal.len;
    }
    return take_added(e, &e->t->added[1], text, n, encode_plain);
}

static int encode_text(struct encoder *e, const char *text, size_t n, bool add_special) {
    const struct tokenizer *t = e->t;
    int r = 0;
    for (int i = 0; add_special && i < t->n_prefix && r == 0; i++) r = emit(e, t->prefix[i]);
    if (r == 0) r = take_added(e, &t->added[0], text, n, encode_raw);
    for (int i = 0; add_special && i < t->n_suffix && r == 0; i++) r = emit(e, t->suffix[i]);
    return r;
}

int tokenizer_encode(const struct tokenizer *t, const char *text, size_t n, unsigned flags,
                     int32_t **ret_ids, size_t *ret_n, struct error *err) {
    if (n > TOKENIZER_MAX_TEXT)
        return error_set(err, -E2BIG, "text: %zu bytes, limit %d", n, TOKENIZER_MAX_TEXT);
    if (n == 0) text = "";
    struct encoder e = {.t = t, .parse_special = (flags & TOKENIZER_PARSE_SPECIAL) != 0};
    e.pattern_work = pattern_work_new();
    int r =
        e.pattern_work ? encode_text(&e, text, n, (flags & TOKENIZER_ADD_SPECIAL) != 0) : -ENOMEM;
    if (r == 0) {
        *ret_ids = (int32_t *)(void *)e.ids.data;
        *ret_n = e.ids.len / sizeof **ret_ids;
        e.ids = (struct buf){0};
    } else if (r == -ENOMEM) {
        error_set(err, r, "tokenizer: out of memory");
    } else {
        error_set(err, r, "text: too hard for the tokenizer's split pattern");
    }
    pattern_work_free(e.pattern_work);
    bpe_work_free(&e.bpe_work);
    buf_free(&e.normal);
    buf_free(&e.spaced);
    buf_free(&e.ids);
    return r;
}

static const struct vocab_token *token_at(const struct tokenizer *t, int32_t id) {
    static const struct vocab_token none = {.bytes = NULL};
    return id >= 0 && id < t->vocab.n ? &t->vocab.tokens[id] : &none;
}

int tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t n, bool skip_special,
                     struct buf *out) {
    int r = 0;
    for (size_t i = 0; i < n && r == 0; i++) {
        const struct vocab_token *token = token_at(t, ids[i]);
        if (skip_special && (token->flags & VOCAB_SPECIAL)) continue;
        r = buf_append(out, token->bytes, token->n);
    }
    return r;
}

struct tokenizer_text tokenizer_piece(const struct tokenizer *t, int32_t id) {
    const struct vocab_token *token = token_at(t, id);
    return (struct tokenizer_text){token->bytes ? token->bytes : "", token->n};
}

bool tokenizer_is_special(const struct tokenizer *t, int32_t id) {
    return token_at(t, id)->flags & VOCAB_SPECIAL;
}

int tokenizer_vocab_size(const struct tokenizer *t) { return t->vocab.n; }

int32_t tokenizer_find(const struct tokenizer *t, const char *text) {
    size_t n = strlen(text);
    for (int32_t id = 0; id < t->vocab.n; id++) {
        const struct vocab_token *token = &t->vocab.tokens[id];
        if ((token->flags & VOCAB_ADDED) && token->n == n && memcmp(token->bytes, text, n) == 0)
            return id;
    }
    return vocab_find_spelling(&t->vocab, text, n);
}

const char *tokenizer_kind(const struct tokenizer *t) {
    return t->nfc ? "byte-level BPE with NFC" : "byte-level BPE";
}
