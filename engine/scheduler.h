/* scheduler.h - decides which tokens of which sequences the next step runs.
 *
 * Owns      its queue and lists; sequences are the caller's, known by slot number.
 * Borrows   the KV pool: takes and releases blocks in it.
 * Thread    engine; pure policy: no clock, no thread, no model.
 * Fails     scheduler_add() with -EAGAIN (queue full), -E2BIG (can never fit).
 * Cost      O(sequences) per step, no allocation after scheduler_new().
 *
 * Continuous batching: a step first decodes one token of every running sequence, then spends
 * what is left of the token budget on prompts, oldest first, in chunks. A prompt joins at the
 * next step. When blocks run out, the youngest sequence gives its blocks back and is computed
 * again later (its tokens are kept), so the oldest always progresses. */
#ifndef ENGINE_SCHEDULER_H
#define ENGINE_SCHEDULER_H

#include <stdbool.h>
#include <stdint.h>

struct error;
struct kv_pool;
struct scheduler;

struct scheduler_options {
    int max_running; /* sequences computed at a time */
    int max_waiting; /* sequences queued behind them */
    int step_tokens; /* token budget of a step, at least max_running */
    int max_context; /* positions of one sequence */
};

/* One sequence's share of a step: tokens [start, start + n) of it. When the share reaches the
 * last known token, the step's logits give the next one. */
struct scheduler_share {
    int slot;
    int start, n;
    bool samples;          /* start + n == known tokens */
    const int32_t *blocks; /* valid until the next scheduler call */
    int n_blocks;
};

int scheduler_new(struct scheduler **ret, const struct scheduler_options *options,
                  struct kv_pool *kv, struct error *err);
void scheduler_free(struct scheduler *s); /* releases its blocks; NULL is allowed */

/* A sequence with n_tokens prompt tokens that may grow to n_max. ret_slot: its number, below
 * max_running + max_waiting, the caller's until scheduler_remove(). */
int scheduler_add(struct scheduler *s, int *ret_slot, int n_tokens, int n_max, struct error *err);

/* The next step: fills shares (max_running) and returns how many; 0 = nothing to do. */
int scheduler_next(struct scheduler *s, struct scheduler_share *shares);

/* The step that scheduler_next() gave has run. */
void scheduler_ran(struct scheduler *s, const struct scheduler_share *shares, int n);

/* One more token is known (after a share that samples). */
void scheduler_grow(struct scheduler *s, int slot);

/* Finished or cancelled, in any state. */
void scheduler_remove(struct scheduler *s, int slot);

int scheduler_running(const struct scheduler *s);
int scheduler_waiting(const struct scheduler *s); /* preempted ones count here */
int64_t scheduler_preemptions(const struct scheduler *s);

#endif
