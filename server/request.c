#include "server/request.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "server/http.h"
#include "server/loop.h"
#include "server/parse_job.h"
#include "server/request_parts.h"
#include "server/request_times.h"
#include "server/server.h"
#include "server/settings.h"

/* -- Life ---------------------------------------------------------------------------------- */

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

static void request_free(struct request *r) {
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

static void free_if_over(struct request *r) {
    if (r->n_running || r->exchange) return;
    unlink_request(r);
    request_free(r);
}

static void cancel(struct request *r) {
    for (int i = 0; i < r->n_choices; i++)
        if (r->choices[i].submitted && !r->choices[i].ended)
            engine_cancel(r->server->engine, r->choices[i].ticket);
}

/* Lets go of the exchange; what still runs ends unheard. */
static struct http_exchange *detach(struct request *r) {
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
    detach(r);
    cancel(r);
    free_if_over(r);
}

/* Ends the client's side with an error; in a stream that has begun it is an event. */
static void fail(struct request *r, const struct api_error *e) {
    struct http_exchange *x = detach(r);
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

static void fail_with(struct request *r, enum api_error_kind kind, const char *message) {
    struct api_error e;
    api_error_set(&e, kind, NULL, "%s", message);
    fail(r, &e);
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

/* -- Beginning ----------------------------------------------------------------------------- */

static void set_limits(struct openai_limits *limits, const struct server *s) {
    const struct settings *c = s->settings;
    *limits =
        (struct openai_limits){.models = s->names,
                               .any_model = !strcmp(c->any_model, "yes"),
                               .strict = !strcmp(c->unknown_fields, "strict"),
                               .sampling = s->info->sampling,
                               .max_prompt_tokens = (size_t)c->max_prompt_tokens,
                               .vocab = s->info->vocab,
                               .hidden = s->info->hidden,
                               .pooling = !strcmp(c->pooling, "mean") ? POOLING_MEAN : POOLING_LAST,
                               .max_choices = (size_t)(c->max_running + c->max_waiting)};
    if (!limits->max_prompt_tokens) limits->max_prompt_tokens = (size_t)s->info->context;
}

static int check_body(const struct server *s, struct http_exchange *x, struct api_error *e) {
    if (s->state >= SERVER_DRAINING)
        return api_error_set(e, API_ERROR_DRAINING, NULL, "the server is shutting down");
    text_add(&x->body, "", 0); /* an empty body has bytes, too: none */
    if (x->body.failed) return api_error_set(e, API_ERROR_MEMORY, NULL, "out of memory");
    return 0;
}

static void tell_wanted(const struct openai_request *wanted, struct http_exchange *x) {
    if (wanted->ignored[0]) http_header(x, "X-Ignored-Params", wanted->ignored);
    if (wanted->request_id[0])
        snprintf(x->request_id, sizeof x->request_id, "%s", wanted->request_id);
}

int request_parse(struct server *s, struct openai_request **ret, struct http_exchange *x,
                  enum openai_kind kind, struct api_error *e) {
    struct openai_limits limits;
    set_limits(&limits, s);
    int code = check_body(s, x, e);
    if (code < 0) return code;
    code = openai_parse(ret, kind, x->body.data, x->body.n, &limits, e);
    text_deinit(&x->body);
    if (code == 0) tell_wanted(*ret, x);
    return code;
}

static const struct {
    const struct answer_form *form;
    const char *prefix; /* of the answer's id */
} kinds[OPENAI_KINDS] = {
    [OPENAI_COMPLETION] = {&answer_completion, "cmpl-"},
    [OPENAI_CHAT] = {&answer_chat, "chatcmpl-"},
    [OPENAI_RESPONSE] = {&answer_response, "resp_"},
    [OPENAI_EMBEDDING] = {&answer_embedding, "embd-"},
    [OPENAI_TOKENIZE] = {&answer_tokens, "tokens-"},
};

/* FNV-1a of what decides which tokens come: the same numbers mean the same answers. */
static void set_fingerprint(struct server *s) {
    const struct engine_info *info = s->info;
    char facts[256];
    uint64_t hash = 0xcbf29ce484222325u;
    snprintf(facts, sizeof facts, "%s %s %s %s %d %d %d %zu", GPTQT_VERSION, info->architecture,
             info->method, info->backend, info->bits, info->group, info->vocab, info->weight_bytes);
    for (const char *p = facts; *p; p++) hash = (hash ^ (unsigned char)*p) * 0x100000001b3u;
    snprintf(s->fingerprint, sizeof s->fingerprint, "fp_%016" PRIx64, hash);
}

static void set_id(struct request *r) {
    struct server *s = r->server;
    if (r->wanted->request_id[0])
        snprintf(r->own_id, sizeof r->own_id, "%s", r->wanted->request_id);
    else
        snprintf(r->own_id, sizeof r->own_id, "%016" PRIx64 "%04" PRIx64, server_random(s),
                 ++s->serial & 0xffff);
    snprintf(r->id, sizeof r->id, "%s%s", kinds[r->wanted->kind].prefix, r->own_id);
}

/* The first text of a stream needs no look at the request any more. */
static void prepare_render(struct request *r) {
    const struct openai_request *wanted = r->wanted;
    set_id(r);
    if (!r->server->fingerprint[0]) set_fingerprint(r->server);
    r->render = (struct openai_render){.kind = wanted->kind,
                                       .id = r->id,
                                       .model = r->server->model,
                                       .fingerprint = r->server->fingerprint,
                                       .created = (int64_t)time(NULL),
                                       .stream = wanted->stream,
                                       .usage_key = wanted->stream && wanted->include_usage};
    openai_render_head(&r->head, &r->render);
}

static struct request *request_new(struct server *s, struct http_exchange *x,
                                   struct openai_request *wanted) {
    struct request *r = calloc(1, sizeof *r);
    if (!r) return NULL;
    r->server = s;
    r->start_ns = x->start_ns;
    r->form = kinds[wanted->kind].form;
    r->width = wanted->best_of > wanted->n ? wanted->best_of : wanted->n;
    r->n_choices = (int)(wanted->n_prompts ? wanted->n_prompts : 1) * r->width;
    r->choices = calloc((size_t)r->n_choices, sizeof *r->choices);
    if (!r->choices) {
        request_free(r);
        return NULL;
    }
    r->wanted = wanted;
    for (int i = 0; i < r->n_choices; i++) {
        r->choices[i].request = r;
        r->choices[i].index = i;
        r->choices[i].stop = r->choices[i].stop_id = -1;
    }
    return r;
}

/* Choices are admitted together or not at all. A list of texts to embed may be longer than the
 * engine's queue, so it goes in turns. */
static int first_wave(const struct request *r) {
    int64_t most = r->server->settings->max_running;
    if (r->wanted->kind != OPENAI_EMBEDDING || r->n_choices <= most) return r->n_choices;
    return (int)most;
}

static void attach(struct request *r, struct http_exchange *x) {
    prepare_render(r);
    link_request(r);
    r->exchange = x;
    x->keeper = r;
    x->left = on_left;
    x->pressure = on_pressure;
}

static void begin(struct request *r, struct http_exchange *x) {
    struct api_error e;
    attach(r, x);
    if (request_submit(r, first_wave(r), &e) < 0) {
        gate_overloaded(r->server, &e);
        fail(r, &e);
        free_if_over(r);
    }
}

/* Takes wanted. */
static void start_wanted(struct server *s, struct http_exchange *x, struct openai_request *wanted) {
    struct api_error e;
    struct request *r = request_new(s, x, wanted);
    if (!r) {
        openai_request_free(wanted);
        api_error_set(&e, API_ERROR_MEMORY, NULL, "out of memory");
        http_reply_error(x, &e);
    } else if (gate_enter(s, &r->pass, x, wanted, first_wave(r), &e) < 0) {
        request_free(r);
        http_reply_error(x, &e);
    } else {
        begin(r, x);
    }
}

/* The prompts alone go to the engine, to be counted. */
static struct request *explained(struct server *s, struct http_exchange *x,
                                 struct openai_request *wanted) {
    int width = wanted->best_of > wanted->n ? wanted->best_of : wanted->n;
    wanted->task = ENGINE_TOKENIZE;
    wanted->n = wanted->best_of = 1;
    wanted->stream = wanted->echo = false;
    wanted->n_logprobs = wanted->n_prompt_logprobs = -1;
    struct request *r = request_new(s, x, wanted);
    if (!r) return NULL;
    r->form = &answer_explain;
    r->asked_width = width;
    r->guessed_tokens = gate_prompt_tokens(wanted);
    r->pass.tenant = x->tenant;
    return r;
}

/* Takes wanted. */
static void explain_wanted(struct server *s, struct http_exchange *x,
                           struct openai_request *wanted) {
    struct api_error e;
    struct request *r = explained(s, x, wanted);
    if (!r) {
        openai_request_free(wanted);
        api_error_set(&e, API_ERROR_MEMORY, NULL, "out of memory");
        http_reply_error(x, &e);
        return;
    }
    attach(r, x);
    if (request_submit(r, r->n_choices, &e) == 0) return;
    /* Nobody counts for a server that is full; what it would answer is known all the same. */
    detach(r);
    if (e.kind == API_ERROR_QUEUE)
        request_explain_answer(r, x, false);
    else
        http_reply_error(x, &e);
    free_if_over(r);
}

typedef void starter(struct server *s, struct http_exchange *x, struct openai_request *wanted);

static void go_on(struct server *s, struct http_exchange *x, struct openai_request *wanted,
                  const struct api_error *e, starter *start) {
    struct api_error late;
    if (wanted && check_body(s, x, &late) < 0) {
        openai_request_free(wanted);
        http_reply_error(x, &late);
    } else if (!wanted) {
        http_reply_error(x, e);
    } else {
        tell_wanted(wanted, x);
        start(s, x, wanted);
    }
}

static void on_parsed(void *arg, struct http_exchange *x, struct openai_request *wanted,
                      const struct api_error *e) {
    go_on(arg, x, wanted, e, start_wanted);
}

static void on_explained(void *arg, struct http_exchange *x, struct openai_request *wanted,
                         const struct api_error *e) {
    go_on(arg, x, wanted, e, explain_wanted);
}

static void read_body(struct server *s, struct http_exchange *x, enum openai_kind kind,
                      const struct parse_hook *hook, starter *start) {
    struct openai_request *wanted = NULL;
    struct openai_limits limits;
    struct api_error e;
    set_limits(&limits, s);
    if (x->body.n > PARSE_JOB_BYTES && check_body(s, x, &e) == 0 &&
        parse_job_start(s->loop, x, kind, &limits, hook) == 0)
        return;
    if (request_parse(s, &wanted, x, kind, &e) < 0)
        http_reply_error(x, &e);
    else
        start(s, x, wanted);
}

void request_start(struct server *s, struct http_exchange *x, enum openai_kind kind) {
    const struct parse_hook hook = {on_parsed, s};
    read_body(s, x, kind, &hook, start_wanted);
}

void request_explain(struct server *s, struct http_exchange *x, enum openai_kind kind) {
    const struct parse_hook hook = {on_explained, s};
    read_body(s, x, kind, &hook, explain_wanted);
}

/* -- Events -------------------------------------------------------------------------------- */

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
        fail(r, &e);
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
    struct http_exchange *x = detach(r);
    request_times_finished(r, x);
    r->form->finish(r, x);
    if (r->wanted->stream) http_stream_end(x);
}

/* A full queue is no failure while others of ours will end and try again. */
static bool submit_next(struct request *r) {
    struct api_error e;
    if (request_submit(r, 1, &e) >= 0) return true;
    if (e.kind == API_ERROR_QUEUE && r->n_running > 0) return true;
    fail(r, &e);
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
        fail_with(r, API_ERROR_DRAINING, "the request was cancelled by the server");
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
    fail(c->request, &e);
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
    free_if_over(r);
}

/* -- All of them --------------------------------------------------------------------------- */

void request_tick(struct server *s, int64_t now_ns) {
    struct request *next;
    for (struct request *r = s->requests; r; r = next) {
        next = r->next;
        int64_t limit = r->pass.total_ns;
        if (!r->exchange || !limit || now_ns - r->start_ns < limit) continue;
        struct api_error e;
        api_error_set(&e, API_ERROR_TIMEOUT, NULL, "the request took longer than %.3f s",
                      (double)limit / 1e9);
        fail(r, &e);
        free_if_over(r);
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
        fail_with(r, API_ERROR_CANCELLED, "the request was cancelled by DELETE /v1/requests");
        if (r->n_running) last = r;
        free_if_over(r);
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
        fail_with(r, kind, message);
        free_if_over(r);
    }
}

void request_free_all(struct server *s) {
    while (s->requests) {
        struct request *r = s->requests;
        detach(r);
        unlink_request(r);
        request_free(r);
    }
}
