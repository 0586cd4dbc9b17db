#include "tests/load/report.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { COMPLAINTS = 10 };

static const char *const outcomes[OUTCOMES] = {"ok", "refused", "cancelled", "lost", "wrong"};
static const char *const spans[SPANS] = {"quick", "refusal", "ttft", "gap", "e2e", "late"};
static const double fractions[] = {0.5, 0.9, 0.99, 0.999};
static const char *const fraction_names[] = {"p50", "p90", "p99", "p99.9"};

enum { N_FRACTIONS = sizeof fractions / sizeof *fractions };

int report_open(struct report *r, const char *raw_path) {
    memset(r, 0, sizeof *r);
    if (!raw_path) return 0;
    r->raw = fopen(raw_path, "w");
    return r->raw ? 0 : -errno;
}

void report_close(struct report *r) {
    if (r->raw) fclose(r->raw);
    r->raw = NULL;
}

void report_outcome(struct report *r, enum case_kind kind, enum outcome outcome, const char *id,
                    const char *why) {
    r->counts[kind][outcome]++;
    if (outcome < OUTCOME_LOST || r->said++ >= COMPLAINTS) return;
    fprintf(stderr, "%s: %s %s: %s\n", outcomes[outcome], cases_name(kind), id, why);
}

void report_span(struct report *r, enum span span, int64_t ns) { latency_add(&r->spans[span], ns); }

void report_tokens(struct report *r, int key, int n) {
    r->tokens += (uint64_t)n;
    if (key >= 0 && key < REPORT_KEYS) r->key_tokens[key] += (uint64_t)n;
}

void report_restart(struct report *r, int64_t now_ns) {
    memset(r->spans, 0, sizeof r->spans);
    memset(r->key_tokens, 0, sizeof r->key_tokens);
    r->tokens = 0;
    r->since_ns = now_ns;
}

uint64_t report_total(const struct report *r, enum outcome outcome) {
    uint64_t sum = 0;
    for (int kind = 0; kind < CASE_KINDS; kind++) sum += r->counts[kind][outcome];
    return sum;
}

double report_fairness(const struct report *r) {
    double sum = 0, squares = 0;
    for (int i = 0; i < r->n_keys; i++) {
        double tokens = (double)r->key_tokens[i];
        sum += tokens;
        squares += tokens * tokens;
    }
    return squares > 0 ? sum * sum / (r->n_keys * squares) : 0;
}

static double seconds(const struct report *r) {
    double s = (double)(r->until_ns - r->since_ns) / 1e9;
    return s > 0 ? s : 1e-9;
}

void report_print(const struct report *r, FILE *out) {
    fprintf(out, "%-12s", "");
    for (int i = 0; i < OUTCOMES; i++) fprintf(out, "%10s", outcomes[i]);
    for (int kind = 0; kind < CASE_KINDS; kind++) {
        uint64_t any = 0;
        for (int i = 0; i < OUTCOMES; i++) any += r->counts[kind][i];
        if (!any) continue;
        fprintf(out, "\n%-12s", cases_name((enum case_kind)kind));
        for (int i = 0; i < OUTCOMES; i++) fprintf(out, "%10" PRIu64, r->counts[kind][i]);
    }
    fprintf(out, "\n\n%-8s%10s", "ms", "count");
    for (int i = 0; i < N_FRACTIONS; i++) fprintf(out, "%10s", fraction_names[i]);
    fprintf(out, "%10s\n", "max");
    for (int s = 0; s < SPANS; s++) {
        const struct latency *l = &r->spans[s];
        if (!l->n) continue;
        fprintf(out, "%-8s%10" PRIu64, spans[s], l->n);
        for (int i = 0; i < N_FRACTIONS; i++)
            fprintf(out, "%10.3f", (double)latency_at(l, fractions[i]) / 1e6);
        fprintf(out, "%10.3f\n", (double)l->max_ns / 1e6);
    }
    uint64_t n = r->spans[SPAN_WHOLE].n + r->spans[SPAN_QUICK].n;
    fprintf(out, "\n%.1f s: %.0f answers/s, %.0f tokens/s, %" PRIu64 " retries", seconds(r),
            (double)n / seconds(r), (double)r->tokens / seconds(r), r->retries);
    if (r->n_held || r->n_dropped)
        fprintf(out, ", %d idle connections held, %d dropped", r->n_held, r->n_dropped);
    if (r->n_keys) fprintf(out, ", fairness %.4f", report_fairness(r));
    fprintf(out, "\n");
}

void report_print_json(const struct report *r, FILE *out) {
    fprintf(out,
            "{\"seconds\":%.3f,\"tokens\":%" PRIu64 ",\"retries\":%" PRIu64
            ",\"held\":%d,\"dropped\":%d,\"fairness\":%.5f",
            seconds(r), r->tokens, r->retries, r->n_held, r->n_dropped, report_fairness(r));
    for (int i = 0; i < OUTCOMES; i++)
        fprintf(out, ",\"%s\":%" PRIu64, outcomes[i], report_total(r, (enum outcome)i));
    fprintf(out, ",\"kinds\":{");
    for (int kind = 0; kind < CASE_KINDS; kind++) {
        fprintf(out, "%s\"%s\":{", kind ? "," : "", cases_name((enum case_kind)kind));
        for (int i = 0; i < OUTCOMES; i++)
            fprintf(out, "%s\"%s\":%" PRIu64, i ? "," : "", outcomes[i], r->counts[kind][i]);
        fprintf(out, "}");
    }
    fprintf(out, "},\"key_tokens\":[");
    for (int i = 0; i < r->n_keys; i++) fprintf(out, "%s%" PRIu64, i ? "," : "", r->key_tokens[i]);
    fprintf(out, "],\"ms\":{");
    for (int s = 0; s < SPANS; s++) {
        const struct latency *l = &r->spans[s];
        fprintf(out, "%s\"%s\":{\"n\":%" PRIu64 ",\"mean\":%.4f", s ? "," : "", spans[s], l->n,
                l->n ? l->sum_ns / (double)l->n / 1e6 : 0);
        for (int i = 0; i < N_FRACTIONS; i++)
            fprintf(out, ",\"%s\":%.4f", fraction_names[i],
                    (double)latency_at(l, fractions[i]) / 1e6);
        fprintf(out, ",\"max\":%.4f}", (double)l->max_ns / 1e6);
    }
    fprintf(out, "}}\n");
}
