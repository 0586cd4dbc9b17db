#include <criterion/criterion.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/engine.h"
#include "engine/source.h"
#include "kernels/error.h"

enum { MAX_PROMPTS = 16, MAX_IDS = 80 };

/* What came back for one prompt. */
struct answer {
    int32_t ids[MAX_IDS];
    int n_ids;
    char text[4096];
    bool ended;
};

static void take(struct answer *answers, const struct engine_event *event) {
    struct answer *a = &answers[event->tag];
    cr_assert_neq(event->kind, ENGINE_FAILED, "%s", event->text);
    if (event->kind == ENGINE_DONE) a->ended = true;
    for (int i = 0; i < event->n_tokens && a->n_ids < MAX_IDS; i++)
        a->ids[a->n_ids++] = event->tokens[i].id;
    if (event->text_len > 0) strncat(a->text, event->text, sizeof a->text - strlen(a->text) - 1);
}

static bool all_ended(const struct answer *answers, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!answers[i].ended) return false;
    return true;
}

static void collect(struct engine *e, struct answer *answers, size_t n) {
    while (!all_ended(answers, n)) {
        struct engine_event *event = engine_poll(e);
        while (event) {
            struct engine_event *next = event->next;
            take(answers, event);
            engine_event_free(event);
            event = next;
        }
    }
}

static void submit(struct engine *e, const json_t *golden, uint64_t tag) {
    struct error err = {""};
    uint64_t ticket;
    struct engine_request *request = engine_request_new();
    request->text = strdup(json_string_value(json_object_get(golden, "prompt")));
    request->text_len = strlen(request->text);
    request->sampling.temperature = 0;
    request->max_tokens = 64;
    request->n_logprobs = 0;
    request->tag = tag;
    cr_assert_eq(engine_submit(e, &ticket, request, &err), 0, "%s", err.text);
}

/* The ids hold an end token too where one came; it is never reported. */
static void compare(const struct answer *a, const json_t *golden) {
    const char *prompt = json_string_value(json_object_get(golden, "prompt"));
    const json_t *ids = json_object_get(golden, "greedy_ids");
    size_t n = json_array_size(ids);
    json_int_t last = json_integer_value(json_array_get(ids, n - 1));
    if (last == 0 || last == 2) n--;
    cr_assert_eq((size_t)a->n_ids, n, "%s", prompt);
    for (size_t i = 0; i < n; i++)
        cr_assert_eq(a->ids[i], json_integer_value(json_array_get(ids, i)), "%s: token %zu", prompt,
                     i);
}

/* All prompts of golden.json at once, in steps so small that prompts are cut. */
static void run(const char *shared, struct engine_options options) {
    char path[1024];
    struct error err = {""};
    struct source *src = NULL;
    struct engine *e = NULL;
    snprintf(path, sizeof path, "%s/models/stories/golden.json", shared);
    json_t *golden = json_load_file(path, 0, NULL);
    const json_t *prompts = json_object_get(golden, "prompts");
    size_t n = json_array_size(prompts);
    cr_assert(n > 0 && n <= MAX_PROMPTS);
    snprintf(path, sizeof path, "%s/models/stories", shared);
    cr_assert_eq(source_open(&src, path, &err), 0, "%s", err.text);
    cr_assert_eq(engine_open(&e, src, &options, &err), 0, "%s", err.text);
    struct answer *answers = calloc(n, sizeof *answers);
    for (size_t i = 0; i < n; i++) submit(e, json_array_get(prompts, i), i);
    collect(e, answers, n);
    for (size_t i = 0; i < n; i++) compare(&answers[i], json_array_get(prompts, i));
    free(answers);
    engine_close(e);
    json_decref(golden);
}

Test(engine_stories, greedy_continuations_are_the_reference_ones) {
    const char *shared = getenv("GPTQT_SHARED");
    if (!shared) cr_skip_test("GPTQT_SHARED is not set");
    struct engine_options options = {
        .max_running = 8, .max_waiting = 8, .step_tokens = 8, .kv = ENGINE_KV_F32};
    run(shared, options);
    options.max_running = options.step_tokens = 2;
    options.kv_tokens = 160;
    options.max_context = 128;
    run(shared, options);
}
