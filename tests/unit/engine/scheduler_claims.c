/* Whose turn it is: priorities, tenants, pauses, deadlines, and prompts in common. */
#include <criterion/criterion.h>
#include <errno.h>

#include "engine/kv.h"
#include "engine/scheduler.h"
#include "tests/support/random.h"
#include "tests/support/scheduler_mirror.h"

static struct mirror b; /* large; each test is a process of its own, or opens it anew */

static struct scheduler_options small(void) {
    return (struct scheduler_options){
        .max_running = 4, .max_waiting = 60, .step_tokens = 32, .max_context = 256};
}

static int add(int n_tokens, int target, int tenant, int priority) {
    struct engine_claim claim = {.tenant = tenant, .priority = priority};
    return mirror_add_claim(&b, n_tokens, target, false, &claim);
}

static void finish_all(void) {
    for (int steps = 0; b.n_seqs > 0; steps++) {
        mirror_step(&b);
        cr_assert_lt(steps, 20000);
    }
}

/* -- Priorities -------------------------------------------------------------------------------- */

Test(scheduler_claims, the_lower_number_starts_first) {
    mirror_open(&b, small(), 64);
    int low = add(40, 44, 0, 5), high = add(40, 44, 0, -1), middle = add(40, 44, 0, 0);
    mirror_step(&b);
    cr_expect(mirror_has_share(&b, high) && b.n_shares == 1);
    mirror_step(&b);
    cr_expect(mirror_has_share(&b, high) && mirror_has_share(&b, middle));
    cr_expect_not(mirror_has_share(&b, low));
    finish_all();
    mirror_close(&b);
}

Test(scheduler_claims, the_urgent_prompt_gets_the_budget_of_one_begun) {
    mirror_open(&b, small(), 64);
    int slow = add(200, 204, 0, 1);
    mirror_step(&b);
    int urgent = add(60, 64, 1, 0);
    mirror_step(&b);
    cr_expect(mirror_has_share(&b, urgent) && !mirror_has_share(&b, slow));
    mirror_step(&b);
    cr_expect(mirror_has_share(&b, urgent) && mirror_has_share(&b, slow));
    finish_all();
    mirror_close(&b);
}

Test(scheduler_claims, the_urgent_displaces_the_last_of_the_others) {
    mirror_open(&b, small(), 64);
    int slots[4];
    for (int i = 0; i < 4; i++) slots[i] = add(4, 200, 0, i == 1 ? 7 : 3);
    mirror_step(&b);
    cr_expect_eq(b.n_shares, 4);
    int equal = add(4, 8, 0, 7), urgent = add(4, 8, 0, 2);
    mirror_step(&b);
    cr_expect(mirror_has_share(&b, urgent));
    cr_expect_not(mirror_has_share(&b, equal), "equals wait for each other");
    cr_expect_not(mirror_has_share(&b, slots[1]));
    cr_expect_eq(mirror_stats(&b).preemptions, 1);
    int more = add(4, 8, 0, 2);
    mirror_step(&b);
    cr_expect(mirror_has_share(&b, more));
    cr_expect_not(mirror_has_share(&b, slots[3]), "of equals, the youngest gives way");
    finish_all();
    mirror_close(&b);
}

Test(scheduler_claims, the_budget_of_the_displaced_goes_to_the_urgent) {
    mirror_open(&b, small(), 64);
    for (int i = 0; i < 4; i++) add(4, 200, 0, 3);
    mirror_step(&b);
    int urgent = add(100, 110, 0, 0);
    mirror_step(&b);
    cr_expect_eq(b.seqs[urgent]->tokens, 32 - 3);
    finish_all();
    mirror_close(&b);
}

Test(scheduler_claims, nobody_is_displaced_in_vain) {
    mirror_open(&b, small(), 16);
    add(100, 110, 0, 0); /* 7 blocks that stay */
    while (mirror_tokens(&b) != 1) mirror_step(&b);
    add(60, 64, 0, 5); /* 4 blocks that could go */
    mirror_step(&b);
    cr_expect_eq(mirror_stats(&b).running, 2);
    add(200, 210, 0, 1); /* wants 13 */
    mirror_step(&b);
    cr_expect_eq(mirror_stats(&b).preemptions, 0);
    finish_all();
    mirror_close(&b);
}

/* -- Tenants ----------------------------------------------------------------------------------- */

Test(scheduler_claims, a_newcomer_need_not_wait_for_a_flood) {
    mirror_open(&b, small(), 64);
    for (int i = 0; i < 40; i++) add(30, 40, 1, 0);
    for (int i = 0; i < 20; i++) mirror_step(&b);
    int slot = add(30, 40, 2, 0);
    for (int i = 0; !mirror_has_share(&b, slot); i++) {
        cr_assert_lt(i, 12); /* until one of four has its ten tokens */
        mirror_step(&b);
    }
    finish_all();
    mirror_close(&b);
}

enum { TENANTS = 10 };

/* What each tenant keeps in flight. */
struct demand {
    int in_flight, prompt, answer;
    float weight;
};

static void keep_up(const struct demand *demands, uint64_t *seed) {
    int count[TENANTS] = {0};
    for (int i = 0; i < MIRROR_SLOTS; i++)
        if (b.seqs[i]) count[b.seqs[i]->claim.tenant]++;
    for (int t = 0; t < TENANTS; t++) {
        struct engine_claim claim = {.tenant = t, .weight = demands[t].weight};
        for (; count[t] < demands[t].in_flight; count[t]++) {
            int prompt = random_range(seed, 1, demands[t].prompt);
            int answer = random_range(seed, 1, demands[t].answer);
            cr_assert_geq(mirror_add_claim(&b, prompt, prompt + answer, false, &claim), 0);
        }
    }
}

/* Tokens that each tenant gets in so many steps. */
static void serve(const struct demand *demands, int steps, double *got) {
    uint64_t seed = 8;
    double before[TENANTS];
    for (int t = 0; t < TENANTS; t++) before[t] = (double)b.by_tenant[t];
    for (int step = 0; step < steps; step++) {
        keep_up(demands, &seed);
        mirror_step(&b);
    }
    for (int t = 0; t < TENANTS; t++) got[t] = (double)b.by_tenant[t] - before[t];
}

static double jain(const double *x, int n) {
    double sum = 0, squares = 0;
    for (int i = 0; i < n; i++) {
        sum += x[i];
        squares += x[i] * x[i];
    }
    return sum * sum / (n * squares);
}

static struct scheduler_options large(void) {
    return (struct scheduler_options){
        .max_running = 32, .max_waiting = 900, .step_tokens = 128, .max_context = 300};
}

Test(scheduler_claims, equal_tenants_get_equal_shares_beside_a_flood) {
    struct demand demands[TENANTS];
    double got[TENANTS];
    for (int t = 0; t < TENANTS; t++) demands[t] = (struct demand){6, 60, 40, 0};
    demands[4].in_flight = 600;
    mirror_open(&b, large(), 1024);
    serve(demands, 4000, got);
    cr_expect_geq(jain(got, TENANTS), 0.99, "%f", jain(got, TENANTS));
    mirror_close(&b);
    /* Nor do long requests get more than many short ones. */
    demands[4] = (struct demand){300, 200, 100, 0};
    demands[7] = (struct demand){40, 4, 4, 0};
    mirror_open(&b, large(), 300);
    serve(demands, 4000, got);
    cr_expect_geq(jain(got, TENANTS), 0.95, "%f", jain(got, TENANTS));
    mirror_close(&b);
}

Test(scheduler_claims, a_tenant_gets_its_weight) {
    struct demand demands[TENANTS];
    double got[TENANTS];
    for (int t = 0; t < TENANTS; t++) demands[t] = (struct demand){20, 60, 40, t < 5 ? 1 : 3};
    mirror_open(&b, large(), 1024);
    serve(demands, 4000, got);
    for (int t = 5; t < TENANTS; t++) got[t] /= 3;
    cr_expect_geq(jain(got, TENANTS), 0.99, "%f", jain(got, TENANTS));
    mirror_close(&b);
}

Test(scheduler_claims, who_was_away_gets_no_more_than_the_others) {
    struct demand demands[TENANTS];
    double got[TENANTS];
    for (int t = 0; t < TENANTS; t++) demands[t] = (struct demand){t == 3 ? 0 : 20, 60, 40, 0};
    mirror_open(&b, large(), 1024);
    serve(demands, 1000, got);
    cr_expect_eq(got[3], 0);
    demands[3].in_flight = 20;
    serve(demands, 1000, got);
    cr_expect_geq(jain(got, TENANTS), 0.98, "%f", jain(got, TENANTS));
    mirror_close(&b);
}

/* -- Pauses ------------------------------------------------------------------------------------ */

Test(scheduler_claims, a_paused_sequence_gets_no_steps_and_goes_on_where_it_was) {
    mirror_open(&b, small(), 64);
    int slot = mirror_add(&b, 20, 60), other = mirror_add(&b, 5, 100);
    mirror_step(&b);
    mirror_step(&b);
    int done = b.seqs[slot]->done;
    mirror_pause(&b, slot, true);
    mirror_pause(&b, slot, true);
    cr_expect_eq(mirror_stats(&b).paused, 1);
    for (int i = 0; i < 10; i++) {
        mirror_step(&b);
        cr_expect(mirror_has_share(&b, other) && !mirror_has_share(&b, slot));
    }
    mirror_pause(&b, slot, false);
    cr_expect_eq(mirror_stats(&b).paused, 0);
    mirror_step(&b);
    cr_expect(mirror_has_share(&b, slot));
    cr_expect_eq(b.seqs[slot]->done, done + 1, "nothing was computed again");
    finish_all();
    mirror_close(&b);
}

Test(scheduler_claims, when_all_are_paused_there_is_nothing_to_do) {
    mirror_open(&b, small(), 64);
    int slots[6];
    for (int i = 0; i < 6; i++) slots[i] = mirror_add(&b, 5, 100);
    mirror_step(&b);
    for (int i = 0; i < 6; i++) mirror_pause(&b, slots[i], true);
    for (int i = 0; i < 3; i++) cr_expect_eq(mirror_step(&b), 0);
    cr_expect_eq(mirror_stats(&b).paused, 6);
    for (int i = 0; i < 6; i++) mirror_pause(&b, slots[i], false);
    finish_all();
    cr_expect_eq(b.finished, 6);
    mirror_close(&b);
}

Test(scheduler_claims, a_paused_sequence_makes_room_for_others) {
    mirror_open(&b, small(), 64);
    int slots[5];
    for (int i = 0; i < 5; i++) slots[i] = mirror_add(&b, 20, 100);
    mirror_step(&b);
    mirror_step(&b);
    mirror_step(&b);
    cr_expect_not(mirror_has_share(&b, slots[4]));
    mirror_pause(&b, slots[0], true);
    mirror_step(&b);
    cr_expect(mirror_has_share(&b, slots[4]));
    cr_expect_eq(mirror_stats(&b).running, 4);
    mirror_pause(&b, slots[0], false);
    mirror_remove(&b, slots[1]);
    mirror_step(&b);
    cr_expect(mirror_has_share(&b, slots[0]));
    cr_expect_geq(b.seqs[slots[0]]->done, 16);
    finish_all();
    mirror_close(&b);
}

/* -- Deadlines --------------------------------------------------------------------------------- */

static int add_deadlines(int64_t queue, int64_t first, int64_t total) {
    struct engine_claim claim = {.queue_ns = queue, .first_ns = first, .total_ns = total};
    return mirror_add_claim(&b, 20, 100, false, &claim);
}

Test(scheduler_claims, each_deadline_counts_until_it_is_met) {
    enum scheduler_limit limit;
    struct scheduler_options options = small();
    options.max_running = 1;
    mirror_open(&b, options, 64);
    cr_expect_eq(scheduler_deadline(b.s), INT64_MAX);
    cr_expect_eq(scheduler_expired(b.s, INT64_MAX - 1, &limit), -1);
    int runs = add_deadlines(10, 20, 50), waits = add_deadlines(40, 45, 48);
    cr_expect_eq(scheduler_deadline(b.s), 10);
    cr_expect_eq(scheduler_expired(b.s, 9, &limit), -1);
    cr_expect_eq(scheduler_expired(b.s, 10, &limit), runs);
    cr_expect_eq(limit, LIMIT_QUEUE);
    mirror_step(&b);
    cr_expect_eq(scheduler_deadline(b.s), 40, "it had its first step and token");
    cr_expect_eq(scheduler_expired(b.s, 47, &limit), waits);
    cr_expect_eq(limit, LIMIT_QUEUE);
    mirror_remove(&b, waits);
    cr_expect_eq(scheduler_expired(b.s, 49, &limit), -1);
    cr_expect_eq(scheduler_expired(b.s, 50, &limit), runs);
    cr_expect_eq(limit, LIMIT_TOTAL);
    mirror_remove(&b, runs);
    cr_expect_eq(scheduler_deadline(b.s), INT64_MAX);
    mirror_close(&b);
}

Test(scheduler_claims, the_first_token_can_be_late_during_the_prompt) {
    enum scheduler_limit limit;
    struct engine_claim claim = {.queue_ns = 10, .first_ns = 20};
    mirror_open(&b, small(), 64);
    int slot = mirror_add_claim(&b, 100, 110, false, &claim);
    mirror_step(&b);
    cr_expect_eq(scheduler_expired(b.s, 15, &limit), -1);
    mirror_pause(&b, slot, true);
    cr_expect_eq(scheduler_expired(b.s, 20, &limit), slot);
    cr_expect_eq(limit, LIMIT_FIRST);
    mirror_remove(&b, slot);
    mirror_close(&b);
}

/* -- Prompts in common ------------------------------------------------------------------------- */

Test(scheduler_claims, of_equal_prompts_one_is_computed) {
    mirror_open(&b, small(), 64);
    b.family = 3;
    for (int i = 0; i < 4; i++) mirror_add(&b, 100, 110);
    for (int i = 0; i < 3; i++) {
        cr_expect_eq(mirror_step(&b), 1);
        cr_expect_eq(mirror_stats(&b).waiting, 3);
    }
    mirror_step(&b);
    cr_expect_eq(b.n_shares, 4);
    for (int i = 0; i < 4; i++) cr_expect_eq(b.shares[i].n_cached, b.shares[i].slot == 0 ? 0 : 96);
    cr_expect_eq(b.computed, 100 + 3 * 4);
    finish_all();
    mirror_close(&b);
}

Test(scheduler_claims, who_waits_for_a_beginning_waits_no_longer_than_that) {
    mirror_open(&b, small(), 64);
    b.family = 3;
    int follower = mirror_add(&b, 70, 80);
    mirror_pause(&b, follower, true);
    int leader = mirror_add(&b, 250, 256);
    mirror_step(&b);
    mirror_pause(&b, follower, false);
    mirror_step(&b);
    cr_expect_not(mirror_has_share(&b, follower), "it is older, but this is computed already");
    mirror_step(&b);
    cr_expect(mirror_has_share(&b, leader) && mirror_has_share(&b, follower));
    cr_expect_eq(b.seqs[follower]->tokens, 6);
    finish_all();
    mirror_close(&b);
}

Test(scheduler_claims, others_do_not_wait_behind_those_that_do) {
    mirror_open(&b, small(), 64);
    b.family = 3;
    mirror_add(&b, 100, 110);
    mirror_add(&b, 100, 110);
    b.family = 0;
    int other = mirror_add(&b, 5, 10);
    for (int i = 0; i < 4; i++) mirror_step(&b);
    cr_expect_gt(b.seqs[other]->steps, 0);
    finish_all();
    mirror_close(&b);
}

Test(scheduler_claims, when_the_leader_leaves_another_leads) {
    for (int how = 0; how < 2; how++) {
        mirror_open(&b, small(), 64);
        b.family = 3;
        int leader = mirror_add(&b, 100, 110);
        for (int i = 0; i < 3; i++) mirror_add(&b, 100, 110);
        mirror_step(&b);
        mirror_step(&b);
        if (how == 0)
            mirror_remove(&b, leader);
        else
            mirror_pause(&b, leader, true);
        cr_expect_eq(mirror_step(&b), 1);
        cr_expect_eq(b.shares[0].start, 64);
        if (how == 1) mirror_pause(&b, leader, false);
        finish_all();
        /* A paused leader keeps what it has, and computes the rest itself. */
        cr_expect_leq(b.computed, 100 + 3 * 4 + 4 * 10 + (how == 1 ? 36 : 0));
        mirror_close(&b);
    }
}

/* One that is older than its leader: it came first, but was paused while the other began. */
static void park(int *leader, int *follower) {
    b.family = 3;
    *follower = mirror_add(&b, 200, 210);
    mirror_pause(&b, *follower, true);
    *leader = mirror_add(&b, 200, 210);
    mirror_step(&b);
    mirror_pause(&b, *follower, false);
    mirror_step(&b);
    cr_assert(mirror_has_share(&b, *leader) && !mirror_has_share(&b, *follower));
}

Test(scheduler_claims, who_waits_goes_on_at_once_without_its_leader) {
    for (int how = 0; how < 3; how++) {
        int leader, follower;
        mirror_open(&b, small(), 20);
        park(&leader, &follower);
        b.family = 0;
        if (how == 0) mirror_remove(&b, leader);
        if (how == 1) mirror_pause(&b, leader, true);
        if (how == 2) add(100, 110, 0, -1); /* takes the leader's blocks */
        mirror_step(&b);
        cr_expect(how == 2 || mirror_has_share(&b, follower));
        for (int i = 0; i < 60; i++) mirror_step(&b);
        cr_expect_null(b.seqs[follower], "%d", how);
        if (how == 1) mirror_pause(&b, leader, false);
        finish_all();
        mirror_close(&b);
    }
}

Test(scheduler_claims, who_waits_for_a_leader_can_leave_or_be_paused) {
    for (int how = 0; how < 2; how++) {
        int leader, follower;
        mirror_open(&b, small(), 64);
        park(&leader, &follower);
        if (how == 0) mirror_remove(&b, follower);
        if (how == 1) mirror_pause(&b, follower, true);
        mirror_step(&b);
        cr_expect(b.n_shares == 1 && mirror_has_share(&b, leader));
        if (how == 1) mirror_pause(&b, follower, false);
        finish_all();
        mirror_close(&b);
    }
}

Test(scheduler_claims, those_that_come_together_wait_within_a_step) {
    struct scheduler_options options = small();
    options.step_tokens = 120;
    mirror_open(&b, options, 64);
    b.family = 3;
    for (int i = 0; i < 4; i++) mirror_add(&b, 100, 110);
    cr_expect_eq(mirror_step(&b), 1);
    cr_expect_eq(mirror_step(&b), 4);
    cr_expect_eq(b.computed, 100 + 1 + 3 * 4);
    finish_all();
    mirror_close(&b);
}

Test(scheduler_claims, nobody_waits_for_a_stranger_or_one_less_urgent) {
    mirror_open(&b, small(), 64);
    b.family = 3;
    add(250, 256, 1, 5);
    mirror_step(&b);
    int stranger = add(100, 110, 2, 5), urgent = add(100, 110, 1, 0);
    mirror_step(&b);
    cr_expect(mirror_has_share(&b, urgent));
    for (int i = 0; i < 4; i++) mirror_step(&b);
    cr_expect_gt(b.seqs[stranger]->steps, 0);
    finish_all();
    mirror_close(&b);
}

/* -- All together ------------------------------------------------------------------------------ */

static int add_random(uint64_t *seed) {
    int target = random_range(seed, 1, b.options.max_context);
    struct engine_claim claim = {.salt = random_next(seed) % 2,
                                 .tenant = random_range(seed, 0, 5),
                                 .priority = random_range(seed, 0, 3) == 0 ? -1 : 0,
                                 .weight = random_range(seed, 0, 2) * 0.7f};
    if (random_range(seed, 0, 3) == 0) claim.queue_ns = b.now + random_range(seed, 1, 200);
    if (random_range(seed, 0, 3) == 0) claim.first_ns = b.now + random_range(seed, 1, 400);
    if (random_range(seed, 0, 3) == 0) claim.total_ns = b.now + random_range(seed, 1, 800);
    b.family = random_range(seed, 0, 4);
    return mirror_add_claim(&b, random_range(seed, 1, target), target,
                            random_range(seed, 0, 9) == 0, &claim);
}

/* Something happens to sequences here and there, whatever state they are in. */
static void disturb(uint64_t *seed, int64_t *removed) {
    for (int i = 0; i < 4; i++) {
        int slot = random_range(seed, 0, 63);
        if (!b.seqs[slot]) continue;
        int what = random_range(seed, 0, 40);
        if (what < 2) {
            mirror_remove(&b, slot);
            ++*removed;
        } else if (what < 6) {
            mirror_pause(&b, slot, true);
        } else if (what < 16) {
            mirror_pause(&b, slot, false);
        } else if (what < 30 && b.seqs[slot]->done + 1 == b.seqs[slot]->known) {
            scheduler_draft(b.s, slot, random_range(seed, 0, 20));
        }
    }
}

static void wake_all(void) {
    for (int i = 0; i < MIRROR_SLOTS; i++)
        if (b.seqs[i]) mirror_pause(&b, i, false);
}

static void random_load(uint64_t seed) {
    struct scheduler_options options = {.max_running = random_range(&seed, 1, 16),
                                        .max_waiting = random_range(&seed, 0, 40),
                                        .max_context = random_range(&seed, 20, 300),
                                        .no_cache = random_range(&seed, 0, 4) == 0};
    options.step_tokens = options.max_running + random_range(&seed, 0, 64);
    mirror_open(&b, options, random_range(&seed, kv_blocks_for(options.max_context), 128));
    int64_t added = 0, removed = 0, steps = 0;
    for (int arrivals = 150; arrivals > 0 || b.n_seqs > 0; b.now++) {
        for (int n = random_range(&seed, 0, 3); n > 0 && arrivals > 0; n--, arrivals--) {
            int r = add_random(&seed);
            cr_assert(r >= 0 || r == -EAGAIN);
            added += r >= 0;
        }
        if (arrivals > 0)
            disturb(&seed, &removed);
        else
            wake_all();
        removed += mirror_expire(&b);
        mirror_step(&b);
        cr_assert_lt(++steps, 100000, "seed %llu does not end", (unsigned long long)seed);
    }
    cr_assert_eq(b.finished + removed, added);
    cr_assert_eq(kv_free_blocks(b.kv), kv_total_blocks(b.kv));
    cr_assert_eq(mirror_stats(&b).pending, 0);
    cr_assert_eq(scheduler_deadline(b.s), INT64_MAX);
    mirror_close(&b);
}

Test(scheduler_claims, every_sequence_ends_under_random_load) {
    for (uint64_t seed = 1; seed <= 100; seed++) random_load(seed);
}
