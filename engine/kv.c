#include "engine/kv.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "kernels/backend.h"

struct kv_pool {
    int n_blocks, n_free;
    int32_t *free_blocks; /* (n_blocks) a stack: the block released last is still in a cache */
    int32_t *counts;      /* (n_blocks) sequences that hold the block */
};

int kv_new(struct kv_pool **ret, int n_blocks) {
    if (n_blocks < 1) return -EINVAL;
    struct kv_pool *pool = calloc(1, sizeof *pool);
    if (!pool) return -ENOMEM;
    pool->free_blocks = malloc((size_t)n_blocks * sizeof *pool->free_blocks);
    pool->counts = calloc((size_t)n_blocks, sizeof *pool->counts);
    if (!pool->free_blocks || !pool->counts) {
        kv_free(pool);
        return -ENOMEM;
    }
    pool->n_blocks = pool->n_free = n_blocks;
    for (int i = 0; i < n_blocks; i++) pool->free_blocks[i] = n_blocks - 1 - i;
    *ret = pool;
    return 0;
}

void kv_free(struct kv_pool *pool) {
    if (!pool) return;
    free(pool->free_blocks);
    free(pool->counts);
    free(pool);
}

int kv_free_blocks(const struct kv_pool *pool) { return pool->n_free; }

int kv_total_blocks(const struct kv_pool *pool) { return pool->n_blocks; }

bool kv_take(struct kv_pool *pool, int32_t *blocks, int n) {
    if (n > pool->n_free) return false;
    for (int i = 0; i < n; i++) {
        int32_t block = pool->free_blocks[--pool->n_free];
        assert(pool->counts[block] == 0);
        pool->counts[block] = 1;
        blocks[i] = block;
    }
    return true;
}

void kv_share(struct kv_pool *pool, int32_t block) {
    assert(block >= 0 && block < pool->n_blocks && pool->counts[block] > 0);
    pool->counts[block]++;
}

void kv_release(struct kv_pool *pool, const int32_t *blocks, int n) {
    for (int i = 0; i < n; i++) {
        int32_t block = blocks[i];
        assert(block >= 0 && block < pool->n_blocks && pool->counts[block] > 0);
        if (--pool->counts[block] == 0) pool->free_blocks[pool->n_free++] = block;
    }
}

int kv_blocks_for(int n_tokens) {
    return n_tokens / BACKEND_KV_BLOCK + (n_tokens % BACKEND_KV_BLOCK != 0);
}
