/* scheduler_mirror.h - a scheduler under test, and what the test knows of it by itself.
 *
 * Owns      the scheduler, its KV pool and a mirror of each sequence.
 * Borrows   nothing.
 * Thread    one.
 * Fails     fails the running test.
 * Cost      a step costs O(tokens of what runs).
 *
 * Keys and values are the token ids themselves, written to a store by block number. Each share
 * is checked against it: what the scheduler calls computed must hold exactly the ids of the
 * sequence, computed under its salt. A block that was lost, given twice, shared wrongly or taken
 * for computed too early shows. */
#ifndef TESTS_SUPPORT_SCHEDULER_MIRROR_H
#define TESTS_SUPPORT_SCHEDULER_MIRROR_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/scheduler.h"
#include "kernels/backend.h"

enum {
    MIRROR_RUNNING = 256,
    MIRROR_SLOTS = 1024,
    MIRROR_BLOCKS = 2048,
    MIRROR_CONTEXT = 300 /* tokens of a sequence at most */
};

struct mirror_sequence {
    bool fresh, paused;
    int known, done, target; /* removed once known reaches target */
    int prompt;
    int64_t age, steps, tokens; /* order of arrival; shares it got; tokens computed for it */
    int64_t last_step;          /* number of the last step with a share; 0 = none */
    struct engine_claim claim;
    int32_t *ids; /* (MIRROR_CONTEXT) all it will ever have */
};

struct mirror {
    struct scheduler_options options;
    struct scheduler *s;
    struct kv_pool *kv;
    struct mirror_sequence *seqs[MIRROR_SLOTS]; /* by slot; NULL = none */
    struct scheduler_share shares[MIRROR_RUNNING];
    int n_shares, n_seqs;
    int64_t ages, finished, computed;      /* tokens */
    int64_t now;                           /* of deadlines */
    int64_t by_tenant[ENGINE_MAX_TENANTS]; /* tokens computed */
    int64_t steps;
    int32_t store[MIRROR_BLOCKS][BACKEND_KV_BLOCK];
    uint64_t salts[MIRROR_BLOCKS]; /* of who wrote there last */
    int family; /* prompts of one family begin alike; 0: with nothing in common */
    uint64_t seed;
};

void mirror_open(struct mirror *m, struct scheduler_options options, int n_blocks);
void mirror_close(struct mirror *m);

/* The slot, or the error. claim may be NULL. */
int mirror_add(struct mirror *m, int n_tokens, int target);
int mirror_add_claim(struct mirror *m, int n_tokens, int target, bool fresh,
                     const struct engine_claim *claim);
void mirror_remove(struct mirror *m, int slot);
void mirror_pause(struct mirror *m, int slot, bool paused);
/* Removes those whose deadlines have passed now; how many. */
int mirror_expire(struct mirror *m);

/* One step, checked; sequences that reach their target leave. Returns the number of shares. While
 * one is not paused there is a share, and the first of those that decode has one. */
int mirror_step(struct mirror *m);

bool mirror_has_share(const struct mirror *m, int slot); /* in the last step */
int mirror_tokens(const struct mirror *m);               /* of the last step */
struct scheduler_stats mirror_stats(const struct mirror *m);

#endif
