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

static bool contends_before(const void *arg, int a, int b) {
    const struct scheduler *s = arg;
    const struct lane *x = &s->lanes[a], *y = &s->lanes[b];
    const struct entry *ex = &s->entries[x->best], *ey = &s->entries[y->best];
    if (ex->claim.priority != ey->claim.priority) return ex->claim.priority < ey->claim.priority;
    if (x->counter != y->counter) return x->counter < y->counter;
    return ex->age < ey->age;
}

static bool wants_chunk(const struct entry *e) {
    return e->state == ENTRY_RUNNING && !e->paused && e->plan == 0 && e->known > e->done;
}

/* The sequence for which the tenant would have the next of the budget, or -1. */
static int best_of(struct scheduler *s, struct lane *lane) {
    while (lane->prompts >= 0 && !wants_chunk(&s->entries[lane->prompts]))
        lane->prompts = s->entries[lane->prompts].next_prompt;
    int queued = s->starting ? lane->queue : -1;
    if (queued < 0 || lane->prompts < 0) return queued < 0 ? lane->prompts : queued;
    return entry_before(&s->entries[queued], &s->entries[lane->prompts]) ? queued : lane->prompts;
}

static void contend(struct scheduler *s, int tenant) {
    struct lane *lane = &s->lanes[tenant];
    lane->best = best_of(s, lane);
    if (lane->best < 0) return;
    lane->counter = fair_counter(&s->fair, tenant);
    s->contenders = heap_insert(&s->contest, s->contenders, tenant);
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
    if (s->n_running < s->options.max_running) return true;
    const struct entry *last = &s->entries[s->running[s->n_running - 1]];
    for (int i = 0; i < s->n_waiting_lanes; i++)
        if (gives_way(last, &s->entries[s->lanes[s->waiting_lanes[i]].queue])) return true;
    return false;
}

static void call_contenders(struct scheduler *s) {
    s->starting = can_start(s);
    s->n_parked = 0;
    list_prompts(s);
    for (int i = 0; i < s->n_listed; i++) contend(s, s->listed[i]);
    for (int i = 0; s->starting && i < s->n_waiting_lanes; i++)
        if (s->lanes[s->waiting_lanes[i]].prompts < 0) contend(s, s->waiting_lanes[i]);
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

static void plan_prompts(struct scheduler *s) {
    s->contest.before = contends_before;
    s->contest.arg = s;
    call_contenders(s);
    while (s->budget > 0 && s->contenders >= 0) {
        int tenant = s->contenders;
        struct lane *lane = &s->lanes[tenant];
        s->contenders = heap_remove(&s->contest, s->contenders, tenant);
        int slot = lane->best;
        struct entry *e = &s->entries[slot];
        /* Preemption, and the end of starting, may have changed what is best. */
        if (slot == best_of(s, lane)) {
            if (e->state == ENTRY_WAITING) try_start(s, slot);
            int pending = e->known - e->done;
            if (e->state == ENTRY_RUNNING) plan(s, e, pending < s->budget ? pending : s->budget);
        }
        contend(s, tenant);
    }
    s->contenders = -1;
    for (int i = 0; i < s->n_listed; i++) s->lanes[s->listed[i]].prompts = -1;
}

/* How many drafts fit after the one token that e decodes. */
static int grant_drafts(struct scheduler *s, struct entry *e) {
    int n = e->drafts < s->budget ? e->drafts : s->budget;
    if (e->known - e->done != 1 || e->plan != 1) return 0;
    /* One that follows the last right draft must fit too. */
    if (n > e->max - e->known - 1) n = e->max - e->known - 1;
    while (n > 0 && e->n_blocks < kv_blocks_for(e->known + n))
        if (!blocks_take(s, e, 1)) n = e->n_blocks * BACKEND_KV_BLOCK - e->known;
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
