/* scheduler.h - decides which tokens of which sequences the next step runs.
 *
 * Owns      its queues and lists; sequences are the caller's, known by slot number.
 * Borrows   the KV pool: takes, shares and releases blocks in it; the token ids of each sequence,
 *           until it is removed.
 * Thread    engine; pure policy: no clock, no thread, no model.
 * Fails     scheduler_add() with -EAGAIN (queue full), -E2BIG (can never fit).
 * Cost      a step: O(running sequences and waiting tenants); adding and removing: O(log
 *           sequences). No allocation after scheduler_new().
 *
 * Continuous batching: a step first decodes one token of every running sequence, then spends
 * what is left of the token budget on prompts, in chunks: better priority first, then the tenant
 * that has got least, then the oldest. Drafts get the rest. When blocks run out, the last of
 * those that run (paused ones, then worst priority, then youngest) gives its blocks back and is
 * computed again later (its tokens are kept), so the first always progresses. Waiting sequences
 * displace running ones of worse priority in the same way.
 *
 * A sequence that starts takes over the known blocks of its beginning and computes the rest, at
 * least its last token; what it has computed becomes known block by block. While another of its
 * tenant is computing what it needs next, it waits for that: of many that begin alike, one
 * computes the beginning. */
#ifndef ENGINE_SCHEDULER_H
#define ENGINE_SCHEDULER_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/engine.h"

struct error;
struct kv_pool;
struct scheduler;

struct scheduler_options {
    int max_running; /* sequences computed at a time */
    int max_waiting; /* sequences queued behind them */
    int step_tokens; /* token budget of a step, at least max_running */
    int max_context; /* positions of one sequence */
    bool no_cache;   /* nothing becomes known */
};

/* A sequence as the scheduler sees it. */
struct scheduler_sequence {
    int32_t *const *ids; /* where the caller keeps its tokens; known ones are read */
    int n_tokens, n_max; /* of the prompt; what it may grow to */
    bool fresh;          /* known blocks are not taken over: every token must be computed */
    struct engine_claim claim;
};

/* One sequence's share of a step: tokens [start, start + n) of it. When the share reaches the
 * last known token, the step's logits give the next one. */
struct scheduler_share {
    int slot;
    int start, n;
    bool samples;          /* start + n == known tokens */
    int n_drafts;          /* tokens to try after them, see scheduler_draft() */
    int n_cached;          /* of the prompt, taken over when the sequence first started */
    const int32_t *blocks; /* valid until the next scheduler call */
    int n_blocks;
};

int scheduler_new(struct scheduler **ret, const struct scheduler_options *options,
                  struct kv_pool *kv, struct error *err);
void scheduler_free(struct scheduler *s); /* releases its blocks; NULL is allowed */

/* ret_slot: the sequence's number, below max_running + max_waiting, the caller's until
 * scheduler_remove(). */
int scheduler_add(struct scheduler *s, int *ret_slot, const struct scheduler_sequence *seq,
                  struct error *err);

/* The next step: fills shares (max_running) and returns how many; 0 = nothing to do. */
int scheduler_next(struct scheduler *s, struct scheduler_share *shares);

/* The step that scheduler_next() gave has run. */
void scheduler_ran(struct scheduler *s, const struct scheduler_share *shares, int n);

/* n more tokens are known after a share that samples: n - 1 of its drafts, which proved right and
 * are computed, and one that follows. */
void scheduler_grow(struct scheduler *s, int slot, int n);

/* The next step of a sequence that decodes may try n tokens more, not known yet. It gets what
 * budget and blocks nothing else wants, maybe none; asked for anew for each step. */
void scheduler_draft(struct scheduler *s, int slot, int n);

/* The slots (returned: how many) of those that run, in the order in which they keep their blocks;
 * valid until the next scheduler call that may move one. */
int scheduler_running(const struct scheduler *s, const int **ret_slots);

/* A paused sequence gets no share. It keeps its blocks until somebody wants them. */
void scheduler_pause(struct scheduler *s, int slot, bool paused);

/* Finished, cancelled or expired, in any state. */
void scheduler_remove(struct scheduler *s, int slot);

enum scheduler_limit { LIMIT_QUEUE, LIMIT_FIRST, LIMIT_TOTAL };

/* A sequence that has missed one of its deadlines, and which, or -1. The caller removes it, then
 * asks again. */
int scheduler_expired(const struct scheduler *s, int64_t now_ns, enum scheduler_limit *ret);

/* When scheduler_expired() will next find one, if nothing else happens; INT64_MAX = never. */
int64_t scheduler_deadline(const struct scheduler *s);

struct scheduler_stats {
    int running, waiting; /* preempted ones wait */
    int paused;           /* of both */
    int64_t pending;      /* tokens to compute before what is there can decode */
    int64_t preemptions;
    int64_t prefix_queries, prefix_hits; /* tokens looked up at the first start, found */
};
void scheduler_get_stats(const struct scheduler *s, struct scheduler_stats *stats);

#endif
