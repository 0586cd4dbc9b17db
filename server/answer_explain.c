/* The answer of /v1/explain: the prompts were tokenized, or guessed at, and nothing was run. */
#include <stdio.h>

#include "server/http.h"
#include "server/request_parts.h"
#include "server/server.h"

struct cost {
    int64_t prompt_tokens, new_tokens; /* of all prompts; of each sequence, at most */
    int64_t kv_blocks;                 /* at most, if no beginning is shared */
    bool estimated;
};

/* The largest prompt counts for all of them: a bound is asked for, and the context binds, too. */
static void add_sequences(struct cost *cost, const struct request *r, int64_t tokens) {
    const struct engine_info *info = r->server->info;
    int64_t room = info->context - tokens, wanted = r->wanted->max_tokens;
    int64_t block = info->kv_block_tokens > 0 ? info->kv_block_tokens : 1;
    if (room < 0) room = 0;
    if (wanted <= 0) wanted = wanted < 0 ? 0 : room;
    if (wanted > room) wanted = room;
    if (wanted > cost->new_tokens) cost->new_tokens = wanted;
    cost->prompt_tokens += tokens;
    cost->kv_blocks += r->asked_width * ((tokens + wanted + block - 1) / block);
}

static void set_cost(struct cost *cost, const struct request *r, bool exact) {
    *cost = (struct cost){.estimated = !exact};
    for (int i = 0; exact && i < r->n_choices; i++) {
        const struct engine_event *event = r->choices[i].outcome;
        add_sequences(cost, r, event ? (int64_t)event->n_ids : 0);
    }
    if (!exact) add_sequences(cost, r, r->guessed_tokens);
}

static void add_verdict(struct text *out, const struct api_error *e, bool refused) {
    const char *code = refused ? api_error_code(e->kind) : NULL;
    text_addf(out, ",\"admission\":{\"verdict\":\"%s\",\"status\":%d,\"code\":",
              refused ? "refuse" : "admit", refused ? api_error_status(e->kind) : 200);
    text_add_json(out, code);
    text_adds(out, ",\"reason\":");
    text_add_json(out, refused ? e->error.text : NULL);
    int64_t ms = refused ? e->retry_ns / 1000000 : 0;
    if (ms)
        text_addf(out, ",\"retry_after_ms\":%lld}}", (long long)ms);
    else
        text_adds(out, ",\"retry_after_ms\":null}}");
}

/* What the engine would say of the longest prompt, then what the gate says. */
static bool is_refused(const struct request *r, const struct cost *cost,
                       struct admission_verdict *v, struct api_error *e) {
    const struct admission_ask ask = {r->n_choices * r->asked_width, cost->prompt_tokens};
    int code = gate_judge(r->server, &ask, v, e);
    for (int i = 0; i < r->n_choices; i++) {
        const struct engine_event *event = r->choices[i].outcome;
        int64_t limit = r->server->info->context;
        if (!event || (int64_t)event->n_ids <= limit) continue;
        code =
            api_error_set(e, API_ERROR_CONTEXT, NULL, "the prompt has %zu tokens, the context %lld",
                          event->n_ids, (long long)limit);
    }
    if (code == 0)
        code = gate_quota(r->server, r->pass.tenant, cost->prompt_tokens + ask.n * cost->new_tokens,
                          e);
    return code < 0;
}

void request_explain_answer(struct request *r, struct http_exchange *x, bool exact) {
    const struct server *s = r->server;
    struct engine_stats stats;
    struct admission_verdict v;
    struct api_error e;
    struct cost cost;
    struct text body = {0};
    engine_get_stats(s->engine, &stats);
    set_cost(&cost, r, exact);
    bool refused = is_refused(r, &cost, &v, &e);
    int64_t block_bytes = (int64_t)s->info->kv_token_bytes * s->info->kv_block_tokens;
    text_adds(&body, "{\"object\":\"explanation\",\"model\":");
    text_add_json(&body, s->model);
    text_addf(&body,
              ",\"prompts\":%d,\"sequences\":%d,\"prompt_tokens\":%lld,\"estimated\":%s,"
              "\"max_new_tokens\":%lld,\"kv_blocks\":%lld,\"kv_blocks_total\":%lld,"
              "\"kv_blocks_free\":%lld,\"kv_bytes\":%lld,\"queue_position\":%d,",
              r->n_choices, r->n_choices * r->asked_width, (long long)cost.prompt_tokens,
              cost.estimated ? "true" : "false", (long long)cost.new_tokens,
              (long long)cost.kv_blocks, (long long)stats.kv_blocks,
              (long long)stats.kv_blocks_free, (long long)(cost.kv_blocks * block_bytes),
              v.position);
    if (v.ttft_ns < 0)
        text_adds(&body, "\"predicted_ttft_ms\":null");
    else
        text_addf(&body, "\"predicted_ttft_ms\":%.3f", (double)v.ttft_ns / 1e6);
    add_verdict(&body, &e, refused);
    http_header(x, "Cache-Control", "no-store");
    http_reply(x, 200, "application/json", &body);
}

static void on_finish(struct request *r, struct http_exchange *x) {
    request_explain_answer(r, x, true);
}

const struct answer_form answer_explain = {.finish = on_finish};
