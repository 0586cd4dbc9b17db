#include "engine/scheduler.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/kv.h"
#include "kernels/backend.h"
#include "kernels/error.h"

/* DESIGN. Every sequence stands in one list, oldest first. The first n_running of it run, the
 * rest wait: a sequence starts only when everything older runs, and the youngest running one is
 * the first to give its blocks back. So to start is n_running + 1, to preempt n_running - 1, and
 * a preempted sequence is at the head of the queue again without being moved.
 *
 * A sequence takes the blocks of all its known tokens when it starts. Chunks of a prompt thus
 * never run out of blocks half-way; only growth does, by one block at a time.
 *
 * Blocks become known when they are full and computed. Where another sequence was faster, its
 * block replaces ours in the table: equal tokens give equal keys and values to the bit, and what
 * is in the table up to done is always the known chain that the next block continues. */

struct entry {
    bool used, fresh;
    bool started; /* at least once */
    struct engine_claim claim;
    int32_t *const *ids;
    int known;  /* tokens whose ids are known */
    int done;   /* of these, tokens with keys and values in the pool */
    int max;    /* known never passes it */
    int plan;   /* tokens in the step that is being put together */
    int drafts; /* wanted or, in that step, granted */
    int table;  /* row of tables while running */
    int n_blocks;
    int n_public; /* of these, known to the pool */
    int n_cached; /* tokens taken over at the first start */
};

struct scheduler {
    struct scheduler_options options;
    struct kv_pool *kv;
    int n_slots, table_size;
    struct entry *entries; /* (n_slots) */
    int *order;            /* (n_slots) slots by age, oldest first */
    int n, n_running;      /* of order: in use; running */
    int *free_slots;       /* (n_slots) a stack of n_slots - n */
    int32_t *tables;       /* (max_running, table_size) block tables of running sequences */
    int *free_tables;      /* (max_running) a stack of max_running - n_running */
    struct scheduler_stats stats;
};

static int32_t *table_of(const struct scheduler *s, const struct entry *e) {
    return s->tables + (size_t)e->table * (size_t)s->table_size;
}

static int check_options(const struct scheduler_options *o, struct error *err) {
    if (o->max_running < 1) return error_set(err, -EINVAL, "max_running must be at least 1");
    if (o->max_waiting < 0) return error_set(err, -EINVAL, "max_waiting must not be negative");
    if (o->max_context < 1) return error_set(err, -EINVAL, "max_context must be at least 1");
    if (o->max_running > 1 << 20 || o->max_waiting > 1 << 20)
        return error_set(err, -EINVAL, "max_running and max_waiting are limited to %d", 1 << 20);
    /* Else a step could not decode all that runs, and something would starve. */
    if (o->step_tokens < o->max_running)
        return error_set(err, -EINVAL, "step_tokens (%d) must be at least max_running (%d)",
                         o->step_tokens, o->max_running);
    return 0;
}

int scheduler_new(struct scheduler **ret, const struct scheduler_options *options,
                  struct kv_pool *kv, struct error *err) {
    int r = check_options(options, err);
    if (r < 0) return r;
    struct scheduler *s = calloc(1, sizeof *s);
    if (!s) return error_set(err, -ENOMEM, "scheduler: out of memory");
    s->options = *options;
    s->kv = kv;
    s->n_slots = options->max_running + options->max_waiting;
    s->table_size = kv_blocks_for(options->max_context);
    size_t n_slots = (size_t)s->n_slots, n_tables = (size_t)options->max_running;
    s->entries = calloc(n_slots, sizeof *s->entries);
    s->order = calloc(n_slots, sizeof *s->order);
    s->free_slots = calloc(n_slots, sizeof *s->free_slots);
    s->tables = calloc(n_tables * (size_t)s->table_size, sizeof *s->tables);
    s->free_tables = calloc(n_tables, sizeof *s->free_tables);
    if (!s->entries || !s->order || !s->free_slots || !s->tables || !s->free_tables) {
        scheduler_free(s);
        return error_set(err, -ENOMEM, "scheduler: out of memory");
    }
    for (int i = 0; i < s->n_slots; i++) s->free_slots[i] = s->n_slots - 1 - i;
    for (int i = 0; i < options->max_running; i++) s->free_tables[i] = options->max_running - 1 - i;
    *ret = s;
    return 0;
}

void scheduler_free(struct scheduler *s) {
    if (!s) return;
    for (int i = 0; i < s->n_running; i++) {
        const struct entry *e = &s->entries[s->order[i]];
        kv_release(s->kv, table_of(s, e), e->n_blocks);
    }
    free(s->entries);
    free(s->order);
    free(s->free_slots);
    free(s->tables);
    free(s->free_tables);
    free(s);
}

int scheduler_add(struct scheduler *s, int *ret_slot, const struct scheduler_sequence *seq,
                  struct error *err) {
    if (seq->n_tokens < 1) return error_set(err, -EINVAL, "the prompt is empty");
    if (seq->n_tokens > seq->n_max || seq->n_max > s->options.max_context ||
        kv_blocks_for(seq->n_max) > kv_total_blocks(s->kv))
        return error_set(err, -E2BIG, "%d tokens growing to %d do not fit into %d", seq->n_tokens,
                         seq->n_max, s->options.max_context);
    if (s->n == s->n_slots)
        return error_set(err, -EAGAIN, "%d sequences are running or waiting", s->n);

    int slot = s->free_slots[s->n_slots - s->n - 1];
    s->entries[slot] = (struct entry){.used = true,
                                      .fresh = seq->fresh,
                                      .claim = seq->claim,
                                      .ids = seq->ids,
                                      .known = seq->n_tokens,
                                      .max = seq->n_max};
    s->order[s->n++] = slot;
    *ret_slot = slot;
    return 0;
}

/* -- Known blocks ------------------------------------------------------------------------------ */

static int32_t parent_of(const int32_t *table, int i) { return i == 0 ? KV_ROOT : table[i - 1]; }

/* Takes over the known blocks of the beginning; at least one token is left to compute, or there
 * would be no logits. */
static void take_known(struct scheduler *s, struct entry *e) {
    int limit = s->options.no_cache || e->fresh ? 0 : (e->known - 1) / BACKEND_KV_BLOCK;
    int32_t *table = table_of(s, e);
    e->n_blocks = 0;
    while (e->n_blocks < limit) {
        int i = e->n_blocks;
        int32_t block =
            kv_find(s->kv, parent_of(table, i), e->claim.salt, *e->ids + i * BACKEND_KV_BLOCK);
        if (block < 0) break;
        kv_share(s->kv, block);
        table[e->n_blocks++] = block;
    }
    e->n_public = e->n_blocks;
    e->done = e->n_blocks * BACKEND_KV_BLOCK;
}

static void publish(struct scheduler *s, struct entry *e) {
    if (s->options.no_cache) return;
    int32_t *table = table_of(s, e);
    for (; (e->n_public + 1) * BACKEND_KV_BLOCK <= e->done; e->n_public++) {
        int i = e->n_public;
        table[i] = kv_publish(s->kv, table[i], parent_of(table, i), e->claim.salt,
                              *e->ids + i * BACKEND_KV_BLOCK);
    }
}

static void drop_blocks(struct scheduler *s, struct entry *e) {
    kv_release(s->kv, table_of(s, e), e->n_blocks);
    e->n_blocks = e->n_public = e->done = 0;
}

/* -- The step ---------------------------------------------------------------------------------- */

static void count_lookup(struct scheduler *s, struct entry *e) {
    if (e->started) return;
    e->started = true;
    e->n_cached = e->done;
    if (s->options.no_cache || e->fresh) return;
    s->stats.prefix_queries += e->known;
    s->stats.prefix_hits += e->done;
}

/* The sequence at place n_running becomes the youngest running one. */
static bool start_next(struct scheduler *s) {
    if (s->n_running == s->n || s->n_running == s->options.max_running) return false;
    struct entry *e = &s->entries[s->order[s->n_running]];
    e->table = s->free_tables[s->options.max_running - s->n_running - 1];
    take_known(s, e);
    int need = kv_blocks_for(e->known) - e->n_blocks;
    /* A free block stays for each running sequence: all will want one within the next
     * BACKEND_KV_BLOCK steps, and what starts now would be preempted for it at once. */
    if (need + s->n_running > kv_free_blocks(s->kv)) {
        drop_blocks(s, e);
        return false;
    }
    kv_take(s->kv, table_of(s, e) + e->n_blocks, need);
    e->n_blocks += need;
    s->n_running++;
    count_lookup(s, e);
    return true;
}

/* The youngest running sequence waits again, without blocks; its share of the step is dropped. */
static void preempt_youngest(struct scheduler *s) {
    struct entry *e = &s->entries[s->order[s->n_running - 1]];
    drop_blocks(s, e);
    s->n_running--;
    s->free_tables[s->options.max_running - s->n_running - 1] = e->table;
    e->plan = e->drafts = 0;
    s->stats.preemptions++;
}

/* Gives the running sequence at place i blocks for one more token, at the cost of the youngest;
 * false when that was itself. */
static bool reserve_one(struct scheduler *s, int i) {
    struct entry *e = &s->entries[s->order[i]];
    while (e->n_blocks < kv_blocks_for(e->done + 1)) {
        if (kv_take(s->kv, table_of(s, e) + e->n_blocks, 1)) {
            e->n_blocks++;
        } else {
            preempt_youngest(s);
            if (s->n_running == i) return false;
        }
    }
    return true;
}

/* One token for all that decode. Prompts come after: a long one never delays these. */
static void plan_decodes(struct scheduler *s) {
    for (int i = 0; i < s->n_running; i++) {
        struct entry *e = &s->entries[s->order[i]];
        if (e->known - e->done == 1 && reserve_one(s, i)) e->plan = 1;
    }
}

/* A chunk of each running prompt, oldest first, then of those that can start. Returns what is
 * left of the budget. */
static int plan_prompts(struct scheduler *s, int budget) {
    for (int i = 0; budget > 0; i++) {
        if (i == s->n_running && !start_next(s)) break;
        struct entry *e = &s->entries[s->order[i]];
        int pending = e->known - e->done;
        if (e->plan > 0 || pending == 0) continue;
        e->plan = pending < budget ? pending : budget;
        budget -= e->plan;
    }
    return budget;
}

/* How many drafts fit after the one token that e decodes. */
static int grant_drafts(struct scheduler *s, struct entry *e, int budget) {
    int n = e->drafts < budget ? e->drafts : budget;
    if (e->known - e->done != 1 || e->plan != 1) return 0;
    /* One that follows the last right draft must fit too. */
    if (n > e->max - e->known - 1) n = e->max - e->known - 1;
    while (n > 0 && e->n_blocks < kv_blocks_for(e->known + n)) {
        if (kv_take(s->kv, table_of(s, e) + e->n_blocks, 1))
            e->n_blocks++;
        else
            n = e->n_blocks * BACKEND_KV_BLOCK - e->known;
    }
    return n > 0 ? n : 0;
}

static void plan_drafts(struct scheduler *s, int budget) {
    for (int i = 0; i < s->n_running; i++) {
        struct entry *e = &s->entries[s->order[i]];
        if (e->drafts > 0) e->drafts = grant_drafts(s, e, budget);
        budget -= e->drafts;
    }
}

int scheduler_next(struct scheduler *s, struct scheduler_share *shares) {
    for (int i = 0; i < s->n_running; i++) s->entries[s->order[i]].plan = 0;
    plan_decodes(s);
    int budget = s->options.step_tokens;
    for (int i = 0; i < s->n_running; i++) budget -= s->entries[s->order[i]].plan;
    plan_drafts(s, plan_prompts(s, budget));

    int n = 0;
    for (int i = 0; i < s->n_running; i++) {
        const struct entry *e = &s->entries[s->order[i]];
        if (e->plan == 0) continue;
        shares[n++] = (struct scheduler_share){
            .slot = s->order[i],
            .start = e->done,
            .n = e->plan,
            .samples = e->done + e->plan == e->known,
            .n_drafts = e->drafts,
            .n_cached = e->n_cached,
            .blocks = table_of(s, e),
            .n_blocks = e->n_blocks,
        };
    }
    return n;
}

void scheduler_ran(struct scheduler *s, const struct scheduler_share *shares, int n) {
    for (int i = 0; i < n; i++) {
        struct entry *e = &s->entries[shares[i].slot];
        assert(e->used && e->done == shares[i].start && e->done + shares[i].n <= e->known);
        e->done += shares[i].n;
        publish(s, e);
    }
}

void scheduler_grow(struct scheduler *s, int slot, int n) {
    struct entry *e = &s->entries[slot];
    assert(e->used && e->done == e->known && n >= 1 && n - 1 <= e->drafts &&
           n <= e->max - e->known);
    e->known += n;
    e->done += n - 1;
    e->drafts = 0;
    publish(s, e);
}

void scheduler_draft(struct scheduler *s, int slot, int n) {
    struct entry *e = &s->entries[slot];
    assert(e->used && n >= 0);
    e->drafts = n;
}

void scheduler_remove(struct scheduler *s, int slot) {
    struct entry *e = &s->entries[slot];
    assert(e->used);
    int place = 0;
    while (s->order[place] != slot) place++;
    if (place < s->n_running) {
        kv_release(s->kv, table_of(s, e), e->n_blocks);
        s->n_running--;
        s->free_tables[s->options.max_running - s->n_running - 1] = e->table;
    }
    s->n--;
    memmove(s->order + place, s->order + place + 1, (size_t)(s->n - place) * sizeof *s->order);
    s->free_slots[s->n_slots - s->n - 1] = slot;
    e->used = false;
}

void scheduler_get_stats(const struct scheduler *s, struct scheduler_stats *stats) {
    *stats = s->stats;
    stats->running = s->n_running;
    stats->waiting = s->n - s->n_running;
}
