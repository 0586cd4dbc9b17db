#include "tests/support/desk.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "engine/source.h"
#include "kernels/error.h"

static void count_wake(void *arg) {
    struct desk *d = arg;
    pthread_mutex_lock(&d->lock);
    d->wakes++;
    pthread_cond_signal(&d->woken);
    pthread_mutex_unlock(&d->lock);
}

struct engine_options desk_options(void) {
    return (struct engine_options){.max_running = 4, .max_waiting = 8, .step_tokens = 16};
}

void desk_open_source(struct desk *d, const struct engine_options *options, struct source *src) {
    struct error err = {""};
    struct engine_options o = *options;
    memset(d, 0, sizeof *d);
    pthread_mutex_init(&d->lock, NULL);
    pthread_cond_init(&d->woken, NULL);
    d->records = calloc(DESK_MAX, sizeof *d->records);
    o.wake = count_wake;
    o.wake_arg = d;
    int r = engine_open(&d->engine, src, &o, &err);
    cr_assert_eq(r, 0, "%s", err.text);
}

void desk_close_source(struct desk *d) {
    engine_close(d->engine);
    for (int i = 0; i < d->n_records; i++) {
        free(d->records[i].vector);
        free(d->records[i].ids);
        free(d->records[i].prompt);
    }
    free(d->records);
    pthread_cond_destroy(&d->woken);
    pthread_mutex_destroy(&d->lock);
}

int desk_submit(struct desk *d, struct engine_request *request) {
    struct error err = {""};
    cr_assert_lt(d->n_records, DESK_MAX);
    struct desk_record *record = &d->records[d->n_records];
    *record = (struct desk_record){0};
    request->tag = (uint64_t)d->n_records;
    int r = engine_submit(d->engine, &record->ticket, request, &err);
    if (r < 0) {
        cr_expect_neq(err.text[0], 0);
        engine_request_free(request);
        return r;
    }
    cr_assert_neq(record->ticket, 0);
    return d->n_records++;
}

void desk_cancel(struct desk *d, int record) {
    engine_cancel(d->engine, d->records[record].ticket);
}

static void take_text(struct desk_record *record, const struct engine_event *event) {
    size_t room = DESK_TEXT - 1 - record->text_len;
    size_t n = event->text_len < room ? event->text_len : room;
    cr_assert_eq(event->text[event->text_len], 0);
    if (n > 0) memcpy(record->text + record->text_len, event->text, n);
    record->text_len += n;
    record->text[record->text_len] = 0;
    for (int i = 0; i < event->n_tokens && record->n_tokens < DESK_TOKENS; i++) {
        record->logprobs[record->n_tokens] = event->tokens[i].logprob;
        record->tokens[record->n_tokens++] = event->tokens[i].id;
    }
}

static void take_prompt(struct desk_record *record, const struct engine_event *event) {
    size_t bytes = (size_t)event->n_tokens * sizeof *record->prompt;
    cr_assert_null(record->prompt, "the prompt came twice");
    cr_assert_eq(record->n_tokens, 0, "generated tokens came before the prompt's");
    record->prompt = malloc(bytes);
    memcpy(record->prompt, event->tokens, bytes);
    record->n_prompt_tokens = event->n_tokens;
}

/* Of the first event, or of the last one. */
static void take_ids(struct desk_record *record, struct engine_event *event) {
    if (!event->ids) return;
    cr_assert_not(record->ids, "ids came twice");
    record->ids = event->ids;
    record->n_ids = event->n_ids;
    event->ids = NULL;
}

/* Takes the results out of the event. */
static void take_last(struct desk_record *record, struct engine_event *event) {
    record->ended = true;
    record->kind = event->kind;
    record->finish = event->finish;
    record->code = event->code;
    record->stop = event->stop;
    record->stop_id = event->stop_id;
    record->vector = event->vector;
    record->n_vector = event->n_vector;
    event->vector = NULL;
    take_ids(record, event);
}

static void take_event(struct desk *d, struct engine_event *event) {
    cr_assert_lt(event->tag, (uint64_t)d->n_records);
    struct desk_record *record = &d->records[event->tag];
    cr_assert_eq(event->ticket, record->ticket);
    cr_assert_not(record->ended, "an event came after the final one");
    record->n_events++;
    record->n_prompt = event->n_prompt;
    record->n_generated = event->n_generated;
    record->n_cached = event->n_cached;
    record->queued_ns = event->queued_ns;
    record->first_ns = event->first_ns;
    switch (event->kind) {
    case ENGINE_STARTED:
        cr_assert_eq(record->n_events, 1);
        record->started = true;
        take_ids(record, event);
        break;
    case ENGINE_PROMPT:
        cr_assert(record->started);
        take_prompt(record, event);
        break;
    case ENGINE_TEXT:
        cr_assert(record->started);
        cr_assert(event->text_len > 0 || event->n_tokens > 0, "an event says nothing");
        take_text(record, event);
        break;
    case ENGINE_FAILED:
        record->text_len = 0;
        take_text(record, event);
        /* fall through */
    case ENGINE_DONE:
        take_last(record, event);
        break;
    }
}

void desk_poll(struct desk *d) {
    struct engine_event *event = engine_poll(d->engine);
    while (event) {
        struct engine_event *next = event->next;
        take_event(d, event);
        engine_event_free(event);
        event = next;
    }
}

static void wait_wake(struct desk *d) {
    pthread_mutex_lock(&d->lock);
    while (d->wakes == d->seen) pthread_cond_wait(&d->woken, &d->lock);
    d->seen = d->wakes;
    pthread_mutex_unlock(&d->lock);
}

enum engine_state desk_wait_loaded(struct desk *d, struct error *err) {
    enum engine_state state;
    while ((state = engine_get_state(d->engine, err)) == ENGINE_LOADING) wait_wake(d);
    return state;
}

void desk_wait(struct desk *d, int record) {
    cr_assert_geq(record, 0);
    for (desk_poll(d); !d->records[record].ended; desk_poll(d)) wait_wake(d);
}

void desk_wait_started(struct desk *d, int record) {
    cr_assert_geq(record, 0);
    for (desk_poll(d); !d->records[record].started; desk_poll(d)) wait_wake(d);
}

void desk_wait_all(struct desk *d) {
    for (int i = 0; i < d->n_records; i++) desk_wait(d, i);
}

struct engine_request *desk_text(const char *text, int max_tokens) {
    struct engine_request *request = engine_request_new();
    request->text = strdup(text);
    request->text_len = strlen(text);
    request->max_tokens = max_tokens;
    request->sampling.temperature = 0;
    return request;
}

struct engine_request *desk_ids(const int32_t *ids, int n, int max_tokens) {
    struct engine_request *request = engine_request_new();
    request->ids = malloc((size_t)n * sizeof *ids);
    memcpy(request->ids, ids, (size_t)n * sizeof *ids);
    request->n_ids = (size_t)n;
    request->max_tokens = max_tokens;
    request->sampling.temperature = 0;
    return request;
}
