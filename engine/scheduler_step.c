#include <assert.h>

#include "engine/kv.h"
#include "engine/scheduler_state.h"
#include "kernels/backend.h"

enum { MAX_PARKED = 32 /* sequences parked in a step, so that it stays short */ };

/* -- Room -------------------------------------------------------------------------------------- */

static bool gives_way(const struct entry *victim, const struct entry *e) {
    return victim->paused || victim->claim.priority > e->claim.priority;
}

/* A free block stays for each running sequence: all will want one within the next
 * BACKEND_KV_BLOCK steps, and what starts now would be preempted for it at once. */
static bool has_room(const struct scheduler *s, int need) {
    return s->n_running < s->options.max_running && need + s->n_running <= kv_free_blocks(s->kv);
}

/* Whether preempting could make room: counts shared blocks as if they came free. */
static bool could_have_room(const struct scheduler *s, const struct entry *e, int need) {
    int64_t free_blocks = kv_free_blocks(s->kv);
    int left = s->n_running;
    for (; left > 0 && gives_way(&s->entries[s->running[left - 1]], e); left--)
        free_blocks += s->entries[s->running[left - 1]].n_blocks;
    return left < s->options.max_running && need + left <= free_blocks;
}

static bool make_room(struct scheduler *s, const struct entry *e, int need) {
    if (has_room(s, need)) return true;
    if (!could_have_room(s, e, need)) return false;
    while (!has_room(s, need)) {
        if (s->n_running == 0 || !gives_way(&s->entries[s->running[s->n_running - 1]], e))
            return false;
        preempt_last(s);
    }
    return true;
}

/* Gives a running sequence blocks for one more token, at the cost of the last; false when that
 * was itself. */
static bool reserve_one(struct scheduler *s, struct entry *e) {
    while (e->n_blocks < kv_blocks_for(e->done + 1)) {
        if (blocks_take(s, e, 1)) continue;
        preempt_last(s);
        if (e->state != ENTRY_RUNNING) return false;
    }
    return true;
}

/* -- Starting ---------------------------------------------------------------------------------- */

static void note_start(struct scheduler *s, struct entry *e) {
    entry_count(s, e);
    if (e->started) return;
    e->started = true;
    e->n_cached = e->done;
    entry_set_deadline(s, e);
    if (s->options.no_cache || e->fresh) return;
    s->stats.prefix_queries += e->known;
    s->stats.prefix_hits += e->done;
}

/* Back to the queue, from an attempt to start. */
static void give_up(struct scheduler *s, struct entry *e) {
    blocks_drop(s, e);
    s->free_tables[s->n_free_tables++] = e->table;
}

/* A waiting sequence runs, or is parked, or else there is no room, for nobody in this step. */
static void try_start(struct scheduler *s, int slot) {
    struct entry *e = &s->entries[slot];
    int wanted;
    e->table = s->free_tables[--s->n_free_tables];
    blocks_take_known(s, e);
    int leader = blocks_find_leader(s, e, &wanted);
    int need = kv_blocks_for(e->known) - e->n_blocks;
    if (leader >= 0) {
        give_up(s, e);
        queue_park(s, slot, leader, wanted);
        s->starting = ++s->n_parked < MAX_PARKED;
    } else if (!make_room(s, e, need)) {
        give_up(s, e);
        s->starting = false;
    } else {
        blocks_take(s, e, need);
        queue_remove(s, slot);
        running_insert(s, slot);
        note_start(s, e);
    }
}

/* -- Sharing the budget ------------------------------------------------------------------------ */

static bool comes_before(const struct contender *a, const struct contender *b) {
    if (a->priority != b->priority) return a->priority < b->priority;
    if (a->counter != b->counter) return a->counter < b->counter;
    return a->age < b->age;
}

/* The contenders below i are in order; now from i on. Not a heap.h: these are made anew for each
 * step, all at once, and lie side by side in memory. */
static void sift(struct scheduler *s, int i) {
    struct contender moved = s->contenders[i];
    for (;;) {
        int child = 2 * i + 1;
        if (child >= s->n_contenders) break;
        if (child + 1 < s->n_contenders &&
            comes_before(&s->contenders[child + 1], &s->contenders[child]))
            child++;
        if (!comes_before(&s->contenders[child], &moved)) break;
        s->contenders[i] = s->contenders[child];
        i = child;
    }
    s->contenders[i] = moved;
}

static bool wants_chunk(const struct entry *e) {
    return e->state == ENTRY_RUNNING && !e->paused && e->plan == 0 && e->known > e->done;
}

/* For which sequence the tenant would have the next of the budget; false: for none. */
static bool find_best(struct scheduler *s, int tenant, struct contender *ret) {
    struct lane *lane = &s->lanes[tenant];
    bool queued = s->starting && lane->queue >= 0;
    while (lane->prompts >= 0 && !wants_chunk(&s->entries[lane->prompts]))
        lane->prompts = s->entries[lane->prompts].next_prompt;
    *ret = (struct contender){fair_counter(&s->fair, tenant), lane->age, lane->priority, tenant,
                              queued ? lane->queue : -1};
    if (lane->prompts < 0) return queued;
    const struct entry *e = &s->entries[lane->prompts];
    if (queued && entry_before(&s->entries[lane->queue], e)) return true;
    ret->age = e->age;
    ret->priority = e->claim.priority;
    ret->slot = lane->prompts;
    return true;
}

static void contend(struct scheduler *s, int tenant) {
    s->n_contenders += find_best(s, tenant, &s->contenders[s->n_contenders]);
}

/* The running prompts of each tenant, in order. */
static void list_prompts(struct scheduler *s) {
    s->n_listed = 0;
    for (int i = 0; i < s->n_running; i++) {
        struct entry *e = &s->entries[s->running[i]];
        struct lane *lane = &s->lanes[e->claim.tenant];
        if (!wants_chunk(e)) continue;
        e->next_prompt = -1;
        if (lane->prompts < 0) {
            lane->prompts = s->running[i];
            s->listed[s->n_listed++] = e->claim.tenant;
        } else {
            s->entries[lane->last_prompt].next_prompt = s->running[i];
        }
        lane->last_prompt = s->running[i];
    }
}

/* Whether it is any use to look at waiting sequences. */
static bool can_start(const struct scheduler *s) {
    /* The least that one needs: a place, and a block beside those kept for the others. */
    if (has_room(s, 1)) return true;
    if (s->n_running == 0) return false;
    const struct entry *last = &s->entries[s->running[s->n_running - 1]];
    for (int i = 0; i < s->n_waiting_lanes; i++)
        if (last->paused || last->claim.priority > s->lanes[s->waiting_lanes[i]].priority)
            return true;
    return false;
}

static void call_contenders(struct scheduler *s) {
    s->n_contenders = 0;
    for (int i = 0; i < s->n_listed; i++) contend(s, s->listed[i]);
    for (int i = 0; s->starting && i < s->n_waiting_lanes; i++)
        if (s->lanes[s->waiting_lanes[i]].prompts < 0) contend(s, s->waiting_lanes[i]);
    for (int i = s->n_contenders / 2 - 1; i >= 0; i--) sift(s, i);
}

static void plan(struct scheduler *s, struct entry *e, int n) {
    e->plan = n;
    s->budget -= n;
    fair_charge(&s->fair, e->claim.tenant, n);
}

/* One token for all that decode. Prompts come after: a long one never delays these. */
static void plan_decodes(struct scheduler *s) {
    for (int i = 0; i < s->n_running; i++) {
        struct entry *e = &s->entries[s->running[i]];
        if (!e->paused && e->known - e->done == 1 && reserve_one(s, e)) plan(s, e, 1);
    }
}

/* Starts it if need be. Without room, or behind a leader, it gets nothing. */
static void serve(struct scheduler *s, int slot) {
    struct entry *e = &s->entries[slot];
    if (e->state == ENTRY_WAITING) try_start(s, slot);
    int pending = e->known - e->done;
    if (e->state == ENTRY_RUNNING) plan(s, e, pending < s->budget ? pending : s->budget);
}

static void plan_prompts(struct scheduler *s) {
    s->starting = can_start(s);
    s->n_parked = 0;
    list_prompts(s);
    call_contenders(s);
    while (s->budget > 0 && s->n_contenders > 0) {
        struct contender *first = &s->contenders[0], best;
        bool was_starting = s->starting;
        /* Preemption may have changed what is best. */
        if (find_best(s, first->tenant, &best) && best.slot == first->slot) serve(s, best.slot);
        if (was_starting && !s->starting) {
            call_contenders(s);
            continue;
        }
        if (!find_best(s, first->tenant, first)) *first = s->contenders[--s->n_contenders];
        if (s->n_contenders > 0) sift(s, 0);
    }
    for (int i = 0; i < s->n_listed; i++) s->lanes[s->listed[i]].prompts = -1;
}

/* How many drafts fit after the one token that e decodes. */
static int grant_drafts(struct scheduler *s, struct entry *e) {
    int n = e->drafts < s->budget ? e->drafts : s->budget;
    if (e->known - e->done != 1 || e->plan != 1) return 0;
    /* One that follows the last right draft must fit too. */
    if (n > e->max - e->known - 1) n = e->max - e->known - 1;
    /* As in has_room(): a guess is not worth what another is preempted for in the next step. */
    while (n > 0 && e->n_blocks < kv_blocks_for(e->known + n))
        if (kv_free_blocks(s->kv) <= s->n_running || !blocks_take(s, e, 1))
            n = e->n_blocks * BACKEND_KV_BLOCK - e->known;
    return n > 0 ? n : 0;
}

static void plan_drafts(struct scheduler *s) {
    for (int i = 0; i < s->n_running; i++) {
        struct entry *e = &s->entries[s->running[i]];
        if (e->drafts > 0) e->drafts = grant_drafts(s, e);
        s->budget -= e->drafts;
    }
}

/* -- The step ---------------------------------------------------------------------------------- */

int scheduler_next(struct scheduler *s, struct scheduler_share *shares) {
    for (int i = 0; i < s->n_running; i++) s->entries[s->running[i]].plan = 0;
    s->budget = s->options.step_tokens;
    plan_decodes(s);
    plan_prompts(s);
    plan_drafts(s);

    int n = 0;
    for (int i = 0; i < s->n_running; i++) {
        const struct entry *e = &s->entries[s->running[i]];
        if (e->plan == 0) continue;
        shares[n++] = (struct scheduler_share){
            .slot = s->running[i],
            .start = e->done,
            .n = e->plan,
            .samples = e->done + e->plan == e->known,
            .n_drafts = e->drafts,
            .n_cached = e->n_cached,
            .blocks = entry_table(s, e),
            .n_blocks = e->n_blocks,
        };
    }
    return n;
}

void scheduler_ran(struct scheduler *s, const struct scheduler_share *shares, int n) {
    for (int i = 0; i < n; i++) {
        struct entry *e = &s->entries[shares[i].slot];
        assert(e->state == ENTRY_RUNNING && e->done == shares[i].start);
        assert(e->done + shares[i].n <= e->known);
        e->done += shares[i].n;
        blocks_publish(s, e);
        entry_count(s, e);
    }
}
