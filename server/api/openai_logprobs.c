#include "server/api/openai_logprobs.h"

#include <math.h>
#include <string.h>

void openai_logprobs_deinit(struct openai_logprobs *l) {
    text_deinit(&l->tokens);
    text_deinit(&l->values);
    text_deinit(&l->tops);
    text_deinit(&l->offsets);
    l->n = 0;
}

/* JSON has no infinity; OpenAI writes -9999 for what cannot happen. */
static void add_number(struct text *t, float logprob) {
    text_addf(t, "%.7g", isfinite(logprob) ? (double)logprob : -9999.0);
}

static bool is_utf8(const char *s, size_t n) {
    for (size_t i = 0, step; i < n; i += step)
        if (!(step = text_utf8(s + i, n - i))) return false;
    return true;
}

/* A completion's token is also a key of an object, so two different ones must not look alike. */
static void add_piece(struct text *t, const char *s, size_t n) {
    text_add(t, "\"", 1);
    if (is_utf8(s, n)) {
        text_add_escaped(t, s, n);
    } else {
        text_adds(t, "bytes:");
        for (size_t i = 0; i < n; i++) text_addf(t, "\\\\x%02x", (unsigned)(unsigned char)s[i]);
    }
    text_add(t, "\"", 1);
}

static void add_chat_piece(struct text *t, const char *s, size_t n, float logprob) {
    text_adds(t, "{\"token\":\"");
    text_add_escaped(t, s, n);
    text_adds(t, "\",\"logprob\":");
    add_number(t, logprob);
    text_adds(t, ",\"bytes\":[");
    for (size_t i = 0; i < n; i++) text_addf(t, i ? ",%u" : "%u", (unsigned)(unsigned char)s[i]);
    text_adds(t, "]");
}

static const char *piece_of(openai_logprobs_piece *piece, const void *arg, int32_t id, size_t *n) {
    const char *s = piece(arg, id, n);
    if (s) return s;
    *n = 0;
    return "";
}

static void add_chat(struct openai_logprobs *l, const struct engine_token *token,
                     openai_logprobs_piece *piece, const void *arg) {
    size_t n;
    const char *s = piece_of(piece, arg, token->id, &n);
    add_chat_piece(&l->tokens, s, n, token->logprob);
    text_adds(&l->tokens, ",\"top_logprobs\":[");
    for (int i = 0; i < token->n_top; i++) {
        if (i) text_adds(&l->tokens, ",");
        s = piece_of(piece, arg, token->top_ids[i], &n);
        add_chat_piece(&l->tokens, s, n, token->top_logprobs[i]);
        text_adds(&l->tokens, "}");
    }
    text_adds(&l->tokens, "]}");
}

static bool among_best(const struct engine_token *token, int n_top) {
    for (int i = 0; i < n_top; i++)
        if (token->top_ids[i] == token->id) return true;
    return false;
}

static void add_tops(struct text *t, const struct engine_token *token, openai_logprobs_piece *piece,
                     const void *arg) {
    size_t n;
    bool own = !among_best(token, token->n_top);
    text_adds(t, "{");
    for (int i = 0; i < token->n_top + own; i++) {
        bool last = i == token->n_top;
        const char *s = piece_of(piece, arg, last ? token->id : token->top_ids[i], &n);
        if (i) text_adds(t, ",");
        add_piece(t, s, n);
        text_adds(t, ":");
        add_number(t, last ? token->logprob : token->top_logprobs[i]);
    }
    text_adds(t, "}");
}

static void add_completion(struct openai_logprobs *l, const struct engine_token *token,
                           openai_logprobs_piece *piece, const void *arg) {
    size_t n;
    const char *s = piece_of(piece, arg, token->id, &n);
    add_piece(&l->tokens, s, n);
    if (isnan(token->logprob)) {
        text_adds(&l->values, "null");
        text_adds(&l->tops, "null");
    } else {
        add_number(&l->values, token->logprob);
        add_tops(&l->tops, token, piece, arg);
    }
    text_addf(&l->offsets, "%zu", l->offset);
    for (size_t i = 0; i < n && !token->hidden; i++)
        if (((unsigned char)s[i] & 0xc0) != 0x80) l->offset++;
}

static void add_ranked(struct text *out, int32_t id, float logprob, int rank,
                       openai_logprobs_piece *piece, const void *arg) {
    size_t n;
    const char *s = piece_of(piece, arg, id, &n);
    text_addf(out, "\"%d\":{\"logprob\":", (int)id);
    add_number(out, logprob);
    if (rank)
        text_addf(out, ",\"rank\":%d", rank);
    else
        text_adds(out, ",\"rank\":null");
    text_adds(out, ",\"decoded_token\":\"");
    text_add_escaped(out, s, n);
    text_adds(out, "\"}");
}

void openai_logprobs_prompt(struct text *out, const struct engine_token *token, int n_top,
                            openai_logprobs_piece *piece, const void *arg) {
    if (isnan(token->logprob)) {
        text_adds(out, "null");
        return;
    }
    if (n_top > token->n_top) n_top = token->n_top;
    text_adds(out, "{");
    if (!among_best(token, n_top)) {
        int rank = token->rank;
        for (int i = 0; i < token->n_top && !rank; i++)
            if (token->top_ids[i] == token->id) rank = i + 1;
        add_ranked(out, token->id, token->logprob, rank, piece, arg);
        if (n_top) text_adds(out, ",");
    }
    for (int i = 0; i < n_top; i++) {
        if (i) text_adds(out, ",");
        add_ranked(out, token->top_ids[i], token->top_logprobs[i], i + 1, piece, arg);
    }
    text_adds(out, "}");
}

void openai_logprobs_add(struct openai_logprobs *l, enum openai_kind kind,
                         const struct engine_token *token, openai_logprobs_piece *piece,
                         const void *arg) {
    if (l->n++) {
        text_adds(&l->tokens, ",");
        text_adds(&l->values, ",");
        text_adds(&l->tops, ",");
        text_adds(&l->offsets, ",");
    }
    if (kind == OPENAI_CHAT)
        add_chat(l, token, piece, arg);
    else
        add_completion(l, token, piece, arg);
}

static void move(struct text *out, struct text *from, const char *before, const char *after) {
    text_adds(out, before);
    if (from->n) text_add(out, from->data, from->n);
    text_adds(out, after);
    if (from->failed) out->failed = true;
    text_clear(from);
}

void openai_logprobs_flush(struct openai_logprobs *l, enum openai_kind kind, struct text *out) {
    if (kind == OPENAI_CHAT) {
        move(out, &l->tokens, "{\"content\":[", "],\"refusal\":null}");
        text_clear(&l->values);
        text_clear(&l->tops);
        text_clear(&l->offsets);
    } else {
        move(out, &l->tokens, "{\"tokens\":[", "]");
        move(out, &l->values, ",\"token_logprobs\":[", "]");
        move(out, &l->tops, ",\"top_logprobs\":[", "]");
        move(out, &l->offsets, ",\"text_offset\":[", "]}");
    }
    l->n = 0;
}
