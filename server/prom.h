/* prom.h - writes Prometheus' text format, version 0.0.4.
 *
 * Owns      nothing.
 * Borrows   its arguments during the call.
 * Thread    any.
 * Fails     as text.h: the text is marked.
 * Cost      O(bytes).
 *
 * A family is its head and then its samples, without another family between them: readers
 * insist on it. Labels are written by prom_label() into a text of their own, without braces. */
#ifndef SERVER_PROM_H
#define SERVER_PROM_H

#include <stdint.h>

struct text;

/* type: "counter", "gauge", "histogram". */
void prom_head(struct text *out, const char *name, const char *type, const char *help);

/* labels: NULL or what prom_label() wrote. */
void prom_sample(struct text *out, const char *name, const char *labels, double value);

/* Head and only sample. */
void prom_family(struct text *out, const char *name, const char *type, const char *help,
                 const char *labels, double value);

/* counts (n + 1): observations in each bucket, the last one above all edges. */
void prom_histogram(struct text *out, const char *name, const char *help, const char *labels,
                    const double *edges, int n, const uint64_t *counts, double sum);

/* Adds name="value", and a comma before it unless it is the first. */
void prom_label(struct text *out, const char *name, const char *value);

#endif
