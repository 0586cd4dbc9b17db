/* texts.h - makes the files of a checkpoint that are not tensors.
 *
 * Owns      nothing; what it writes is the writer's.
 * Borrows   the source and the writer during the call.
 * Thread    one.
 * Fails     -ENOTSUP (a GGUF model whose config cannot be put in Hugging Face's form), -ENOMEM, the
 *           writer's errors.
 * Cost      one pass over the vocabulary.
 *
 * A directory's files are copied as they are; for a GGUF model they are made from its metadata, so
 * that a checkpoint always has the same form. */
#ifndef ENGINE_QUANT_TEXTS_H
#define ENGINE_QUANT_TEXTS_H

struct checkpoint_writer;
struct error;
struct source;

/* quantization: a JSON object for config.json. */
int texts_write(struct checkpoint_writer *w, const struct source *src, const char *quantization,
                struct error *err);

#endif
