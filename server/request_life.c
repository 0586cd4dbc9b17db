#include <stdlib.h>
#include <string.h>

#include "server/http.h"
#include "server/request.h"
#include "server/request_parts.h"
#include "server/request_times.h"
#include "server/server.h"

static void choice_deinit(struct choice *c) {
    openai_logprobs_deinit(&c->logprobs);
    text_deinit(&c->text);
    text_deinit(&c->logprobs_json);
    text_deinit(&c->prompt_logprobs);
    text_deinit(&c->token_ids);
    text_deinit(&c->prompt_token_ids);
    engine_event_free(c->outcome);
}

/* How far it had come, which the last events of its choices tell. */
static enum metrics_stage stage_of(const struct request *r) {
    enum metrics_stage stage = METRICS_IN_QUEUE;
    for (int i = 0; i < r->n_choices; i++) {
        const struct choice *c = &r->choices[i];
        if (c->text_ns) return METRICS_IN_DECODE;
        if (c->stepped) stage = METRICS_IN_PREFILL;
    }
    return stage;
}

static void tell_given_up(struct request *r) {
    enum metrics_stage stage = stage_of(r);
    struct http_exchange *x = r->deleter;
    struct text body = {0};
    metrics_cancelled(&r->server->metrics, stage);
    if (!x) return;
    x->left = NULL;
    text_adds(&body, "{\"id\":");
    text_add_json(&body, r->id);
    text_addf(&body, ",\"object\":\"request.cancelled\",\"state\":\"%s\"}",
              metrics_stage_name(stage));
    http_header(x, "Cache-Control", "no-store");
    http_reply(x, 200, "application/json", &body);
}

void request_free(struct request *r) {
    if (!r) return;
    if (r->given_up) tell_given_up(r);
    if (r->pass.entered) {
        struct openai_usage usage = request_usage(r);
        bool is_free = r->wanted->task == ENGINE_TOKENIZE; /* nothing was taken for it either */
        gate_leave(r->server, &r->pass, is_free ? 0 : usage.n_prompt + usage.n_generated);
    }
    for (int i = 0; r->choices && i < r->n_choices; i++) choice_deinit(&r->choices[i]);
    free(r->choices);
    openai_request_free(r->wanted);
    text_deinit(&r->head);
    free(r);
}

static void link_request(struct request *r) {
    r->next = r->server->requests;
    if (r->next) r->next->prev = r;
    r->server->requests = r;
}

static void unlink_request(struct request *r) {
    if (r->prev)
        r->prev->next = r->next;
    else
        r->server->requests = r->next;
    if (r->next) r->next->prev = r->prev;
}

void request_free_if_over(struct request *r) {
    if (r->n_running || r->exchange) return;
    unlink_request(r);
    request_free(r);
}

static void cancel(struct request *r) {
    for (int i = 0; i < r->n_choices; i++)
        if (r->choices[i].submitted && !r->choices[i].ended)
            engine_cancel(r->server->engine, r->choices[i].ticket);
}

struct http_exchange *request_detach(struct request *r) {
    struct http_exchange *x = r->exchange;
    r->exchange = NULL;
    if (x) x->left = NULL;
    if (x) x->pressure = NULL;
    return x;
}

/* A slow reader's choices rest, so that its queue does not grow to the limit. */
static void on_pressure(void *keeper, bool high) {
    struct request *r = keeper;
    for (int i = 0; i < r->n_choices; i++)
        if (r->choices[i].submitted && !r->choices[i].ended)
            engine_pause(r->server->engine, r->choices[i].ticket, high);
}

static void on_left(void *keeper) {
    struct request *r = keeper;
    r->given_up = true;
    request_times_note(r, r->exchange);
    request_detach(r);
    cancel(r);
    request_free_if_over(r);
}

void request_attach(struct request *r, struct http_exchange *x) {
    link_request(r);
    r->exchange = x;
    x->keeper = r;
    x->left = on_left;
    x->pressure = on_pressure;
}

void request_fail(struct request *r, const struct api_error *e) {
    struct http_exchange *x = request_detach(r);
    cancel(r);
    if (!x) return;
    request_times_note(r, x);
    if (!x->streaming) {
        http_reply_error(x, e);
        return;
    }
    r->form->fail(r, x, e);
    http_stream_end(x);
}

void request_fail_with(struct request *r, enum api_error_kind kind, const char *message) {
    struct api_error e;
    api_error_set(&e, kind, NULL, "%s", message);
    request_fail(r, &e);
}

struct openai_usage request_usage(const struct request *r) {
    struct openai_usage usage = {0};
    for (int i = 0; i < r->n_choices; i++) {
        const struct choice *c = &r->choices[i];
        if (i % r->width == 0) {
            usage.n_prompt += c->n_prompt;
            usage.n_cached += c->n_cached;
        }
        usage.n_generated += c->n_generated;
    }
    return usage;
}

void request_tick(struct server *s, int64_t now_ns) {
    struct request *next;
    for (struct request *r = s->requests; r; r = next) {
        next = r->next;
        int64_t limit = r->pass.total_ns;
        if (!r->exchange || !limit || now_ns - r->start_ns < limit) continue;
        struct api_error e;
        api_error_set(&e, API_ERROR_TIMEOUT, NULL, "the request took longer than %.3f s",
                      (double)limit / 1e9);
        request_fail(r, &e);
        request_free_if_over(r);
    }
}

static bool is_called(const struct request *r, const char *id) {
    return !strcmp(r->id, id) || !strcmp(r->own_id, id) || !strcmp(r->exchange->request_id, id);
}

static void on_deleter_left(void *keeper) { ((struct request *)keeper)->deleter = NULL; }

/* The answer waits for the engine's last event, which is a step away and tells the state. */
bool request_cancel(struct server *s, const char *id, struct http_exchange *x) {
    struct request *next, *last = NULL;
    for (struct request *r = s->requests; r; r = next) {
        next = r->next;
        if (!r->exchange || r->pass.tenant != x->tenant || !is_called(r, id)) continue;
        r->given_up = true;
        request_fail_with(r, API_ERROR_CANCELLED,
                          "the request was cancelled by DELETE /v1/requests");
        if (r->n_running) last = r;
        request_free_if_over(r);
    }
    if (!last) return false;
    last->deleter = x;
    x->keeper = last;
    x->left = on_deleter_left;
    return true;
}

void request_abort_all(struct server *s, enum api_error_kind kind, const char *message) {
    struct request *next;
    for (struct request *r = s->requests; r; r = next) {
        next = r->next;
        request_fail_with(r, kind, message);
        request_free_if_over(r);
    }
}

void request_free_all(struct server *s) {
    while (s->requests) {
        struct request *r = s->requests;
        request_detach(r);
        unlink_request(r);
        request_free(r);
    }
}
