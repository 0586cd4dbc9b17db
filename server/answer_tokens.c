/* The answer of /tokenize: token ids, and their text if asked for. */
#include "server/http.h"
#include "server/request_parts.h"
#include "server/server.h"

static void add_ids(struct text *out, const struct engine_event *event) {
    text_adds(out, "[");
    for (size_t i = 0; event && i < event->n_ids; i++)
        text_addf(out, i ? ",%d" : "%d", (int)event->ids[i]);
    text_adds(out, "]");
}

static void add_strings(struct text *out, const struct request *r,
                        const struct engine_event *event) {
    text_adds(out, "[");
    for (size_t i = 0; event && i < event->n_ids; i++) {
        size_t n = 0;
        const char *piece = engine_token_text(r->server->engine, event->ids[i], &n);
        text_adds(out, i ? ",\"" : "\"");
        if (piece) text_add_escaped(out, piece, n);
        text_adds(out, "\"");
    }
    text_adds(out, "]");
}

static void on_finish(struct request *r, struct http_exchange *x) {
    const struct engine_event *event = r->choices[0].outcome;
    struct text body = {0};
    text_addf(&body, "{\"count\":%zu,\"max_model_len\":%d,\"tokens\":", event ? event->n_ids : 0,
              r->server->info->context);
    add_ids(&body, event);
    text_adds(&body, ",\"token_strs\":");
    if (r->wanted->return_token_strs)
        add_strings(&body, r, event);
    else
        text_adds(&body, "null");
    text_adds(&body, "}");
    http_header(x, "Cache-Control", "no-store");
    http_reply(x, 200, "application/json", &body);
}

const struct answer_form answer_tokens = {.finish = on_finish};
