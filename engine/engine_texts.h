/* engine_texts.h - the parts of a loaded model that deal in text.
 *
 * Owns      the tokenizer, the chat template, the list of end tokens.
 * Borrows   the source, until engine_texts_close().
 * Thread    any once it is open: it never changes.
 * Fails     -EBADMSG, -ENOTSUP, -ENOMEM, naming the file.
 * Cost      building the tokenizer.
 *
 * A model without a tokenizer is complete, it serves token ids. One whose chat template is not
 * understood serves prompts; chat_reason says why it refuses chats. */
#ifndef ENGINE_ENGINE_TEXTS_H
#define ENGINE_ENGINE_TEXTS_H

#include <stddef.h>
#include <stdint.h>

#include "engine/config.h"
#include "kernels/error.h"

struct chat_template;
struct source;
struct tokenizer;

enum { ENGINE_TEXTS_MAX_ENDS = CONFIG_MAX_EOS + 1 };

struct engine_texts {
    struct tokenizer *tokenizer; /* NULL: the model has none */
    struct chat_template *chat;  /* NULL: see chat_reason */
    struct error chat_reason;
    char *bos, *eos;                     /* texts; NULL = the model names none */
    int32_t ends[ENGINE_TEXTS_MAX_ENDS]; /* (n_ends) config's, and the tokenizer's eos */
    int n_ends;
    size_t longest_token; /* bytes */
};

int engine_texts_open(struct engine_texts *t, const struct source *src, struct error *err);
void engine_texts_close(struct engine_texts *t); /* a zeroed or half-open one is allowed */

#endif
