#include "engine/tokenizer.h"

#include <errno.h>
#include <stdlib.h>

#include "engine/buf.h"
#include "engine/tokenizer_build.h"

/* Keeps the first error, so that the caller may write on and ask once. */
struct writer {
    struct buf *out;
    const struct tokenizer *t;
    int status;
};

static void put(struct writer *w, const char *text) {
    if (w->status == 0) w->status = buf_puts(w->out, text);
}

static void put_int(struct writer *w, int value) {
    if (w->status == 0) w->status = buf_printf(w->out, "%d", value);
}

static void put_flag(struct writer *w, const char *name, bool value) {
    if (w->status == 0) w->status = buf_printf(w->out, "\"%s\":%s", name, value ? "true" : "false");
}

static void put_string(struct writer *w, const char *text, size_t n) {
    put(w, "\"");
    for (size_t i = 0; i < n && w->status == 0; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c == '"' || c == '\\')
            w->status = buf_printf(w->out, "\\%c", c);
        else if (c < ' ')
            w->status = buf_printf(w->out, "\\u%04x", c);
        else
            w->status = buf_append(w->out, text + i, 1);
    }
    put(w, "\"");
}

static void put_token(struct writer *w, int32_t id) {
    struct buf spelling = {0};
    if (w->status == 0) w->status = vocab_spell(&w->t->vocab, id, &spelling);
    put_string(w, spelling.data, spelling.len);
    buf_free(&spelling);
}

static void put_added_token(struct writer *w, const struct added_token *a) {
    put(w, "{\"id\":");
    put_int(w, a->id);
    put(w, ",\"content\":");
    const struct vocab_token *token = &w->t->vocab.tokens[a->id];
    put_string(w, token->bytes, token->n);
    put(w, ",");
    put_flag(w, "single_word", a->single_word);
    put(w, ",");
    put_flag(w, "lstrip", a->lstrip);
    put(w, ",");
    put_flag(w, "rstrip", a->rstrip);
    put(w, ",");
    put_flag(w, "normalized", a->normalized);
    put(w, ",");
    put_flag(w, "special", a->special);
    put(w, "}");
}

static int compare_ids(const void *left, const void *right) {
    const struct added_token *a = left, *b = right;
    return a->id < b->id ? -1 : a->id > b->id;
}

static void put_added(struct writer *w) {
    const struct added *kinds = w->t->added;
    struct added_token *all = calloc(kinds[0].n + kinds[1].n + 1, sizeof *all);
    if (!all) {
        w->status = w->status ? w->status : -ENOMEM;
        return;
    }
    size_t n = 0;
    for (int k = 0; k < 2; k++)
        for (size_t i = 0; i < kinds[k].n; i++) all[n++] = kinds[k].tokens[i];
    qsort(all, n, sizeof *all, compare_ids);
    put(w, "\"added_tokens\":[");
    for (size_t i = 0; i < n; i++) {
        if (i) put(w, ",");
        put(w, "\n");
        put_added_token(w, &all[i]);
    }
    put(w, "],\n");
    free(all);
}

static void put_byte_level(struct writer *w, bool prefix_space, bool use_regex) {
    put(w, "{\"type\":\"ByteLevel\",");
    put_flag(w, "add_prefix_space", prefix_space);
    put(w, ",\"trim_offsets\":true,");
    put_flag(w, "use_regex", use_regex);
    put(w, "}");
}

static void put_step(struct writer *w, const struct tokenizer_step *s) {
    switch (s->kind) {
    case STEP_SPLIT:
        put(w, "{\"type\":\"Split\",\"pattern\":{");
        put(w, s->literal ? "\"String\":" : "\"Regex\":");
        put_string(w, s->source, s->n_source);
        put(w, s->removed ? "},\"behavior\":\"Removed\"," : "},\"behavior\":\"Isolated\",");
        put_flag(w, "invert", s->invert);
        put(w, "}");
        break;
    case STEP_DIGITS:
        put(w, "{\"type\":\"Digits\",");
        put_flag(w, "individual_digits", s->individual);
        put(w, "}");
        break;
    case STEP_BYTE_LEVEL:
        put_byte_level(w, s->prefix_space, s->pattern != NULL);
        break;
    }
}

static void put_special(struct writer *w, int32_t id) {
    put(w, "{\"SpecialToken\":{\"id\":");
    put_token(w, id);
    put(w, ",\"type_id\":0}}");
}

static void put_special_definition(struct writer *w, int32_t id) {
    put_token(w, id);
    put(w, ":{\"id\":");
    put_token(w, id);
    put(w, ",\"ids\":[");
    put_int(w, id);
    put(w, "],\"tokens\":[");
    put_token(w, id);
    put(w, "]}");
}

/* Whether an id stands in the template before this place; a definition is written once. */
static bool is_repeated(const struct tokenizer *t, int at) {
    int32_t id = at < t->n_prefix ? t->prefix[at] : t->suffix[at - t->n_prefix];
    for (int i = 0; i < at; i++)
        if ((i < t->n_prefix ? t->prefix[i] : t->suffix[i - t->n_prefix]) == id) return true;
    return false;
}

static void put_template(struct writer *w) {
    const struct tokenizer *t = w->t;
    if (t->n_prefix + t->n_suffix == 0) {
        put(w, "\"post_processor\":null,\n");
        return;
    }
    put(w, "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[");
    for (int i = 0; i < t->n_prefix; i++) {
        put_special(w, t->prefix[i]);
        put(w, ",");
    }
    put(w, "{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}");
    for (int i = 0; i < t->n_suffix; i++) {
        put(w, ",");
        put_special(w, t->suffix[i]);
    }
    put(w, "],\"pair\":[{\"Sequence\":{\"id\":\"A\",\"type_id\":0}},"
           "{\"Sequence\":{\"id\":\"B\",\"type_id\":1}}],\"special_tokens\":{");
    for (int i = 0; i < t->n_prefix + t->n_suffix; i++) {
        if (is_repeated(t, i)) continue;
        if (i) put(w, ",");
        put_special_definition(w, i < t->n_prefix ? t->prefix[i] : t->suffix[i - t->n_prefix]);
    }
    put(w, "}},\n");
}

static void put_vocab(struct writer *w) {
    const struct vocab *v = &w->t->vocab;
    put(w, ",\n\"vocab\":{");
    bool first = true;
    for (int32_t id = 0; id < v->n; id++) {
        if (!(v->tokens[id].flags & VOCAB_MODEL)) continue;
        put(w, first ? "\n" : ",\n");
        first = false;
        put_token(w, id);
        put(w, ":");
        put_int(w, id);
    }
    put(w, "},\n");
}

static void put_model(struct writer *w) {
    const struct bpe *b = &w->t->bpe;
    put(w, "\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":");
    if (b->unk < 0)
        put(w, "null");
    else
        put_token(w, b->unk);
    put(w, ",\"continuing_subword_prefix\":null,\"end_of_word_suffix\":null,");
    put_flag(w, "fuse_unk", b->fuse_unk);
    put(w, ",\"byte_fallback\":false,");
    put_flag(w, "ignore_merges", w->t->ignore_merges);
    put_vocab(w);
    put(w, "\"merges\":[");
    for (uint32_t i = 0; i < b->n_merges; i++) {
        put(w, i ? ",\n[" : "\n[");
        put_token(w, b->merges[i].left);
        put(w, ",");
        put_token(w, b->merges[i].right);
        put(w, "]");
    }
    put(w, "]}");
}

int tokenizer_write_json(const struct tokenizer *t, struct buf *out) {
    struct writer w = {.out = out, .t = t};
    put(&w, "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\n");
    put_added(&w);
    put(&w, t->nfc ? "\"normalizer\":{\"type\":\"NFC\"},\n" : "\"normalizer\":null,\n");
    put(&w, "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[");
    for (int i = 0; i < t->n_steps; i++) {
        if (i) put(&w, ",");
        put_step(&w, &t->steps[i]);
    }
    put(&w, "]},\n");
    put_template(&w);
    put(&w, "\"decoder\":");
    put_byte_level(&w, true, true);
    put(&w, ",\n");
    put_model(&w);
    put(&w, "}\n");
    return w.status;
}
