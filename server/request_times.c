#include "server/request_times.h"

#include <stdio.h>
#include <string.h>

#include "server/http.h"
#include "server/loop.h"
#include "server/metrics.h"
#include "server/request_parts.h"
#include "server/server.h"

static struct metrics *metrics_of(const struct choice *c) { return &c->request->server->metrics; }

static void observe(const struct choice *c, enum metrics_fact fact, int64_t from, int64_t to) {
    if (from && to >= from) metrics_observe(metrics_of(c), fact, (double)(to - from) / 1e9);
}

void request_times_started(struct choice *c, const struct engine_event *event) {
    c->queued_ns = event->queued_ns ? event->queued_ns : loop_now_ns();
}

void request_times_text(struct choice *c, const struct engine_event *event) {
    int64_t now = loop_now_ns();
    if (!c->first_ns) {
        c->first_ns = event->first_ns ? event->first_ns : now;
        observe(c, METRICS_FIRST_TOKEN, c->request->start_ns, now);
    } else {
        observe(c, METRICS_TOKEN_GAP, c->text_ns, now);
    }
    c->text_ns = now;
}

static enum metrics_reason reason_of(const struct engine_event *event) {
    if (event->kind == ENGINE_FAILED) return METRICS_ERROR;
    if (event->finish == FINISH_CANCELLED) return METRICS_ABORT;
    return event->finish == FINISH_LENGTH ? METRICS_LENGTH : METRICS_STOP;
}

void request_times_ended(struct choice *c, const struct engine_event *event) {
    const struct request *r = c->request;
    enum metrics_reason reason = reason_of(event);
    struct metrics *m = metrics_of(c);
    metrics_ended(m, reason);
    if (reason == METRICS_ERROR || reason == METRICS_ABORT) return;
    if (event->queued_ns) c->queued_ns = event->queued_ns;
    int64_t last = c->text_ns ? c->text_ns : loop_now_ns();
    observe(c, METRICS_CHOICE, r->start_ns, last);
    observe(c, METRICS_QUEUE, r->start_ns, c->queued_ns);
    observe(c, METRICS_INFERENCE, c->queued_ns, last);
    observe(c, METRICS_PREFILL, c->queued_ns, c->first_ns);
    observe(c, METRICS_DECODE, c->first_ns, c->text_ns);
    if (event->n_generated > 1 && c->first_ns)
        metrics_observe(m, METRICS_PER_TOKEN,
                        (double)(last - c->first_ns) / 1e9 / (event->n_generated - 1));
    metrics_observe(m, METRICS_PROMPT, event->n_prompt);
    metrics_observe(m, METRICS_GENERATED, event->n_generated);
    if (r->wanted->max_tokens > 0)
        metrics_observe(m, METRICS_MAX_TOKENS, (double)r->wanted->max_tokens);
}

/* The earliest of the choices, as nanoseconds since the request; -1 = not yet. */
static int64_t earliest(const struct request *r, size_t offset) {
    int64_t found = 0;
    for (int i = 0; i < r->n_choices; i++) {
        int64_t at = *(const int64_t *)(const void *)((const char *)&r->choices[i] + offset);
        if (at && (!found || at < found)) found = at;
    }
    return found ? found - r->start_ns : -1;
}

void request_times_note(const struct request *r, struct http_exchange *x) {
    struct openai_usage usage = request_usage(r);
    x->n_prompt = usage.n_prompt;
    x->n_cached = usage.n_cached;
    x->n_generated = usage.n_generated;
    x->queue_ns = earliest(r, offsetof(struct choice, queued_ns));
    x->first_ns = earliest(r, offsetof(struct choice, first_ns));
    x->finish = r->choices[0].finish;
}

static void add_timing(char *line, size_t size, const char *name, int64_t ns) {
    size_t n = strlen(line);
    if (ns < 0 || n >= size) return;
    snprintf(line + n, size - n, "%s%s;dur=%.3f", n ? ", " : "", name, (double)ns / 1e6);
}

void request_times_head(const struct request *r, struct http_exchange *x) {
    char line[128] = "", ms[24];
    int64_t total = loop_now_ns() - r->start_ns;
    request_times_note(r, x);
    add_timing(line, sizeof line, "queue", x->queue_ns);
    add_timing(line, sizeof line, "ttft", x->first_ns);
    /* A stream's total is not known when its head is written. */
    if (!r->wanted->stream) add_timing(line, sizeof line, "total", total);
    if (*line) http_header(x, "Server-Timing", line);
    snprintf(ms, sizeof ms, "%.0f", (double)total / 1e6);
    http_header(x, "openai-processing-ms", ms);
}

void request_times_finished(const struct request *r, struct http_exchange *x) {
    struct metrics *m = &r->server->metrics;
    metrics_observe(m, METRICS_REQUEST, (double)(loop_now_ns() - r->start_ns) / 1e9);
    metrics_observe(m, METRICS_ASKED_N, r->wanted->n);
    if (r->wanted->stream)
        request_times_note(r, x);
    else
        request_times_head(r, x);
}
