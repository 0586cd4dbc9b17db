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

Test(engine_memory, running_out_ends_one_request_and_the_engine_goes_on) {
    struct desk d;
    struct engine_options options = desk_options();
    int failures = 0;
    fake_model_set_kind(FAKE_MODEL_ALPHABET);
    alloc_fail_exempt_thread();
    desk_open(&d, &options, 256, true);
    for (int n = 1;; n++) {
        alloc_fail_at(n);
        int a = desk_submit(&d, full_request());
        desk_wait(&d, a);
        bool hit = alloc_fail_hit();
        alloc_fail_at(0);
        if (d.records[a].kind == ENGINE_FAILED) {
            cr_assert(hit);
            cr_assert_eq(d.records[a].code, -ENOMEM);
            failures++;
        } else {
            cr_assert_str_eq(d.records[a].text, "abcdefghijklmnopqrstuvw");
        }
        int b = desk_submit(&d, full_request());
        desk_wait(&d, b);
        cr_assert_eq(d.records[b].kind, ENGINE_DONE);
        cr_assert_str_eq(d.records[b].text, "abcdefghijklmnopqrstuvw");
        if (!hit) break;
    }
    cr_expect_gt(failures, 20);
    struct engine_stats stats;
    engine_get_stats(d.engine, &stats);
    cr_expect_eq(stats.kv_blocks_free, stats.kv_blocks);
    cr_expect_eq(stats.failures, failures);
    cr_expect_not(stats.failed);
    desk_close(&d);
}

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
