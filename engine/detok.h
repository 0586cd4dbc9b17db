/* detok.h - makes valid UTF-8 out of one sequence's tokens as they come.
 *
 * Owns      nothing; struct detok is embedded in its sequence.
 * Borrows   the tokenizer and the output buffer during calls.
 * Thread    engine.
 * Fails     -ENOMEM (the output).
 * Cost      O(bytes of the token).
 *
 * What is written never ends inside a character, and all of it together is the decoded text in
 * which U+FFFD stands for each maximal invalid part (see utf8.h). struct detok d = {0} is ready. */
#ifndef ENGINE_DETOK_H
#define ENGINE_DETOK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct buf;
struct tokenizer;

struct detok {
    char held[4]; /* the beginning of a character that is not complete */
    int n_held;
    bool skip_special; /* special tokens give no text */
};

/* Appends what the token completes. Ids that do not exist give nothing. */
int detok_push(struct detok *d, const struct tokenizer *t, int32_t id, struct buf *out);

/* The same for bytes from anywhere. */
int detok_push_bytes(struct detok *d, const char *bytes, size_t n, struct buf *out);

/* After the last token: what is held will not be completed. */
int detok_flush(struct detok *d, struct buf *out);

#endif
