/* What a request's claim does to it: pauses, deadlines, priorities, shared beginnings. */
#include <criterion/criterion.h>
#include <errno.h>
#include <math.h>
#include <string.h>

#include "engine/engine.h"
#include "engine/engine_mail.h"
#include "kernels/error.h"
#include "tests/support/desk.h"
#include "tests/support/fake_model.h"
#include "tests/support/random.h"

static struct desk d;

static struct engine_stats stats(void) {
    struct engine_stats s;
    engine_get_stats(d.engine, &s);
    return s;
}

static void expect_all_free(void) {
    struct engine_stats s = stats();
    cr_expect_eq(s.kv_blocks_free, s.kv_blocks);
    cr_expect(s.running == 0 && s.waiting == 0 && s.paused == 0 && s.waiting_tokens == 0);
}

static struct engine_request *numbered(int seed, int n, int max_tokens) {
    int32_t ids[200];
    uint64_t state = (uint64_t)seed;
    for (int i = 0; i < n; i++) ids[i] = random_range(&state, 0, 255);
    struct engine_request *request = desk_ids(ids, n, max_tokens);
    request->n_logprobs = 0;
    return request;
}

/* -- Pauses ---------------------------------------------------------------------------------- */

Test(engine_claims, a_paused_request_waits_and_goes_on_as_if_nothing_had_been) {
    struct engine_options options = desk_options();
    fake_model_hold();
    desk_open(&d, &options, 256, true);
    int a = desk_submit(&d, numbered(1, 20, 30)), b = desk_submit(&d, numbered(2, 5, 40));
    fake_model_allow(4);
    fake_model_wait_entered(5);
    engine_pause(d.engine, d.records[a].ticket, true);
    fake_model_release();
    desk_wait(&d, b);
    cr_expect_not(d.records[a].ended);
    cr_expect_leq(d.records[a].n_tokens, 5);
    cr_expect_eq(stats().paused, 1);
    engine_pause(d.engine, d.records[a].ticket, false);
    desk_wait(&d, a);
    int32_t ids[50];
    uint64_t seed = 1;
    for (int i = 0; i < 20; i++) ids[i] = random_range(&seed, 0, 255);
    cr_assert_eq(d.records[a].n_tokens, 30);
    for (int i = 20; i < 50; i++) {
        ids[i] = fake_model_expect(ids, i);
        cr_assert_eq(d.records[a].tokens[i - 20], ids[i]);
    }
    expect_all_free();
    desk_close(&d);
}

Test(engine_claims, a_request_paused_before_anybody_saw_it_waits_too) {
    struct engine_options options = desk_options();
    fake_model_hold();
    desk_open(&d, &options, 64, true);
    int first = desk_submit(&d, numbered(1, 3, 2));
    fake_model_wait_entered(1);
    int a = desk_submit(&d, numbered(2, 3, 2));
    engine_pause(d.engine, d.records[a].ticket, true);
    fake_model_release();
    desk_wait(&d, first);
    desk_wait_started(&d, a);
    cr_expect_not(d.records[a].ended);
    engine_pause(d.engine, 0, true);
    engine_pause(d.engine, UINT64_MAX, true);
    engine_pause(d.engine, d.records[a].ticket, false);
    desk_wait(&d, a);
    engine_pause(d.engine, d.records[a].ticket, true); /* it has ended */
    desk_close(&d);
}

Test(engine_claims, an_engine_with_all_paused_computes_nothing_and_can_be_closed) {
    struct engine_options options = desk_options();
    fake_model_hold();
    desk_open(&d, &options, 64, true);
    int a = desk_submit(&d, numbered(1, 3, 20));
    fake_model_wait_entered(1);
    engine_pause(d.engine, d.records[a].ticket, true);
    fake_model_release();
    int cancelled = desk_submit(&d, numbered(2, 3, 0));
    desk_cancel(&d, cancelled);
    desk_wait(&d, cancelled);
    int entered = fake_model_entered();
    desk_wait_started(&d, a);
    int b = desk_submit(&d, numbered(2, 3, 1));
    desk_wait(&d, b);
    cr_expect_leq(fake_model_entered() - entered, 2);
    cr_expect_eq(stats().paused, 1);
    desk_cancel(&d, a);
    desk_wait(&d, a);
    cr_expect_eq(d.records[a].finish, FINISH_CANCELLED);
    expect_all_free();
    int last = desk_submit(&d, numbered(3, 3, 20));
    engine_pause(d.engine, d.records[last].ticket, true);
    desk_close(&d);
}

/* -- Deadlines ------------------------------------------------------------------------------- */

static void expect_timeout(int record, const char *limit) {
    desk_wait(&d, record);
    cr_expect_eq(d.records[record].kind, ENGINE_FAILED);
    cr_expect_eq(d.records[record].code, -ETIMEDOUT);
    cr_expect_not_null(strstr(d.records[record].text, limit), "%s", d.records[record].text);
}

Test(engine_claims, expired_work_is_dropped_before_it_is_computed) {
    struct engine_options options = desk_options();
    fake_model_hold();
    desk_open(&d, &options, 64, true);
    int first = desk_submit(&d, numbered(1, 3, 1));
    fake_model_wait_entered(1);
    int slots[3];
    for (int i = 0; i < 3; i++) {
        struct engine_request *request = numbered(2, 3, 5);
        int64_t past = engine_mail_now_ns() - 1;
        request->claim = (struct engine_claim){.queue_ns = i == 0 ? past : 0,
                                               .first_ns = i == 1 ? past : 0,
                                               .total_ns = i == 2 ? past : 0};
        slots[i] = desk_submit(&d, request);
    }
    fake_model_release();
    desk_wait(&d, first);
    expect_timeout(slots[0], "queue");
    expect_timeout(slots[1], "first token");
    expect_timeout(slots[2], "whole request");
    cr_expect_eq(fake_model_entered(), 1);
    cr_expect_eq(stats().timeouts, 3);
    cr_expect_eq(stats().failures, 3);
    expect_all_free();
    desk_close(&d);
}

Test(engine_claims, a_waiting_request_expires_while_others_run) {
    struct engine_options options = desk_options();
    options.max_running = 1;
    fake_model_hold();
    desk_open(&d, &options, 64, true);
    int runs = desk_submit(&d, numbered(1, 3, 40));
    struct engine_request *request = numbered(2, 3, 5);
    request->claim.queue_ns = engine_mail_now_ns() + 2000000;
    int waits = desk_submit(&d, request);
    fake_model_wait_entered(1);
    int64_t until = engine_mail_now_ns() + 3000000;
    while (engine_mail_now_ns() < until) continue;
    fake_model_allow(1);
    expect_timeout(waits, "queue");
    cr_expect_not(d.records[runs].ended);
    fake_model_release();
    desk_wait(&d, runs);
    cr_expect_eq(d.records[runs].n_generated, 40);
    desk_close(&d);
}

Test(engine_claims, a_sleeping_engine_notices_deadlines) {
    struct engine_options options = desk_options();
    desk_open(&d, &options, 64, true);
    struct engine_request *request = numbered(2, 3, 0);
    request->claim.total_ns = engine_mail_now_ns() + 20000000;
    fake_model_hold();
    int a = desk_submit(&d, request);
    fake_model_wait_entered(1);
    engine_pause(d.engine, d.records[a].ticket, true);
    fake_model_release();
    expect_timeout(a, "whole request");
    expect_all_free();
    desk_close(&d);
}

Test(engine_claims, refuses_claims_out_of_range) {
    struct engine_options options = desk_options();
    desk_open(&d, &options, 64, true);
    struct engine_claim bad[] = {{.tenant = -1},  {.tenant = ENGINE_MAX_TENANTS}, {.weight = -1},
                                 {.weight = NAN}, {.weight = INFINITY},           {.queue_ns = -1},
                                 {.total_ns = -5}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct engine_request *request = numbered(1, 3, 1);
        request->claim = bad[i];
        cr_expect_eq(desk_submit(&d, request), -EINVAL, "claim %zu", i);
    }
    desk_close(&d);
}

/* -- Order and sharing ----------------------------------------------------------------------- */

Test(engine_claims, the_urgent_overtakes) {
    struct engine_options options = desk_options();
    options.max_running = 1;
    fake_model_hold();
    desk_open(&d, &options, 64, true);
    desk_submit(&d, numbered(1, 3, 1));
    fake_model_wait_entered(1);
    int late = desk_submit(&d, numbered(2, 3, 1));
    struct engine_request *request = numbered(3, 3, 1);
    request->claim.priority = -3;
    int urgent = desk_submit(&d, request);
    fake_model_allow(2);
    desk_wait(&d, urgent);
    cr_expect_not(d.records[late].ended);
    fake_model_release();
    desk_wait(&d, late);
    desk_close(&d);
}

Test(engine_claims, equal_prompts_are_computed_once_and_say_so) {
    struct engine_options options = desk_options();
    fake_model_hold();
    desk_open(&d, &options, 256, true);
    for (int i = 0; i < 4; i++) desk_submit(&d, numbered(9, 100, 10));
    fake_model_release();
    desk_wait_all(&d);
    for (int i = 1; i < 4; i++) {
        cr_expect_eq(d.records[i].n_cached, 96);
        cr_expect_eq(memcmp(d.records[i].tokens, d.records[0].tokens, 10 * sizeof(int32_t)), 0);
    }
    cr_expect_eq(d.records[0].n_cached, 0);
    cr_expect_eq(stats().prefix_queries, 400);
    cr_expect_eq(stats().prefix_hits, 3 * 96);
    cr_expect_gt(stats().kv_blocks_cached, 0);
    struct engine_request *request = numbered(9, 100, 1);
    request->claim.salt = 5;
    int salted = desk_submit(&d, request);
    desk_wait(&d, salted);
    cr_expect_eq(d.records[salted].n_cached, 0);
    expect_all_free();
    desk_close(&d);
    options.no_prefix_cache = true;
    desk_open(&d, &options, 256, true);
    for (int i = 0; i < 2; i++) desk_submit(&d, numbered(9, 100, 10));
    desk_wait_all(&d);
    cr_expect_eq(d.records[1].n_cached, 0);
    cr_expect_eq(stats().prefix_queries, 0);
    cr_expect_eq(stats().kv_blocks_cached, 0);
    desk_close(&d);
}

/* -- Figures --------------------------------------------------------------------------------- */

Test(engine_claims, waiting_tokens_rise_with_submission_and_fall_with_chunks) {
    struct engine_options options = desk_options(); /* 16 tokens a step */
    fake_model_hold();
    desk_open(&d, &options, 256, true);
    int a = desk_submit(&d, numbered(1, 100, 2));
    cr_expect_eq(stats().waiting_tokens, 100);
    fake_model_wait_entered(1);
    desk_submit(&d, desk_text("twelve bytes", 1));
    int64_t estimated = stats().waiting_tokens - 100;
    cr_expect(estimated >= 1 && estimated <= 12, "%lld", (long long)estimated);
    fake_model_allow(1);
    fake_model_wait_entered(2);
    cr_expect_eq(stats().waiting_tokens, 100 - 16 + 12, "tokenized by now");
    fake_model_release();
    desk_wait_all(&d);
    cr_expect_gt(stats().prefill_rate, 0);
    cr_expect_eq(d.records[a].n_generated, 2);
    expect_all_free();
    desk_close(&d);
}

Test(engine_claims, events_tell_when_it_began_and_answered) {
    struct engine_options options = desk_options();
    desk_open(&d, &options, 256, true);
    int64_t before = engine_mail_now_ns();
    int a = desk_submit(&d, numbered(1, 100, 3));
    desk_wait(&d, a);
    int64_t after = engine_mail_now_ns();
    cr_expect(before <= d.records[a].queued_ns && d.records[a].queued_ns <= d.records[a].first_ns);
    cr_expect_leq(d.records[a].first_ns, after);
    cr_expect_gt(stats().step_seconds, 0);
    desk_close(&d);
}

/* Cancels, pauses and deadlines at random; every request ends once, and nothing is kept. */
Test(engine_claims, nothing_is_lost_in_a_storm) {
    struct engine_options options = desk_options();
    options.max_waiting = 30;
    options.kv_tokens = 400;
    uint64_t seed = 77;
    desk_open(&d, &options, 256, true);
    for (int i = 0; d.n_records < 400; i++) {
        struct engine_request *request = numbered(
            random_range(&seed, 1, 5), random_range(&seed, 1, 100), random_range(&seed, 1, 60));
        request->claim = (struct engine_claim){.tenant = random_range(&seed, 0, 3),
                                               .priority = random_range(&seed, 0, 1),
                                               .salt = (uint64_t)random_range(&seed, 0, 1)};
        if (random_range(&seed, 0, 3) == 0)
            request->claim.total_ns = engine_mail_now_ns() + random_range(&seed, 0, 2000000);
        int a = desk_submit(&d, request);
        if (a == -EAGAIN) {
            for (int j = 0; j < d.n_records; j++)
                engine_pause(d.engine, d.records[j].ticket, false);
            int oldest = 0;
            while (d.records[oldest].ended) oldest++;
            desk_wait(&d, oldest);
            continue;
        }
        int other = random_range(&seed, 0, a);
        if (random_range(&seed, 0, 3) == 0) desk_cancel(&d, other);
        if (random_range(&seed, 0, 2) == 0)
            engine_pause(d.engine, d.records[random_range(&seed, 0, a)].ticket, true);
    }
    for (int j = 0; j < d.n_records; j++) engine_pause(d.engine, d.records[j].ticket, false);
    desk_wait_all(&d);
    struct engine_stats s = stats();
    cr_expect_eq(s.finished + s.cancelled + s.failures, 400);
    cr_expect_eq(s.timeouts, s.failures);
    expect_all_free();
    desk_close(&d);
}
