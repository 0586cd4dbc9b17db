/* source_text.h - makes the tokenizer, and finds the chat template, that belong to a model.
 *
 * Owns      nothing; results are the caller's.
 * Borrows   the source during the call.
 * Thread    any.
 * Fails     -ENOENT when the model has none, -EBADMSG and -ENOTSUP from its parts.
 * Cost      one parse of the vocabulary.
 *
 * A directory's tokenizer.json and a GGUF file's metadata give the same kind of tokenizer. */
#ifndef ENGINE_SOURCE_TEXT_H
#define ENGINE_SOURCE_TEXT_H

struct error;
struct source;
struct tokenizer;

int source_text_tokenizer(struct tokenizer **ret, const struct source *src, struct error *err);

/* From a tokenizer.json alone. */
int source_text_tokenizer_file(struct tokenizer **ret, const char *path, struct error *err);

/* The template's text, NUL-terminated and malloc'ed: chat_template.jinja, else
 * tokenizer_config.json's chat_template (the one named "default" of several), else the GGUF
 * file's. */
int source_text_template(char **ret, const struct source *src, struct error *err);

/* How tokenizer_config.json writes a special token ("bos_token", "eos_token"), else how the
 * vocabulary writes the config's id; malloc'ed, "" when there is none. */
int source_text_special(char **ret, const struct source *src, const struct tokenizer *t,
                        const char *field, struct error *err);

#endif
