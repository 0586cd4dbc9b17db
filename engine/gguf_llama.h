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

/* One of the matrices and norms that a model of that config has. */
struct gguf_llama_tensor {
    char stored[GGUF_LLAMA_NAME], original[GGUF_LLAMA_NAME]; /* without ".weight" */
    int rope_heads;                                          /* as above */
    bool is_vector;                                          /* a norm: rows is 1 */
    uint64_t rows, cols;
};

int gguf_llama_count(const struct model_config *config);

/* i in [0, gguf_llama_count()); the same order for equal configs. */
void gguf_llama_at(struct gguf_llama_tensor *ret, const struct model_config *config, int i);

/* Every tensor that the config asks for is there, with its shape. */
int gguf_llama_check(const struct gguf *g, const struct model_config *config, struct error *err);

#endif
