#include "server/api/api.h"

#include "server/http.h"
#include "server/server.h"

struct series { /* one number with no labels */
    const char *name, *type, *help;
    double value;
};

static void add_series(struct text *out, const struct series *list, size_t n) {
    for (size_t i = 0; i < n; i++)
        text_addf(out, "# HELP %s %s\n# TYPE %s %s\n%s %.17g\n", list[i].name, list[i].help,
                  list[i].name, list[i].type, list[i].name, list[i].value);
}

static void add_info(struct text *out, const struct server *s) {
    text_adds(out, "# HELP gptqt_build_info The program and its model.\n"
                   "# TYPE gptqt_build_info gauge\ngptqt_build_info{version=\"" GPTQT_VERSION
                   "\",model=");
    text_add_json(out, s->model); /* Prometheus escapes the same three characters */
    text_adds(out, ",backend=");
    text_add_json(out, s->info ? s->info->backend : "");
    text_addf(out, ",bits=\"%d\"} 1\n", s->info ? s->info->bits : 0);
}

static void add_engine(struct text *out, const struct engine_stats *e) {
    double used = e->kv_blocks ? 1 - (double)e->kv_blocks_free / (double)e->kv_blocks : 0;
    const struct series list[] = {
        {"gptqt_ready", "gauge", "1 while new requests are served.",
         e->ready && !e->draining && !e->failed},
        {"gptqt_requests_running", "gauge", "Sequences being computed.", e->running},
        {"gptqt_requests_waiting", "gauge", "Sequences queued, preempted ones too.", e->waiting},
        {"gptqt_requests_running_limit", "gauge", "Most sequences computed.", e->max_running},
        {"gptqt_requests_waiting_limit", "gauge", "Most sequences queued.", e->max_waiting},
        {"gptqt_kv_blocks", "gauge", "Blocks of the KV cache.", (double)e->kv_blocks},
        {"gptqt_kv_blocks_free", "gauge", "Free blocks.", (double)e->kv_blocks_free},
        {"gptqt_kv_used_ratio", "gauge", "Used share of the blocks, 0 to 1.", used},
        {"gptqt_sequences_total", "counter", "Sequences submitted.", (double)e->requests},
        {"gptqt_sequences_finished_total", "counter", "Sequences that ended well.",
         (double)e->finished},
        {"gptqt_sequences_failed_total", "counter", "Sequences that failed.", (double)e->failures},
        {"gptqt_sequences_cancelled_total", "counter", "Sequences given up.", (double)e->cancelled},
        {"gptqt_preemptions_total", "counter", "Sequences that lost their blocks for a while.",
         (double)e->preemptions},
        {"gptqt_prompt_tokens_total", "counter", "Prompt tokens computed.",
         (double)e->prompt_tokens},
        {"gptqt_generated_tokens_total", "counter", "Tokens generated.",
         (double)e->generated_tokens},
        {"gptqt_steps_total", "counter", "Steps of the engine.", (double)e->steps},
        {"gptqt_busy_seconds_total", "counter", "Time inside steps.", e->busy_seconds},
    };
    add_series(out, list, sizeof list / sizeof *list);
}

void api_metrics(struct server *s, struct http_exchange *x) {
    struct text body = {0};
    struct engine_stats stats;
    engine_get_stats(s->engine, &stats);
    add_info(&body, s);
    add_engine(&body, &stats);
    metrics_render(&body, &s->metrics);
    http_header(x, "Cache-Control", "no-store");
    http_reply(x, 200, "text/plain; version=0.0.4; charset=utf-8", &body);
}
