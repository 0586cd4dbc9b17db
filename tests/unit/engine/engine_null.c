/* The engine around no model: what is counted, cut and paced must be real. */
#include "engine/engine_null.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine/engine.h"
#include "engine/source.h"
#include "kernels/error.h"
#include "tests/support/desk.h"
#include "tests/support/fake_model.h"
#include "tests/support/tiny_source.h"

static struct engine_options null_options(double rate) {
    struct engine_options options = desk_options();
    options.null = true;
    options.null_token = 'x';
    options.null_rate = rate;
    return options;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

Test(engine_null, gives_its_token_and_runs_no_model) {
    struct desk d;
    struct engine_options options = null_options(0);
    desk_open(&d, &options, 256, true);
    cr_expect_str_eq(engine_get_info(d.engine)->backend, "null (token 120)");
    cr_expect_eq(engine_get_info(d.engine)->weight_bytes, 0);
    for (int i = 0; i < 12; i++) desk_submit(&d, desk_text("a prompt of some length", 1 + i));
    desk_wait_all(&d);
    for (int i = 0; i < 12; i++) {
        cr_expect_eq(d.records[i].n_generated, 1 + i);
        cr_expect_eq(d.records[i].n_prompt, 23);
        cr_expect_eq(d.records[i].finish, FINISH_LENGTH);
        cr_expect_str_eq(d.records[i].text, "xxxxxxxxxxxx" + 11 - i);
    }
    cr_expect_eq(fake_model_entered(), 0);
    desk_close(&d);
}

Test(engine_null, stop_strings_lengths_and_log_probabilities_are_honoured) {
    struct desk d;
    struct engine_options options = null_options(0);
    desk_open(&d, &options, 64, true);
    struct engine_request *request = desk_text("a", 0);
    request->stops[request->n_stops++] = strdup("xxxx");
    int stopped = desk_submit(&d, request);
    int full = desk_submit(&d, desk_text("abcd", 0));
    request = desk_text("a", 3);
    request->n_logprobs = 3;
    int tokens = desk_submit(&d, request);
    desk_wait_all(&d);
    cr_expect_eq(d.records[stopped].finish, FINISH_STOP);
    cr_expect_eq(d.records[stopped].n_generated, 4);
    cr_expect_str_eq(d.records[stopped].text, "");
    cr_expect_eq(d.records[full].n_generated, 60);
    cr_expect_eq(d.records[tokens].n_tokens, 3);
    cr_expect_eq(d.records[tokens].tokens[2], 'x');
    desk_close(&d);
}

Test(engine_null, results_are_certain) {
    struct engine_null n = {.token = 1};
    struct sampler_result r;
    engine_null_result(&n, 1, 3, &r);
    cr_expect(r.id == 1 && r.logprob == 0 && r.n_top == 3);
    cr_expect(r.top_ids[0] == 1 && r.top_ids[1] == 0 && r.top_ids[2] == 2);
    cr_expect_eq(r.rank, 1);
    cr_expect(r.top_logprobs[0] == 0 && r.top_logprobs[2] == -9999);
    engine_null_result(&n, 7, -1, &r);
    cr_expect(r.id == 7 && r.logprob == -9999 && r.n_top == 0 && r.rank == 8);
    engine_null_result(&n, 0, 2, &r);
    cr_expect(r.rank == 2 && r.top_ids[1] == 0);
}

Test(engine_null, picks_a_visible_token_when_none_is_named) {
    struct desk d;
    struct engine_options options = null_options(0);
    options.null_token = -1;
    options.step_tokens = 1; /* fewer than max_running */
    desk_open(&d, &options, 64, true);
    int a = desk_submit(&d, desk_text("a", 2));
    desk_wait(&d, a);
    cr_expect_str_eq(d.records[a].text, "aa"); /* the first of the letters */
    desk_close(&d);
    int32_t ids[] = {5};
    desk_open(&d, &options, 64, false);
    int b = desk_submit(&d, desk_ids(ids, 1, 2));
    desk_wait(&d, b);
    cr_expect_eq(d.records[b].n_tokens, 2);
    desk_close(&d);
}

Test(engine_null, refuses_tokens_and_rates_that_are_none) {
    struct source *src = tiny_source_open(64, true);
    struct engine_options bad[] = {null_options(-1), null_options(0), null_options(0)};
    bad[1].null_token = FAKE_MODEL_VOCAB;
    bad[2].null_token = -2;
    for (int i = 0; i < 3; i++) {
        struct engine *e = NULL;
        struct error err = {""};
        cr_expect_eq(engine_open(&e, src, &bad[i], &err), -EINVAL);
        cr_expect(strstr(err.text, "null_"), "%s", err.text);
    }
    source_close(src);
}

Test(engine_null, keeps_its_rate) {
    struct desk d;
    struct engine_options options = null_options(200);
    desk_open(&d, &options, 64, true);
    double start = now();
    for (int i = 0; i < 4; i++) desk_submit(&d, desk_text("some words", 21));
    desk_wait_all(&d);
    cr_expect_geq(now() - start, 0.09); /* 20 times 5 ms, less what may be made up for */
    desk_close(&d);
}

Test(engine_null, timetables_are_each_sequences_own) {
    struct engine_null n = {.interval_ns = 10000000};
    int64_t first = engine_null_due(&n, 0, 1000400000), late = first + 3000000;
    cr_expect_eq(first, 1010000000);                            /* from the whole millisecond */
    cr_expect_eq(engine_null_due(&n, first, late), 1020000000); /* made up for */
    cr_expect_eq(engine_null_due(&n, first, first + 500000000), first + 460000000);
    n.interval_ns = 0;
    cr_expect_eq(engine_null_due(&n, 0, late), 0);
}

Test(engine_null, first_tokens_wait_for_nobody) {
    struct desk d;
    struct engine_options options = null_options(0.01);
    double start = now();
    desk_open(&d, &options, 64, true);
    desk_submit(&d, desk_text("a", 0));
    for (int i = 0; i < 5; i++) desk_wait(&d, desk_submit(&d, desk_text("b", 1)));
    cr_expect_lt(now() - start, 60, "a first token waited for another sequence's second");
    desk_close(&d);
}

Test(engine_null, mail_does_not_wait_for_the_tick) {
    struct desk d;
    struct engine_options options = null_options(0.01);
    double start = now();
    desk_open(&d, &options, 64, true);
    int a = desk_submit(&d, desk_text("a", 0));
    desk_wait_started(&d, a);
    int b = desk_submit(&d, desk_text("b", 0));
    desk_wait_started(&d, b);
    desk_cancel(&d, b);
    desk_cancel(&d, a);
    desk_wait_all(&d);
    cr_expect_eq(d.records[a].finish, FINISH_CANCELLED);
    cr_expect_leq(d.records[b].n_generated, 1);
    int c = desk_submit(&d, desk_text("c", 1)); /* a first token comes at once */
    desk_wait(&d, c);
    desk_submit(&d, desk_text("d", 0));
    desk_close(&d);
    cr_expect_lt(now() - start, 60, "something waited for a token of 100 s");
}

/* More text than is tokenized at one go: the rest of it is in nobody's timetable. */
Test(engine_null, admission_does_not_wait_for_the_tick) {
    enum { N = 4, BYTES = 60000 };
    static char text[BYTES + 1];
    struct desk d;
    struct engine_options options = null_options(0.01);
    struct engine_request *requests[N];
    struct error err;
    uint64_t tickets[N];
    memset(text, 'a', BYTES);
    desk_open(&d, &options, 64, true);
    for (int i = 0; i < N; i++) {
        requests[i] = desk_text(text, 0);
        requests[i]->truncate_prompt = 4;
    }
    cr_assert_eq(engine_submit_all(d.engine, tickets, requests, N, &err), 0, "%s", err.text);
    int n_started = 0;
    for (double start = now(); n_started < N && now() - start < 30; sched_yield())
        for (struct engine_event *event = engine_poll(d.engine), *next; event; event = next) {
            next = event->next;
            n_started += event->kind == ENGINE_STARTED;
            engine_event_free(event);
        }
    cr_expect_eq(n_started, N, "%d of %d were admitted before a token of 100 s", n_started, N);
    desk_close(&d);
}
