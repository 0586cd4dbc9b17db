#include "engine/scheduler.h"

#include <criterion/criterion.h>
#include <errno.h>

#include "engine/kv.h"
#include "kernels/backend.h"
#include "kernels/error.h"
#include "tests/support/random.h"
#include "tests/support/scheduler_mirror.h"

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
    static struct mirror b;
    mirror_open(&b, small(), 16);
    cr_expect_eq(mirror_step(&b), 0);
    mirror_close(&b);
}

Test(scheduler, refuses_what_can_never_fit) {
    static struct mirror b;
    mirror_open(&b, small(), 8); /* 128 positions */
    cr_expect_eq(mirror_add(&b, 0, 10), -EINVAL);
    cr_expect_eq(mirror_add(&b, 11, 10), -E2BIG);
    cr_expect_eq(mirror_add(&b, 10, 257), -E2BIG);
    cr_expect_eq(mirror_add(&b, 10, 129), -E2BIG);
    cr_expect_geq(mirror_add(&b, 128, 128), 0);
    mirror_close(&b);
}

Test(scheduler, a_full_queue_says_try_again) {
    static struct mirror b;
    mirror_open(&b, small(), 16);
    for (int i = 0; i < 12; i++) cr_expect_geq(mirror_add(&b, 5, 9), 0);
    cr_expect_eq(mirror_add(&b, 5, 9), -EAGAIN);
    mirror_remove(&b, 3);
    cr_expect_eq(mirror_add(&b, 5, 9), 3);
    mirror_close(&b);
}

Test(scheduler, tells_who_runs_in_their_order) {
    static struct mirror b;
    const int *slots;
    int slot[6];
    mirror_open(&b, small(), 16);
    cr_expect_eq(scheduler_running(b.s, &slots), 0);
    for (int i = 0; i < 6; i++) {
        struct engine_claim claim = {.priority = i == 2 ? -1 : 0};
        slot[i] = mirror_add_claim(&b, 5, 30, false, &claim);
    }
    mirror_step(&b);
    mirror_pause(&b, slot[0], true);
    int order[] = {slot[2], slot[1], slot[3], slot[0]}; /* two of the six wait */
    cr_assert_eq(scheduler_running(b.s, &slots), 4);
    for (int i = 0; i < 4; i++) cr_expect_eq(slots[i], order[i], "place %d", i);
    mirror_step(&b); /* the paused one gives its place to the next that waits */
    cr_assert_eq(scheduler_running(b.s, &slots), 4);
    cr_expect_eq(slots[3], slot[4]);
    mirror_close(&b);
}

Test(scheduler, cuts_a_prompt_into_chunks_of_the_budget) {
    static struct mirror b;
    mirror_open(&b, small(), 16);
    int slot = mirror_add(&b, 70, 80);
    int starts[] = {0, 32, 64}, sizes[] = {32, 32, 6};
    for (int i = 0; i < 3; i++) {
        cr_expect_eq(mirror_step(&b), 1);
        cr_expect_eq(b.shares[0].slot, slot);
        cr_expect_eq(b.shares[0].start, starts[i]);
        cr_expect_eq(b.shares[0].n, sizes[i]);
        cr_expect_eq(b.shares[0].samples, i == 2);
    }
    cr_expect_eq(mirror_step(&b), 1);
    cr_expect_eq(b.shares[0].start, 70);
    cr_expect_eq(b.shares[0].n, 1);
    mirror_close(&b);
}

Test(scheduler, decode_is_never_starved_by_a_long_prefill) {
    static struct mirror b;
    mirror_open(&b, small(), 64);
    int first = mirror_add(&b, 3, 200);
    mirror_step(&b);
    mirror_add(&b, 250, 256);
    mirror_add(&b, 250, 256);
    for (int step = 0; step < 17; step++) {
        mirror_step(&b);
        int tokens = mirror_tokens(&b);
        cr_assert(mirror_has_share(&b, first));
        cr_assert(step >= 16 || tokens == 32, "step %d uses %d tokens", step, tokens);
    }
    mirror_close(&b);
}

Test(scheduler, a_prompt_goes_on_beside_as_many_decodes_as_there_can_be) {
    static struct mirror b;
    struct scheduler_options options = small();
    options.step_tokens = 4;
    mirror_open(&b, options, 64);
    for (int i = 0; i < 3; i++) mirror_add(&b, 1, 250);
    mirror_step(&b);
    int slot = mirror_add(&b, 40, 50);
    for (int i = 0; i < 40; i++) {
        mirror_step(&b);
        cr_assert(mirror_has_share(&b, slot));
    }
    cr_expect_eq(b.seqs[slot]->known, 41);
    mirror_close(&b);
}

Test(scheduler, starts_in_the_order_of_arrival) {
    static struct mirror b;
    mirror_open(&b, small(), 64);
    int slots[12];
    for (int i = 0; i < 12; i++) slots[i] = mirror_add(&b, 20, 24);
    mirror_step(&b);
    cr_expect_eq(b.n_shares, 2);
    cr_expect_eq(b.shares[0].slot, slots[0]);
    cr_expect_eq(b.shares[1].slot, slots[1]);
    cr_expect_eq(mirror_stats(&b).running, 2);
    cr_expect_eq(mirror_stats(&b).waiting, 10);
    mirror_close(&b);
}

Test(scheduler, the_youngest_gives_way_and_is_computed_again) {
    static struct mirror b;
    mirror_open(&b, small(), 5);
    int old = mirror_add(&b, 32, 80);
    int young = mirror_add(&b, 16, 48);
    mirror_step(&b);
    mirror_step(&b);
    while (mirror_stats(&b).preemptions == 0) cr_assert_gt(mirror_step(&b), 0);
    int kept = b.seqs[young]->known;
    cr_expect_eq(mirror_stats(&b).running, 1);
    cr_expect_eq(mirror_stats(&b).waiting, 1);
    while (b.seqs[old]) mirror_step(&b);
    cr_expect_eq(b.seqs[young]->known, kept);
    mirror_step(&b);
    cr_expect_eq(b.shares[0].slot, young);
    cr_expect_eq(b.shares[0].start, 0);
    while (b.seqs[young]) mirror_step(&b);
    cr_expect_eq(b.finished, 2);
    mirror_close(&b);
}

Test(scheduler, removal_frees_everything_in_every_state) {
    static struct mirror b;
    mirror_open(&b, small(), 20);
    int prefilling, decoding = mirror_add(&b, 1, 100);
    mirror_step(&b);
    prefilling = mirror_add(&b, 200, 210);
    mirror_step(&b);
    int waiting = mirror_add(&b, 200, 210);
    mirror_step(&b);
    cr_expect_eq(mirror_stats(&b).waiting, 1);
    cr_expect_eq(kv_free_blocks(b.kv), 20 - 13 - 1);
    mirror_remove(&b, waiting);
    cr_expect_eq(mirror_stats(&b).waiting, 0);
    mirror_remove(&b, prefilling);
    cr_expect_eq(kv_free_blocks(b.kv), 19);
    mirror_remove(&b, decoding);
    cr_expect_eq(kv_free_blocks(b.kv), 20);
    cr_expect_eq(mirror_step(&b), 0);
    mirror_close(&b);
}

/* -- Known blocks ------------------------------------------------------------------------------ */

/* Runs until nothing is left. */
static void finish_all(struct mirror *m) {
    for (int steps = 0; m->n_seqs > 0; steps++) {
        mirror_step(m);
        cr_assert_lt(steps, 10000);
    }
}

/* How many tokens of a prompt of n of this family are found. */
static int found(struct mirror *m, int n, bool fresh, const struct engine_claim *claim) {
    int slot = mirror_add_claim(m, n, n, fresh, claim);
    mirror_step(m);
    cr_assert(mirror_has_share(m, slot));
    int n_cached = m->shares[0].n_cached;
    finish_all(m);
    return n_cached;
}

Test(scheduler, an_equal_beginning_is_computed_once) {
    static struct mirror b;
    mirror_open(&b, small(), 64);
    b.family = 1;
    cr_expect_eq(found(&b, 100, false, NULL), 0);
    cr_expect_eq(found(&b, 100, false, NULL), 96);
    cr_expect_eq(found(&b, 70, false, NULL), 64);
    cr_expect_eq(found(&b, 120, false, NULL), 96);
    cr_expect_eq(b.computed, 100 + 4 + 6 + 24);
    cr_expect_eq(mirror_stats(&b).prefix_queries, 390);
    cr_expect_eq(mirror_stats(&b).prefix_hits, 256);
    b.family = 2;
    cr_expect_eq(found(&b, 100, false, NULL), 0);
    mirror_close(&b);
}

Test(scheduler, the_last_token_of_a_prompt_is_always_computed) {
    static struct mirror b;
    mirror_open(&b, small(), 64);
    b.family = 1;
    cr_expect_eq(found(&b, 64, false, NULL), 0);
    cr_expect_eq(found(&b, 64, false, NULL), 48);
    cr_expect_eq(found(&b, 65, false, NULL), 64);
    cr_expect_eq(found(&b, 16, false, NULL), 0);
    cr_expect_eq(found(&b, 17, false, NULL), 16);
    mirror_close(&b);
}

Test(scheduler, salts_keep_beginnings_apart) {
    static struct mirror b;
    struct engine_claim one = {.salt = 1}, two = {.salt = 2};
    mirror_open(&b, small(), 64);
    b.family = 1;
    cr_expect_eq(found(&b, 100, false, &one), 0);
    cr_expect_eq(found(&b, 100, false, &two), 0);
    cr_expect_eq(found(&b, 100, false, NULL), 0);
    cr_expect_eq(found(&b, 100, false, &one), 96);
    cr_expect_eq(found(&b, 100, false, &two), 96);
    mirror_close(&b);
}

Test(scheduler, a_fresh_sequence_finds_nothing_but_leaves_something) {
    static struct mirror b;
    mirror_open(&b, small(), 64);
    b.family = 1;
    cr_expect_eq(found(&b, 100, true, NULL), 0);
    cr_expect_eq(found(&b, 100, true, NULL), 0);
    cr_expect_eq(mirror_stats(&b).prefix_queries, 0);
    cr_expect_eq(found(&b, 100, false, NULL), 96);
    mirror_close(&b);
}

Test(scheduler, without_a_cache_nothing_is_found) {
    static struct mirror b;
    struct scheduler_options options = small();
    options.no_cache = true;
    mirror_open(&b, options, 64);
    b.family = 1;
    for (int i = 0; i < 3; i++) cr_expect_eq(found(&b, 100, false, NULL), 0);
    cr_expect_eq(kv_cached_blocks(b.kv), 0);
    mirror_close(&b);
}

Test(scheduler, what_was_generated_is_found_too) {
    static struct mirror b;
    mirror_open(&b, small(), 64);
    b.family = 1;
    mirror_add(&b, 10, 60); /* 59 computed: the last token's keys never are */
    finish_all(&b);
    cr_expect_eq(found(&b, 90, false, NULL), 48);
    mirror_close(&b);
}

Test(scheduler, running_sequences_share_blocks) {
    static struct mirror b;
    mirror_open(&b, small(), 64);
    b.family = 1;
    mirror_add(&b, 100, 110);
    for (int i = 0; i < 4; i++) mirror_step(&b);
    mirror_add(&b, 100, 110);
    mirror_step(&b);
    cr_expect_eq(mirror_stats(&b).running, 2);
    cr_expect_eq(kv_free_blocks(b.kv), 64 - 8); /* 6 in common, 1 of each */
    mirror_close(&b);
}

Test(scheduler, a_preempted_sequence_finds_its_own_blocks) {
    static struct mirror b;
    mirror_open(&b, small(), 7);
    int old = mirror_add(&b, 30, 90);
    int young = mirror_add(&b, 60, 100);
    while (mirror_stats(&b).preemptions == 0) cr_assert_gt(mirror_step(&b), 0);
    mirror_remove(&b, old);
    mirror_step(&b);
    cr_expect_eq(b.shares[0].slot, young);
    cr_expect_eq(b.shares[0].start, 64);
    cr_expect_eq(b.shares[0].n_cached, 0, "it had found nothing when it came");
    finish_all(&b);
    mirror_close(&b);
}

/* -- Drafts ------------------------------------------------------------------------------------ */

Test(scheduler, drafts_get_what_prompts_leave) {
    static struct mirror b;
    mirror_open(&b, small(), 64);
    int slot = mirror_add(&b, 3, 60);
    mirror_step(&b);
    scheduler_draft(b.s, slot, 5);
    mirror_step(&b);
    cr_expect_eq(b.shares[0].n, 1);
    cr_expect_eq(b.shares[0].n_drafts, 5);
    mirror_step(&b);
    cr_expect_eq(b.shares[0].n_drafts, 0, "they are for one step");
    mirror_add(&b, 28, 60);
    scheduler_draft(b.s, slot, 5);
    mirror_step(&b);
    cr_expect_eq(b.shares[0].n_drafts, 3);
    mirror_close(&b);
}

Test(scheduler, drafts_stay_within_the_length) {
    static struct mirror b;
    mirror_open(&b, small(), 64);
    int slot = mirror_add(&b, 3, 7);
    mirror_step(&b); /* 4 known */
    scheduler_draft(b.s, slot, 5);
    mirror_step(&b);
    cr_expect_eq(b.shares[0].n_drafts, 2);
    mirror_close(&b);
}

Test(scheduler, drafts_displace_nobody) {
    static struct mirror b;
    mirror_open(&b, small(), 4);
    int first = mirror_add(&b, 15, 60), second = mirror_add(&b, 15, 60);
    mirror_step(&b);
    scheduler_draft(b.s, first, 20); /* two blocks, and there are two */
    mirror_step(&b);
    mirror_step(&b);
    cr_expect(mirror_has_share(&b, first) && mirror_has_share(&b, second));
    cr_expect_eq(mirror_stats(&b).preemptions, 0);
    mirror_close(&b);
}

/* -- All together ------------------------------------------------------------------------------ */

/* Random load on a random machine; everything but what is removed early must finish. */
static void random_load(uint64_t seed) {
    static struct mirror b;
    struct scheduler_options options = {.max_running = random_range(&seed, 1, 16),
                                        .max_waiting = random_range(&seed, 0, 40),
                                        .max_context = random_range(&seed, 20, 300),
                                        .no_cache = random_range(&seed, 0, 4) == 0};
    options.step_tokens = options.max_running + random_range(&seed, 0, 64);
    mirror_open(&b, options, random_range(&seed, kv_blocks_for(options.max_context), 128));
    int64_t added = 0, removed = 0, arrivals = 150, steps = 0;
    while (arrivals > 0 || b.n_seqs > 0) {
        for (int n = random_range(&seed, 0, 3); n > 0 && arrivals > 0; n--, arrivals--) {
            int target = random_range(&seed, 1, options.max_context);
            struct engine_claim claim = {.salt = random_next(&seed) % 2};
            b.family = random_range(&seed, 0, 4);
            int r = mirror_add_claim(&b, random_range(&seed, 1, target), target,
                                     random_range(&seed, 0, 9) == 0, &claim);
            cr_assert(r >= 0 || r == -EAGAIN);
            added += r >= 0;
        }
        int victim = random_range(&seed, 0, 64 - 1);
        if (b.seqs[victim] && random_range(&seed, 0, 9) == 0) {
            mirror_remove(&b, victim);
            removed++;
        }
        victim = random_range(&seed, 0, 64 - 1);
        if (b.seqs[victim] && b.seqs[victim]->done + 1 == b.seqs[victim]->known)
            scheduler_draft(b.s, victim, random_range(&seed, 0, 20));
        mirror_step(&b);
        cr_assert_lt(++steps, 200000, "seed %llu does not end", (unsigned long long)seed);
    }
    cr_assert_eq(b.finished + removed, added);
    cr_assert_eq(kv_free_blocks(b.kv), kv_total_blocks(b.kv));
    mirror_close(&b);
}

Test(scheduler, every_sequence_finishes_under_random_load) {
    for (uint64_t seed = 1; seed <= 60; seed++) random_load(seed);
}

Test(scheduler, freeing_it_returns_the_blocks_of_what_runs) {
    static struct mirror b;
    mirror_open(&b, small(), 64);
    for (int i = 0; i < 12; i++) mirror_add(&b, 30, 60);
    for (int i = 0; i < 7; i++) mirror_step(&b);
    mirror_close(&b);
}
