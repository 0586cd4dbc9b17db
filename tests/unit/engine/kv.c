#include "engine/kv.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>

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
