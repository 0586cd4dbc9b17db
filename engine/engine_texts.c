#include "engine/engine_texts.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/chat.h"
#include "engine/gguf_vocab.h"
#include "engine/source.h"
#include "engine/source_text.h"
#include "engine/tokenizer.h"

/* GGUF files may come without a vocabulary. */
static int open_tokenizer(struct engine_texts *t, const struct source *src, struct error *err) {
    const struct gguf_vocab *vocab = source_vocab(src);
    if (vocab && vocab->model.n == 0) return 0;
    int r = source_text_tokenizer(&t->tokenizer, src, err);
    return r == -ENOENT ? 0 : r;
}

static void add_end(struct engine_texts *t, int32_t id) {
    if (id < 0 || t->n_ends == ENGINE_TEXTS_MAX_ENDS) return;
    for (int i = 0; i < t->n_ends; i++)
        if (t->ends[i] == id) return;
    t->ends[t->n_ends++] = id;
}

/* What the tokenizer calls the end is one too: chat models are often published with a config
 * that still has the base model's. */
static int find_ends(struct engine_texts *t, const struct source *src, struct error *err) {
    const struct model_config *config = source_config(src);
    for (int i = 0; i < config->n_eos; i++) add_end(t, config->eos[i]);
    if (!t->tokenizer) return 0;
    int r = source_text_special(&t->bos, src, t->tokenizer, "bos_token", err);
    if (r == 0) r = source_text_special(&t->eos, src, t->tokenizer, "eos_token", err);
    if (r < 0) return r;
    int32_t id = t->eos[0] ? tokenizer_find(t->tokenizer, t->eos) : -1;
    if (id < config->vocab) add_end(t, id);
    return 0;
}

static int open_chat(struct engine_texts *t, const struct source *src, struct error *err) {
    char *text = NULL;
    if (!t->tokenizer) return error_set(&t->chat_reason, 0, "the model has no tokenizer");
    int r = source_text_template(&text, src, &t->chat_reason);
    if (r == 0) r = chat_template_new(&t->chat, text, strlen(text), &t->chat_reason);
    free(text);
    return r == -ENOMEM ? error_set(err, r, "chat template: out of memory") : 0;
}

static void measure_tokens(struct engine_texts *t) {
    int n = t->tokenizer ? tokenizer_vocab_size(t->tokenizer) : 0;
    for (int32_t id = 0; id < n; id++) {
        size_t bytes = tokenizer_piece(t->tokenizer, id).n;
        if (bytes > t->longest_token) t->longest_token = bytes;
    }
}

int engine_texts_open(struct engine_texts *t, const struct source *src, struct error *err) {
    *t = (struct engine_texts){0};
    int r = open_tokenizer(t, src, err);
    if (r == 0) r = find_ends(t, src, err);
    if (r == 0) r = open_chat(t, src, err);
    if (r < 0) {
        engine_texts_close(t);
        return r;
    }
    measure_tokens(t);
    return 0;
}

void engine_texts_close(struct engine_texts *t) {
    tokenizer_free(t->tokenizer);
    chat_template_free(t->chat);
    free(t->bos);
    free(t->eos);
    *t = (struct engine_texts){0};
}
