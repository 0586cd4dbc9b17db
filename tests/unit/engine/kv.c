#include "engine/kv.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/backend.h"
#include "tests/support/random.h"

Test(kv, a_new_pool_is_all_free) {
    struct kv_pool *pool = NULL;
    cr_assert_eq(kv_new(&pool, 7), 0);
    cr_expect_eq(kv_total_blocks(pool), 7);
    cr_expect_eq(kv_free_blocks(pool), 7);
    kv_free(pool);
    kv_free(NULL);
}

Test(kv, refuses_an_empty_pool) {
    struct kv_pool *pool = NULL;
    cr_expect_eq(kv_new(&pool, 0), -EINVAL);
    cr_expect_eq(kv_new(&pool, -3), -EINVAL);
    cr_expect_null(pool);
}

Test(kv, takes_all_or_nothing) {
    struct kv_pool *pool = NULL;
    int32_t blocks[4] = {-1, -1, -1, -1};
    cr_assert_eq(kv_new(&pool, 3), 0);
    cr_expect_not(kv_take(pool, blocks, 4));
    cr_expect_eq(blocks[0], -1);
    cr_expect_eq(kv_free_blocks(pool), 3);
    cr_expect(kv_take(pool, blocks, 3));
    cr_expect_eq(kv_free_blocks(pool), 0);
    cr_expect(kv_take(pool, blocks, 0));
    kv_free(pool);
}

Test(kv, a_shared_block_stays_until_its_last_holder_lets_go) {
    struct kv_pool *pool = NULL;
    int32_t block;
    cr_assert_eq(kv_new(&pool, 2), 0);
    cr_assert(kv_take(pool, &block, 1));
    kv_share(pool, block);
    kv_release(pool, &block, 1);
    cr_expect_eq(kv_free_blocks(pool), 1);
    kv_release(pool, &block, 1);
    cr_expect_eq(kv_free_blocks(pool), 2);
    kv_free(pool);
}

Test(kv, rounds_tokens_up_to_blocks) {
    cr_expect_eq(kv_blocks_for(0), 0);
    cr_expect_eq(kv_blocks_for(1), 1);
    cr_expect_eq(kv_blocks_for(BACKEND_KV_BLOCK), 1);
    cr_expect_eq(kv_blocks_for(BACKEND_KV_BLOCK + 1), 2);
    cr_expect_eq(kv_blocks_for(INT32_MAX), INT32_MAX / BACKEND_KV_BLOCK + 1);
}

/* -- Known blocks ------------------------------------------------------------------------------ */

/* The tokens of block i of a text of one family. */
static void block_ids(int32_t *ids, int family, int i) {
    for (int j = 0; j < BACKEND_KV_BLOCK; j++) ids[j] = family * 1000 + i * BACKEND_KV_BLOCK + j;
}

/* Takes n blocks and makes them known, as the beginning of a text. */
static void publish_chain(struct kv_pool *pool, int32_t *blocks, int n, uint64_t salt, int family) {
    int32_t ids[BACKEND_KV_BLOCK];
    cr_assert(kv_take(pool, blocks, n));
    for (int i = 0; i < n; i++) {
        block_ids(ids, family, i);
        blocks[i] = kv_publish(pool, blocks[i], i == 0 ? KV_ROOT : blocks[i - 1], salt, ids);
    }
}

/* How many of the first blocks of a text are known. */
static int known_chain(const struct kv_pool *pool, int32_t *blocks, int n, uint64_t salt,
                       int family) {
    int32_t ids[BACKEND_KV_BLOCK];
    for (int i = 0; i < n; i++) {
        block_ids(ids, family, i);
        blocks[i] = kv_find(pool, i == 0 ? KV_ROOT : blocks[i - 1], salt, ids);
        if (blocks[i] < 0) return i;
    }
    return n;
}

Test(kv, a_known_block_is_found_after_its_release) {
    struct kv_pool *pool = NULL;
    int32_t blocks[3], found[3];
    cr_assert_eq(kv_new(&pool, 8), 0);
    publish_chain(pool, blocks, 3, 7, 1);
    cr_expect_eq(known_chain(pool, found, 3, 7, 1), 3);
    cr_expect_eq(memcmp(blocks, found, sizeof blocks), 0);
    cr_expect_eq(known_chain(pool, found, 3, 8, 1), 0, "another salt");
    cr_expect_eq(known_chain(pool, found, 3, 7, 2), 0, "other tokens");
    cr_expect_eq(kv_cached_blocks(pool), 0);
    kv_release(pool, blocks, 3);
    cr_expect_eq(kv_free_blocks(pool), 8);
    cr_expect_eq(kv_cached_blocks(pool), 3);
    cr_expect_eq(known_chain(pool, found, 3, 7, 1), 3);
    kv_share(pool, found[0]);
    cr_expect_eq(kv_free_blocks(pool), 7);
    cr_expect_eq(kv_cached_blocks(pool), 2);
    kv_release(pool, found, 1);
    kv_free(pool);
}

Test(kv, equal_tokens_after_other_tokens_are_another_block) {
    struct kv_pool *pool = NULL;
    int32_t a[2], b[1], ids[BACKEND_KV_BLOCK];
    cr_assert_eq(kv_new(&pool, 8), 0);
    publish_chain(pool, a, 2, 0, 1);
    publish_chain(pool, b, 1, 0, 2);
    block_ids(ids, 1, 1);
    cr_expect_eq(kv_find(pool, a[0], 0, ids), a[1]);
    cr_expect_eq(kv_find(pool, b[0], 0, ids), -1);
    cr_expect_eq(kv_find(pool, KV_ROOT, 0, ids), -1);
    kv_free(pool);
}

Test(kv, who_comes_second_with_a_block_gets_the_first_ones) {
    struct kv_pool *pool = NULL;
    int32_t a[2], b[2];
    cr_assert_eq(kv_new(&pool, 8), 0);
    publish_chain(pool, a, 2, 0, 1);
    publish_chain(pool, b, 2, 0, 1);
    cr_expect_eq(memcmp(a, b, sizeof a), 0);
    cr_expect_eq(kv_free_blocks(pool), 6);
    kv_release(pool, a, 2);
    cr_expect_eq(kv_free_blocks(pool), 6);
    kv_release(pool, b, 2);
    cr_expect_eq(kv_free_blocks(pool), 8);
    kv_free(pool);
}

Test(kv, the_oldest_known_block_is_taken_first_and_leaves_before_parents) {
    struct kv_pool *pool = NULL;
    int32_t a[3], b[2], found[3], taken[5];
    cr_assert_eq(kv_new(&pool, 5), 0);
    publish_chain(pool, a, 3, 0, 1);
    publish_chain(pool, b, 2, 0, 2);
    kv_release(pool, a, 3);
    kv_release(pool, b, 2);
    cr_assert(kv_take(pool, &taken[0], 1));
    cr_expect_eq(known_chain(pool, found, 3, 0, 1), 2);
    cr_expect_eq(known_chain(pool, found, 2, 0, 2), 2);
    cr_assert(kv_take(pool, &taken[1], 2));
    cr_expect_eq(known_chain(pool, found, 3, 0, 1), 0);
    cr_assert(kv_take(pool, &taken[3], 1));
    cr_expect_eq(known_chain(pool, found, 2, 0, 2), 1);
    cr_expect_eq(kv_free_blocks(pool), 1);
    kv_free(pool);
}

Test(kv, use_makes_a_known_block_young) {
    struct kv_pool *pool = NULL;
    int32_t a[1], b[1], found[1], taken[1];
    cr_assert_eq(kv_new(&pool, 2), 0);
    publish_chain(pool, a, 1, 0, 1);
    publish_chain(pool, b, 1, 0, 2);
    kv_release(pool, a, 1);
    kv_release(pool, b, 1);
    kv_share(pool, a[0]);
    kv_release(pool, a, 1);
    cr_assert(kv_take(pool, taken, 1));
    cr_expect_eq(known_chain(pool, found, 1, 0, 1), 1);
    cr_expect_eq(known_chain(pool, found, 1, 0, 2), 0);
    kv_free(pool);
}

/* The pool's own hash, so that a collision can be made. */
static uint64_t mix(uint64_t h, uint64_t x) {
    h = (h ^ x) * 0x9e3779b97f4a7c15u;
    return h ^ (h >> 32);
}

/* Other tokens with the hash of ids, as a first block under salt 0. */
static void collide(int32_t *other, const int32_t *ids) {
    uint64_t start = mix(0x243f6a8885a308d3u, 0), pair[2];
    memcpy(other, ids, BACKEND_KV_BLOCK * sizeof *ids);
    other[1]++;
    for (int i = 0; i < 2; i++) {
        const int32_t *p = i == 0 ? ids : other;
        pair[i] = mix(start, (uint64_t)(uint32_t)p[0] << 32 | (uint32_t)p[1]);
    }
    uint64_t second = (uint64_t)(uint32_t)ids[2] << 32 | (uint32_t)ids[3];
    second ^= pair[0] ^ pair[1];
    other[2] = (int32_t)(second >> 32);
    other[3] = (int32_t)second;
}

Test(kv, a_collision_that_somebody_made_finds_nothing) {
    struct kv_pool *pool = NULL;
    int32_t a[2], ids[BACKEND_KV_BLOCK], other[BACKEND_KV_BLOCK], block, child;
    cr_assert_eq(kv_new(&pool, 8), 0);
    publish_chain(pool, a, 2, 0, 1);
    block_ids(ids, 1, 0);
    collide(other, ids);
    cr_expect_eq(kv_find(pool, KV_ROOT, 0, ids), a[0]);
    cr_expect_eq(kv_find(pool, KV_ROOT, 0, other), -1);
    cr_assert(kv_take(pool, &block, 1));
    cr_expect_eq(kv_publish(pool, block, KV_ROOT, 0, other), block);
    cr_expect_eq(kv_find(pool, KV_ROOT, 0, ids), a[0]);
    cr_expect_eq(kv_find(pool, KV_ROOT, 0, other), block);
    /* What continues the one does not continue the other. */
    block_ids(ids, 1, 1);
    cr_expect_eq(kv_find(pool, a[0], 0, ids), a[1]);
    cr_expect_eq(kv_find(pool, block, 0, ids), -1);
    cr_assert(kv_take(pool, &child, 1));
    cr_expect_eq(kv_publish(pool, child, block, 0, ids), child);
    kv_free(pool);
}

/* Texts of three tokens' alphabet in a pool of few buckets: whatever is found must be right. */
static void random_chains(uint64_t seed) {
    enum { POOL = 13, DEPTH = 4 };
    struct kv_pool *pool = NULL;
    int32_t content[POOL][DEPTH][BACKEND_KV_BLOCK] = {{{0}}}; /* the text up to the block's end */
    int depth[POOL] = {0};
    uint64_t salts[POOL] = {0};
    cr_assert_eq(kv_new(&pool, POOL), 0);
    for (int step = 0; step < 3000; step++) {
        int32_t text[DEPTH][BACKEND_KV_BLOCK], held[DEPTH];
        int n = random_range(&seed, 1, DEPTH), at = 0;
        uint64_t salt = random_next(&seed) % 2;
        for (int i = 0; i < n; i++)
            for (int j = 0; j < BACKEND_KV_BLOCK; j++)
                text[i][j] = j == 3 ? random_range(&seed, 0, 2) : 0;
        for (int32_t found; at < n; held[at++] = found) {
            found = kv_find(pool, at == 0 ? KV_ROOT : held[at - 1], salt, text[at]);
            if (found < 0) break;
            cr_assert_eq(depth[found], at + 1);
            cr_assert_eq(salts[found], salt);
            cr_assert_eq(memcmp(content[found], text, (size_t)(at + 1) * sizeof text[0]), 0);
            kv_share(pool, found);
        }
        for (; at < n && kv_take(pool, &held[at], 1); at++) {
            int32_t mine = held[at];
            held[at] = kv_publish(pool, mine, at == 0 ? KV_ROOT : held[at - 1], salt, text[at]);
            cr_assert_eq(held[at], mine, "it would have been found");
            depth[mine] = at + 1;
            salts[mine] = salt;
            memcpy(content[mine], text, (size_t)(at + 1) * sizeof text[0]);
        }
        kv_release(pool, held, at);
        cr_assert_eq(kv_free_blocks(pool), POOL);
    }
    kv_free(pool);
}

Test(kv, what_is_found_is_what_was_put_there) {
    for (uint64_t seed = 1; seed <= 20; seed++) random_chains(seed);
}

/* -- Counts ------------------------------------------------------------------------------------ */

enum { N_BLOCKS = 37, N_HOLDERS = 12, HOLDER_MAX = 9 };

struct holder {
    int32_t blocks[HOLDER_MAX];
    int n;
};

/* Free blocks + blocks that somebody holds = the pool. */
static void check_pool(const struct kv_pool *pool, const int *counts) {
    int held = 0;
    for (int i = 0; i < N_BLOCKS; i++) held += counts[i] > 0;
    cr_assert_eq(kv_free_blocks(pool) + held, N_BLOCKS);
}

static void take_some(struct kv_pool *pool, struct holder *h, int n, int *counts) {
    bool fits = n <= kv_free_blocks(pool);
    cr_assert_eq(kv_take(pool, h->blocks, n), fits);
    if (!fits) return;
    h->n = n;
    for (int i = 0; i < n; i++) {
        cr_assert(h->blocks[i] >= 0 && h->blocks[i] < N_BLOCKS);
        cr_assert_eq(counts[h->blocks[i]]++, 0, "block %d was handed out twice", h->blocks[i]);
    }
}

static void share_all(struct kv_pool *pool, struct holder *to, const struct holder *from,
                      int *counts) {
    *to = *from;
    for (int i = 0; i < to->n; i++) {
        kv_share(pool, to->blocks[i]);
        counts[to->blocks[i]]++;
    }
}

static void release_all(struct kv_pool *pool, struct holder *h, int *counts) {
    kv_release(pool, h->blocks, h->n);
    for (int i = 0; i < h->n; i++) counts[h->blocks[i]]--;
    h->n = 0;
}

static void random_operations(uint64_t seed) {
    struct kv_pool *pool = NULL;
    struct holder holders[N_HOLDERS] = {0};
    int counts[N_BLOCKS] = {0};
    cr_assert_eq(kv_new(&pool, N_BLOCKS), 0);
    for (int step = 0; step < 2000; step++) {
        struct holder *h = &holders[random_range(&seed, 0, N_HOLDERS - 1)];
        const struct holder *other = &holders[random_range(&seed, 0, N_HOLDERS - 1)];
        if (h->n > 0)
            release_all(pool, h, counts);
        else if (other->n > 0 && random_range(&seed, 0, 2) == 0)
            share_all(pool, h, other, counts);
        else
            take_some(pool, h, random_range(&seed, 0, HOLDER_MAX), counts);
        check_pool(pool, counts);
    }
    for (int i = 0; i < N_HOLDERS; i++) release_all(pool, &holders[i], counts);
    cr_assert_eq(kv_free_blocks(pool), N_BLOCKS);
    kv_free(pool);
}

Test(kv, no_block_is_lost_or_handed_out_twice) {
    for (uint64_t seed = 0; seed < 50; seed++) random_operations(seed);
}
