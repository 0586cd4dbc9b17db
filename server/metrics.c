#include "server/metrics.h"

#include "server/router.h"
#include "server/text.h"

static const int statuses[] = {200, 204, 304, 400, 404, 405, 413, 429, 500, 503, 504, 0};

enum { N_STATUSES = sizeof statuses / sizeof *statuses };

_Static_assert((int)N_STATUSES < (int)METRICS_STATUSES, "the last column counts other statuses");

/* From 0.1 ms, as a small model gives a token in less than the usual first edge of 10 ms. */
static const double edges[METRICS_BUCKETS] = {
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08,
    0.1,    0.15,    0.25,   0.5,   0.75,   1,     2.5,  5,    10,   30,   60,   300};

static const struct {
    const char *name, *help;
} timings[METRICS_TIMINGS] = {
    {"gptqt_time_to_first_token_seconds", "From the request to its first text."},
    {"gptqt_inter_token_seconds", "Between two texts of one choice."},
    {"gptqt_request_seconds", "From the request to the end of its generation."},
};

void metrics_reply(struct metrics *m, int route, int status) {
    int column = 0;
    while (column < N_STATUSES && statuses[column] != status) column++;
    if (route < 0 || route >= METRICS_ROUTES - 1) route = METRICS_ROUTES - 1;
    m->replies[route][column]++;
    if (status == 0) m->disconnects++;
}

void metrics_observe(struct metrics *m, enum metrics_timing timing, int64_t ns) {
    struct metrics_histogram *h = &m->timings[timing];
    double seconds = (double)ns / 1e9;
    int bucket = 0;
    while (bucket < METRICS_BUCKETS && seconds > edges[bucket]) bucket++;
    h->counts[bucket]++;
    h->sum += seconds;
}

static void render_replies(struct text *out, const struct metrics *m) {
    text_adds(out, "# HELP gptqt_http_requests_total Answered requests; status 0: client left.\n"
                   "# TYPE gptqt_http_requests_total counter\n");
    for (int i = 0; i < METRICS_ROUTES; i++) {
        const char *route = i < router_count() ? router_get(i)->name : "other";
        const char *path = i < router_count() ? router_get(i)->path : "";
        for (int k = 0; k <= N_STATUSES; k++) {
            if (!m->replies[i][k]) continue;
            text_addf(out, "gptqt_http_requests_total{route=\"%s\",path=\"%s\",status=\"", route,
                      path);
            if (k < N_STATUSES)
                text_addf(out, "%d", statuses[k]);
            else
                text_adds(out, "other");
            text_addf(out, "\"} %llu\n", (unsigned long long)m->replies[i][k]);
        }
    }
}

static void render_timing(struct text *out, const struct metrics_histogram *h, const char *name,
                          const char *help) {
    uint64_t below = 0;
    text_addf(out, "# HELP %s %s\n# TYPE %s histogram\n", name, help, name);
    for (int i = 0; i < METRICS_BUCKETS; i++) {
        below += h->counts[i];
        text_addf(out, "%s_bucket{le=\"%g\"} %llu\n", name, edges[i], (unsigned long long)below);
    }
    below += h->counts[METRICS_BUCKETS];
    text_addf(out, "%s_bucket{le=\"+Inf\"} %llu\n%s_sum %.9g\n%s_count %llu\n", name,
              (unsigned long long)below, name, h->sum, name, (unsigned long long)below);
}

void metrics_render(struct text *out, const struct metrics *m) {
    render_replies(out, m);
    text_addf(out,
              "# HELP gptqt_client_disconnects_total Clients that left before their answer.\n"
              "# TYPE gptqt_client_disconnects_total counter\n"
              "gptqt_client_disconnects_total %llu\n",
              (unsigned long long)m->disconnects);
    for (int i = 0; i < METRICS_TIMINGS; i++)
        render_timing(out, &m->timings[i], timings[i].name, timings[i].help);
}
