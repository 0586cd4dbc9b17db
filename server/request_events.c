#include "server/http.h"
#include "server/request.h"
#include "server/request_parts.h"
#include "server/request_times.h"
#include "server/server.h"
#include "server/settings.h"

static void open_stream(struct choice *c) {
    struct request *r = c->request;
    request_times_head(r, r->exchange);
    http_stream_open(r->exchange);
    if (r->form->open) r->form->open(c);
}

static void on_started(struct choice *c, const struct engine_event *event) {
    struct request *r = c->request;
    int64_t limit = r->server->settings->max_prompt_tokens;
    c->n_prompt = event->n_prompt;
    c->n_cached = event->n_cached;
    request_times_started(c, event);
    if (!r->exchange) return;
    if (limit && c->n_prompt > limit) {
        struct api_error e;
        api_error_set(&e, API_ERROR_CONTEXT, NULL, "the prompt has %d tokens, the limit is %lld",
                      c->n_prompt, (long long)limit);
        request_fail(r, &e);
        return;
    }
    for (size_t i = 0; i < event->n_ids; i++)
        text_addf(&c->prompt_token_ids, i ? ",%d" : "%d", (int)event->ids[i]);
    if (!r->wanted->stream) return;
    open_stream(c);
    http_stream_flush(r->exchange);
}

static void on_text(struct choice *c, const struct engine_event *event) {
    struct request *r = c->request;
    if (!r->exchange) return;
    request_times_text(c, event);
    c->n_prompt = event->n_prompt;
    c->n_generated = event->n_generated;
    c->n_cached = event->n_cached;
    for (int i = 0; i < event->n_tokens; i++) c->logprob_sum += (double)event->tokens[i].logprob;
    c->n_logprob += event->n_tokens;
    if (r->form->text) r->form->text(c, event);
    if (r->wanted->stream) http_stream_flush(r->exchange);
}

/* All choices have ended well. */
static void finish(struct request *r) {
    struct http_exchange *x = request_detach(r);
    request_times_finished(r, x);
    r->form->finish(r, x);
    if (r->wanted->stream) http_stream_end(x);
}

/* A full queue is no failure while others of ours will end and try again. */
static bool submit_next(struct request *r) {
    struct api_error e;
    if (request_submit(r, 1, &e) >= 0) return true;
    if (e.kind == API_ERROR_QUEUE && r->n_running > 0) return true;
    request_fail(r, &e);
    return false;
}

static void end_choice(struct choice *c) {
    c->ended = true;
    c->request->n_running--;
}

static void on_done(struct choice *c, struct engine_event *event) {
    struct request *r = c->request;
    end_choice(c);
    request_times_ended(c, event);
    c->stepped = event->queued_ns != 0;
    c->n_prompt = event->n_prompt;
    c->n_generated = event->n_generated;
    c->n_cached = event->n_cached;
    c->stop = event->stop;
    c->stop_id = event->stop_id;
    if (!r->exchange) return;
    if (event->finish == FINISH_CANCELLED) {
        request_fail_with(r, API_ERROR_DRAINING, "the request was cancelled by the server");
        return;
    }
    c->finish = event->finish == FINISH_LENGTH ? "length" : "stop";
    if (r->wanted->stream) {
        if (!r->exchange->streaming) open_stream(c);
        if (r->form->close) r->form->close(c);
    }
    if (r->n_submitted < r->n_choices && !submit_next(r)) return;
    if (r->n_running == 0)
        finish(r);
    else if (r->wanted->stream)
        http_stream_flush(r->exchange);
}

static void on_failed(struct choice *c, const struct engine_event *event) {
    end_choice(c);
    request_times_ended(c, event);
    c->stepped = event->queued_ns != 0;
    struct api_error e;
    request_engine_error(&e, c->request->wanted->kind, event->code,
                         event->text && event->text_len ? event->text : "the engine failed");
    request_fail(c->request, &e);
}

void request_event(struct engine_event *event) {
    struct choice *c = (struct choice *)(uintptr_t)event->tag;
    struct request *r = c->request;
    bool kept = false;
    switch (event->kind) {
    case ENGINE_STARTED:
        on_started(c, event);
        break;
    case ENGINE_PROMPT:
        if (r->exchange && r->form->prompt) r->form->prompt(c, event);
        break;
    case ENGINE_TEXT:
        on_text(c, event);
        break;
    case ENGINE_DONE:
        kept = event->vector || event->ids;
        if (kept) c->outcome = event;
        on_done(c, event);
        break;
    case ENGINE_FAILED:
        on_failed(c, event);
        break;
    }
    if (!kept) engine_event_free(event);
    request_free_if_over(r);
}
