/* metrics.h - counts what the server did.
 *
 * Owns      its numbers; embedded in struct server.
 * Borrows   nothing.
 * Thread    the loop's.
 * Fails     never; what has no counter of its own is counted as "other".
 * Cost      O(buckets) an observation, no allocation.
 *
 * Counters only grow, and labels come from fixed tables, so a client cannot make series. */
#ifndef SERVER_METRICS_H
#define SERVER_METRICS_H

#include <stdint.h>

struct text;

enum { METRICS_ROUTES = 64, METRICS_STATUSES = 16, METRICS_BUCKETS = 24 };

enum metrics_timing {
    METRICS_FIRST_TOKEN, /* request read to first text */
    METRICS_TOKEN_GAP,   /* between texts of one choice */
    METRICS_REQUEST,     /* request read to last text */
    METRICS_TIMINGS
};

struct metrics_histogram {
    uint64_t counts[METRICS_BUCKETS + 1]; /* the last one: above all edges */
    double sum;
};

struct metrics {
    uint64_t replies[METRICS_ROUTES][METRICS_STATUSES];
    struct metrics_histogram timings[METRICS_TIMINGS];
    uint64_t disconnects;
};

/* route is a router row, or -1. status 0: the client left before an answer. */
void metrics_reply(struct metrics *m, int route, int status);

void metrics_observe(struct metrics *m, enum metrics_timing timing, int64_t ns);

/* Adds all of it in Prometheus' text format. */
void metrics_render(struct text *out, const struct metrics *m);

#endif
