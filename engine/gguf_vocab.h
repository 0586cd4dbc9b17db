/* gguf_vocab.h - takes the tokenizer's parts out of GGUF metadata.
 *
 * Owns      the arrays.
 * Borrows   the file's bytes, where all texts stay, until the vocabulary is dropped.
 * Thread    any; it does not change.
 * Fails     -EBADMSG naming the key, -ENOMEM.
 * Cost      O(tokens + merges).
 *
 * n_tokens is the model's vocabulary size, types and scores (when there) have as many elements,
 * and every id lies in the vocabulary. Texts are any bytes, not always UTF-8. */
#ifndef ENGINE_GGUF_VOCAB_H
#define ENGINE_GGUF_VOCAB_H

#include <stdint.h>

#include "engine/gguf.h"

struct error;

/* What a token is, as in the files; 0 when the file has no types. */
enum gguf_vocab_type {
    GGUF_VOCAB_NORMAL = 1,
    GGUF_VOCAB_UNKNOWN = 2,
    GGUF_VOCAB_CONTROL = 3,
    GGUF_VOCAB_USER = 4,
    GGUF_VOCAB_UNUSED = 5,
    GGUF_VOCAB_BYTE = 6
};

struct gguf_vocab {
    struct gguf_text model; /* "gpt2" (byte-level BPE), "llama" (sentencepiece BPE), ... */
    struct gguf_text pre;   /* name of the pre-tokenizer; n 0 when absent, as the ones below */
    struct gguf_text chat_template;
    struct gguf_text *tokens; /* (n_tokens) */
    int32_t *types;           /* (n_tokens) or NULL */
    float *scores;            /* (n_tokens) or NULL */
    int n_tokens;
    struct gguf_text *merges; /* (n_merges) "left right" */
    int n_merges;
    int32_t bos, eos, unk, pad;             /* -1 = none */
    int add_bos, add_eos, add_space_prefix; /* 0, 1 or -1 = the file does not say */
};

int gguf_vocab_parse(struct gguf_vocab *ret, const struct gguf *g, int vocab, struct error *err);
void gguf_vocab_free(struct gguf_vocab *v); /* a zeroed one is allowed */

#endif
