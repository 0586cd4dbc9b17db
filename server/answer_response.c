/* The answer of /v1/responses: one object, or typed events. */
#include <string.h>

#include "server/api/openai_response.h"
#include "server/http.h"
#include "server/request_parts.h"
#include "server/server.h"

static struct openai_response state_of(const struct request *r, const char *status) {
    const struct choice *c = &r->choices[0];
    return (struct openai_response){.id = r->id,
                                    .own_id = r->own_id,
                                    .model = r->server->model,
                                    .created = r->render.created,
                                    .status = status,
                                    .wanted = r->wanted,
                                    .text = c->text.data,
                                    .text_len = c->text.n};
}

static void on_open(struct choice *c) {
    struct request *r = c->request;
    struct text *out = &r->exchange->out;
    const struct openai_response state = state_of(r, "in_progress");
    openai_response_event(out, "response.created", r->sequence++, &state);
    openai_response_event(out, "response.in_progress", r->sequence++, &state);
    r->sequence += openai_response_begin(out, r->sequence, &state);
}

/* Streams keep the text, too: the last events repeat it. */
static void on_text(struct choice *c, const struct engine_event *event) {
    struct request *r = c->request;
    if (!event->text_len) return;
    text_add(&c->text, event->text, event->text_len);
    if (!r->wanted->stream) return;
    const struct openai_response state = state_of(r, "in_progress");
    openai_response_delta(&r->exchange->out, r->sequence++, &state, event->text, event->text_len);
}

static void on_finish(struct request *r, struct http_exchange *x) {
    const struct choice *c = &r->choices[0];
    const struct openai_usage usage = request_usage(r);
    const char *status = !strcmp(c->finish, "length") ? "incomplete" : "completed";
    struct openai_response state = state_of(r, status);
    state.usage = &usage;
    if (r->wanted->stream) {
        const char *last =
            !strcmp(c->finish, "length") ? "response.incomplete" : "response.completed";
        if (c->text.failed) x->out.failed = true;
        r->sequence += openai_response_end(&x->out, r->sequence, &state);
        openai_response_event(&x->out, last, r->sequence++, &state);
        return;
    }
    struct text body = {0};
    openai_response_render(&body, &state);
    if (c->text.failed) body.failed = true;
    http_header(x, "Cache-Control", "no-store");
    http_reply(x, 200, "application/json", &body);
}

static void on_fail(struct request *r, struct http_exchange *x, const struct api_error *e) {
    struct text error = {0};
    text_adds(&error, "{\"code\":\"server_error\",\"message\":");
    text_add_json(&error, e->error.text);
    text_adds(&error, "}");
    struct openai_response state = state_of(r, "failed");
    state.error = error.data;
    openai_response_event(&x->out, "response.failed", r->sequence++, &state);
    if (error.failed) x->out.failed = true;
    text_deinit(&error);
}

const struct answer_form answer_response = {
    .open = on_open, .text = on_text, .finish = on_finish, .fail = on_fail};
