#include "server/prom.h"

#include <string.h>

#include "server/text.h"

void prom_head(struct text *out, const char *name, const char *type, const char *help) {
    text_addf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

void prom_sample(struct text *out, const char *name, const char *labels, double value) {
    text_adds(out, name);
    if (labels && *labels) text_addf(out, "{%s}", labels);
    /* Counters are whole numbers, and shorter so. */
    if (value == (double)(int64_t)value && value < 1e15 && value > -1e15)
        text_addf(out, " %lld\n", (long long)value);
    else
        text_addf(out, " %.9g\n", value);
}

void prom_family(struct text *out, const char *name, const char *type, const char *help,
                 const char *labels, double value) {
    prom_head(out, name, type, help);
    prom_sample(out, name, labels, value);
}

static void add_sample_of(struct text *out, const char *name, const char *suffix,
                          const char *labels) {
    text_addf(out, "%s%s", name, suffix);
    if (labels && *labels) text_addf(out, "{%s}", labels);
}

void prom_histogram(struct text *out, const char *name, const char *help, const char *labels,
                    const double *edges, int n, const uint64_t *counts, double sum) {
    uint64_t below = 0;
    const char *more = labels && *labels ? "," : "";
    prom_head(out, name, "histogram", help);
    for (int i = 0; i < n; i++) {
        below += counts[i];
        text_addf(out, "%s_bucket{%s%sle=\"%.9g\"} %llu\n", name, labels ? labels : "", more,
                  edges[i], (unsigned long long)below);
    }
    below += counts[n];
    text_addf(out, "%s_bucket{%s%sle=\"+Inf\"} %llu\n", name, labels ? labels : "", more,
              (unsigned long long)below);
    add_sample_of(out, name, "_sum", labels);
    text_addf(out, " %.9g\n", sum);
    add_sample_of(out, name, "_count", labels);
    text_addf(out, " %llu\n", (unsigned long long)below);
}

/* Only these three are escaped; other control characters would be taken as they are. */
void prom_label(struct text *out, const char *name, const char *value) {
    text_addf(out, "%s%s=\"", out->n ? "," : "", name);
    for (const char *p = value; *p;) {
        size_t n = strcspn(p, "\\\"\n");
        text_add(out, p, n);
        p += n;
        if (*p) text_adds(out, *p == '\n' ? "\\n" : *p == '"' ? "\\\"" : "\\\\");
        p += *p != 0;
    }
    text_adds(out, "\"");
}
