/* What a request can ask for besides text: ids, cut prompts, its own end tokens. */
#include "engine/engine_request.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/engine.h"
#include "engine/sequence.h"
#include "kernels/error.h"
#include "tests/support/desk.h"
#include "tests/support/fake_model.h"

static void open_alphabet(struct desk *d, int context) {
    struct engine_options options = desk_options();
    fake_model_set_kind(FAKE_MODEL_ALPHABET);
    desk_open(d, &options, context, true);
}

static int submit_tokenize(struct desk *d, struct engine_request *request) {
    request->task = ENGINE_TOKENIZE;
    return desk_submit(d, request);
}

/* -- ENGINE_TOKENIZE ------------------------------------------------------------------------- */

Test(engine_request, tokenizes_without_running_the_model) {
    struct desk d;
    char text[301];
    memset(text, 'x', 300);
    text[300] = 0;
    open_alphabet(&d, 64);
    int a = submit_tokenize(&d, desk_text("ab<|im_end|>", 0));
    int b = submit_tokenize(&d, desk_text("", 0));
    int c = submit_tokenize(&d, desk_text(text, 0)); /* longer than the context */
    desk_wait_all(&d);
    cr_assert_eq(d.records[a].n_ids, 3);
    cr_expect_eq(d.records[a].kind, ENGINE_DONE);
    cr_expect_eq(d.records[a].n_prompt, 3);
    cr_expect(d.records[a].ids[0] == 'a' && d.records[a].ids[1] == 'b');
    cr_expect_eq(d.records[a].ids[2], FAKE_MODEL_EOS);
    cr_expect_not(d.records[a].started);
    cr_expect_eq(d.records[b].n_ids, 0);
    cr_expect_eq(d.records[c].n_ids, 300);
    cr_expect_eq(fake_model_entered(), 0);
    struct engine_stats stats;
    engine_get_stats(d.engine, &stats);
    cr_expect_eq(stats.finished, 3);
    cr_expect_eq(stats.waiting, 0);
    desk_close(&d);
}

Test(engine_request, tokenizes_chats_through_the_template) {
    struct desk d;
    open_alphabet(&d, 64);
    struct engine_request *request = engine_request_new();
    request->messages = calloc(1, sizeof *request->messages);
    request->n_messages = 1;
    request->messages[0].role = strdup("user");
    request->messages[0].content = strdup("hi");
    int a = submit_tokenize(&d, request);
    desk_wait(&d, a);
    cr_expect_eq(d.records[a].n_ids, 21);
    cr_expect_eq(d.records[a].ids[0], 257);
    desk_close(&d);
}

Test(engine_request, tokenizing_has_a_limit) {
    struct desk d;
    open_alphabet(&d, 64);
    size_t n = (1 << 20) + 1;
    char *text = malloc(n + 1);
    memset(text, 'x', n);
    text[n] = 0;
    cr_expect_eq(submit_tokenize(&d, desk_text(text, 0)), -E2BIG);
    text[n - 1] = 0;
    int a = submit_tokenize(&d, desk_text(text, 0));
    desk_wait(&d, a);
    cr_expect_eq(d.records[a].n_ids, 1 << 20);
    free(text);
    desk_close(&d);
}

/* -- Prompts --------------------------------------------------------------------------------- */

Test(engine_request, room_and_cut_follow_what_is_wanted) {
    static const struct {
        int task, max_tokens, truncate;
        size_t n, kept, room;
    } cases[] = {
        {ENGINE_GENERATE, 0, 0, 100, 100, 63},
        {ENGINE_GENERATE, 0, -1, 100, 63, 63},
        {ENGINE_GENERATE, 10, -1, 100, 54, 63},
        {ENGINE_GENERATE, 10, -1, 20, 20, 63},
        {ENGINE_GENERATE, 99, -1, 100, 1, 63},
        {ENGINE_GENERATE, -1, -1, 100, 64, 64},
        {ENGINE_GENERATE, 5, 7, 100, 7, 63},
        {ENGINE_EMBED, 0, -1, 100, 64, 64},
        {ENGINE_EMBED, 0, 0, 3, 3, 64},
        {ENGINE_TOKENIZE, 0, 5, 100, 5, INT32_MAX},
        {ENGINE_TOKENIZE, 0, -1, 100, 100, INT32_MAX},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct engine_request r = {.task = (enum engine_task)cases[i].task,
                                   .max_tokens = cases[i].max_tokens,
                                   .truncate_prompt = cases[i].truncate};
        cr_expect_eq(engine_request_kept(&r, 64, cases[i].n), cases[i].kept, "case %zu", i);
        cr_expect_eq(engine_request_room(&r, 64), cases[i].room, "case %zu", i);
    }
}

Test(engine_request, only_the_end_of_a_cut_prompt_counts) {
    struct desk d;
    int32_t ids[200];
    char text[200];
    open_alphabet(&d, 64);
    for (int i = 0; i < 200; i++) ids[i] = text[i] = (char)('a' + i % 26);
    text[199] = 0;
    struct engine_request *r[4] = {desk_text(text, 2), desk_ids(ids, 200, 2), desk_text(text, 4),
                                   desk_text("xyabcd", 1)};
    r[0]->truncate_prompt = r[1]->truncate_prompt = 3;
    r[2]->truncate_prompt = -1;
    r[3]->truncate_prompt = 9;
    for (int i = 0; i < 4; i++) {
        r[i]->echo = true;
        cr_assert_eq(desk_submit(&d, r[i]), i);
    }
    desk_wait_all(&d);
    cr_expect_eq(d.records[0].n_prompt, 3);
    cr_expect_str_eq(d.records[0].text, "opqrs");
    cr_expect_str_eq(d.records[1].text, "pqrst");
    cr_expect_eq(d.records[2].n_prompt, 60);
    cr_expect_eq(d.records[2].n_generated, 4);
    cr_expect_str_eq(d.records[3].text, "xyabcde");
    desk_close(&d);
}

Test(engine_request, a_prompt_alone_may_fill_the_context) {
    struct desk d;
    int32_t ids[65] = {0};
    open_alphabet(&d, 64);
    int a = desk_submit(&d, desk_ids(ids, 64, -1));
    cr_expect_eq(desk_submit(&d, desk_ids(ids, 65, -1)), -E2BIG);
    cr_expect_eq(desk_submit(&d, desk_ids(ids, 64, 1)), -E2BIG);
    struct engine_request *request = desk_text("abc", -1);
    request->echo = true;
    int b = desk_submit(&d, request);
    desk_wait(&d, a);
    desk_wait(&d, b);
    cr_expect_eq(d.records[a].kind, ENGINE_DONE);
    cr_expect_eq(d.records[a].finish, FINISH_LENGTH);
    cr_expect_eq(d.records[a].n_prompt, 64);
    cr_expect_eq(d.records[a].n_generated, 0);
    cr_expect_str_eq(d.records[b].text, "abc");
    struct engine_stats stats;
    engine_get_stats(d.engine, &stats);
    cr_expect_eq(stats.prompt_tokens, 67);
    cr_expect_eq(stats.generated_tokens, 0);
    cr_expect_eq(stats.kv_blocks_free, stats.kv_blocks);
    desk_close(&d);
}

/* -- Ends ------------------------------------------------------------------------------------ */

Test(engine_request, says_what_it_stopped_at) {
    struct desk d;
    open_alphabet(&d, 64);
    struct engine_request *r[5];
    for (int i = 0; i < 5; i++) r[i] = desk_text("m", 0);
    r[1]->stop_ids[r[1]->n_stop_ids++] = 'z';
    r[1]->stop_ids[r[1]->n_stop_ids++] = 'p';
    r[2]->stops[r[2]->n_stops++] = strdup("zz");
    r[2]->stops[r[2]->n_stops++] = strdup("rs");
    r[3]->max_tokens = 2;
    r[4]->stop_ids[r[4]->n_stop_ids++] = 'p';
    r[4]->ignore_eos = true; /* of the model, not the request's own */
    for (int i = 0; i < 5; i++) desk_submit(&d, r[i]);
    desk_wait_all(&d);
    static const struct {
        const char *text;
        int finish, stop, stop_id;
    } want[] = {{"nopqrstuvwxyz", FINISH_STOP, -1, FAKE_MODEL_EOS},
                {"no", FINISH_STOP, -1, 'p'},
                {"nopq", FINISH_STOP, 1, -1},
                {"no", FINISH_LENGTH, -1, -1},
                {"no", FINISH_STOP, -1, 'p'}};
    for (int i = 0; i < 5; i++) {
        cr_expect_str_eq(d.records[i].text, want[i].text);
        cr_expect_eq((int)d.records[i].finish, want[i].finish, "%d", i);
        cr_expect_eq(d.records[i].stop, want[i].stop, "%d", i);
        cr_expect_eq(d.records[i].stop_id, want[i].stop_id, "%d", i);
    }
    desk_close(&d);
}

Test(engine_request, the_end_can_stay_in_the_text) {
    struct desk d;
    open_alphabet(&d, 64);
    struct engine_request *r[3];
    for (int i = 0; i < 3; i++) {
        r[i] = desk_text("m", 0);
        r[i]->keep_stop = r[i]->return_tokens = true;
    }
    r[0]->stops[r[0]->n_stops++] = strdup("pq");
    r[1]->stop_ids[r[1]->n_stop_ids++] = 'p';
    r[2]->keep_special = true;
    for (int i = 0; i < 3; i++) desk_submit(&d, r[i]);
    desk_wait_all(&d);
    cr_expect_str_eq(d.records[0].text, "nopq");
    cr_expect_eq(d.records[0].stop, 0);
    cr_expect_eq(d.records[0].n_tokens, 4);
    cr_expect_str_eq(d.records[1].text, "nop");
    cr_expect_eq(d.records[1].stop_id, 'p');
    cr_expect_eq(d.records[1].n_tokens, 3);
    cr_expect_str_eq(d.records[2].text, "nopqrstuvwxyz<|im_end|>");
    for (int i = 0; i < 3; i++) cr_expect_eq(d.records[i].finish, FINISH_STOP);
    desk_close(&d);
}

Test(engine_request, tokens_come_without_log_probabilities_too) {
    struct desk d;
    open_alphabet(&d, 64);
    struct engine_request *request = desk_text("abc", 3);
    request->return_tokens = true;
    int a = desk_submit(&d, request);
    desk_wait(&d, a);
    cr_assert_eq(d.records[a].n_tokens, 3);
    cr_expect_eq(d.records[a].tokens[2], 'f');
    cr_assert_eq(d.records[a].n_ids, 3, "the prompt's");
    cr_expect(d.records[a].ids[0] == 'a' && d.records[a].ids[2] == 'c');
    desk_close(&d);
}

Test(engine_request, stop_tokens_are_not_sampled_before_min_tokens) {
    struct desk d;
    open_alphabet(&d, 64);
    struct engine_request *request = desk_text("m", 6);
    request->stop_ids[request->n_stop_ids++] = 'n';
    request->min_tokens = 2;
    request->return_tokens = true;
    int a = desk_submit(&d, request);
    desk_wait(&d, a);
    cr_assert_geq(d.records[a].n_tokens, 2);
    cr_expect(d.records[a].tokens[0] != 'n' && d.records[a].tokens[1] != 'n');
    desk_close(&d);
}

Test(engine_request, special_tokens_have_text_when_that_is_asked_for) {
    struct desk d;
    open_alphabet(&d, 64);
    struct engine_request *r[2] = {desk_text("z", 1), desk_text("z", 1)};
    for (int i = 0; i < 2; i++) {
        r[i]->ignore_eos = true;
        r[i]->keep_special = i == 1;
        desk_submit(&d, r[i]);
    }
    desk_wait_all(&d);
    cr_expect_str_eq(d.records[0].text, "");
    cr_expect_str_eq(d.records[1].text, "<|im_end|>");
    desk_close(&d);
}

Test(engine_request, refuses_what_makes_no_sense) {
    struct desk d;
    struct engine_request *r[6];
    open_alphabet(&d, 64);
    for (int i = 0; i < 6; i++) r[i] = desk_text("a", 1);
    r[0]->n_stop_ids = ENGINE_MAX_STOP_IDS + 1;
    r[1]->stop_ids[r[1]->n_stop_ids++] = FAKE_MODEL_VOCAB;
    r[2]->truncate_prompt = -2;
    r[3]->n_prompt_logprobs = ENGINE_MAX_LOGPROBS + 1;
    r[4]->max_tokens = -1;
    r[4]->min_tokens = 1;
    r[5]->max_tokens = -2;
    for (int i = 0; i < 6; i++) cr_expect_eq(desk_submit(&d, r[i]), -EINVAL, "request %d", i);
    desk_close(&d);
}
