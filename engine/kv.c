#include "engine/kv.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/backend.h"

/* DESIGN. A block is free (unknown, on the stack), held (count > 0, known or not) or cached
 * (known, count 0, in the list of idle blocks). Free and cached ones can be taken.
 *
 * What a block holds is its tokens and its parent block. Because a parent stays known as long as
 * its children, comparing the parent's number and the tokens compares the whole beginning: the
 * hash only finds the place to look, and a collision costs a comparison, never a wrong block.
 *
 * Leaves leave before parents without any search: holders of a block hold its parents too, and
 * release them after it, so a parent never stands before its child in the idle list. */

struct block {
    int count; /* sequences that hold it */
    bool known;
    int n_children;     /* known blocks that continue it */
    int32_t parent;     /* of a known one; KV_ROOT: none */
    int32_t link;       /* next known block of the same bucket; -1 = last */
    int32_t prev, next; /* in the idle list, -1 = end */
    uint64_t salt;      /* of a known first block */
    uint64_t hash;      /* of salt and all tokens up to its end */
    int32_t ids[BACKEND_KV_BLOCK];
};

struct kv_pool {
    int n_blocks, n_free, n_cached;
    int32_t *free_blocks;   /* (n_blocks) a stack: the block released last is still in a cache */
    struct block *blocks;   /* (n_blocks) */
    int32_t oldest, newest; /* of the idle list; -1: empty */
    int32_t *buckets;       /* (n_buckets) first known block; -1: none */
    uint64_t n_buckets;     /* a power of two */
};

int kv_new(struct kv_pool **ret, int n_blocks) {
    if (n_blocks < 1) return -EINVAL;
    struct kv_pool *pool = calloc(1, sizeof *pool);
    if (!pool) return -ENOMEM;
    pool->n_buckets = 1;
    while (pool->n_buckets < (uint64_t)n_blocks) pool->n_buckets *= 2;
    pool->free_blocks = malloc((size_t)n_blocks * sizeof *pool->free_blocks);
    pool->blocks = calloc((size_t)n_blocks, sizeof *pool->blocks);
    pool->buckets = malloc(pool->n_buckets * sizeof *pool->buckets);
    if (!pool->free_blocks || !pool->blocks || !pool->buckets) {
        kv_free(pool);
        return -ENOMEM;
    }
    pool->n_blocks = pool->n_free = n_blocks;
    pool->oldest = pool->newest = -1;
    for (int i = 0; i < n_blocks; i++) pool->free_blocks[i] = n_blocks - 1 - i;
    for (uint64_t i = 0; i < pool->n_buckets; i++) pool->buckets[i] = -1;
    *ret = pool;
    return 0;
}

void kv_free(struct kv_pool *pool) {
    if (!pool) return;
    free(pool->free_blocks);
    free(pool->blocks);
    free(pool->buckets);
    free(pool);
}

int kv_free_blocks(const struct kv_pool *pool) { return pool->n_free + pool->n_cached; }

int kv_cached_blocks(const struct kv_pool *pool) { return pool->n_cached; }

int kv_total_blocks(const struct kv_pool *pool) { return pool->n_blocks; }

/* -- The idle list ----------------------------------------------------------------------------- */

static void idle_append(struct kv_pool *pool, int32_t number) {
    struct block *b = &pool->blocks[number];
    b->prev = pool->newest;
    b->next = -1;
    if (pool->newest >= 0)
        pool->blocks[pool->newest].next = number;
    else
        pool->oldest = number;
    pool->newest = number;
    pool->n_cached++;
}

static void idle_remove(struct kv_pool *pool, int32_t number) {
    const struct block *b = &pool->blocks[number];
    if (b->prev >= 0)
        pool->blocks[b->prev].next = b->next;
    else
        pool->oldest = b->next;
    if (b->next >= 0)
        pool->blocks[b->next].prev = b->prev;
    else
        pool->newest = b->prev;
    pool->n_cached--;
}

/* -- The index of known blocks ----------------------------------------------------------------- */

static uint64_t mix(uint64_t h, uint64_t x) {
    h = (h ^ x) * 0x9e3779b97f4a7c15u;
    return h ^ (h >> 32);
}

static uint64_t hash_after(const struct kv_pool *pool, int32_t parent, uint64_t salt,
                           const int32_t *ids) {
    uint64_t h = parent == KV_ROOT ? mix(0x243f6a8885a308d3u, salt) : pool->blocks[parent].hash;
    for (int i = 0; i < BACKEND_KV_BLOCK; i += 2)
        h = mix(h, (uint64_t)(uint32_t)ids[i] << 32 | (uint32_t)ids[i + 1]);
    return h;
}

static int32_t find_hashed(const struct kv_pool *pool, uint64_t hash, int32_t parent, uint64_t salt,
                           const int32_t *ids) {
    int32_t number = pool->buckets[hash & (pool->n_buckets - 1)];
    for (; number >= 0; number = pool->blocks[number].link) {
        const struct block *b = &pool->blocks[number];
        if (b->hash == hash && b->parent == parent && (parent != KV_ROOT || b->salt == salt) &&
            memcmp(b->ids, ids, sizeof b->ids) == 0)
            return number;
    }
    return -1;
}

int32_t kv_find(const struct kv_pool *pool, int32_t parent, uint64_t salt, const int32_t *ids) {
    return find_hashed(pool, hash_after(pool, parent, salt, ids), parent, salt, ids);
}

int32_t kv_publish(struct kv_pool *pool, int32_t block, int32_t parent, uint64_t salt,
                   const int32_t *ids) {
    struct block *b = &pool->blocks[block];
    assert(b->count > 0 && !b->known && (parent == KV_ROOT || pool->blocks[parent].known));
    uint64_t hash = hash_after(pool, parent, salt, ids);
    int32_t known = find_hashed(pool, hash, parent, salt, ids);
    if (known >= 0) {
        kv_share(pool, known);
        kv_release(pool, &block, 1);
        return known;
    }
    int32_t *bucket = &pool->buckets[hash & (pool->n_buckets - 1)];
    b->known = true;
    b->parent = parent;
    b->salt = salt;
    b->hash = hash;
    memcpy(b->ids, ids, sizeof b->ids);
    b->link = *bucket;
    *bucket = block;
    if (parent != KV_ROOT) pool->blocks[parent].n_children++;
    return block;
}

static void forget(struct kv_pool *pool, int32_t number) {
    struct block *b = &pool->blocks[number];
    assert(b->known && b->count == 0 && b->n_children == 0);
    int32_t *link = &pool->buckets[b->hash & (pool->n_buckets - 1)];
    while (*link != number) link = &pool->blocks[*link].link;
    *link = b->link;
    if (b->parent != KV_ROOT) pool->blocks[b->parent].n_children--;
    b->known = false;
}

/* -- Counts ------------------------------------------------------------------------------------ */

/* Unknown blocks first: known ones may yet be of use. */
static int32_t take_one(struct kv_pool *pool) {
    if (pool->n_free > 0) return pool->free_blocks[--pool->n_free];
    int32_t number = pool->oldest;
    idle_remove(pool, number);
    forget(pool, number);
    return number;
}

bool kv_take(struct kv_pool *pool, int32_t *blocks, int n) {
    if (n > kv_free_blocks(pool)) return false;
    for (int i = 0; i < n; i++) {
        blocks[i] = take_one(pool);
        assert(pool->blocks[blocks[i]].count == 0);
        pool->blocks[blocks[i]].count = 1;
    }
    return true;
}

void kv_share(struct kv_pool *pool, int32_t block) {
    assert(block >= 0 && block < pool->n_blocks);
    struct block *b = &pool->blocks[block];
    assert(b->count > 0 || b->known);
    if (b->count++ == 0) idle_remove(pool, block);
}

void kv_release(struct kv_pool *pool, const int32_t *blocks, int n) {
    for (int i = n - 1; i >= 0; i--) {
        int32_t number = blocks[i];
        assert(number >= 0 && number < pool->n_blocks && pool->blocks[number].count > 0);
        if (--pool->blocks[number].count > 0) continue;
        if (pool->blocks[number].known)
            idle_append(pool, number);
        else
            pool->free_blocks[pool->n_free++] = number;
    }
}

int kv_blocks_for(int n_tokens) {
    return n_tokens / BACKEND_KV_BLOCK + (n_tokens % BACKEND_KV_BLOCK != 0);
}
