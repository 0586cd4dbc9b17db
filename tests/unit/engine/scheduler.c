#include "engine/scheduler.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>

#include "engine/kv.h"
#include "kernels/backend.h"
#include "kernels/error.h"
#include "tests/support/random.h"

enum { MAX_RUNNING = 16, MAX_SLOTS = 64, MAX_BLOCKS = 256 };

/* What the test knows of a sequence by itself. */
struct mirror {
    bool used;
    int known, done, max, target; /* removed once known reaches target */
    int64_t age;
};

struct bench {
    struct scheduler_options options;
    struct scheduler *s;
    struct kv_pool *kv;
    struct mirror seqs[MAX_SLOTS];
    struct scheduler_share shares[MAX_RUNNING];
    int n_shares;
    int64_t ages, finished;
};

static void bench_open(struct bench *b, struct scheduler_options options, int n_blocks) {
    *b = (struct bench){.options = options};
    cr_assert_eq(kv_new(&b->kv, n_blocks), 0);
    cr_assert_eq(scheduler_new(&b->s, &options, b->kv, NULL), 0);
}

static void bench_close(struct bench *b) {
    scheduler_free(b->s);
    cr_expect_eq(kv_free_blocks(b->kv), kv_total_blocks(b->kv));
    kv_free(b->kv);
}

/* The slot, or the error. */
static int bench_add(struct bench *b, int n_tokens, int target) {
    int slot = -1, r = scheduler_add(b->s, &slot, n_tokens, target, NULL);
    if (r < 0) return r;
    cr_assert(slot >= 0 && slot < b->options.max_running + b->options.max_waiting);
    cr_assert_not(b->seqs[slot].used, "slot %d was given twice", slot);
    b->seqs[slot] = (struct mirror){
        .used = true, .known = n_tokens, .max = target, .target = target, .age = b->ages++};
    return slot;
}

static void bench_remove(struct bench *b, int slot) {
    scheduler_remove(b->s, slot);
    b->seqs[slot].used = false;
}

static int bench_count(const struct bench *b) {
    int n = 0;
    for (int i = 0; i < MAX_SLOTS; i++) n += b->seqs[i].used;
    return n;
}

static int bench_oldest(const struct bench *b) {
    int oldest = -1;
    for (int i = 0; i < MAX_SLOTS; i++)
        if (b->seqs[i].used && (oldest < 0 || b->seqs[i].age < b->seqs[oldest].age)) oldest = i;
    return oldest;
}

static void check_share(struct bench *b, const struct scheduler_share *share, bool *block_used) {
    struct mirror *m = &b->seqs[share->slot];
    cr_assert(m->used);
    /* Either it goes on where it was, or it was preempted and is computed from the start. */
    cr_assert(share->start == m->done || share->start == 0);
    cr_assert(share->n >= 1 && share->start + share->n <= m->known);
    cr_assert_eq(share->samples, share->start + share->n == m->known);
    cr_assert(share->n_blocks >= kv_blocks_for(share->start + share->n));
    for (int i = 0; i < share->n_blocks; i++) {
        int32_t block = share->blocks[i];
        cr_assert(block >= 0 && block < kv_total_blocks(b->kv));
        cr_assert_not(block_used[block], "block %d is in two sequences", block);
        block_used[block] = true;
    }
}

static void check_step(struct bench *b) {
    bool block_used[MAX_BLOCKS] = {false};
    int tokens = 0;
    cr_assert(b->n_shares <= b->options.max_running);
    for (int i = 0; i < b->n_shares; i++) {
        for (int j = 0; j < i; j++) cr_assert_neq(b->shares[i].slot, b->shares[j].slot);
        check_share(b, &b->shares[i], block_used);
        tokens += b->shares[i].n;
    }
    cr_assert(tokens <= b->options.step_tokens, "%d tokens", tokens);
    cr_assert_eq(scheduler_running(b->s) + scheduler_waiting(b->s), bench_count(b));
    cr_assert(scheduler_running(b->s) <= b->options.max_running);
}

static bool bench_has_share(const struct bench *b, int slot) {
    for (int i = 0; i < b->n_shares; i++)
        if (b->shares[i].slot == slot) return true;
    return false;
}

/* One step; sequences that reach their target leave. */
static int bench_step(struct bench *b) {
    int oldest = bench_oldest(b);
    b->n_shares = scheduler_next(b->s, b->shares);
    check_step(b);
    if (oldest >= 0) cr_assert(bench_has_share(b, oldest), "the oldest made no progress");
    scheduler_ran(b->s, b->shares, b->n_shares);
    for (int i = 0; i < b->n_shares; i++) {
        const struct scheduler_share *share = &b->shares[i];
        struct mirror *m = &b->seqs[share->slot];
        m->done = share->start + share->n;
        if (!share->samples) continue;
        if (m->known == m->target) {
            bench_remove(b, share->slot);
            b->finished++;
        } else {
            m->known++;
            scheduler_grow(b->s, share->slot);
        }
    }
    return b->n_shares;
}

static struct scheduler_options small(void) {
    return (struct scheduler_options){
        .max_running = 4, .max_waiting = 8, .step_tokens = 32, .max_context = 256};
}

Test(scheduler, refuses_options_that_cannot_work) {
    struct kv_pool *kv = NULL;
    struct scheduler *s = NULL;
    struct error err;
    struct scheduler_options bad[] = {small(), small(), small(), small(), small()};
    bad[0].max_running = 0;
    bad[1].max_waiting = -1;
    bad[2].step_tokens = 3;
    bad[3].max_context = 0;
    bad[4].max_waiting = INT32_MAX;
    cr_assert_eq(kv_new(&kv, 16), 0);
    for (int i = 0; i < 5; i++) {
        err.text[0] = 0;
        cr_expect_eq(scheduler_new(&s, &bad[i], kv, &err), -EINVAL);
        cr_expect_neq(err.text[0], 0);
        cr_expect_null(s);
    }
    scheduler_free(NULL);
    kv_free(kv);
}

Test(scheduler, has_nothing_to_do_when_empty) {
    struct bench b;
    bench_open(&b, small(), 16);
    cr_expect_eq(bench_step(&b), 0);
    bench_close(&b);
}

Test(scheduler, refuses_what_can_never_fit) {
    struct bench b;
    bench_open(&b, small(), 8); /* 128 positions */
    cr_expect_eq(bench_add(&b, 0, 10), -EINVAL);
    cr_expect_eq(bench_add(&b, 11, 10), -E2BIG);
    cr_expect_eq(bench_add(&b, 10, 257), -E2BIG);
    cr_expect_eq(bench_add(&b, 10, 129), -E2BIG);
    cr_expect_geq(bench_add(&b, 128, 128), 0);
    bench_close(&b);
}

Test(scheduler, a_full_queue_says_try_again) {
    struct bench b;
    bench_open(&b, small(), 16);
    for (int i = 0; i < 12; i++) cr_expect_geq(bench_add(&b, 5, 9), 0);
    cr_expect_eq(bench_add(&b, 5, 9), -EAGAIN);
    bench_remove(&b, 3);
    cr_expect_eq(bench_add(&b, 5, 9), 3);
    bench_close(&b);
}

Test(scheduler, cuts_a_prompt_into_chunks_of_the_budget) {
    struct bench b;
    bench_open(&b, small(), 16);
    int slot = bench_add(&b, 70, 80);
    int starts[] = {0, 32, 64}, sizes[] = {32, 32, 6};
    for (int i = 0; i < 3; i++) {
        cr_expect_eq(bench_step(&b), 1);
        cr_expect_eq(b.shares[0].slot, slot);
        cr_expect_eq(b.shares[0].start, starts[i]);
        cr_expect_eq(b.shares[0].n, sizes[i]);
        cr_expect_eq(b.shares[0].samples, i == 2);
    }
    cr_expect_eq(bench_step(&b), 1);
    cr_expect_eq(b.shares[0].start, 70);
    cr_expect_eq(b.shares[0].n, 1);
    bench_close(&b);
}

Test(scheduler, decode_is_never_starved_by_a_long_prefill) {
    struct bench b;
    bench_open(&b, small(), 64);
    int first = bench_add(&b, 3, 200);
    bench_step(&b);
    bench_add(&b, 250, 256);
    bench_add(&b, 250, 256);
    for (int step = 0; step < 17; step++) {
        bench_step(&b);
        int tokens = 0;
        for (int i = 0; i < b.n_shares; i++) tokens += b.shares[i].n;
        cr_assert(bench_has_share(&b, first));
        cr_assert(step >= 16 || tokens == 32, "step %d uses %d tokens", step, tokens);
    }
    bench_close(&b);
}

Test(scheduler, a_prompt_goes_on_beside_as_many_decodes_as_there_can_be) {
    struct bench b;
    struct scheduler_options options = small();
    options.step_tokens = 4;
    bench_open(&b, options, 64);
    for (int i = 0; i < 3; i++) bench_add(&b, 1, 250);
    bench_step(&b);
    int slot = bench_add(&b, 40, 50);
    for (int i = 0; i < 40; i++) {
        bench_step(&b);
        cr_assert(bench_has_share(&b, slot));
    }
    cr_expect_eq(b.seqs[slot].known, 41);
    bench_close(&b);
}

Test(scheduler, starts_in_the_order_of_arrival) {
    struct bench b;
    bench_open(&b, small(), 64);
    int slots[12];
    for (int i = 0; i < 12; i++) slots[i] = bench_add(&b, 20, 24);
    bench_step(&b);
    cr_expect_eq(b.n_shares, 2);
    cr_expect_eq(b.shares[0].slot, slots[0]);
    cr_expect_eq(b.shares[1].slot, slots[1]);
    cr_expect_eq(scheduler_running(b.s), 2);
    cr_expect_eq(scheduler_waiting(b.s), 10);
    bench_close(&b);
}

Test(scheduler, the_youngest_gives_way_and_is_computed_again) {
    struct bench b;
    bench_open(&b, small(), 5);
    int old = bench_add(&b, 32, 80);
    int young = bench_add(&b, 16, 48);
    bench_step(&b);
    bench_step(&b);
    while (scheduler_preemptions(b.s) == 0) cr_assert_gt(bench_step(&b), 0);
    int kept = b.seqs[young].known;
    cr_expect_eq(scheduler_running(b.s), 1);
    cr_expect_eq(scheduler_waiting(b.s), 1);
    while (b.seqs[old].used) bench_step(&b);
    cr_expect_eq(b.seqs[young].known, kept);
    bench_step(&b);
    cr_expect_eq(b.shares[0].slot, young);
    cr_expect_eq(b.shares[0].start, 0);
    while (b.seqs[young].used) bench_step(&b);
    cr_expect_eq(b.finished, 2);
    bench_close(&b);
}

Test(scheduler, removal_frees_everything_in_every_state) {
    struct bench b;
    bench_open(&b, small(), 20);
    int prefilling, decoding = bench_add(&b, 1, 100);
    bench_step(&b);
    prefilling = bench_add(&b, 200, 210);
    bench_step(&b);
    int waiting = bench_add(&b, 200, 210);
    bench_step(&b);
    cr_expect_eq(scheduler_waiting(b.s), 1);
    cr_expect_eq(kv_free_blocks(b.kv), 20 - 13 - 1);
    bench_remove(&b, waiting);
    cr_expect_eq(scheduler_waiting(b.s), 0);
    bench_remove(&b, prefilling);
    cr_expect_eq(kv_free_blocks(b.kv), 19);
    bench_remove(&b, decoding);
    cr_expect_eq(kv_free_blocks(b.kv), 20);
    cr_expect_eq(bench_step(&b), 0);
    bench_close(&b);
}

/* Random load on a random machine; everything but what is removed early must finish. */
static void random_load(uint64_t seed) {
    struct bench b;
    struct scheduler_options options = {.max_running = random_range(&seed, 1, MAX_RUNNING),
                                        .max_waiting = random_range(&seed, 0, 40),
                                        .max_context = random_range(&seed, 20, 300)};
    options.step_tokens = options.max_running + random_range(&seed, 0, 64);
    bench_open(&b, options,
               random_range(&seed, kv_blocks_for(options.max_context), MAX_BLOCKS / 2));
    int64_t added = 0, removed = 0, arrivals = 150, steps = 0;
    while (arrivals > 0 || bench_count(&b) > 0) {
        for (int n = random_range(&seed, 0, 3); n > 0 && arrivals > 0; n--, arrivals--) {
            int target = random_range(&seed, 1, options.max_context);
            int r = bench_add(&b, random_range(&seed, 1, target), target);
            cr_assert(r >= 0 || r == -EAGAIN);
            added += r >= 0;
        }
        int victim = random_range(&seed, 0, MAX_SLOTS - 1);
        if (b.seqs[victim].used && random_range(&seed, 0, 9) == 0) {
            bench_remove(&b, victim);
            removed++;
        }
        bench_step(&b);
        cr_assert_lt(++steps, 200000, "seed %llu does not end", (unsigned long long)seed);
    }
    cr_assert_eq(b.finished + removed, added);
    cr_assert_eq(kv_free_blocks(b.kv), kv_total_blocks(b.kv));
    bench_close(&b);
}

Test(scheduler, every_sequence_finishes_under_random_load) {
    for (uint64_t seed = 1; seed <= 60; seed++) random_load(seed);
}

Test(scheduler, freeing_it_returns_the_blocks_of_what_runs) {
    struct bench b;
    bench_open(&b, small(), 64);
    for (int i = 0; i < 12; i++) bench_add(&b, 30, 60);
    for (int i = 0; i < 7; i++) bench_step(&b);
    bench_close(&b);
}
