/* scheduler_state.h - what the parts of the scheduler share.
 *
 * Owns      see scheduler.h.
 * Borrows   see scheduler.h.
 * Thread    engine.
 * Fails     never, save where a result says so.
 * Cost      see scheduler.h.
 *
 * Every sequence is in one place: its tenant's queue (WAITING), the list of one whose blocks it
 * waits for (PARKED), the list of those that run (RUNNING), or in none while it is paused and has
 * no blocks (ASIDE). Only running ones hold blocks. */
#ifndef ENGINE_SCHEDULER_STATE_H
#define ENGINE_SCHEDULER_STATE_H

#include "engine/fair.h"
#include "engine/heap.h"
#include "engine/scheduler.h"

enum entry_state { ENTRY_FREE, ENTRY_WAITING, ENTRY_PARKED, ENTRY_ASIDE, ENTRY_RUNNING };

struct entry {
    enum entry_state state;
    bool fresh, paused;
    bool started, answered; /* has had a step; a token */
    struct engine_claim claim;
    int64_t age; /* number of its arrival */
    int64_t deadline_ns;
    int32_t *const *ids;
    int known;    /* tokens whose ids are known */
    int done;     /* of these, tokens with keys and values in the pool */
    int max;      /* known never passes it */
    int pending;  /* its part of stats.pending */
    int plan;     /* tokens in the step that is being put together */
    int drafts;   /* wanted or, in that step, granted */
    int n_cached; /* tokens taken over at the first start */

    /* While it runs: */
    int table; /* row of tables */
    int n_blocks;
    int n_public;    /* of these, known to the pool */
    int followers;   /* first of those parked here; -1 = none */
    int next_prompt; /* in its tenant's list of the step; -1 = last */

    /* While it is parked: */
    int leader, blocks_wanted;
    int prev_parked, next_parked; /* -1 = end */
};

/* The waiting sequences and, during a step, the prompts of one tenant. */
struct lane {
    int queue;                /* root of its waiting sequences, best first; -1 = none */
    int priority;             /* of the best */
    int64_t age;              /* of the best */
    int place;                /* in waiting_lanes, while there are any */
    int prompts, last_prompt; /* running, in order; -1 = none, and so between steps */
};

/* A tenant that wants some of the step's budget, for its best sequence. */
struct contender {
    double counter;
    int64_t age;
    int priority, tenant, slot;
};

struct scheduler {
    struct scheduler_options options;
    struct kv_pool *kv;
    struct fair fair;
    int n_slots, table_size;
    struct entry *entries; /* (n_slots) */
    int *free_slots;       /* (n_slots) a stack of n_slots - n */
    int n;                 /* sequences */
    int64_t ages;

    int *running; /* (max_running) slots in order, see entry_before() */
    int n_running;
    int32_t *tables;  /* (max_running + 1, table_size) one more for one that may start */
    int *free_tables; /* (max_running + 1) a stack */
    int n_free_tables;

    struct lane lanes[ENGINE_MAX_TENANTS]; /* by tenant */
    int waiting_lanes[ENGINE_MAX_TENANTS]; /* (n_waiting_lanes) whose queue is not empty */
    int n_waiting_lanes;
    struct heap queues;    /* of all lanes, over slots */
    struct heap deadlines; /* over slots */
    int first_deadline;    /* its root */

    /* The step that is being put together: */
    struct contender contenders[ENGINE_MAX_TENANTS]; /* (n_contenders) a binary heap */
    int n_contenders;
    int listed[ENGINE_MAX_TENANTS]; /* (n_listed) tenants with running prompts */
    int n_listed;
    int budget, n_parked;
    bool starting; /* whether waiting ones may still start */

    struct scheduler_stats stats;
};

/* The order in which running sequences keep their blocks: total, so that lists are sorted. */
bool entry_before(const struct entry *a, const struct entry *b);

static inline int32_t *entry_table(const struct scheduler *s, const struct entry *e) {
    return s->tables + (size_t)e->table * (size_t)s->table_size;
}

/* To call when known, done or state of e have changed. */
void entry_count(struct scheduler *s, struct entry *e);
/* To call when started or answered have changed. */
void entry_set_deadline(struct scheduler *s, struct entry *e);

/* -- scheduler_queue.c: who is where ----------------------------------------------------------- */

void queue_insert(struct scheduler *s, int slot); /* becomes WAITING */
void queue_remove(struct scheduler *s, int slot); /* from WAITING or PARKED */
/* Waits until leader has made known so many blocks, or does not run any more. */
void queue_park(struct scheduler *s, int slot, int leader, int blocks_wanted);
/* Those parked at e that have waited long enough wait in their queues again; or all. */
void queue_wake(struct scheduler *s, struct entry *e, bool all);

void running_insert(struct scheduler *s, int slot);
void running_remove(struct scheduler *s, int slot);

/* -- scheduler_blocks.c: blocks of sequences --------------------------------------------------- */

/* Takes over what is known of the beginning of e. */
void blocks_take_known(struct scheduler *s, struct entry *e);
/* Another sequence that is computing the next blocks e needs, or -1. ret_blocks: how many e will
 * find then. */
int blocks_find_leader(const struct scheduler *s, const struct entry *e, int *ret_blocks);
/* n blocks more, or none. */
bool blocks_take(struct scheduler *s, struct entry *e, int n);
/* What has been computed becomes known. */
void blocks_publish(struct scheduler *s, struct entry *e);
void blocks_drop(struct scheduler *s, struct entry *e);

/* The last of the running gives its blocks back and waits; its share of the step is dropped. */
void preempt_last(struct scheduler *s);

#endif
