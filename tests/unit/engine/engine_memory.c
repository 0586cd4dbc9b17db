#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/engine.h"
#include "engine/source.h"
#include "kernels/error.h"
#include "tests/support/alloc_fail.h"
#include "tests/support/desk.h"
#include "tests/support/fake_model.h"
#include "tests/support/tiny_source.h"

static struct engine_request *full_request(void) {
    struct engine_request *request = desk_text("abc", 0);
    request->echo = true;
    request->n_logprobs = 2;
    request->stops[request->n_stops++] = strdup("stu!");
    request->stops[request->n_stops++] = strdup("xyz");
    return request;
}

Test(engine_memory, opening_fails_cleanly_wherever_memory_ends) {
    struct engine_options options = desk_options();
    for (int n = 1;; n++) {
        struct engine *e = NULL;
        struct error err = {""};
        struct source *src = tiny_source_open(64, true);
        alloc_fail_at(n);
        int r = engine_open(&e, src, &options, &err);
        bool hit = alloc_fail_hit();
        alloc_fail_at(0);
        if (r == 0) {
            engine_close(e);
            cr_assert_not(hit, "allocation %d failed unnoticed", n);
            cr_assert_gt(n, 20);
            break;
        }
        cr_assert_eq(r, -ENOMEM, "allocation %d: %d %s", n, r, err.text);
        cr_assert_neq(err.text[0], 0);
        cr_assert_null(e);
        cr_assert(fake_model_all_closed());
        source_close(src);
    }
}

/* Beside a caller that does not wait, what failed is there to be asked for. */
Test(engine_memory, loading_beside_the_caller_fails_cleanly_too) {
    struct engine_options options = desk_options();
    options.async = true;
    for (int n = 1, broken = 0;; n++) {
        struct engine *e = NULL;
        struct error err = {""};
        struct source *src = tiny_source_open(64, true);
        alloc_fail_at(n);
        int r = engine_open(&e, src, &options, &err);
        enum engine_state state = ENGINE_LOADING;
        while (r == 0 && state == ENGINE_LOADING) state = engine_get_state(e, &err);
        bool hit = alloc_fail_hit();
        alloc_fail_at(0);
        engine_close(e);
        cr_assert(fake_model_all_closed());
        if (r < 0) source_close(src);
        if (r == 0 && state == ENGINE_READY) {
            cr_assert_not(hit, "allocation %d failed unnoticed", n);
            cr_assert_gt(broken, 20);
            break;
        }
        broken += r == 0;
        cr_assert_neq(err.text[0], 0);
    }
}

static bool is_whole_text(const struct desk_record *r) {
    return strcmp(r->text, "abcdefghijklmnopqrstuvw") == 0;
}

static struct engine_request *scored_request(void) {
    struct engine_request *request = full_request();
    request->n_prompt_logprobs = 3;
    request->stop_ids[request->n_stop_ids++] = 'w';
    request->keep_stop = true;
    return request;
}

static bool is_scored(const struct desk_record *r) {
    return is_whole_text(r) && r->n_prompt_tokens == 3 && r->stop_id == 'w';
}

static struct engine_request *vector_request(void) {
    struct engine_request *request = desk_text("abc", 0);
    request->task = ENGINE_EMBED;
    request->pooling = POOLING_MEAN;
    return request;
}

static bool is_vector(const struct desk_record *r) { return r->vector && r->n_vector == 64; }

static struct engine_request *cut_request(void) {
    struct engine_request *request = desk_text("abcdefgh", 0);
    request->task = ENGINE_TOKENIZE;
    request->truncate_prompt = 3;
    return request;
}

static bool is_cut(const struct desk_record *r) { return r->n_ids == 3 && r->ids[0] == 'f'; }

static struct engine_request *repeating_request(void) {
    struct engine_request *request =
        desk_text("abcdefghijklmnopqrstuvwxyz abcdefghijklmnopqrstuvwxyz abc", 0);
    request->return_tokens = true;
    return request;
}

static bool is_repeated(const struct desk_record *r) {
    return strcmp(r->text, "defghijklmnopqrstuvwxyz") == 0 && r->n_tokens == 23;
}

/* Fails each allocation in turn, each time with a request before and one after that goes well. */
static void sweep(struct engine_request *make(void), bool is_right(const struct desk_record *r),
                  int least_failures) {
    struct desk d;
    struct engine_options options = desk_options();
    int failures = 0;
    fake_model_set_kind(FAKE_MODEL_ALPHABET);
    alloc_fail_exempt_thread();
    options.draft_tokens = 4;
    desk_open(&d, &options, 256, true);
    for (int n = 1;; n++) {
        alloc_fail_at(n);
        int a = desk_submit(&d, make());
        desk_wait(&d, a);
        bool hit = alloc_fail_hit();
        alloc_fail_at(0);
        if (d.records[a].kind == ENGINE_FAILED) {
            cr_assert(hit);
            cr_assert_eq(d.records[a].code, -ENOMEM);
            failures++;
        } else {
            cr_assert(is_right(&d.records[a]), "%s", d.records[a].text);
        }
        int b = desk_submit(&d, make());
        desk_wait(&d, b);
        cr_assert_eq(d.records[b].kind, ENGINE_DONE);
        cr_assert(is_right(&d.records[b]));
        if (!hit) break;
    }
    cr_expect_geq(failures, least_failures, "%d", failures);
    struct engine_stats stats;
    engine_get_stats(d.engine, &stats);
    cr_expect_eq(stats.kv_blocks_free, stats.kv_blocks);
    cr_expect_eq(stats.failures, failures);
    cr_expect_not(stats.failed);
    desk_close(&d);
}

Test(engine_memory, running_out_ends_one_request_and_the_engine_goes_on) {
    sweep(full_request, is_whole_text, 20);
}

Test(engine_memory, running_out_while_scoring) { sweep(scored_request, is_scored, 20); }

Test(engine_memory, running_out_while_pooling) { sweep(vector_request, is_vector, 5); }

Test(engine_memory, running_out_while_tokenizing) { sweep(cut_request, is_cut, 3); }

/* Without memory for guesses there are none. */
Test(engine_memory, running_out_while_guessing) { sweep(repeating_request, is_repeated, 10); }

Test(engine_memory, submitting_without_memory_leaves_the_request_to_the_caller) {
    struct desk d;
    struct engine_options options = desk_options();
    desk_open(&d, &options, 64, true);
    for (int n = 1; n <= 2; n++) {
        struct engine_request *request = full_request();
        uint64_t ticket = 0;
        struct error err = {""};
        alloc_fail_at(n);
        cr_expect_eq(engine_submit(d.engine, &ticket, request, &err), -ENOMEM);
        alloc_fail_at(0);
        cr_expect_eq(ticket, 0);
        engine_request_free(request);
    }
    cr_expect_eq(desk_submit(&d, full_request()), 0);
    desk_wait_all(&d);
    desk_close(&d);
}
