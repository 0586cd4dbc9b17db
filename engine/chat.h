/* chat.h - turns the messages of a chat into the text that the model continues.
 *
 * Owns      a template owns what it keeps of the template text.
 * Borrows   messages and texts during calls.
 * Thread    any number at once; a template never changes.
 * Fails     -ENOTSUP names the forms there are; -EINVAL names the message; -ENOMEM.
 * Cost      O(text).
 *
 * The Jinja text of a model's chat_template is not run: it is recognised as one of three forms
 * by the markers in it, with the default system message that it holds. For messages of system,
 * user and assistant the result equals the template's, but for two liberties that some take:
 * the day's date (Llama 3.2; the template's own fallback date stands there) and taking thoughts
 * out of earlier answers (Qwen3). */
#ifndef ENGINE_CHAT_H
#define ENGINE_CHAT_H

#include <stdbool.h>
#include <stddef.h>

struct buf;
struct error;
struct chat_template;

struct chat_message {
    const char *role; /* "system", "user", "assistant" */
    size_t role_len;
    const char *content; /* any bytes */
    size_t content_len;
};

struct chat_prompt {
    const struct chat_message *messages; /* (n_messages), at least one */
    size_t n_messages;
    bool add_generation_prompt; /* end where the assistant's answer begins */
    const char *bos, *eos;      /* the tokens' texts; NULL = "" */
};

/* text: (n) a chat_template. */
int chat_template_new(struct chat_template **ret, const char *text, size_t n, struct error *err);
void chat_template_free(struct chat_template *t); /* NULL is allowed */

/* For people: "ChatML", "Llama 2", "Llama 3". */
const char *chat_template_form(const struct chat_template *t);

/* Whether the text that chat_render() makes begins with bos; the tokenizer must not add its own
 * then. */
bool chat_template_has_bos(const struct chat_template *t);

/* Appends the prompt. */
int chat_render(const struct chat_template *t, const struct chat_prompt *prompt, struct buf *out,
                struct error *err);

#endif
