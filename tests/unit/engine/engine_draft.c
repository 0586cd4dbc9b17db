/* Speculation changes when tokens come, never which. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "engine/engine.h"
#include "tests/support/desk.h"
#include "tests/support/fake_model.h"
#include "tests/support/random.h"

enum { N = 40 };

static struct engine_stats stats_of(struct desk *d) {
    struct engine_stats stats;
    engine_get_stats(d->engine, &stats);
    return stats;
}

/* Request number i of a fixed set; all kinds of sampling and of ends. */
static struct engine_request *mixed_request(int i) {
    int32_t ids[60];
    uint64_t seed = (uint64_t)i * 31 + 1;
    int n = random_range(&seed, 1, 60);
    for (int j = 0; j < n; j++) ids[j] = 'a' + random_range(&seed, 0, 7);
    struct engine_request *r = desk_ids(ids, n, random_range(&seed, 1, 150));
    r->sampling.temperature = i % 3 == 0 ? 0 : i % 3 == 1 ? 0.7f : 1.2f;
    r->sampling.presence_penalty = i % 4 == 0 ? 0.3f : 0;
    r->sampling.repetition_penalty = i % 5 == 0 ? 1.1f : 1;
    r->sampling.top_k = i % 7 == 0 ? 5 : 0;
    r->seed = seed;
    r->n_logprobs = i % 2 ? 2 : 0;
    r->return_tokens = true;
    if (i % 6 == 0) r->stops[r->n_stops++] = strdup("gfe");
    if (i % 6 == 1) r->stop_ids[r->n_stop_ids++] = 'h';
    if (i % 6 == 1) r->min_tokens = r->max_tokens < 20 ? r->max_tokens : 20;
    if (i % 6 == 2) r->n_prompt_logprobs = 0;
    return r;
}

static void run_all(struct desk *d, const struct engine_options *options, bool one_by_one) {
    desk_open(d, options, 256, true);
    for (int i = 0; i < N; i++) {
        int a = desk_submit(d, mixed_request(i));
        cr_assert_eq(a, i);
        if (one_by_one) desk_wait(d, a);
    }
    desk_wait_all(d);
}

static void expect_equal(const struct desk *a, const struct desk *b) {
    for (int i = 0; i < N; i++) {
        const struct desk_record *x = &a->records[i], *y = &b->records[i];
        cr_expect_eq(x->finish, y->finish, "request %d", i);
        cr_expect_eq(x->stop, y->stop, "request %d", i);
        cr_expect_eq(x->stop_id, y->stop_id, "request %d", i);
        cr_expect_eq(x->n_generated, y->n_generated, "request %d", i);
        cr_assert_eq(x->n_tokens, y->n_tokens, "request %d", i);
        size_t n = (size_t)x->n_tokens;
        cr_expect_eq(memcmp(x->tokens, y->tokens, n * sizeof *x->tokens), 0, "request %d", i);
        cr_expect_eq(memcmp(x->logprobs, y->logprobs, n * sizeof *x->logprobs), 0, "request %d", i);
        cr_expect_str_eq(x->text, y->text, "request %d", i);
    }
}

static struct engine_options plain_options(void) {
    struct engine_options options = desk_options();
    options.max_waiting = N;
    options.step_tokens = 32;
    return options;
}

Test(engine_draft, output_equals_plain_decoding) {
    static const int draft_tokens[] = {1, 3, 8, 32};
    struct desk plain, drafting;
    struct engine_options options = plain_options();
    fake_model_set_kind(FAKE_MODEL_LOOP);
    run_all(&plain, &options, false);
    for (size_t i = 0; i < sizeof draft_tokens / sizeof *draft_tokens; i++) {
        options.draft_tokens = draft_tokens[i];
        run_all(&drafting, &options, i % 2);
        expect_equal(&plain, &drafting);
        struct engine_stats stats = stats_of(&drafting);
        cr_expect_gt(stats.draft_accepted, 100, "the guesses were never right");
        cr_expect_gt(stats.draft_tokens, stats.draft_accepted, "or always");
        cr_expect_eq(stats.generated_tokens, stats_of(&plain).generated_tokens);
        cr_expect_eq(stats.kv_blocks_free, stats.kv_blocks);
        cr_expect_lt(stats.steps, stats_of(&plain).steps * (i % 2 ? 4 : 1));
        desk_close_source(&drafting);
    }
    desk_close(&plain);
}

Test(engine_draft, preemption_and_tight_budgets_change_nothing) {
    struct desk plain, drafting;
    struct engine_options options = plain_options();
    fake_model_set_kind(FAKE_MODEL_LOOP);
    run_all(&plain, &options, false);
    options.draft_tokens = 5;
    options.kv_tokens = 320;
    options.max_running = 8;
    options.step_tokens = 11;
    fake_model_hold();
    desk_open(&drafting, &options, 256, true);
    for (int i = 0; i < N; i++) cr_assert_eq(desk_submit(&drafting, mixed_request(i)), i);
    fake_model_release();
    desk_wait_all(&drafting);
    expect_equal(&plain, &drafting);
    cr_expect_gt(stats_of(&drafting).preemptions, 0);
    cr_expect_leq(fake_model_max_tokens(), 32);
    desk_close_source(&drafting);
    desk_close(&plain);
}

Test(engine_draft, takes_fewer_steps_where_the_text_repeats) {
    struct desk d;
    struct engine_options options = plain_options();
    fake_model_set_kind(FAKE_MODEL_ALPHABET);
    options.draft_tokens = 8;
    desk_open(&d, &options, 256, true);
    struct engine_request *request =
        desk_text("abcdefghijklmnopqrstuvwxyz abcdefghijklmnopqrstuvwxyz ab", 0);
    int a = desk_submit(&d, request);
    desk_wait(&d, a);
    cr_expect_str_eq(d.records[a].text, "cdefghijklmnopqrstuvwxyz");
    struct engine_stats stats = stats_of(&d);
    cr_expect_leq(stats.steps, 2 + 5, "%d", (int)stats.steps); /* 24 tokens; the prompt takes 2 */
    cr_expect_geq(stats.draft_accepted, 20);
    desk_close(&d);
}

Test(engine_draft, a_model_that_fails_ends_every_request) {
    struct desk d;
    struct engine_options options = plain_options();
    fake_model_set_kind(FAKE_MODEL_LOOP);
    options.draft_tokens = 4;
    fake_model_hold();
    desk_open(&d, &options, 256, true);
    for (int i = 0; i < 6; i++) desk_submit(&d, mixed_request(i));
    fake_model_allow(8);
    fake_model_wait_entered(9);
    fake_model_break();
    fake_model_release();
    desk_wait_all(&d);
    cr_expect_eq(stats_of(&d).state, ENGINE_BROKEN);
    cr_expect_eq(stats_of(&d).kv_blocks_free, stats_of(&d).kv_blocks);
    desk_close(&d);
}
