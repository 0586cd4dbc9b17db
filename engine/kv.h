/* kv.h - hands out blocks of the KV pool.
 *
 * Owns      the free list and reference counts; the storage belongs to the model.
 * Borrows   nothing.
 * Thread    engine.
 * Fails     kv_take() when too few blocks are free: nothing is taken then.
 * Cost      O(blocks asked for); no allocation after kv_new().
 *
 * A block holds BACKEND_KV_BLOCK positions of one sequence; free blocks + blocks with a
 * positive count = the pool, always. */
#ifndef ENGINE_KV_H
#define ENGINE_KV_H

#include <stdbool.h>
#include <stdint.h>

struct kv_pool;

int kv_new(struct kv_pool **ret, int n_blocks);
void kv_free(struct kv_pool *pool); /* NULL is allowed */

int kv_free_blocks(const struct kv_pool *pool);
int kv_total_blocks(const struct kv_pool *pool);

/* Writes n block numbers, each with count 1. */
bool kv_take(struct kv_pool *pool, int32_t *blocks, int n);
void kv_share(struct kv_pool *pool, int32_t block);                  /* count + 1 */
void kv_release(struct kv_pool *pool, const int32_t *blocks, int n); /* count - 1 each */

/* Blocks for n_tokens positions. */
int kv_blocks_for(int n_tokens);

#endif
