#include "engine/engine.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/source.h"
#include "kernels/error.h"
#include "tests/support/desk.h"
#include "tests/support/fake_model.h"
#include "tests/support/random.h"
#include "tests/support/tiny_source.h"

static struct engine_stats stats_of(struct desk *d) {
    struct engine_stats stats;
    engine_get_stats(d->engine, &stats);
    return stats;
}

/* -- Opening --------------------------------------------------------------------------------- */

Test(engine, says_what_it_has_loaded) {
    struct desk d;
    struct engine_options options = desk_options();
    desk_open(&d, &options, 128, true);
    const struct engine_info *info = engine_get_info(d.engine);
    cr_expect_str_eq(info->architecture, "llama");
    cr_expect_str_eq(info->method, "none");
    cr_expect_str_eq(info->backend, "fake (no threads)");
    cr_expect_eq(info->context, 128);
    cr_expect_eq(info->vocab, FAKE_MODEL_VOCAB);
    cr_expect(info->has_tokenizer && info->has_chat_template);
    struct engine_stats stats = stats_of(&d);
    cr_expect(stats.ready && !stats.draining && !stats.failed);
    cr_expect_eq(stats.max_running, 4);
    cr_expect_eq(stats.max_waiting, 8);
    cr_expect_eq(stats.kv_blocks, 8); /* 4 sequences at a quarter of 128 positions */
    cr_expect_eq(stats.kv_blocks_free, 8);
    cr_expect_gt(stats.last_step_ns, 0);
    desk_close(&d);
}

Test(engine, a_sequence_cannot_be_longer_than_the_pool) {
    struct desk d;
    struct engine_options options = desk_options();
    options.kv_tokens = 40;
    desk_open(&d, &options, 128, true);
    cr_expect_eq(engine_get_info(d.engine)->context, 48);
    desk_close(&d);
    options.max_context = 33;
    desk_open(&d, &options, 128, true);
    cr_expect_eq(engine_get_info(d.engine)->context, 33);
    desk_close(&d);
}

Test(engine, refuses_options_that_cannot_work) {
    struct engine_options bad[7];
    struct source *src = tiny_source_open(64, true);
    for (int i = 0; i < 7; i++) bad[i] = desk_options();
    bad[0].max_running = 0;
    bad[1].max_waiting = -1;
    bad[2].step_tokens = 3;
    bad[3].max_context = -1;
    bad[4].kv_tokens = -1;
    bad[5].kv_tokens = INT64_MAX;
    bad[6].n_threads = -1;
    for (int i = 0; i < 7; i++) {
        struct engine *e = NULL;
        struct error err = {""};
        cr_expect_eq(engine_open(&e, src, &bad[i], &err), -EINVAL, "options %d", i);
        cr_expect_null(e);
        cr_expect_neq(err.text[0], 0);
    }
    source_close(src);
}

Test(engine, a_failed_open_leaves_the_source_to_the_caller) {
    struct engine *e = NULL;
    struct error err = {""};
    struct engine_options options = desk_options();
    struct source *src = tiny_source_open(64, true);
    options.backend = "absent";
    cr_expect_eq(engine_open(&e, src, &options, &err), -ENODEV);
    cr_expect_not_null(strstr(err.text, "absent"));
    cr_expect(fake_model_all_closed());
    cr_expect_null(e);
    source_close(src);
    engine_close(NULL);
}

/* -- Generating ------------------------------------------------------------------------------ */

Test(engine, decodes_greedily_what_the_model_says) {
    struct desk d;
    struct engine_options options = desk_options();
    int32_t ids[200];
    uint64_t seed = 5;
    desk_open(&d, &options, 256, true);
    for (int i = 0; i < 70; i++) ids[i] = random_range(&seed, 0, 255);
    struct engine_request *request = desk_ids(ids, 70, 100);
    request->n_logprobs = 2;
    int a = desk_submit(&d, request);
    desk_wait(&d, a);
    cr_expect_eq(d.records[a].kind, ENGINE_DONE);
    cr_expect_eq(d.records[a].finish, FINISH_LENGTH);
    cr_expect_eq(d.records[a].n_prompt, 70);
    cr_expect_eq(d.records[a].n_generated, 100);
    cr_assert_eq(d.records[a].n_tokens, 100);
    for (int i = 70; i < 170; i++) {
        ids[i] = fake_model_expect(ids, i);
        cr_assert_eq(d.records[a].tokens[i - 70], ids[i]);
    }
    cr_expect_leq(fake_model_max_tokens(), options.step_tokens);
    desk_close(&d);
}

Test(engine, reports_logprobs_of_the_model) {
    struct desk d;
    struct engine_options options = desk_options();
    desk_open(&d, &options, 64, true);
    struct engine_request *request = desk_text("a", 1);
    request->n_logprobs = 3;
    desk_submit(&d, request);
    struct engine_event *event = NULL;
    int n_seen = 0;
    while (n_seen == 0) {
        event = engine_poll(d.engine);
        while (event) {
            struct engine_event *next = event->next;
            for (int i = 0; i < event->n_tokens; i++, n_seen++) {
                const struct engine_token *t = &event->tokens[i];
                cr_expect_eq(t->n_top, 3);
                cr_expect_eq(t->top_ids[0], t->id);
                cr_expect_float_eq(t->top_logprobs[0], t->logprob, 1e-6);
                cr_expect(t->logprob < 0 && t->top_logprobs[1] <= t->logprob);
            }
            engine_event_free(event);
            event = next;
        }
    }
    cr_expect_eq(n_seen, 1);
    desk_close(&d);
}

Test(engine, stops_at_end_tokens_and_stop_strings) {
    struct desk d;
    struct engine_options options = desk_options();
    fake_model_set_kind(FAKE_MODEL_ALPHABET);
    desk_open(&d, &options, 64, true);
    int whole = desk_submit(&d, desk_text("m", 0));
    struct engine_request *request = desk_text("m", 0);
    request->stops[request->n_stops++] = strdup("xyz");
    request->stops[request->n_stops++] = strdup("qrs");
    int stopped = desk_submit(&d, request);
    request = desk_text("m", 0);
    request->echo = true;
    request->max_tokens = 2;
    int echoed = desk_submit(&d, request);
    desk_wait_all(&d);
    cr_expect_str_eq(d.records[whole].text, "nopqrstuvwxyz");
    cr_expect_eq(d.records[whole].finish, FINISH_STOP);
    cr_expect_eq(d.records[whole].n_generated, 14);
    cr_expect_str_eq(d.records[stopped].text, "nop");
    cr_expect_eq(d.records[stopped].finish, FINISH_STOP);
    cr_expect_eq(d.records[stopped].n_generated, 6);
    cr_expect_str_eq(d.records[echoed].text, "mno");
    cr_expect_eq(d.records[echoed].finish, FINISH_LENGTH);
    desk_close(&d);
}

Test(engine, serves_chats) {
    struct desk d;
    struct engine_options options = desk_options();
    fake_model_set_kind(FAKE_MODEL_ALPHABET);
    desk_open(&d, &options, 64, true);
    struct engine_request *request = engine_request_new();
    request->messages = calloc(1, sizeof *request->messages);
    request->n_messages = 1;
    request->messages[0].role = strdup("user");
    request->messages[0].content = strdup("hi");
    request->max_tokens = 3;
    int a = desk_submit(&d, request);
    desk_wait(&d, a);
    cr_expect_eq(d.records[a].n_prompt, 21);
    cr_expect_str_eq(d.records[a].text, "\v\f\r"); /* what follows the template's last newline */
    desk_close(&d);
}

Test(engine, without_a_tokenizer_it_serves_ids_only) {
    struct desk d;
    struct engine_options options = desk_options();
    int32_t ids[] = {'a', 'b'};
    size_t n;
    fake_model_set_kind(FAKE_MODEL_ALPHABET);
    desk_open(&d, &options, 64, false);
    cr_expect_eq(desk_submit(&d, desk_text("ab", 3)), -EINVAL);
    cr_expect_null(engine_token_text(d.engine, 'a', &n));
    int a = desk_submit(&d, desk_ids(ids, 2, 3));
    desk_wait(&d, a);
    cr_expect_eq(d.records[a].n_tokens, 3);
    cr_expect_eq(d.records[a].tokens[2], 'e');
    desk_close(&d);
}

Test(engine, tokenizes_on_the_callers_thread) {
    struct desk d;
    struct engine_options options = desk_options();
    int32_t *ids = NULL;
    size_t n = 0;
    desk_open(&d, &options, 64, true);
    cr_assert_eq(engine_tokenize(d.engine, &ids, &n, "a<|im_end|>", 11, true, true, NULL), 0);
    cr_expect_eq(n, 2);
    cr_expect(ids[0] == 'a' && ids[1] == FAKE_MODEL_EOS);
    free(ids);
    cr_expect_eq(*engine_token_text(d.engine, 'z', &n), 'z');
    cr_expect_eq(n, 1);
    cr_expect_null(engine_token_text(d.engine, -1, &n));
    cr_expect_null(engine_token_text(d.engine, 999, &n));
    desk_close(&d);
}

/* -- Refusals -------------------------------------------------------------------------------- */

Test(engine, refuses_invalid_requests_at_once) {
    struct desk d;
    struct engine_options options = desk_options();
    int32_t ids[] = {0, FAKE_MODEL_VOCAB};
    desk_open(&d, &options, 64, true);
    cr_expect_eq(desk_submit(&d, engine_request_new()), -EINVAL);
    cr_expect_eq(desk_submit(&d, desk_ids(ids, 2, 1)), -EINVAL);
    struct engine_request *r[8];
    for (int i = 0; i < 8; i++) r[i] = desk_text("a", 1);
    r[0]->max_tokens = -2;
    r[1]->min_tokens = 2;
    r[2]->n_logprobs = ENGINE_MAX_LOGPROBS + 1;
    r[3]->n_stops = ENGINE_MAX_STOPS + 1;
    r[4]->n_stops = 1;
    r[5]->stops[r[5]->n_stops++] = strdup("");
    r[6]->sampling.temperature = NAN;
    r[7]->ids = calloc(1, sizeof(int32_t));
    for (int i = 0; i < 8; i++) cr_expect_eq(desk_submit(&d, r[i]), -EINVAL, "request %d", i);
    cr_expect_eq(stats_of(&d).requests, 0);
    desk_close(&d);
}

Test(engine, refuses_prompts_that_are_too_long) {
    struct desk d;
    struct engine_options options = desk_options();
    static char text[1 << 16];
    int32_t ids[64] = {0};
    desk_open(&d, &options, 64, true);
    cr_expect_eq(desk_submit(&d, desk_ids(ids, 64, 1)), -E2BIG);
    cr_expect_geq(desk_submit(&d, desk_ids(ids, 63, 1)), 0);
    memset(text, 'x', sizeof text - 1);
    cr_expect_eq(desk_submit(&d, desk_text(text, 1)), -E2BIG);
    /* Only tokenizing shows that this one is. */
    text[64] = 0;
    int a = desk_submit(&d, desk_text(text, 1));
    desk_wait_all(&d);
    cr_expect_eq(d.records[a].kind, ENGINE_FAILED);
    cr_expect_eq(d.records[a].code, -E2BIG);
    cr_expect_not_null(strstr(d.records[a].text, "64"));
    desk_close(&d);
}

Test(engine, a_full_queue_says_try_again) {
    struct desk d;
    struct engine_options options = desk_options();
    fake_model_hold();
    desk_open(&d, &options, 64, true);
    for (int i = 0; i < 12; i++) cr_expect_eq(desk_submit(&d, desk_text("abc", 4)), i);
    cr_expect_eq(desk_submit(&d, desk_text("abc", 4)), -EAGAIN);
    fake_model_release();
    desk_wait_all(&d);
    cr_expect_eq(desk_submit(&d, desk_text("abc", 4)), 12);
    desk_wait_all(&d);
    cr_expect_eq(stats_of(&d).requests, 13);
    cr_expect_eq(stats_of(&d).finished, 13);
    desk_close(&d);
}

/* -- Cancellation ---------------------------------------------------------------------------- */

static void expect_cancelled(struct desk *d, int record) {
    desk_wait(d, record);
    cr_expect_eq(d->records[record].kind, ENGINE_DONE);
    cr_expect_eq(d->records[record].finish, FINISH_CANCELLED);
}

static void expect_all_free(struct desk *d) {
    struct engine_stats stats = stats_of(d);
    cr_expect_eq(stats.kv_blocks_free, stats.kv_blocks);
    cr_expect_eq(stats.running, 0);
    cr_expect_eq(stats.waiting, 0);
}

Test(engine, cancels_a_request_that_nobody_has_read_yet) {
    struct desk d;
    struct engine_options options = desk_options();
    fake_model_hold();
    desk_open(&d, &options, 64, true);
    int first = desk_submit(&d, desk_text("a", 1));
    fake_model_wait_entered(1);
    int a = desk_submit(&d, desk_text("b", 5)); /* in the mail: the engine is in its step */
    desk_cancel(&d, a);
    fake_model_allow(1);
    expect_cancelled(&d, a);
    cr_expect_not(d.records[a].started);
    desk_wait(&d, first);
    expect_all_free(&d);
    desk_close(&d);
}

Test(engine, cancels_a_waiting_request) {
    struct desk d;
    struct engine_options options = desk_options();
    options.max_running = 1;
    fake_model_hold();
    desk_open(&d, &options, 64, true);
    int first = desk_submit(&d, desk_text("a", 3));
    int a = desk_submit(&d, desk_text("b", 5));
    fake_model_wait_entered(1);
    fake_model_allow(1);
    fake_model_wait_entered(2);
    desk_wait_started(&d, a);
    cr_expect_eq(stats_of(&d).waiting, 1);
    desk_cancel(&d, a);
    fake_model_allow(1);
    expect_cancelled(&d, a);
    cr_expect_not(d.records[first].ended);
    fake_model_allow(1);
    desk_wait(&d, first);
    cr_expect_eq(fake_model_entered(), 3);
    expect_all_free(&d);
    desk_close(&d);
}

Test(engine, cancels_within_a_step_while_reading_the_prompt) {
    struct desk d;
    struct engine_options options = desk_options();
    int32_t ids[200] = {0};
    fake_model_hold();
    desk_open(&d, &options, 256, true);
    int a = desk_submit(&d, desk_ids(ids, 200, 5));
    fake_model_wait_entered(1);
    fake_model_allow(2);
    fake_model_wait_entered(3);
    desk_cancel(&d, a);
    fake_model_allow(1);
    expect_cancelled(&d, a);
    cr_expect_eq(fake_model_entered(), 3);
    cr_expect_eq(d.records[a].n_prompt, 200);
    cr_expect_eq(d.records[a].n_generated, 0);
    expect_all_free(&d);
    desk_close(&d);
}

Test(engine, cancels_within_a_step_while_generating) {
    struct desk d;
    struct engine_options options = desk_options();
    fake_model_set_kind(FAKE_MODEL_ALPHABET);
    fake_model_hold();
    desk_open(&d, &options, 64, true);
    int a = desk_submit(&d, desk_text("a", 0));
    int b = desk_submit(&d, desk_text("x", 0));
    fake_model_allow(3);
    fake_model_wait_entered(4);
    desk_cancel(&d, a);
    fake_model_release();
    expect_cancelled(&d, a);
    cr_expect_leq(d.records[a].n_generated, 4);
    cr_expect_eq(strncmp(d.records[a].text, "bcd", 3), 0);
    desk_wait(&d, b);
    cr_expect_str_eq(d.records[b].text, "yz");
    expect_all_free(&d);
    desk_close(&d);
}

Test(engine, cancelling_what_has_ended_does_nothing) {
    struct desk d;
    struct engine_options options = desk_options();
    desk_open(&d, &options, 64, true);
    int a = desk_submit(&d, desk_text("a", 2));
    desk_wait(&d, a);
    desk_cancel(&d, a);
    engine_cancel(d.engine, 0);
    engine_cancel(d.engine, UINT64_MAX);
    /* Its row in the table has a new owner by now. */
    int b = desk_submit(&d, desk_text("a", 2));
    desk_cancel(&d, a);
    desk_wait(&d, b);
    cr_expect_eq(d.records[b].finish, FINISH_LENGTH);
    cr_expect_eq(stats_of(&d).cancelled, 0);
    desk_close(&d);
}

/* -- Together -------------------------------------------------------------------------------- */

/* Request number i of a fixed set. */
static struct engine_request *mixed_request(int i) {
    int32_t ids[120];
    uint64_t seed = (uint64_t)i + 1;
    int n = random_range(&seed, 1, 100);
    for (int j = 0; j < n; j++) ids[j] = random_range(&seed, 0, 255);
    struct engine_request *request = desk_ids(ids, n, random_range(&seed, 1, 80));
    request->sampling.temperature = i % 3 == 0 ? 0 : 1.5f;
    request->sampling.presence_penalty = i % 2 == 0 ? 0.5f : 0;
    request->seed = seed;
    request->n_logprobs = 0;
    return request;
}

Test(engine, results_do_not_depend_on_the_batch) {
    enum { N = 24 };
    struct desk alone, together;
    struct engine_options options = desk_options();
    options.max_waiting = N;
    desk_open(&alone, &options, 256, true);
    for (int i = 0; i < N; i++) desk_wait(&alone, desk_submit(&alone, mixed_request(i)));
    options.max_running = 8;
    options.step_tokens = 24;
    options.kv_tokens = 256; /* so that some are preempted */
    fake_model_hold();
    desk_open(&together, &options, 256, true);
    for (int i = 0; i < N; i++) cr_assert_eq(desk_submit(&together, mixed_request(i)), i);
    fake_model_release();
    desk_wait_all(&together);
    for (int i = 0; i < N; i++) {
        const struct desk_record *a = &alone.records[i], *b = &together.records[i];
        cr_assert_eq(a->n_tokens, b->n_tokens, "request %d", i);
        cr_assert_eq(memcmp(a->tokens, b->tokens, sizeof a->tokens), 0, "request %d", i);
        cr_assert_eq(memcmp(a->text, b->text, sizeof a->text), 0);
    }
    cr_expect_gt(stats_of(&together).preemptions, 0);
    cr_expect_eq(stats_of(&alone).preemptions, 0);
    expect_all_free(&together);
    engine_close(alone.engine);
    free(alone.records);
    desk_close(&together);
}

Test(engine, every_request_ends_exactly_once) {
    struct desk d;
    struct engine_options options = desk_options();
    uint64_t seed = 99;
    int refused = 0;
    options.max_waiting = 20;
    options.kv_tokens = 300;
    desk_open(&d, &options, 256, true);
    for (int i = 0; d.n_records < 300; i++) {
        int a = desk_submit(&d, mixed_request(i));
        if (a == -EAGAIN) {
            refused++;
            int oldest = 0;
            while (d.records[oldest].ended) oldest++;
            desk_wait(&d, oldest);
        } else if (random_range(&seed, 0, 3) == 0) {
            desk_cancel(&d, random_range(&seed, 0, a));
        }
    }
    desk_wait_all(&d);
    struct engine_stats stats = stats_of(&d);
    cr_expect_gt(refused, 0);
    cr_expect_eq(stats.requests, 300);
    cr_expect_eq(stats.finished + stats.cancelled, 300);
    cr_expect_eq(stats.failures, 0);
    cr_expect_leq(fake_model_max_seqs(), options.max_running);
    expect_all_free(&d);
    desk_close(&d);
}

Test(engine, events_of_a_step_are_one_wake) {
    struct desk d;
    struct engine_options options = desk_options();
    fake_model_hold();
    desk_open(&d, &options, 64, true);
    for (int i = 0; i < 4; i++) desk_submit(&d, desk_text("ab", 10));
    fake_model_allow(1);
    fake_model_wait_entered(2);
    pthread_mutex_lock(&d.lock);
    int before = d.wakes;
    pthread_mutex_unlock(&d.lock);
    fake_model_allow(1);
    fake_model_wait_entered(3);
    pthread_mutex_lock(&d.lock);
    cr_expect_leq(d.wakes - before, 1);
    pthread_mutex_unlock(&d.lock);
    fake_model_release();
    desk_wait_all(&d);
    desk_close(&d);
}

/* -- Ends ------------------------------------------------------------------------------------ */

Test(engine, draining_finishes_what_runs_and_refuses_the_rest) {
    struct desk d;
    struct engine_options options = desk_options();
    fake_model_hold();
    desk_open(&d, &options, 64, true);
    for (int i = 0; i < 6; i++) desk_submit(&d, desk_text("ab", 5));
    engine_drain(d.engine);
    cr_expect_eq(desk_submit(&d, desk_text("ab", 5)), -ESHUTDOWN);
    cr_expect(stats_of(&d).draining && !stats_of(&d).ready);
    fake_model_release();
    desk_wait_all(&d);
    for (int i = 0; i < 6; i++) cr_expect_eq(d.records[i].n_generated, 5);
    cr_expect_eq(desk_submit(&d, desk_text("ab", 5)), -ESHUTDOWN);
    desk_close(&d);
}

Test(engine, a_model_that_fails_ends_every_request) {
    struct desk d;
    struct engine_options options = desk_options();
    fake_model_hold();
    desk_open(&d, &options, 64, true);
    for (int i = 0; i < 7; i++) desk_submit(&d, desk_text("ab", 20));
    fake_model_allow(3);
    fake_model_wait_entered(4);
    fake_model_break();
    int late = desk_submit(&d, desk_text("ab", 20));
    fake_model_release();
    desk_wait_all(&d);
    for (int i = 0; i <= late; i++) {
        cr_expect_eq(d.records[i].kind, ENGINE_FAILED);
        cr_expect_eq(d.records[i].code, -EIO);
    }
    cr_expect_str_eq(d.records[0].text, "the device was lost");
    cr_expect(stats_of(&d).failed && !stats_of(&d).ready);
    cr_expect_eq(stats_of(&d).failures, 8);
    cr_expect_eq(desk_submit(&d, desk_text("ab", 20)), -EIO);
    expect_all_free(&d);
    desk_close(&d);
}

Test(engine, closing_with_work_in_flight_leaves_nothing) {
    for (int steps = 0; steps < 6; steps++) {
        struct desk d;
        struct engine_options options = desk_options();
        int entered = fake_model_entered();
        fake_model_hold();
        desk_open(&d, &options, 64, true);
        for (int i = 0; i < 9; i++) desk_submit(&d, desk_text("some words to read", 40));
        if (steps > 0) {
            fake_model_allow(steps - 1);
            fake_model_wait_entered(entered + steps);
        }
        fake_model_release();
        desk_close(&d);
    }
}

/* Polls as a loop would that still runs while the engine closes. */
struct listener {
    struct engine *engine;
    int n_done, n_failed;
};

static void listen_to(void *arg) {
    struct listener *l = arg;
    struct engine_event *event = engine_poll(l->engine);
    while (event) {
        struct engine_event *next = event->next;
        l->n_done += event->kind == ENGINE_DONE;
        l->n_failed += event->kind == ENGINE_FAILED;
        engine_event_free(event);
        event = next;
    }
}

Test(engine, closing_ends_every_request_first) {
    struct listener l = {0};
    struct engine_options options = desk_options();
    uint64_t ticket;
    options.wake_arg = &l;
    options.wake = listen_to;
    fake_model_hold();
    cr_assert_eq(engine_open(&l.engine, tiny_source_open(256, true), &options, NULL), 0);
    for (int i = 0; i < 12; i++)
        cr_assert_eq(engine_submit(l.engine, &ticket, desk_text("words", 200), NULL), 0);
    fake_model_allow(2);
    fake_model_wait_entered(3);
    fake_model_release();
    engine_close(l.engine);
    cr_expect_eq(l.n_done, 12);
    cr_expect_eq(l.n_failed, 0);
}

Test(engine, an_engine_without_wake_can_be_polled) {
    struct engine *e = NULL;
    struct engine_options options = desk_options();
    uint64_t ticket;
    bool ended = false;
    fake_model_set_kind(FAKE_MODEL_ALPHABET);
    cr_assert_eq(engine_open(&e, tiny_source_open(64, true), &options, NULL), 0);
    cr_assert_eq(engine_submit(e, &ticket, desk_text("x", 0), NULL), 0);
    while (!ended) {
        struct engine_event *event = engine_poll(e);
        while (event) {
            struct engine_event *next = event->next;
            ended = ended || event->kind == ENGINE_DONE;
            engine_event_free(event);
            event = next;
        }
    }
    engine_close(e);
}
