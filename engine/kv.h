/* kv.h - hands out blocks of the KV pool and remembers what is in them.
 *
 * Owns      the free list, reference counts and the index of known blocks; the storage belongs to
 *           the model.
 * Borrows   nothing.
 * Thread    engine.
 * Fails     kv_take() when too few blocks are free: nothing is taken then.
 * Cost      O(blocks asked for); no allocation after kv_new().
 *
 * A block holds BACKEND_KV_BLOCK positions of one sequence; free blocks + blocks with a
 * positive count = the pool, always. A full block can be made known by its tokens and all that
 * come before them. It stays known after its last holder let go, until its memory is needed:
 * those released first go first, and always before the block they continue. */
#ifndef ENGINE_KV_H
#define ENGINE_KV_H

#include <stdbool.h>
#include <stdint.h>

struct kv_pool;

int kv_new(struct kv_pool **ret, int n_blocks);
void kv_free(struct kv_pool *pool); /* NULL is allowed */

int kv_free_blocks(const struct kv_pool *pool);   /* kv_take() can have them */
int kv_cached_blocks(const struct kv_pool *pool); /* of these: known */
int kv_total_blocks(const struct kv_pool *pool);

/* Writes n block numbers, each with count 1. */
bool kv_take(struct kv_pool *pool, int32_t *blocks, int n);
/* Count + 1, of a block that is held or known. */
void kv_share(struct kv_pool *pool, int32_t block);
/* Count - 1 each. blocks: in the order of positions; who holds a block holds those before it. */
void kv_release(struct kv_pool *pool, const int32_t *blocks, int n);

enum { KV_ROOT = -1 /* the parent of a first block */ };

/* The known block with these BACKEND_KV_BLOCK tokens after those of parent; -1: none. A first
 * block is found under the salt it was published with, and so is all that continues it. */
int32_t kv_find(const struct kv_pool *pool, int32_t parent, uint64_t salt, const int32_t *ids);

/* Makes a held block known, full of ids, after parent (held and known, or KV_ROOT). Returns the
 * block to use from now on: where one like it was known already, that one, and the holder's
 * count has moved there. */
int32_t kv_publish(struct kv_pool *pool, int32_t block, int32_t parent, uint64_t salt,
                   const int32_t *ids);

/* Blocks for n_tokens positions. */
int kv_blocks_for(int n_tokens);

#endif
