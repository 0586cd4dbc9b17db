/* gguf_llama.h - shows the tensors of a GGUF llama under the names and shapes of its original.
 *
 * Owns      nothing.
 * Borrows   the file and the config during the call.
 * Thread    any.
 * Fails     gguf_llama_check() with -EBADMSG naming the tensor; the rest never.
 * Cost      O(tensors).
 *
 * GGUF stores the rows of Q and K so that the two halves of a head alternate; a reader that
 * wants the original order takes stored row gguf_llama_row() for each row. */
#ifndef ENGINE_GGUF_LLAMA_H
#define ENGINE_GGUF_LLAMA_H

#include <stdbool.h>
#include <stdint.h>

struct error;
struct gguf;
struct model_config;

enum { GGUF_LLAMA_NAME = 96 /* longest original name with its NUL */ };

/* dst: "blk.0.attn_q.weight" -> "model.layers.0.self_attn.q_proj.weight"; false, with the name
 * copied, where there is no original. *rope_heads: heads whose rows alternate, 0 for others. */
bool gguf_llama_name(char dst[GGUF_LLAMA_NAME], int *rope_heads, const char *name,
                     const struct model_config *config);

/* Where row of the original lies; head_dim is even. */
int64_t gguf_llama_row(int64_t row, int head_dim);

/* Every tensor that the config asks for is there, with its shape. */
int gguf_llama_check(const struct gguf *g, const struct model_config *config, struct error *err);

#endif
