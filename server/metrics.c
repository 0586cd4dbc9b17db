#include "server/metrics.h"

#include <stdbool.h>
#include <stdio.h>

#include "server/prom.h"
#include "server/router.h"
#include "server/text.h"

static const int statuses[] = {200, 204, 304, 400, 401, 403, 404, 405, 413, 429, 500, 503, 504, 0};

enum { N_STATUSES = sizeof statuses / sizeof *statuses };

_Static_assert((int)N_STATUSES < (int)METRICS_STATUSES, "the last column counts other statuses");

/* From 0.1 ms, as a small model gives a token in less than the usual first edge of 10 ms. */
static const double fine[] = {0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02,
                              0.03,   0.04,    0.06,   0.08,  0.1,    0.15,  0.25, 0.5,
                              0.75,   1,       2.5,    5,     10,     30,    60,   300};
/* vLLM's, so that its dashboards line up. */
static const double vllm_first[] = {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1,
                                    0.25,  0.5,   0.75, 1,    2.5,  5,    7.5,  10,
                                    20,    40,    80,   160,  640,  2560};
static const double vllm_token[] = {0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5,
                                    0.75, 1,     2.5,  5,     7.5, 10,   20,  40,  80};
static const double vllm_request[] = {0.3, 0.5, 0.8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                      30,  40,  50,  60, 120, 240, 480, 960, 1920, 7680};
static const double numbers[] = {1,     2,      5,      10,     20,     50,    100,
                                 200,   500,    1000,   2000,   5000,   10000, 20000,
                                 50000, 100000, 200000, 500000, 1000000};
static const double few[] = {1, 2, 5, 10, 20};

#define EDGES(list) list, sizeof(list) / sizeof *(list)

static const struct series {
    enum metrics_fact fact;
    const char *name, *help;
    const double *edges;
    int n;
    bool vllm;
} series[] = {
    {METRICS_FIRST_TOKEN, "gptqt_time_to_first_token_seconds",
     "From the request to its first text.", EDGES(fine), false},
    {METRICS_TOKEN_GAP, "gptqt_inter_token_seconds", "Between two texts of one choice.",
     EDGES(fine), false},
    {METRICS_REQUEST, "gptqt_request_seconds", "From the request to the end of its generation.",
     EDGES(fine), false},
    {METRICS_QUEUE, "gptqt_queue_seconds", "From the request to its first step.", EDGES(fine),
     false},
    {METRICS_PREFILL, "gptqt_prefill_seconds", "From the first step to the first text.",
     EDGES(fine), false},
    {METRICS_DECODE, "gptqt_decode_seconds", "From the first text to the last.", EDGES(fine),
     false},
    {METRICS_PROMPT, "gptqt_request_prompt_tokens", "Tokens of prompts.", EDGES(numbers), false},
    {METRICS_GENERATED, "gptqt_request_generated_tokens", "Tokens generated for a choice.",
     EDGES(numbers), false},
    {METRICS_FIRST_TOKEN, "vllm:time_to_first_token_seconds", "Time to first token.",
     EDGES(vllm_first), true},
    {METRICS_TOKEN_GAP, "vllm:inter_token_latency_seconds", "Time between tokens.",
     EDGES(vllm_token), true},
    {METRICS_TOKEN_GAP, "vllm:time_per_output_token_seconds",
     "Deprecated name of vllm:inter_token_latency_seconds.", EDGES(vllm_token), true},
    {METRICS_PER_TOKEN, "vllm:request_time_per_output_token_seconds",
     "Mean time between a request's tokens.", EDGES(vllm_token), true},
    {METRICS_CHOICE, "vllm:e2e_request_latency_seconds", "Time of whole requests.",
     EDGES(vllm_request), true},
    {METRICS_QUEUE, "vllm:request_queue_time_seconds", "Time waiting.", EDGES(vllm_request), true},
    {METRICS_INFERENCE, "vllm:request_inference_time_seconds", "Time running.", EDGES(vllm_request),
     true},
    {METRICS_PREFILL, "vllm:request_prefill_time_seconds", "Time in prefill.", EDGES(vllm_request),
     true},
    {METRICS_DECODE, "vllm:request_decode_time_seconds", "Time in decode.", EDGES(vllm_request),
     true},
    {METRICS_PROMPT, "vllm:request_prompt_tokens", "Tokens of prompts.", EDGES(numbers), true},
    {METRICS_GENERATED, "vllm:request_generation_tokens", "Tokens generated.", EDGES(numbers),
     true},
    {METRICS_GENERATED, "vllm:request_max_num_generation_tokens",
     "Most tokens generated for a choice.", EDGES(numbers), true},
    {METRICS_MAX_TOKENS, "vllm:request_params_max_tokens", "max_tokens of requests.",
     EDGES(numbers), true},
    {METRICS_ASKED_N, "vllm:request_params_n", "n of requests.", EDGES(few), true},
};

enum { N_SERIES = sizeof series / sizeof *series };

_Static_assert((int)N_SERIES <= (int)METRICS_SERIES, "every series has its counts");

void metrics_reply(struct metrics *m, int route, int status) {
    int column = 0;
    while (column < N_STATUSES && statuses[column] != status) column++;
    if (route < 0 || route >= METRICS_ROUTES - 1) route = METRICS_ROUTES - 1;
    m->replies[route][column]++;
    if (status == 0) m->disconnects++;
}

void metrics_observe(struct metrics *m, enum metrics_fact fact, double value) {
    for (int i = 0; i < N_SERIES; i++) {
        if (series[i].fact != fact) continue;
        int bucket = 0;
        while (bucket < series[i].n && value > series[i].edges[bucket]) bucket++;
        m->series[i].counts[bucket]++;
        m->series[i].sum += value;
    }
}

void metrics_ended(struct metrics *m, enum metrics_reason reason) { m->reasons[reason]++; }

void metrics_cancelled(struct metrics *m, enum metrics_stage stage) { m->cancelled[stage]++; }

const char *metrics_stage_name(enum metrics_stage stage) {
    static const char *const names[] = {"queued", "prefill", "decode", "done-unread"};
    return names[stage];
}

static void render_cancelled(struct text *out, const struct metrics *m) {
    static const char name[] = "gptqt_requests_cancelled_total";
    prom_head(out, name, "counter", "Requests that were cancelled or left, by how far they were.");
    for (int i = 0; i < METRICS_STAGES; i++) {
        struct text labels = {0};
        prom_label(&labels, "state", metrics_stage_name((enum metrics_stage)i));
        if (labels.failed)
            out->failed = true;
        else
            prom_sample(out, name, labels.data, (double)m->cancelled[i]);
        text_deinit(&labels);
    }
}

static void render_replies(struct text *out, const struct metrics *m) {
    static const char name[] = "gptqt_http_requests_total";
    prom_head(out, name, "counter", "Answered requests; status 0: client left.");
    for (int i = 0; i < METRICS_ROUTES; i++) {
        bool known = i < router_count();
        for (int k = 0; k <= N_STATUSES; k++) {
            char status[16] = "other";
            struct text labels = {0};
            if (!m->replies[i][k]) continue;
            if (k < N_STATUSES) snprintf(status, sizeof status, "%d", statuses[k]);
            prom_label(&labels, "route", known ? router_get(i)->name : "other");
            prom_label(&labels, "path", known ? router_get(i)->path : "");
            prom_label(&labels, "status", status);
            if (labels.failed)
                out->failed = true;
            else
                prom_sample(out, name, labels.data, (double)m->replies[i][k]);
            text_deinit(&labels);
        }
    }
}

static void render_reasons(struct text *out, const struct metrics *m, const char *vllm) {
    static const char *const reasons[] = {"stop", "length", "abort", "error"};
    static const char name[] = "vllm:request_success_total";
    prom_head(out, name, "counter", "Requests that ended, by the reason.");
    for (int i = 0; i < METRICS_REASONS; i++) {
        struct text labels = {0};
        text_adds(&labels, vllm);
        prom_label(&labels, "finished_reason", reasons[i]);
        if (labels.failed)
            out->failed = true;
        else
            prom_sample(out, name, labels.data, (double)m->reasons[i]);
        text_deinit(&labels);
    }
}

/* Edges above the context say nothing; what is counted in them is above all that are shown. */
static int shown_edges(const struct series *s, int context) {
    int n = s->n;
    if (s->edges == numbers)
        while (context && n > 1 && s->edges[n - 1] > context) n--;
    return n;
}

static void render_series(struct text *out, const struct metrics *m, int i, const char *vllm,
                          int context) {
    struct metrics_histogram h = m->series[i];
    int n = shown_edges(&series[i], context);
    for (int k = n + 1; k <= series[i].n; k++) h.counts[n] += h.counts[k];
    prom_histogram(out, series[i].name, series[i].help, series[i].vllm ? vllm : NULL,
                   series[i].edges, n, h.counts, h.sum);
}

void metrics_render(struct text *out, const struct metrics *m, const char *vllm, int context) {
    render_replies(out, m);
    prom_family(out, "gptqt_client_disconnects_total", "counter",
                "Clients that left before their answer.", NULL, (double)m->disconnects);
    prom_family(out, "gptqt_scrapes_total", "counter", "Answers like this one.", NULL,
                (double)m->scrapes);
    render_cancelled(out, m);
    render_reasons(out, m, vllm);
    for (int i = 0; i < N_SERIES; i++) render_series(out, m, i, vllm, context);
}
