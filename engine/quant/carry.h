/* carry.h - carries the tensors that are not quantized over into a checkpoint.
 *
 * Owns      nothing.
 * Borrows   the source and the writer during the call.
 * Thread    one.
 * Fails     -ENOMEM, -ERANGE (a value beyond fp16), errors of source and writer; the tensor is
 *           named.
 * Cost      reads and writes every such tensor once.
 *
 * F32, F16 and BF16 stay what they are; GGUF's block-quantized types, which a checkpoint does not
 * have, become F16. Integer tensors (masks, old buffers) are left out. */
#ifndef ENGINE_QUANT_CARRY_H
#define ENGINE_QUANT_CARRY_H

#include <stdbool.h>

struct checkpoint_writer;
struct error;
struct source;

/* Tensors that skip() names are left out; those that the writer has are not written again. */
int carry_tensors(struct checkpoint_writer *w, const struct source *src,
                  bool (*skip)(void *arg, const char *name), void *arg, struct error *err);

#endif
