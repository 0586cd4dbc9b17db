#include "engine/bpe.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "engine/buf.h"
#include "tests/support/random.h"

enum { N_LETTERS = 3, N_MERGES = 24, N_IDS = N_LETTERS + N_MERGES };

/* Random merges of letters and of what earlier merges made; ids in any order of rank. */
static void random_table(struct bpe *b, uint64_t *seed) {
    struct bpe_merge *merges = malloc(N_MERGES * sizeof *merges);
    cr_assert_not_null(merges);
    for (int i = 0; i < N_MERGES; i++)
        merges[i] = (struct bpe_merge){random_range(seed, 0, N_LETTERS + i - 1),
                                       random_range(seed, 0, N_LETTERS + i - 1), N_LETTERS + i};
    for (int i = N_MERGES - 1; i > 0; i--) {
        int k = random_range(seed, 0, i);
        struct bpe_merge swap = merges[i];
        merges[i] = merges[k];
        merges[k] = swap;
    }
    *b = (struct bpe){.unk = -1};
    cr_assert_eq(bpe_init(b, merges, N_MERGES, N_IDS), 0);
    for (int i = 0; i < 256; i++) b->byte_id[i] = i >= 'a' && i < 'a' + N_LETTERS ? i - 'a' : -1;
}

static int rank_of(const struct bpe *b, int32_t left, int32_t right) {
    int rank = -1;
    for (int i = 0; i < N_MERGES; i++)
        if (b->merges[i].left == left && b->merges[i].right == right) rank = i;
    return rank;
}

/* The definition, in quadratic time. */
static size_t merge_naively(const struct bpe *b, int32_t *ids, size_t n) {
    for (;;) {
        int best = -1;
        size_t at = 0;
        for (size_t i = 0; i + 1 < n; i++) {
            int rank = rank_of(b, ids[i], ids[i + 1]);
            if (rank >= 0 && (best < 0 || rank < best)) {
                best = rank;
                at = i;
            }
        }
        if (best < 0) return n;
        ids[at] = b->merges[best].id;
        memmove(ids + at + 1, ids + at + 2, (n - at - 2) * sizeof *ids);
        n--;
    }
}

Test(bpe, equals_the_definition) {
    uint64_t seed = 5;
    struct bpe_work work = {0};
    for (int round = 0; round < 60; round++) {
        struct bpe b;
        random_table(&b, &seed);
        for (int k = 0; k < 40; k++) {
            char word[80];
            int32_t expected[80];
            size_t n = (size_t)random_range(&seed, 0, 80);
            for (size_t i = 0; i < n; i++) {
                expected[i] = random_range(&seed, 0, N_LETTERS - 1);
                word[i] = (char)('a' + expected[i]);
            }
            struct buf ids = {0};
            cr_assert_eq(bpe_encode(&b, &work, word, n, &ids), 0);
            size_t n_expected = merge_naively(&b, expected, n);
            cr_assert_eq(ids.len, n_expected * sizeof *expected, "round %d word %d", round, k);
            cr_assert(ids.len == 0 || memcmp(ids.data, expected, ids.len) == 0, "round %d word %d",
                      round, k);
            buf_free(&ids);
        }
        bpe_free(&b);
    }
    bpe_work_free(&work);
}
