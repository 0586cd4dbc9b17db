/* bpe.h - merges the bytes of one word into tokens.
 *
 * Owns      the merge table; a work area owns the memory of one thread's calls.
 * Borrows   the word during the call.
 * Thread    a table: any; a work area: one at a time.
 * Fails     -ENOMEM.
 * Cost      O(n log n) for a word of n bytes, whatever they are; about 30 bytes each.
 *
 * The result is that of applying, again and again, the merge of lowest rank that fits
 * anywhere, leftmost first. */
#ifndef ENGINE_BPE_H
#define ENGINE_BPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct buf;

/* The tokens left and right, side by side, become id. */
struct bpe_merge {
    int32_t left, right, id;
};

struct bpe {
    struct bpe_merge *merges; /* (n_merges) by rank */
    uint32_t n_merges;
    uint32_t *start;        /* (n_ids + 1): the cells of each left token */
    struct bpe_cell *cells; /* right token and rank, in the order of right */
    int32_t byte_id[256];   /* -1: no token for this byte */
    int32_t unk;            /* for bytes without a token; -1: they vanish */
    bool fuse_unk;          /* neighbouring unknown bytes are one unk */
};

struct bpe_work {
    struct bpe_symbol *symbols;
    uint64_t *heap;
    size_t cap_symbols, cap_heap, n_heap;
};

/* Takes merges (from malloc) on success; all their ids must be in [0, n_ids). Of two merges of
 * the same pair the later one counts. */
int bpe_init(struct bpe *b, struct bpe_merge *merges, uint32_t n_merges, int n_ids);
void bpe_free(struct bpe *b);

void bpe_work_free(struct bpe_work *work);

/* Appends the word's ids, as int32_t. n <= INT32_MAX. */
int bpe_encode(const struct bpe *b, struct bpe_work *work, const char *word, size_t n,
               struct buf *ids);

#endif
