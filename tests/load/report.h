/* report.h - counts what became of the requests and how long it took.
 *
 * Owns      the raw file, from report_open() to report_close().
 * Borrows   its arguments during the call.
 * Thread    one.
 * Fails     opening with a negative errno.
 * Cost      fixed memory, however long the run; raw lines go through stdio.
 *
 * Every request that was begun ends in exactly one outcome. Only LOST and WRONG are the server's
 * fault; a refusal is an answer as long as it says when to come back. */
#ifndef TESTS_LOAD_REPORT_H
#define TESTS_LOAD_REPORT_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "tests/load/cases.h"
#include "tests/load/latency.h"

enum outcome {
    OUTCOME_OK,
    OUTCOME_REFUSED,   /* 429 or 503 with Retry-After, in the right form */
    OUTCOME_CANCELLED, /* by us */
    OUTCOME_LOST,      /* no answer, or half of one, or none in time */
    OUTCOME_WRONG,     /* an answer, but not this question's */
    OUTCOMES
};

enum span {
    SPAN_QUICK, /* health and bad requests, from question to answer */
    SPAN_REFUSAL,
    SPAN_FIRST, /* to the first event with text */
    SPAN_GAP,   /* between events with text */
    SPAN_WHOLE, /* of generating requests that went well */
    SPAN_LATE,  /* with a pace: behind the stream's own timetable */
    SPANS
};

enum { REPORT_KEYS = 64 };

struct report {
    uint64_t counts[CASE_KINDS][OUTCOMES];
    uint64_t retries, tokens; /* tokens: events with text, or usage where there were none */
    uint64_t key_tokens[REPORT_KEYS];
    int64_t since_ns, until_ns;    /* the measured time */
    int n_keys, n_held, n_dropped; /* idle connections at the end: alive, closed on us */
    int said;                      /* complaints */
    struct latency spans[SPANS];
    FILE *raw;
};

int report_open(struct report *r, const char *raw_path);
void report_close(struct report *r);

void report_outcome(struct report *r, enum case_kind kind, enum outcome outcome, const char *id,
                    const char *why);
void report_span(struct report *r, enum span span, int64_t ns);
void report_tokens(struct report *r, int key, int n);

/* Forgets spans and tokens: the warm-up is over. */
void report_restart(struct report *r, int64_t now_ns);

uint64_t report_total(const struct report *r, enum outcome outcome);
double report_fairness(const struct report *r); /* Jain's index over the keys' tokens */

void report_print(const struct report *r, FILE *out);
void report_print_json(const struct report *r, FILE *out);

#endif
