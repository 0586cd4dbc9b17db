/* Loading beside a caller that does not wait for it. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "engine/engine.h"
#include "kernels/error.h"
#include "tests/support/desk.h"
#include "tests/support/fake_model.h"

static struct engine_options async_options(void) {
    struct engine_options options = desk_options();
    options.async = true;
    return options;
}

static struct engine_stats stats_of(struct desk *d) {
    struct engine_stats stats;
    engine_get_stats(d->engine, &stats);
    return stats;
}

Test(engine_load, opens_at_once_and_says_when_it_is_ready) {
    struct desk d;
    struct engine_options options = async_options();
    struct error err = {""};
    fake_model_hold_load();
    desk_open(&d, &options, 128, true);
    cr_expect_eq(engine_get_state(d.engine, &err), ENGINE_LOADING);
    cr_expect_eq(desk_submit(&d, desk_text("a", 1)), -EBUSY);
    cr_expect_eq(desk_submit(&d, engine_request_new()), -EBUSY, "nothing is looked at yet");
    struct engine_stats stats = stats_of(&d);
    cr_expect(!stats.ready && !stats.failed);
    cr_expect_eq(stats.max_waiting, 8);
    cr_expect_leq(stats.load_done, stats.load_total);
    cr_expect_gt(stats.load_total, 0);

    fake_model_release_load();
    cr_expect_eq(desk_wait_loaded(&d, &err), ENGINE_READY);
    stats = stats_of(&d);
    cr_expect(stats.ready);
    cr_expect_eq(stats.load_done, stats.load_total);
    cr_expect_gt(stats.kv_blocks_free, 0);
    cr_expect_eq(engine_get_info(d.engine)->context, 128);
    int a = desk_submit(&d, desk_text("a", 3));
    desk_wait(&d, a);
    cr_expect_eq(d.records[a].n_generated, 3);
    desk_close(&d);
}

Test(engine_load, progress_is_seen_while_it_loads) {
    struct desk d;
    struct engine_options options = async_options();
    fake_model_hold_load();
    desk_open(&d, &options, 64, true);
    while (stats_of(&d).load_done == 0) continue;
    cr_expect_eq(stats_of(&d).load_done, 2);
    cr_expect_eq(stats_of(&d).load_total, 4);
    cr_expect_eq(stats_of(&d).state, ENGINE_LOADING);
    desk_close(&d);
}

Test(engine_load, a_failed_load_leaves_a_broken_engine_that_says_why) {
    struct desk d;
    struct engine_options options = async_options();
    struct error err = {""};
    fake_model_break_load();
    desk_open(&d, &options, 64, true);
    cr_expect_eq(desk_wait_loaded(&d, &err), ENGINE_BROKEN);
    cr_expect_str_eq(err.text, "tensor 'x': not there");
    cr_expect(stats_of(&d).failed && !stats_of(&d).ready);
    cr_expect_eq(desk_submit(&d, desk_text("a", 1)), -EIO);
    engine_cancel(d.engine, 77);
    engine_drain(d.engine);
    cr_expect_null(engine_poll(d.engine));
    desk_close(&d);
}

Test(engine_load, closing_stops_the_loading) {
    struct desk d;
    struct engine_options options = async_options();
    fake_model_hold_load();
    desk_open(&d, &options, 64, true);
    desk_close(&d); /* fails the test when the model is left open, and hangs if it were not told */
}

Test(engine_load, draining_is_remembered) {
    struct desk d;
    struct engine_options options = async_options();
    struct error err;
    fake_model_hold_load();
    desk_open(&d, &options, 64, true);
    engine_drain(d.engine);
    fake_model_release_load();
    cr_expect_eq(desk_wait_loaded(&d, &err), ENGINE_READY);
    cr_expect(stats_of(&d).draining && !stats_of(&d).ready);
    cr_expect_eq(desk_submit(&d, desk_text("a", 1)), -ESHUTDOWN);
    desk_close(&d);
}

Test(engine_load, options_are_still_checked_at_once) {
    struct engine_options options = async_options();
    struct engine *e = NULL;
    options.max_running = 0;
    cr_expect_eq(engine_open(&e, NULL, &options, NULL), -EINVAL);
    cr_expect_null(e);
}
