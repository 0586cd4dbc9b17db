#include "server/request.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine/engine.h"
#include "server/api/openai_logprobs.h"
#include "server/api/openai_render.h"
#include "server/http.h"
#include "server/loop.h"
#include "server/server.h"
#include "server/settings.h"

struct choice {
    struct request *request;
    int index;
    uint64_t ticket;
    bool submitted, ended; /* in the engine */
    bool begun;            /* its first chunk is out */
    int n_prompt, n_generated;
    int64_t text_ns; /* when its last text came */
    struct openai_logprobs logprobs;
    struct text text, logprobs_json; /* what an answer in one piece collects */
    const char *finish;
};

struct request {
    struct server *server;
    struct http_exchange *exchange; /* NULL: the client is gone, or answered */
    struct openai_request *wanted;
    struct choice *choices; /* (n_choices) */
    int n_choices, n_running;
    char id[48];
    struct openai_render render;
    struct text head;              /* of a stream's chunks */
    int64_t start_ns, deadline_ns; /* 0 = none */
    struct request *prev, *next;
};

/* -- Life ---------------------------------------------------------------------------------- */

static void request_free(struct request *r) {
    if (!r) return;
    for (int i = 0; r->choices && i < r->n_choices; i++) {
        openai_logprobs_deinit(&r->choices[i].logprobs);
        text_deinit(&r->choices[i].text);
        text_deinit(&r->choices[i].logprobs_json);
    }
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
    return x;
}

static void on_left(void *keeper) {
    struct request *r = keeper;
    detach(r);
    cancel(r);
    free_if_over(r);
}

static void count_tokens(const struct request *r, int *n_prompt, int *n_generated) {
    *n_prompt = *n_generated = 0;
    for (int i = 0; i < r->n_choices; i++) {
        /* The prompt of n choices is one prompt. */
        if (i % r->wanted->n == 0) *n_prompt += r->choices[i].n_prompt;
        *n_generated += r->choices[i].n_generated;
    }
}

/* Ends the client's side with an error; in a stream that has begun it is an event. */
static void fail(struct request *r, const struct api_error *e) {
    struct http_exchange *x = detach(r);
    cancel(r);
    if (!x) return;
    if (!x->streaming) {
        http_reply_error(x, e);
        return;
    }
    text_adds(&x->out, "data: ");
    api_error_render(&x->out, e);
    text_adds(&x->out, "\n\ndata: [DONE]\n\n");
    http_stream_end(x);
}

static void fail_with(struct request *r, enum api_error_kind kind, const char *message) {
    struct api_error e;
    api_error_set(&e, kind, NULL, "%s", message);
    fail(r, &e);
}

/* The engine's refusals begin with the field: "stop: a string is empty". */
static int set_engine_error(struct api_error *e, int code, const char *message) {
    char param[sizeof e->param] = "";
    enum api_error_kind kind = api_error_from_errno(code);
    size_t n = strspn(message, "abcdefghijklmnopqrstuvwxyz_");
    if (kind == API_ERROR_INVALID && n < sizeof param && message[n] == ':')
        memcpy(param, message, n);
    return api_error_set(e, kind, param, "%s", message);
}

/* -- Submission ---------------------------------------------------------------------------- */

static char *copy_bytes(const char *bytes, size_t n) {
    char *copy = malloc(n + 1);
    if (!copy) return NULL;
    memcpy(copy, bytes, n);
    copy[n] = 0;
    return copy;
}

static bool copy_messages(struct engine_request *to, const struct openai_request *from) {
    to->messages = calloc((size_t)from->n_messages, sizeof *to->messages);
    if (!to->messages) return false;
    to->n_messages = from->n_messages;
    for (int i = 0; i < from->n_messages; i++) {
        to->messages[i].role = strdup(from->messages[i].role);
        to->messages[i].content = strdup(from->messages[i].content);
        if (!to->messages[i].role || !to->messages[i].content) return false;
    }
    return true;
}

static bool copy_prompt(struct engine_request *to, const struct openai_request *from, int index) {
    if (from->kind == OPENAI_CHAT) return copy_messages(to, from);
    const struct openai_prompt *prompt = &from->prompts[index / from->n];
    if (prompt->text) {
        to->text = copy_bytes(prompt->text, prompt->text_len);
        to->text_len = prompt->text_len;
        return to->text != NULL;
    }
    to->ids = malloc(prompt->n_ids * sizeof *to->ids);
    if (!to->ids) return false;
    memcpy(to->ids, prompt->ids, prompt->n_ids * sizeof *to->ids);
    to->n_ids = prompt->n_ids;
    return true;
}

static bool copy_lists(struct engine_request *to, const struct openai_request *from) {
    if (from->n_bias) {
        size_t bytes = (size_t)from->n_bias * sizeof *from->bias;
        struct sampler_bias *bias = malloc(bytes);
        if (!bias) return false;
        memcpy(bias, from->bias, bytes);
        to->sampling.bias = bias;
        to->sampling.n_bias = from->n_bias;
    }
    for (; to->n_stops < from->n_stops; to->n_stops++) {
        to->stops[to->n_stops] = strdup(from->stops[to->n_stops]);
        if (!to->stops[to->n_stops]) return false;
    }
    return true;
}

/* NULL: out of memory. */
static struct engine_request *make(const struct openai_request *from, int index, uint64_t seed) {
    struct engine_request *to = engine_request_new();
    if (!to) return NULL;
    to->sampling = from->sampling;
    to->seed = seed;
    to->max_tokens = from->max_tokens;
    to->min_tokens = from->min_tokens;
    to->ignore_eos = from->ignore_eos;
    to->echo = from->echo;
    to->n_logprobs = from->n_logprobs;
    if (copy_prompt(to, from, index) && copy_lists(to, from)) return to;
    engine_request_free(to);
    return NULL;
}

/* Choices of one prompt differ by their seed, and a given seed repeats all of them. */
static int submit(struct request *r, struct choice *c, struct api_error *e) {
    const struct openai_request *wanted = r->wanted;
    uint64_t seed = wanted->has_seed ? wanted->seed + (uint64_t)(c->index % wanted->n)
                                     : server_random(r->server);
    struct engine_request *request = make(wanted, c->index, seed);
    if (!request) return api_error_set(e, API_ERROR_MEMORY, NULL, "out of memory");
    request->tag = (uint64_t)(uintptr_t)c;
    struct error why;
    int code = engine_submit(r->server->engine, &c->ticket, request, &why);
    if (code < 0) {
        engine_request_free(request);
        return set_engine_error(e, code, why.text);
    }
    c->submitted = true;
    r->n_running++;
    return 0;
}

static int submit_all(struct request *r, struct api_error *e) {
    for (int i = 0; i < r->n_choices; i++) {
        int code = submit(r, &r->choices[i], e);
        if (code < 0) return code;
    }
    return 0;
}

static int parse(struct server *s, struct openai_request **ret, struct http_exchange *x,
                 enum openai_kind kind, struct api_error *e) {
    struct openai_limits limits = {
        .models = s->names,
        .any_model = !strcmp(s->settings->any_model, "yes"),
        .sampling = s->info->sampling,
        .max_prompt_tokens = (size_t)s->settings->max_prompt_tokens,
        .vocab = s->info->vocab,
        .max_choices = (size_t)(s->settings->max_running + s->settings->max_waiting)};
    if (!limits.max_prompt_tokens) limits.max_prompt_tokens = (size_t)s->info->context;
    if (s->state != SERVER_SERVING)
        return api_error_set(e, API_ERROR_DRAINING, NULL, "the server is shutting down");
    text_add(&x->body, "", 0); /* an empty body has bytes, too: none */
    if (x->body.failed) return api_error_set(e, API_ERROR_MEMORY, NULL, "out of memory");
    int code = openai_parse(ret, kind, x->body.data, x->body.n, &limits, e);
    text_deinit(&x->body);
    return code;
}

/* The first text of a stream needs no look at the request any more. */
static void prepare_render(struct request *r) {
    struct server *s = r->server;
    const struct openai_request *wanted = r->wanted;
    snprintf(r->id, sizeof r->id, "%s-%016" PRIx64 "%04" PRIx64,
             wanted->kind == OPENAI_CHAT ? "chatcmpl" : "cmpl", server_random(s),
             ++s->serial & 0xffff);
    r->render = (struct openai_render){.kind = wanted->kind,
                                       .id = r->id,
                                       .model = s->model,
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
    r->n_choices = (int)(wanted->n_prompts ? wanted->n_prompts : 1) * wanted->n;
    r->choices = calloc((size_t)r->n_choices, sizeof *r->choices);
    if (!r->choices) {
        request_free(r);
        return NULL;
    }
    r->wanted = wanted;
    for (int i = 0; i < r->n_choices; i++) {
        r->choices[i].request = r;
        r->choices[i].index = i;
    }
    if (s->settings->request_timeout)
        r->deadline_ns = r->start_ns + s->settings->request_timeout * 1000000000;
    return r;
}

void request_start(struct server *s, struct http_exchange *x, enum openai_kind kind) {
    struct openai_request *wanted = NULL;
    struct api_error e;
    if (parse(s, &wanted, x, kind, &e) < 0) {
        http_reply_error(x, &e);
        return;
    }
    struct request *r = request_new(s, x, wanted);
    if (!r) {
        openai_request_free(wanted);
        api_error_set(&e, API_ERROR_MEMORY, NULL, "out of memory");
        http_reply_error(x, &e);
        return;
    }
    prepare_render(r);
    link_request(r);
    r->exchange = x;
    x->keeper = r;
    x->left = on_left;
    if (submit_all(r, &e) < 0) {
        fail(r, &e);
        free_if_over(r);
    }
}

/* -- Events -------------------------------------------------------------------------------- */

static const char *token_piece(const void *arg, int32_t id, size_t *ret_n) {
    return engine_token_text(arg, id, ret_n);
}

static void add_logprobs(struct choice *c, const struct engine_event *event) {
    const struct request *r = c->request;
    for (int i = 0; i < event->n_tokens; i++)
        openai_logprobs_add(&c->logprobs, r->wanted->kind, &event->tokens[i], token_piece,
                            r->server->engine);
}

/* One chunk of a stream: what the event brought, or the end. */
static void stream_delta(struct choice *c, const char *text, size_t n, const char *finish) {
    struct request *r = c->request;
    struct openai_delta delta = {.index = c->index, .text = text, .text_len = n, .finish = finish};
    if (c->logprobs.n) {
        text_clear(&c->logprobs_json);
        openai_logprobs_flush(&c->logprobs, r->wanted->kind, &c->logprobs_json);
        delta.logprobs = c->logprobs_json.data;
        delta.logprobs_len = c->logprobs_json.n;
    }
    openai_render_chunk(&r->exchange->out, &r->render, &r->head, &delta);
}

static void on_started(struct choice *c, const struct engine_event *event) {
    struct request *r = c->request;
    int64_t limit = r->server->settings->max_prompt_tokens;
    c->n_prompt = event->n_prompt;
    if (!r->exchange) return;
    if (limit && c->n_prompt > limit) {
        struct api_error e;
        api_error_set(&e, API_ERROR_CONTEXT, NULL, "the prompt has %d tokens, the limit is %lld",
                      c->n_prompt, (long long)limit);
        fail(r, &e);
        return;
    }
    if (!r->wanted->stream) return;
    http_stream_open(r->exchange);
    if (r->wanted->kind == OPENAI_CHAT)
        openai_render_role(&r->exchange->out, &r->render, &r->head, c->index);
    http_stream_flush(r->exchange);
}

static void observe_text(struct choice *c) {
    struct metrics *m = &c->request->server->metrics;
    int64_t now = loop_now_ns();
    if (c->text_ns)
        metrics_observe(m, METRICS_TOKEN_GAP, now - c->text_ns);
    else
        metrics_observe(m, METRICS_FIRST_TOKEN, now - c->request->start_ns);
    c->text_ns = now;
}

static void on_text(struct choice *c, const struct engine_event *event) {
    struct request *r = c->request;
    if (!r->exchange) return;
    observe_text(c);
    if (r->wanted->n_logprobs >= 0) add_logprobs(c, event);
    if (!r->wanted->stream) {
        text_add(&c->text, event->text, event->text_len);
    } else if (event->text_len || c->logprobs.n) {
        stream_delta(c, event->text, event->text_len, NULL);
        http_stream_flush(r->exchange);
    }
}

static void render_answer(struct request *r, struct text *out, int n_prompt, int n_generated) {
    text_add(out, r->head.data, r->head.n);
    for (int i = 0; i < r->n_choices; i++) {
        struct choice *c = &r->choices[i];
        struct openai_delta delta = {.index = i,
                                     .text = c->text.data ? c->text.data : "",
                                     .text_len = c->text.n,
                                     .finish = c->finish};
        if (r->wanted->n_logprobs >= 0) {
            openai_logprobs_flush(&c->logprobs, r->wanted->kind, &c->logprobs_json);
            delta.logprobs = c->logprobs_json.data;
            delta.logprobs_len = c->logprobs_json.n;
        }
        if (i) text_adds(out, ",");
        openai_render_choice(out, &r->render, &delta);
        if (c->text.failed || c->logprobs_json.failed) out->failed = true;
    }
    openai_render_tail(out, n_prompt, n_generated);
    if (r->head.failed) out->failed = true;
}

/* All choices have ended well. */
static void finish(struct request *r) {
    int n_prompt, n_generated;
    struct http_exchange *x = detach(r);
    count_tokens(r, &n_prompt, &n_generated);
    x->n_prompt = n_prompt;
    x->n_generated = n_generated;
    metrics_observe(&r->server->metrics, METRICS_REQUEST, loop_now_ns() - r->start_ns);
    if (!r->wanted->stream) {
        struct text body = {0};
        render_answer(r, &body, n_prompt, n_generated);
        http_header(x, "Cache-Control", "no-store");
        http_reply(x, 200, "application/json", &body);
        return;
    }
    if (r->render.usage_key) openai_render_usage_chunk(&x->out, &r->head, n_prompt, n_generated);
    text_adds(&x->out, "data: [DONE]\n\n");
    http_stream_end(x);
}

static void end_choice(struct choice *c) {
    c->ended = true;
    c->request->n_running--;
}

static void on_done(struct choice *c, const struct engine_event *event) {
    struct request *r = c->request;
    end_choice(c);
    c->n_prompt = event->n_prompt;
    c->n_generated = event->n_generated;
    if (!r->exchange) return;
    if (event->finish == FINISH_CANCELLED) {
        fail_with(r, API_ERROR_DRAINING, "the request was cancelled by the server");
        return;
    }
    c->finish = event->finish == FINISH_LENGTH ? "length" : "stop";
    if (r->wanted->stream) {
        http_stream_open(r->exchange);
        stream_delta(c, "", 0, c->finish);
    }
    if (r->n_running == 0)
        finish(r);
    else if (r->wanted->stream)
        http_stream_flush(r->exchange);
}

static void on_failed(struct choice *c, const struct engine_event *event) {
    end_choice(c);
    struct api_error e;
    set_engine_error(&e, event->code,
                     event->text && event->text_len ? event->text : "the engine failed");
    fail(c->request, &e);
}

void request_event(struct engine_event *event) {
    struct choice *c = (struct choice *)(uintptr_t)event->tag;
    struct request *r = c->request;
    switch (event->kind) {
    case ENGINE_STARTED:
        on_started(c, event);
        break;
    case ENGINE_PROMPT:
        break;
    case ENGINE_TEXT:
        on_text(c, event);
        break;
    case ENGINE_DONE:
        on_done(c, event);
        break;
    case ENGINE_FAILED:
        on_failed(c, event);
        break;
    }
    engine_event_free(event);
    free_if_over(r);
}

/* -- All of them --------------------------------------------------------------------------- */

void request_tick(struct server *s, int64_t now_ns) {
    struct request *next;
    for (struct request *r = s->requests; r; r = next) {
        next = r->next;
        if (!r->exchange || !r->deadline_ns || now_ns < r->deadline_ns) continue;
        struct api_error e;
        api_error_set(&e, API_ERROR_TIMEOUT, NULL, "the request took longer than %lld s",
                      (long long)s->settings->request_timeout);
        fail(r, &e);
        free_if_over(r);
    }
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
