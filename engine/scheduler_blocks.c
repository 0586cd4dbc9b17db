#include <assert.h>
#include <string.h>

#include "engine/kv.h"
#include "engine/scheduler_state.h"
#include "kernels/backend.h"

/* DESIGN. Blocks become known when they are full and computed. Where another sequence was faster,
 * its block replaces ours in the table: equal tokens give equal keys and values to the bit, and
 * what is in the table up to n_public is always the known chain that the next block continues. */

static const int32_t *block_ids(const struct entry *e, int i) {
    return *e->ids + (size_t)i * BACKEND_KV_BLOCK;
}

static int32_t parent_of(const int32_t *table, int i) { return i == 0 ? KV_ROOT : table[i - 1]; }

/* At least one token is left to compute, or there would be no logits. */
static int usable_blocks(const struct scheduler *s, const struct entry *e) {
    return s->options.no_cache || e->fresh ? 0 : (e->known - 1) / BACKEND_KV_BLOCK;
}

void blocks_take_known(struct scheduler *s, struct entry *e) {
    int32_t *table = entry_table(s, e);
    int limit = usable_blocks(s, e), i = 0;
    for (; i < limit; i++) {
        table[i] = kv_find(s->kv, parent_of(table, i), e->claim.salt, block_ids(e, i));
        if (table[i] < 0) break;
        kv_share(s->kv, table[i]);
    }
    e->n_blocks = e->n_public = i;
    e->done = i * BACKEND_KV_BLOCK;
}

static bool same_block(const struct entry *a, const struct entry *b, int i) {
    return (i + 1) * BACKEND_KV_BLOCK <= b->known &&
           memcmp(block_ids(a, i), block_ids(b, i), BACKEND_KV_BLOCK * sizeof(int32_t)) == 0;
}

/* Whether l computes, no later than e could, the block that e needs next. */
static bool leads(const struct scheduler *s, const struct entry *l, const struct entry *e) {
    int i = e->n_public;
    return !l->paused && l->known - l->done > 1 && l->n_public == i &&
           l->claim.tenant == e->claim.tenant && l->claim.salt == e->claim.salt &&
           l->claim.priority <= e->claim.priority &&
           parent_of(entry_table(s, l), i) == parent_of(entry_table(s, e), i) &&
           same_block(e, l, i);
}

int blocks_find_leader(const struct scheduler *s, const struct entry *e, int *ret_blocks) {
    int limit = usable_blocks(s, e);
    if (e->n_public == limit) return -1;
    for (int i = 0; i < s->n_running; i++) {
        const struct entry *l = &s->entries[s->running[i]];
        if (!leads(s, l, e)) continue;
        int n = e->n_public + 1;
        while (n < limit && same_block(e, l, n)) n++;
        *ret_blocks = n;
        return s->running[i];
    }
    return -1;
}

bool blocks_take(struct scheduler *s, struct entry *e, int n) {
    if (!kv_take(s->kv, entry_table(s, e) + e->n_blocks, n)) return false;
    e->n_blocks += n;
    return true;
}

void blocks_publish(struct scheduler *s, struct entry *e) {
    if (s->options.no_cache) return;
    int32_t *table = entry_table(s, e);
    for (; (e->n_public + 1) * BACKEND_KV_BLOCK <= e->done; e->n_public++) {
        int i = e->n_public;
        table[i] = kv_publish(s->kv, table[i], parent_of(table, i), e->claim.salt, block_ids(e, i));
    }
    if (e->followers >= 0) queue_wake(s, e, false);
}

void blocks_drop(struct scheduler *s, struct entry *e) {
    kv_release(s->kv, entry_table(s, e), e->n_blocks);
    e->n_blocks = e->n_public = e->done = 0;
}
