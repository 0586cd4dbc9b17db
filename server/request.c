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
#include "server/server.h"
#include "server/settings.h"

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

static void begin(struct request *r, struct http_exchange *x) {
    struct api_error e;
    prepare_render(r);
    request_attach(r, x);
    if (request_submit(r, first_wave(r), &e) < 0) {
        gate_overloaded(r->server, &e);
        request_fail(r, &e);
        request_free_if_over(r);
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
    prepare_render(r);
    request_attach(r, x);
    if (request_submit(r, r->n_choices, &e) == 0) return;
    /* Nobody counts for a server that is full; what it would answer is known all the same. */
    request_detach(r);
    if (e.kind == API_ERROR_QUEUE)
        request_explain_answer(r, x, false);
    else
        http_reply_error(x, &e);
    request_free_if_over(r);
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
