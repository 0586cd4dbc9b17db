/* Log probabilities and vectors of prompts, on a model whose every answer is known. */
#include <criterion/criterion.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/engine.h"
#include "tests/support/desk.h"
#include "tests/support/fake_model.h"
#include "tests/support/random.h"

enum { WIDTH = 64 /* of tiny_source */, LONG = 150 };

static void fill_ids(int32_t *ids, int n, uint64_t seed) {
    for (int i = 0; i < n; i++) ids[i] = random_range(&seed, 0, 255);
}

static struct engine_request *scored(const int32_t *ids, int n, int max_tokens, int n_top) {
    struct engine_request *request = desk_ids(ids, n, max_tokens);
    request->n_prompt_logprobs = n_top;
    return request;
}

/* -- Scores ---------------------------------------------------------------------------------- */

Test(engine_prompt, scores_every_token_but_the_first) {
    struct desk d;
    struct engine_options options = desk_options();
    int32_t ids[LONG];
    fill_ids(ids, LONG, 1);
    desk_open(&d, &options, 256, true);
    int a = desk_submit(&d, scored(ids, LONG, 3, 2));
    desk_wait(&d, a);
    const struct desk_record *r = &d.records[a];
    cr_assert_eq(r->n_prompt_tokens, LONG);
    cr_expect(isnan(r->prompt[0].logprob) && r->prompt[0].n_top == 0 && r->prompt[0].id == ids[0]);
    for (int i = 1; i < LONG; i++) {
        const struct engine_token *t = &r->prompt[i];
        cr_assert_eq(t->id, ids[i]);
        cr_assert_eq(t->n_top, 2);
        cr_assert_eq(t->top_ids[0], fake_model_expect(ids, i), "token %d", i);
        cr_assert(t->logprob <= t->top_logprobs[0] && t->logprob < 0);
        if (t->id == t->top_ids[0]) cr_assert_eq(t->logprob, t->top_logprobs[0]);
        for (int k = 0; k < 2; k++) cr_assert_eq(t->id == t->top_ids[k], t->rank == k + 1);
        cr_assert(t->rank >= 1 && t->rank <= FAKE_MODEL_VOCAB);
    }
    cr_expect_eq(r->n_generated, 3);
    desk_close(&d);
}

/* The same prompts in other company, other chunks, and twice because blocks ran out. */
Test(engine_prompt, scores_do_not_depend_on_chunks_or_company) {
    enum { PROMPTS = 10 };
    struct desk alone, together;
    struct engine_options options = desk_options();
    int32_t ids[LONG];
    options.max_waiting = PROMPTS;
    options.step_tokens = 256;
    desk_open(&alone, &options, 256, true);
    for (int i = 0; i < PROMPTS; i++) {
        fill_ids(ids, LONG, (uint64_t)i);
        desk_wait(&alone, desk_submit(&alone, scored(ids, 1 + i * 16, i % 3 ? 60 : -1, 1)));
    }
    options.step_tokens = 7;
    options.max_running = 6;
    options.kv_tokens = 256;
    fake_model_hold();
    desk_open(&together, &options, 256, true);
    for (int i = 0; i < PROMPTS; i++) {
        fill_ids(ids, LONG, (uint64_t)i);
        desk_submit(&together, scored(ids, 1 + i * 16, i % 3 ? 60 : -1, 1));
    }
    fake_model_release();
    desk_wait_all(&together);
    struct engine_stats stats;
    engine_get_stats(together.engine, &stats);
    cr_expect_gt(stats.preemptions, 0);
    for (int i = 0; i < PROMPTS; i++) {
        const struct desk_record *x = &alone.records[i], *y = &together.records[i];
        cr_assert_eq(x->n_prompt_tokens, 1 + i * 16);
        cr_assert_eq(y->n_prompt_tokens, 1 + i * 16);
        for (int j = 1; j < x->n_prompt_tokens; j++) {
            cr_assert_eq(x->prompt[j].logprob, y->prompt[j].logprob, "%d %d", i, j);
            cr_assert_eq(x->prompt[j].top_ids[0], y->prompt[j].top_ids[0]);
        }
        cr_expect_eq(x->n_tokens, y->n_tokens);
    }
    desk_close_source(&alone);
    desk_close(&together);
}

Test(engine_prompt, a_known_beginning_is_computed_again) {
    struct desk d;
    struct engine_options options = desk_options();
    int32_t ids[LONG];
    fill_ids(ids, LONG, 9);
    desk_open(&d, &options, 256, true);
    desk_wait(&d, desk_submit(&d, desk_ids(ids, LONG, 1)));
    int a = desk_submit(&d, scored(ids, LONG, -1, 0));
    desk_wait(&d, a);
    cr_expect_eq(d.records[a].n_prompt_tokens, LONG);
    cr_expect_eq(d.records[a].finish, FINISH_LENGTH);
    cr_expect_eq(d.records[a].n_generated, 0);
    desk_close(&d);
}

Test(engine_prompt, a_cancelled_prompt_has_no_scores) {
    struct desk d;
    struct engine_options options = desk_options();
    int32_t ids[LONG];
    fill_ids(ids, LONG, 2);
    fake_model_hold();
    desk_open(&d, &options, 256, true);
    int a = desk_submit(&d, scored(ids, LONG, -1, 3));
    fake_model_allow(2);
    fake_model_wait_entered(3);
    desk_cancel(&d, a);
    fake_model_release();
    desk_wait(&d, a);
    cr_expect_eq(d.records[a].finish, FINISH_CANCELLED);
    cr_expect_eq(d.records[a].n_prompt_tokens, 0);
    desk_close(&d);
}

Test(engine_prompt, a_model_that_fails_while_scoring_ends_the_request) {
    struct desk d;
    struct engine_options options = desk_options();
    int32_t ids[LONG];
    fill_ids(ids, LONG, 2);
    fake_model_hold();
    desk_open(&d, &options, 256, true);
    int a = desk_submit(&d, scored(ids, LONG, -1, 3));
    struct engine_request *request = desk_ids(ids, LONG, 0);
    request->task = ENGINE_EMBED;
    request->pooling = POOLING_MEAN;
    int b = desk_submit(&d, request);
    fake_model_allow(1);
    fake_model_wait_entered(2);
    fake_model_break();
    fake_model_release();
    desk_wait_all(&d);
    cr_expect_eq(d.records[a].code, -EIO);
    cr_expect_eq(d.records[b].code, -EIO);
    desk_close(&d);
}

/* -- Vectors --------------------------------------------------------------------------------- */

static struct engine_request *embed(const int32_t *ids, int n, enum engine_pooling pooling,
                                    bool normalize) {
    struct engine_request *request = desk_ids(ids, n, 0);
    request->task = ENGINE_EMBED;
    request->pooling = pooling;
    request->normalize = normalize;
    return request;
}

static void expect_pooled(const struct desk_record *r, const int32_t *ids, int n,
                          enum engine_pooling pooling, bool normalize) {
    double sums[WIDTH] = {0}, squares = 0;
    float hidden[WIDTH];
    for (int i = pooling == POOLING_LAST ? n : 1; i <= n; i++) {
        fake_model_expect_hidden(ids, i, hidden, WIDTH);
        for (int k = 0; k < WIDTH; k++) sums[k] += (double)hidden[k];
    }
    for (int k = 0; k < WIDTH; k++) {
        if (pooling == POOLING_MEAN) sums[k] /= n;
        squares += sums[k] * sums[k];
    }
    cr_assert_eq(r->n_vector, WIDTH);
    for (int k = 0; k < WIDTH; k++)
        cr_assert_float_eq(r->vector[k], sums[k] / (normalize ? sqrt(squares) : 1), 1e-5);
}

Test(engine_prompt, pools_the_last_state_or_the_mean) {
    struct desk d;
    struct engine_options options = desk_options();
    int32_t ids[LONG];
    static const int lengths[] = {1, 2, 16, 17, LONG};
    fill_ids(ids, LONG, 4);
    options.max_waiting = 20;
    desk_open(&d, &options, LONG, true);
    for (int i = 0; i < 20; i++)
        desk_submit(&d, embed(ids, lengths[i / 4], i & 1 ? POOLING_MEAN : POOLING_LAST, i & 2));
    desk_wait_all(&d);
    for (int i = 0; i < 20; i++) {
        cr_expect_eq(d.records[i].kind, ENGINE_DONE);
        cr_expect_eq(d.records[i].finish, FINISH_STOP);
        cr_expect_eq(d.records[i].n_tokens, 0);
        expect_pooled(&d.records[i], ids, lengths[i / 4], i & 1 ? POOLING_MEAN : POOLING_LAST,
                      i & 2);
    }
    desk_close(&d);
}

Test(engine_prompt, vectors_do_not_depend_on_chunks_to_the_last_bit) {
    struct desk d[3];
    static const int step_tokens[] = {4, 33, 256};
    int32_t ids[LONG];
    fill_ids(ids, LONG, 5);
    for (int i = 0; i < 3; i++) {
        struct engine_options options = desk_options();
        options.step_tokens = step_tokens[i];
        desk_open(&d[i], &options, 256, true);
        if (i == 1) desk_submit(&d[i], desk_ids(ids, 100, 40));
        int a = desk_submit(&d[i], embed(ids, LONG, POOLING_MEAN, true));
        desk_wait(&d[i], a);
        const float *first = d[0].records[0].vector;
        cr_expect_eq(memcmp(first, d[i].records[a].vector, WIDTH * sizeof *first), 0);
    }
    for (int i = 0; i < 3; i++) desk_close_source(&d[i]);
}

Test(engine_prompt, a_null_engine_answers_all_of_it) {
    struct desk d;
    struct engine_options options = desk_options();
    int32_t ids[] = {'a', 'x', 'b'};
    options.null = true;
    options.null_token = 'x';
    desk_open(&d, &options, 64, true);
    int a = desk_submit(&d, scored(ids, 3, -1, 1));
    int b = desk_submit(&d, embed(ids, 3, POOLING_MEAN, true));
    desk_wait_all(&d);
    cr_assert_eq(d.records[a].n_prompt_tokens, 3);
    cr_expect(isnan(d.records[a].prompt[0].logprob));
    cr_expect_eq(d.records[a].prompt[1].logprob, 0);
    cr_expect_eq(d.records[a].prompt[2].logprob, -9999);
    cr_expect_eq(d.records[a].prompt[2].top_ids[0], 'x');
    cr_assert_eq(d.records[b].n_vector, WIDTH);
    cr_expect_float_eq(d.records[b].vector[0], 1, 1e-6);
    desk_close(&d);
}
