/* The answers of /v1/completions and /v1/chat/completions: choices in one object, or chunks. */
#include <stdlib.h>

#include "server/http.h"
#include "server/request_parts.h"
#include "server/server.h"

static const char *token_piece(const void *arg, int32_t id, size_t *ret_n) {
    return engine_token_text(arg, id, ret_n);
}

static bool is_chat(const struct request *r) { return r->wanted->kind == OPENAI_CHAT; }

static int shown_index(const struct choice *c) {
    const struct request *r = c->request;
    return c->index / r->width * r->wanted->n + c->index % r->width;
}

/* -- Members beyond OpenAI's --------------------------------------------------------------- */

static void add_stop_reason(struct text *out, const struct choice *c) {
    const struct openai_request *wanted = c->request->wanted;
    text_adds(out, ",\"stop_reason\":");
    if (c->stop >= 0 && c->stop < wanted->n_stops) {
        text_add_json(out, wanted->stops[c->stop]);
        return;
    }
    for (int i = 0; i < wanted->n_stop_ids; i++) {
        if (c->stop_id < 0 || wanted->stop_ids[i] != c->stop_id) continue;
        text_addf(out, "%d", c->stop_id);
        return;
    }
    text_adds(out, "null");
}

static void add_list(struct text *out, const char *name, const struct text *elements) {
    text_addf(out, ",\"%s\":[", name);
    if (elements->n) text_add(out, elements->data, elements->n);
    text_adds(out, "]");
    if (elements->failed) out->failed = true;
}

/* Of a prompt: a completion has it in the choice, a chat in the object. */
static void add_prompt_members(struct text *out, const struct choice *c) {
    const struct openai_request *wanted = c->request->wanted;
    if (wanted->return_token_ids) add_list(out, "prompt_token_ids", &c->prompt_token_ids);
    if (wanted->n_prompt_logprobs >= 0) add_list(out, "prompt_logprobs", &c->prompt_logprobs);
}

static void add_token_ids(struct text *out, const struct engine_event *event) {
    for (int i = 0; i < event->n_tokens; i++)
        text_addf(out, out->n ? ",%d" : "%d", (int)event->tokens[i].id);
}

/* -- Events -------------------------------------------------------------------------------- */

static void on_prompt(struct choice *c, const struct engine_event *event) {
    const struct request *r = c->request;
    const struct openai_request *wanted = r->wanted;
    for (int i = 0; i < event->n_tokens; i++) {
        struct engine_token token = event->tokens[i];
        if (wanted->n_prompt_logprobs >= 0) {
            if (c->prompt_logprobs.n) text_adds(&c->prompt_logprobs, ",");
            openai_logprobs_prompt(&c->prompt_logprobs, &token, wanted->n_prompt_logprobs,
                                   token_piece, r->server->engine);
        }
        if (!wanted->echo || wanted->n_logprobs < 0) continue;
        if (token.n_top > wanted->n_logprobs) token.n_top = wanted->n_logprobs;
        openai_logprobs_add(&c->logprobs, wanted->kind, &token, token_piece, r->server->engine);
    }
}

/* One chunk of a stream: what the event brought, or the end. */
static void add_chunk(struct choice *c, const char *text, size_t n, struct text *extra) {
    struct request *r = c->request;
    struct openai_delta delta = {
        .index = shown_index(c), .text = text, .text_len = n, .finish = c->finish};
    struct openai_usage usage = {c->n_prompt, c->n_generated, c->n_cached};
    if (c->logprobs.n) {
        text_clear(&c->logprobs_json);
        openai_logprobs_flush(&c->logprobs, r->wanted->kind, &c->logprobs_json);
        delta.logprobs = c->logprobs_json.data;
        delta.logprobs_len = c->logprobs_json.n;
    }
    if (r->wanted->continuous_usage) delta.usage = &usage;
    delta.extra = extra->data;
    openai_render_chunk(&r->exchange->out, &r->render, &r->head, &delta);
    if (extra->failed || c->logprobs_json.failed) r->exchange->out.failed = true;
    text_deinit(extra);
}

static void on_open(struct choice *c) {
    struct request *r = c->request;
    struct text top = {0};
    if (!is_chat(r)) return;
    if (shown_index(c) == 0) add_prompt_members(&top, c);
    const struct openai_delta delta = {.index = shown_index(c), .top = top.data};
    openai_render_role(&r->exchange->out, &r->render, &r->head, &delta);
    text_deinit(&top);
}

static void stream_text(struct choice *c, const struct engine_event *event) {
    const struct openai_request *wanted = c->request->wanted;
    bool ids = wanted->return_token_ids && event->n_tokens;
    struct text extra = {0}, list = {0};
    if (!event->text_len && !c->logprobs.n && !ids) return;
    if (ids) {
        add_token_ids(&list, event);
        add_list(&extra, "token_ids", &list);
        if (c->prompt_token_ids.n && !is_chat(c->request)) {
            add_prompt_members(&extra, c);
            text_deinit(&c->prompt_token_ids);
        }
        text_deinit(&list);
    }
    add_chunk(c, event->text, event->text_len, &extra);
}

static void on_text(struct choice *c, const struct engine_event *event) {
    const struct request *r = c->request;
    for (int i = 0; r->wanted->n_logprobs >= 0 && i < event->n_tokens; i++)
        openai_logprobs_add(&c->logprobs, r->wanted->kind, &event->tokens[i], token_piece,
                            r->server->engine);
    if (r->wanted->stream) {
        stream_text(c, event);
        return;
    }
    text_add(&c->text, event->text, event->text_len);
    if (r->wanted->return_token_ids) add_token_ids(&c->token_ids, event);
}

static void on_close(struct choice *c) {
    struct text extra = {0};
    add_stop_reason(&extra, c);
    add_chunk(c, "", 0, &extra);
}

/* -- The answer in one piece --------------------------------------------------------------- */

static void add_choice(struct text *out, struct choice *c, int index) {
    struct request *r = c->request;
    struct text extra = {0};
    struct openai_delta delta = {.index = index,
                                 .text = c->text.data ? c->text.data : "",
                                 .text_len = c->text.n,
                                 .finish = c->finish};
    if (r->wanted->n_logprobs >= 0) {
        openai_logprobs_flush(&c->logprobs, r->wanted->kind, &c->logprobs_json);
        delta.logprobs = c->logprobs_json.data;
        delta.logprobs_len = c->logprobs_json.n;
    }
    add_stop_reason(&extra, c);
    if (r->wanted->return_token_ids) add_list(&extra, "token_ids", &c->token_ids);
    if (!is_chat(r)) add_prompt_members(&extra, c);
    delta.extra = extra.data;
    if (index) text_adds(out, ",");
    openai_render_choice(out, &r->render, &delta);
    if (extra.failed || c->text.failed || c->logprobs_json.failed) out->failed = true;
    text_deinit(&extra);
}

static double mean_logprob(const struct choice *c) {
    return c->n_logprob ? c->logprob_sum / c->n_logprob : 0;
}

/* The likeliest first; equal ones in the order they were drawn. */
static int compare_choices(const void *left, const void *right) {
    const struct choice *a = *(struct choice *const *)left, *b = *(struct choice *const *)right;
    double x = mean_logprob(a), y = mean_logprob(b);
    if (x != y) return x > y ? -1 : 1;
    return a->index - b->index;
}

static void add_prompt_choices(struct text *out, struct request *r, int prompt) {
    struct choice *best[OPENAI_MAX_CHOICES];
    for (int i = 0; i < r->width; i++) best[i] = &r->choices[prompt * r->width + i];
    if (r->width > r->wanted->n) qsort(best, (size_t)r->width, sizeof *best, compare_choices);
    for (int i = 0; i < r->wanted->n; i++) add_choice(out, best[i], prompt * r->wanted->n + i);
}

static void on_finish(struct request *r, struct http_exchange *x) {
    const struct openai_usage usage = request_usage(r);
    if (r->wanted->stream) {
        if (r->wanted->include_usage) openai_render_usage_chunk(&x->out, &r->head, &usage);
        text_adds(&x->out, "data: [DONE]\n\n");
        return;
    }
    struct text body = {0}, top = {0};
    text_add(&body, r->head.data, r->head.n);
    for (int i = 0; i < r->n_choices / r->width; i++) add_prompt_choices(&body, r, i);
    if (is_chat(r)) add_prompt_members(&top, &r->choices[0]);
    openai_render_tail(&body, top.data, &usage);
    if (r->head.failed || top.failed) body.failed = true;
    text_deinit(&top);
    http_header(x, "Cache-Control", "no-store");
    http_reply(x, 200, "application/json", &body);
}

static void on_fail(struct request *r, struct http_exchange *x, const struct api_error *e) {
    (void)r;
    text_adds(&x->out, "data: ");
    api_error_render(&x->out, e);
    text_adds(&x->out, "\n\ndata: [DONE]\n\n");
}

const struct answer_form answer_completion = {
    .prompt = on_prompt, .text = on_text, .close = on_close, .finish = on_finish, .fail = on_fail};

const struct answer_form answer_chat = {.prompt = on_prompt,
                                        .open = on_open,
                                        .text = on_text,
                                        .close = on_close,
                                        .finish = on_finish,
                                        .fail = on_fail};
