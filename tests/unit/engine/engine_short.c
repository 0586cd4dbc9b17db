/* What the device tells of a row in place of it changes no token, in any company. */
#include <criterion/criterion.h>
#include <string.h>

#include "engine/engine.h"
#include "tests/support/desk.h"
#include "tests/support/fake_model.h"
#include "tests/support/random.h"

enum { N = 60 };

/* Request number i of a fixed set: most are told by their row in short, some by a span of it, some not. */
static struct engine_request *request_of(int i) {
    static const float heats[] = {0, 1, 0.7f, 2};
    int32_t ids[30];
    uint64_t seed = (uint64_t)i * 31 + 1;
    int n = random_range(&seed, 1, 30);
    for (int j = 0; j < n; j++) ids[j] = 'a' + random_range(&seed, 0, 7);
    struct engine_request *r = desk_ids(ids, n, random_range(&seed, 1, 60));
    r->sampling.temperature = heats[i % 4];
    r->sampling.top_k = i % 3 == 1 ? 20 : i % 9 == 2 ? 200 : 0;
    r->sampling.top_p = i % 5 < 3 ? 0.8f : 1;
    r->sampling.min_p = i % 7 == 1 ? 0.05f : 0;
    r->sampling.presence_penalty = i % 11 == 4 ? 0.3f : 0;
    r->n_logprobs = i % 10 == 7 ? 2 : -1;
    r->seed = seed;
    if (i % 13 == 5) r->min_tokens = r->max_tokens < 20 ? r->max_tokens : 20;
    if (i % 13 == 5) r->stop_ids[r->n_stop_ids++] = 'c';
    return r;
}

/* The device's part: rows whole, or also in short. */
static void run_all(struct desk *d, bool whole, enum fake_model_kind kind, int draft_tokens) {
    struct engine_options options = desk_options();
    options.max_waiting = N;
    options.step_tokens = 32;
    options.draft_tokens = draft_tokens;
    fake_model_set_kind(kind);
    fake_model_set_whole(whole);
    desk_open(d, &options, 256, true);
    for (int i = 0; i < N; i++) cr_assert_eq(desk_submit(d, request_of(i)), i);
    desk_wait_all(d);
}

static void expect_equal(const struct desk *a, const struct desk *b) {
    for (int i = 0; i < N; i++) {
        const struct desk_record *x = &a->records[i], *y = &b->records[i];
        cr_expect_eq(x->kind, y->kind, "request %d", i);
        cr_expect_eq(x->finish, y->finish, "request %d", i);
        cr_expect_eq(x->n_generated, y->n_generated, "request %d", i);
        cr_expect_eq(x->n_tokens, y->n_tokens, "request %d", i);
        cr_expect_str_eq(x->text, y->text, "request %d", i);
    }
}

Test(engine_short, tells_the_tokens_of_the_row) {
    static const enum fake_model_kind kinds[] = {FAKE_MODEL_HASH, FAKE_MODEL_LOOP};
    for (int turn = 0; turn < 4; turn++) {
        struct desk whole, in_short;
        run_all(&whole, true, kinds[turn % 2], turn < 2 ? 0 : 4);
        int columns = fake_model_columns();
        run_all(&in_short, false, kinds[turn % 2], turn < 2 ? 0 : 4);
        expect_equal(&whole, &in_short);
        cr_expect_gt(fake_model_columns(), columns, "all was told in short");
        desk_close_source(&in_short);
        desk_close(&whole);
    }
}

Test(engine_short, a_model_that_fails_ends_every_request) {
    struct desk d;
    struct engine_options options = desk_options();
    options.max_waiting = N;
    fake_model_hold();
    desk_open(&d, &options, 256, true);
    for (int i = 0; i < 8; i++) desk_submit(&d, request_of(4 * i + 1));
    fake_model_allow(2);
    fake_model_wait_entered(3);
    fake_model_break();
    fake_model_release();
    desk_wait_all(&d);
    for (int i = 0; i < 8; i++)
        cr_expect(d.records[i].ended && d.records[i].kind != ENGINE_TEXT, "%d", i);
    desk_close(&d);
}
