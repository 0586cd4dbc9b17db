/* vocab.h - maps token ids to bytes, and bytes back to ids.
 *
 * Owns      copies of all texts, until vocab_free().
 * Borrows   texts during calls; pointers it gives out live as long as it does.
 * Thread    one until vocab_index(), then any.
 * Fails     -ENOMEM; -EBADMSG names the token.
 * Cost      vocab_find() O(log n); there is no hash table that a file could be written against.
 *
 * Model entries are spelled in the byte-level alphabet of GPT-2, in which every byte is one
 * printable character (a space is U+0120). An entry with any other character has no bytes that
 * text could be made of: it keeps its spelling, and vocab_find() never returns it. */
#ifndef ENGINE_VOCAB_H
#define ENGINE_VOCAB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct buf;
struct error;

enum { VOCAB_MAX = 1 << 20 /* ids; four times the largest vocabulary in use */ };

enum {
    VOCAB_MODEL = 1,   /* an entry of the model's own vocabulary */
    VOCAB_BYTES = 2,   /* its spelling is in the alphabet */
    VOCAB_ADDED = 4,   /* matched as a whole, before the text is split */
    VOCAB_SPECIAL = 8, /* left out when decoding for people */
};

struct vocab_token {
    const char *bytes; /* what the token decodes to; NULL: no such id */
    uint32_t n;
    unsigned flags;
};

struct vocab {
    struct vocab_token *tokens; /* (n) by id */
    int n;
    struct vocab_key *index; /* model entries in the order of their bytes */
    size_t n_index;
    char *arena;
    size_t used;
};

/* n ids, none defined; n_bytes is the sum of all texts that will be given. */
int vocab_init(struct vocab *v, size_t n, size_t n_bytes, struct error *err);
void vocab_free(struct vocab *v);

/* A model entry; id in [0, n), each at most once. */
int vocab_add(struct vocab *v, int32_t id, const char *spelling, size_t n, struct error *err);

/* An added token; its text stands for itself. When the id is a model entry as well, that
 * entry must be spelled the same. Before vocab_index(). */
int vocab_add_whole(struct vocab *v, int32_t id, const char *text, size_t n, bool special,
                    struct error *err);

/* Sorts; refuses two model entries that are the same. */
int vocab_index(struct vocab *v, struct error *err);

/* The model entry with these bytes, or -1. */
int32_t vocab_find(const struct vocab *v, const char *bytes, size_t n);

/* The model entry with this spelling, or -1. */
int32_t vocab_find_spelling(const struct vocab *v, const char *spelling, size_t n);

/* Appends a token's spelling (an added token's: its text). */
int vocab_spell(const struct vocab *v, int32_t id, struct buf *out);

#endif
