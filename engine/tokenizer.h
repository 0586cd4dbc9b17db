/* tokenizer.h - turns text into token ids, ids into bytes.
 *
 * Owns      the vocabulary and everything else it was built from, until tokenizer_free().
 * Borrows   texts and ids during calls; pieces it gives out live as long as it does.
 * Thread    any number at once; a tokenizer never changes.
 * Fails     building: -EBADMSG for what is malformed, -ENOTSUP for what is not supported, both
 *           naming the field. Encoding: -E2BIG for a text over the limit or one that a split
 *           pattern cannot get through. Everywhere -ENOMEM.
 * Cost      encoding O(n log n) for n bytes, whatever they are.
 *
 * Byte-level BPE, as tokenizer.json files describe it. Ids equal those of the tokenizers
 * library for every UTF-8 text (but see nfc.h). Bytes that are no UTF-8 are encoded too: a run
 * of them is a word of its own, which no pattern splits. A byte without a token becomes the
 * unknown token where the model names one, and vanishes otherwise; no valid text holds such
 * bytes in a vocabulary that was made for it. */
#ifndef ENGINE_TOKENIZER_H
#define ENGINE_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct buf;
struct error;
struct gguf_write;
struct tokenizer;

enum {
    TOKENIZER_MAX_JSON = 64 << 20, /* bytes; Gemma's, the largest in use, has 33 million */
    TOKENIZER_MAX_TEXT = 256 << 20 /* bytes */
};

enum {
    TOKENIZER_ADD_SPECIAL = 1,  /* put what the model wants before and after the text */
    TOKENIZER_PARSE_SPECIAL = 2 /* special tokens written in the text are those tokens; without
                                   it they are plain text */
};

struct tokenizer_text {
    const char *data;
    size_t n;
};

/* What a GGUF file says about its vocabulary, in that format's terms. */
struct tokenizer_gguf {
    const struct tokenizer_text *tokens; /* (n_tokens), id = index */
    size_t n_tokens;
    const int32_t
        *types; /* (n_tokens) 0 or 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused,
                             6 byte; NULL: all normal */
    const struct tokenizer_text *merges; /* (n_merges) "left right" */
    size_t n_merges;
    const char *pre; /* "gpt-2", "smollm", "llama-bpe", "qwen2", "default"; NULL = "default" */
    int32_t bos_id, eos_id;
    int add_bos, add_eos; /* what TOKENIZER_ADD_SPECIAL does: 0, 1, or -1 when the file does not
                             say (then only llama-bpe adds its bos) */
};

/* From the bytes of a tokenizer.json. */
int tokenizer_parse(struct tokenizer **ret, const char *json, size_t n, struct error *err);
int tokenizer_from_gguf(struct tokenizer **ret, const struct tokenizer_gguf *parts,
                        struct error *err);
void tokenizer_free(struct tokenizer *t); /* NULL is allowed */

/* Appends a tokenizer.json that describes the same tokenizer. */
int tokenizer_write_json(const struct tokenizer *t, struct buf *out);

/* The same as GGUF metadata, with tokens that stand for nothing up to n_ids (the model's
 * vocabulary). bos and eos are the model's, -1 for none. -ENOTSUP where that format cannot say it:
 * splits that have no name there, more before or after a text than its one token of that kind. */
int tokenizer_write_gguf(const struct tokenizer *t, int n_ids, int32_t bos, int32_t eos,
                         struct gguf_write *out, struct error *err);

/* *ret_ids is the caller's to free; NULL when there are no ids. */
int tokenizer_encode(const struct tokenizer *t, const char *text, size_t n, unsigned flags,
                     int32_t **ret_ids, size_t *ret_n, struct error *err);

/* Appends the tokens' bytes, which need not be UTF-8 (detok.h makes text of them). Ids that do
 * not exist have no bytes. */
int tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t n, bool skip_special,
                     struct buf *out);

/* The bytes of one token; empty when there is no such id. */
struct tokenizer_text tokenizer_piece(const struct tokenizer *t, int32_t id);
bool tokenizer_is_special(const struct tokenizer *t, int32_t id);

/* Highest id + 1. */
int tokenizer_vocab_size(const struct tokenizer *t);

/* The token that is written like this ("<|im_end|>"; ordinary ones in the byte-level alphabet),
 * or -1. */
int32_t tokenizer_find(const struct tokenizer *t, const char *text);

/* For people: "byte-level BPE". */
const char *tokenizer_kind(const struct tokenizer *t);

#endif
