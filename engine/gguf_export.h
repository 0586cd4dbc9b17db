/* gguf_export.h - writes a Llama model as a GGUF file that llama.cpp reads.
 *
 * Owns      nothing beyond the call.
 * Borrows   the source during the call.
 * Thread    any.
 * Fails     -ENOTSUP (another architecture; a tensor or tokenizer that GGUF has no place for),
 *           -ERANGE (a weight beyond the type), -EBADMSG, -ENOENT (no tokenizer), -ENOMEM, errno of
 *           the disk; tensors are named.
 * Cost      reads and writes every weight once, a few rows in memory at a time.
 *
 * Binary-coded matrices become the dense ones they stand for, so that a checkpoint can be judged by
 * other programs. With DTYPE_F32 the file's weights are the source's to the bit. Of more than three
 * end tokens the first three are kept: GGUF has no place for others. */
#ifndef ENGINE_GGUF_EXPORT_H
#define ENGINE_GGUF_EXPORT_H

#include "kernels/weights.h"

struct error;
struct source;

/* type: of the matrices; norms and biases stay fp32. */
int gguf_export(const char *path, const struct source *src, enum dtype type, struct error *err);

#endif
