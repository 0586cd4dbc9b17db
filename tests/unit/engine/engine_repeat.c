/* The same request gives the same tokens and log probabilities, to the bit, alone and in whatever
 * company, however its prompt is cut, on known blocks or without, preempted, paused, guessed. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/engine.h"
#include "engine/source.h"
#include "kernels/error.h"
#include "tests/support/desk.h"
#include "tests/support/random.h"

enum { REQUESTS = 24, ROUNDS = 3, FAMILIES = 3, LONGEST = 120, ANSWER = 40 };

struct answer {
    int n;
    int32_t tokens[ANSWER];
    float logprobs[ANSWER];
};

/* Request i of a fixed set; many begin alike. */
static struct engine_request *request_number(int i, int vocab) {
    int32_t ids[LONGEST];
    uint64_t family = (uint64_t)(i % FAMILIES), own = (uint64_t)i + 50;
    int n = random_range(&own, 1, LONGEST), common = random_range(&own, 0, n);
    for (int j = 0; j < n; j++) ids[j] = random_range(j < common ? &family : &own, 0, vocab - 1);
    struct engine_request *request = desk_ids(ids, n, random_range(&own, 1, ANSWER));
    request->sampling.temperature = i % 4 == 0 ? 0 : 0.3f * (float)(i % 4);
    request->sampling.top_p = i % 5 == 0 ? 0.8f : 1;
    request->sampling.frequency_penalty = i % 6 == 0 ? 0.7f : 0;
    request->seed = random_next(&own);
    request->n_logprobs = 0;
    request->ignore_eos = true;
    return request;
}

static struct source *open_model(const char *path) {
    struct error err;
    struct source *src = NULL;
    cr_assert_eq(source_open(&src, path, &err), 0, "%s", err.text);
    return src;
}

static void answer_alone(const char *path, struct answer *answers) {
    struct desk d;
    struct engine_options options = {
        .max_running = 1, .max_waiting = 0, .step_tokens = 512, .no_prefix_cache = true};
    desk_open_source(&d, &options, open_model(path));
    int vocab = engine_get_info(d.engine)->vocab;
    for (int i = 0; i < REQUESTS; i++) {
        desk_wait(&d, desk_submit(&d, request_number(i, vocab)));
        const struct desk_record *r = &d.records[i];
        cr_assert_eq(r->kind, ENGINE_DONE);
        answers[i].n = r->n_tokens;
        memcpy(answers[i].tokens, r->tokens, sizeof answers[i].tokens);
        memcpy(answers[i].logprobs, r->logprobs, sizeof answers[i].logprobs);
    }
    desk_close_source(&d);
}

static struct engine_options random_options(uint64_t *seed) {
    struct engine_options o = {.max_running = 1 << random_range(seed, 0, 6),
                               .max_waiting = REQUESTS * ROUNDS,
                               .n_threads = random_range(seed, 1, 2),
                               .no_prefix_cache = random_range(seed, 0, 3) == 0,
                               .draft_tokens = random_range(seed, 0, 2) == 0 ? 4 : 0,
                               .max_context = 176};
    o.step_tokens = o.max_running + random_range(seed, 0, 100);
    o.kv_tokens = random_range(seed, 11, 60) * 16;
    return o;
}

static void disturb(struct desk *d, uint64_t *seed) {
    for (int i = 0; i < 6; i++) {
        int record = random_range(seed, 0, d->n_records - 1);
        engine_pause(d->engine, d->records[record].ticket, i % 2 == 0);
        desk_poll(d);
    }
}

static void expect_equal(const struct desk_record *r, const struct answer *a, uint64_t seed,
                         int i) {
    size_t n = (size_t)a->n;
    cr_assert_eq(r->kind, ENGINE_DONE, "%s", r->text);
    cr_assert_eq(r->n_tokens, a->n);
    cr_assert_eq(memcmp(r->tokens, a->tokens, n * sizeof *a->tokens), 0,
                 "tokens of request %d, mix %llu", i, (unsigned long long)seed);
    cr_assert_eq(memcmp(r->logprobs, a->logprobs, n * sizeof *a->logprobs), 0,
                 "log probabilities of request %d, mix %llu", i, (unsigned long long)seed);
}

static void answer_mixed(const char *path, const struct answer *answers, uint64_t seed,
                         struct engine_stats *sum) {
    struct desk d;
    uint64_t mix = seed;
    struct engine_options options = random_options(&mix);
    int which[REQUESTS * ROUNDS];
    desk_open_source(&d, &options, open_model(path));
    int vocab = engine_get_info(d.engine)->vocab;
    for (int i = 0; i < REQUESTS * ROUNDS; i++) {
        which[i] = random_range(&mix, 0, REQUESTS - 1);
        struct engine_request *request = request_number(which[i], vocab);
        request->claim.priority = random_range(&mix, 0, 2);
        request->claim.tenant = random_range(&mix, 0, 1);
        desk_submit(&d, request);
        if (random_range(&mix, 0, 3) == 0) disturb(&d, &mix);
    }
    for (int i = 0; i < d.n_records; i++) engine_pause(d.engine, d.records[i].ticket, false);
    desk_wait_all(&d);
    for (int i = 0; i < d.n_records; i++)
        expect_equal(&d.records[i], &answers[which[i]], seed, which[i]);
    struct engine_stats stats;
    engine_get_stats(d.engine, &stats);
    sum->preemptions += stats.preemptions;
    sum->prefix_hits += stats.prefix_hits;
    sum->draft_accepted += stats.draft_accepted;
    desk_close_source(&d);
}

static void check_model(const char *path, int mixes) {
    static struct answer answers[REQUESTS];
    struct engine_stats sum = {0};
    answer_alone(path, answers);
    for (int i = 0; i < mixes; i++) answer_mixed(path, answers, (uint64_t)i + 1, &sum);
    /* Or it has shown nothing. */
    cr_expect_gt(sum.preemptions, 0);
    cr_expect_gt(sum.prefix_hits, 0);
}

static void check_fixture(const char *name) {
    char path[512];
    snprintf(path, sizeof path, "%s/models/%s", getenv("GPTQT_FIXTURES"), name);
    check_model(path, 8);
}

Test(engine_repeat, dense_llama) { check_fixture("llama-gqa"); }

Test(engine_repeat, dense_opt) { check_fixture("opt-125m-like"); }

Test(engine_repeat, dense_bloom) { check_fixture("bloom"); }

Test(engine_repeat, binary_coded) {
    const char *path = getenv("GPTQT_CODED");
    if (!path) cr_skip_test("no coded model was made");
    check_model(path, 8);
}
