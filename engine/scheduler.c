#include "engine/scheduler.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "engine/kv.h"
#include "engine/scheduler_state.h"
#include "kernels/error.h"

/* DESIGN. Two orders. Those that run stand in one list: not paused before paused, then by
 * priority, then by age. Who wants a block takes it from the end of that list, so the first loses
 * nothing, ever, and finishes; then another is first. Nobody can undo another's work in turn.
 *
 * Who starts next, and whose prompt gets the budget, goes by priority, then by what the tenants
 * have got (fair.h), then by age. A tenant's waiting sequences are a heap of their own, so this
 * looks at one sequence of each tenant only. If the next does not find room, nobody else starts
 * in its stead: a large one would wait for ever behind a stream of small ones.
 *
 * A sequence takes the blocks of all its known tokens when it starts. Chunks of a prompt thus
 * never run out of blocks half-way; only growth does, by one block at a time.
 *
 * scheduler_queue.c: who is where. scheduler_blocks.c: blocks and what is known of them.
 * scheduler_step.c: the step. Here: the rest. */

/* -- Orders ------------------------------------------------------------------------------------ */

bool entry_before(const struct entry *a, const struct entry *b) {
    if (a->paused != b->paused) return b->paused;
    if (a->claim.priority != b->claim.priority) return a->claim.priority < b->claim.priority;
    return a->age < b->age;
}

static bool queued_before(const void *arg, int a, int b) {
    const struct scheduler *s = arg;
    return entry_before(&s->entries[a], &s->entries[b]);
}

static bool due_before(const void *arg, int a, int b) {
    const struct scheduler *s = arg;
    return s->entries[a].deadline_ns < s->entries[b].deadline_ns;
}

/* -- Making one -------------------------------------------------------------------------------- */

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

static int allocate(struct scheduler *s, struct error *err) {
    size_t n_slots = (size_t)s->n_slots, n_tables = (size_t)s->options.max_running + 1;
    s->entries = calloc(n_slots, sizeof *s->entries);
    s->free_slots = calloc(n_slots, sizeof *s->free_slots);
    s->running = calloc(n_tables, sizeof *s->running);
    s->tables = calloc(n_tables * (size_t)s->table_size, sizeof *s->tables);
    s->free_tables = calloc(n_tables, sizeof *s->free_tables);
    s->queues.nodes = calloc(n_slots, sizeof *s->queues.nodes);
    s->deadlines.nodes = calloc(n_slots, sizeof *s->deadlines.nodes);
    if (!s->entries || !s->free_slots || !s->running || !s->tables || !s->free_tables ||
        !s->queues.nodes || !s->deadlines.nodes)
        return error_set(err, -ENOMEM, "scheduler: out of memory");
    return 0;
}

static void set_up(struct scheduler *s) {
    s->queues.before = queued_before;
    s->deadlines.before = due_before;
    s->queues.arg = s->deadlines.arg = s;
    s->first_deadline = -1;
    for (int i = 0; i < s->n_slots; i++) s->free_slots[i] = s->n_slots - 1 - i;
    s->n_free_tables = s->options.max_running + 1;
    for (int i = 0; i < s->n_free_tables; i++) s->free_tables[i] = s->n_free_tables - 1 - i;
    for (int i = 0; i < ENGINE_MAX_TENANTS; i++)
        s->lanes[i] = (struct lane){.queue = -1, .prompts = -1};
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
    r = allocate(s, err);
    if (r < 0) {
        scheduler_free(s);
        return r;
    }
    set_up(s);
    *ret = s;
    return 0;
}

void scheduler_free(struct scheduler *s) {
    if (!s) return;
    for (int i = 0; i < s->n_running; i++) blocks_drop(s, &s->entries[s->running[i]]);
    free(s->entries);
    free(s->free_slots);
    free(s->running);
    free(s->tables);
    free(s->free_tables);
    free(s->queues.nodes);
    free(s->deadlines.nodes);
    free(s);
}

/* -- Deadlines --------------------------------------------------------------------------------- */

/* The next of e's deadlines, INT64_MAX without. */
static int64_t next_deadline(const struct entry *e, enum scheduler_limit *ret) {
    const struct engine_claim *c = &e->claim;
    int64_t at[] = {[LIMIT_QUEUE] = e->started ? 0 : c->queue_ns,
                    [LIMIT_FIRST] = e->answered ? 0 : c->first_ns,
                    [LIMIT_TOTAL] = c->total_ns};
    int64_t next = INT64_MAX;
    for (int i = LIMIT_QUEUE; i <= LIMIT_TOTAL; i++) {
        if (at[i] == 0 || at[i] >= next) continue;
        next = at[i];
        *ret = (enum scheduler_limit)i;
    }
    return next;
}

static void drop_deadline(struct scheduler *s, int slot) {
    if (s->entries[slot].deadline_ns == INT64_MAX) return;
    s->first_deadline = heap_remove(&s->deadlines, s->first_deadline, slot);
    s->entries[slot].deadline_ns = INT64_MAX;
}

void entry_set_deadline(struct scheduler *s, struct entry *e) {
    enum scheduler_limit limit;
    int slot = (int)(e - s->entries);
    int64_t next = next_deadline(e, &limit);
    if (next == e->deadline_ns) return;
    drop_deadline(s, slot);
    e->deadline_ns = next;
    if (next != INT64_MAX) s->first_deadline = heap_insert(&s->deadlines, s->first_deadline, slot);
}

int scheduler_expired(const struct scheduler *s, int64_t now_ns, enum scheduler_limit *ret) {
    if (now_ns < scheduler_deadline(s)) return -1;
    next_deadline(&s->entries[s->first_deadline], ret);
    return s->first_deadline;
}

int64_t scheduler_deadline(const struct scheduler *s) {
    return s->first_deadline < 0 ? INT64_MAX : s->entries[s->first_deadline].deadline_ns;
}

/* -- Coming and going -------------------------------------------------------------------------- */

void entry_count(struct scheduler *s, struct entry *e) {
    int pending = e->known - e->done;
    if (e->state == ENTRY_FREE || (pending == 1 && e->answered)) pending = 0;
    s->stats.pending += pending - e->pending;
    e->pending = pending;
}

static int check_sequence(const struct scheduler *s, const struct scheduler_sequence *seq,
                          struct error *err) {
    if (seq->n_tokens < 1) return error_set(err, -EINVAL, "the prompt is empty");
    if (seq->claim.tenant < 0 || seq->claim.tenant >= ENGINE_MAX_TENANTS)
        return error_set(err, -EINVAL, "tenant: must lie in 0..%d", ENGINE_MAX_TENANTS - 1);
    if (seq->n_tokens > seq->n_max || seq->n_max > s->options.max_context ||
        kv_blocks_for(seq->n_max) > kv_total_blocks(s->kv))
        return error_set(err, -E2BIG, "%d tokens growing to %d do not fit into %d", seq->n_tokens,
                         seq->n_max, s->options.max_context);
    if (s->n == s->n_slots)
        return error_set(err, -EAGAIN, "%d sequences are running or waiting", s->n);
    return 0;
}

int scheduler_add(struct scheduler *s, int *ret_slot, const struct scheduler_sequence *seq,
                  struct error *err) {
    int r = check_sequence(s, seq, err);
    if (r < 0) return r;
    int slot = s->free_slots[s->n_slots - s->n - 1];
    struct entry *e = &s->entries[slot];
    *e = (struct entry){.fresh = seq->fresh,
                        .claim = seq->claim,
                        .age = s->ages++,
                        .deadline_ns = INT64_MAX,
                        .ids = seq->ids,
                        .known = seq->n_tokens,
                        .max = seq->n_max,
                        .followers = -1};
    s->n++;
    fair_join(&s->fair, e->claim.tenant, e->claim.weight);
    queue_insert(s, slot);
    entry_count(s, e);
    entry_set_deadline(s, e);
    *ret_slot = slot;
    return 0;
}

static void stop_running(struct scheduler *s, int slot) {
    struct entry *e = &s->entries[slot];
    running_remove(s, slot);
    blocks_drop(s, e);
    s->free_tables[s->n_free_tables++] = e->table;
    queue_wake(s, e, true);
}

void preempt_last(struct scheduler *s) {
    int slot = s->running[s->n_running - 1];
    struct entry *e = &s->entries[slot];
    stop_running(s, slot);
    s->budget += e->plan;
    if (e->plan > 0) fair_charge(&s->fair, e->claim.tenant, -e->plan);
    e->plan = e->drafts = 0;
    if (e->paused)
        e->state = ENTRY_ASIDE;
    else
        queue_insert(s, slot);
    entry_count(s, e);
    s->stats.preemptions++;
}

void scheduler_remove(struct scheduler *s, int slot) {
    struct entry *e = &s->entries[slot];
    assert(e->state != ENTRY_FREE);
    if (e->state == ENTRY_RUNNING)
        stop_running(s, slot);
    else if (e->state != ENTRY_ASIDE)
        queue_remove(s, slot);
    if (e->paused)
        s->stats.paused--;
    else
        fair_leave(&s->fair, e->claim.tenant);
    drop_deadline(s, slot);
    e->state = ENTRY_FREE;
    entry_count(s, e);
    s->n--;
    s->free_slots[s->n_slots - s->n - 1] = slot;
}

static void set_aside(struct scheduler *s, int slot) {
    struct entry *e = &s->entries[slot];
    if (e->state == ENTRY_RUNNING) {
        running_remove(s, slot);
        e->paused = true;
        running_insert(s, slot);
        /* What they wait for will not come soon. */
        queue_wake(s, e, true);
    } else {
        queue_remove(s, slot);
        e->paused = true;
        e->state = ENTRY_ASIDE;
    }
    fair_leave(&s->fair, e->claim.tenant);
}

static void bring_back(struct scheduler *s, int slot) {
    struct entry *e = &s->entries[slot];
    bool running = e->state == ENTRY_RUNNING;
    if (running) running_remove(s, slot);
    e->paused = false;
    if (running)
        running_insert(s, slot);
    else
        queue_insert(s, slot);
    fair_join(&s->fair, e->claim.tenant, e->claim.weight);
}

void scheduler_pause(struct scheduler *s, int slot, bool paused) {
    const struct entry *e = &s->entries[slot];
    assert(e->state != ENTRY_FREE);
    if (e->paused == paused) return;
    s->stats.paused += paused ? 1 : -1;
    if (paused)
        set_aside(s, slot);
    else
        bring_back(s, slot);
}

void scheduler_grow(struct scheduler *s, int slot, int n) {
    struct entry *e = &s->entries[slot];
    assert(e->state == ENTRY_RUNNING && e->done == e->known);
    assert(n >= 1 && n - 1 <= e->drafts && n <= e->max - e->known);
    e->known += n;
    e->done += n - 1;
    e->drafts = 0;
    fair_charge(&s->fair, e->claim.tenant, n - 1);
    blocks_publish(s, e);
    if (!e->answered) {
        e->answered = true;
        entry_set_deadline(s, e);
    }
    entry_count(s, e);
}

void scheduler_draft(struct scheduler *s, int slot, int n) {
    struct entry *e = &s->entries[slot];
    assert(e->state != ENTRY_FREE);
    assert(n >= 0);
    e->drafts = n;
}

int scheduler_running(const struct scheduler *s, const int **ret_slots) {
    *ret_slots = s->running;
    return s->n_running;
}

void scheduler_get_stats(const struct scheduler *s, struct scheduler_stats *stats) {
    *stats = s->stats;
    stats->running = s->n_running;
    stats->waiting = s->n - s->n_running;
}
