/* metrics.h - counts what the server did.
 *
 * Owns      its numbers; embedded in struct server.
 * Borrows   nothing.
 * Thread    the loop's.
 * Fails     never; what has no counter of its own is counted as "other".
 * Cost      O(series + buckets) an observation, no allocation.
 *
 * Counters only grow, and labels come from fixed tables, so a client cannot make series. Many
 * facts are shown twice: in series of our own, whose buckets suit fast models, and in vLLM's
 * with vLLM's buckets, which dashboards and routers know. */
#ifndef SERVER_METRICS_H
#define SERVER_METRICS_H

#include <stdint.h>

struct text;

enum {
    METRICS_ROUTES = 64,
    METRICS_STATUSES = 16,
    METRICS_BUCKETS = 24,
    METRICS_SERIES = 32,
    METRICS_REASONS = 4
};

enum metrics_fact {
    METRICS_FIRST_TOKEN, /* seconds from the request to its first text */
    METRICS_TOKEN_GAP,   /* between texts of one choice */
    METRICS_REQUEST,     /* of a whole request */
    METRICS_CHOICE,      /* of one choice, and its parts: */
    METRICS_QUEUE,
    METRICS_PREFILL,
    METRICS_DECODE,
    METRICS_INFERENCE,
    METRICS_PER_TOKEN, /* a choice's mean gap */
    METRICS_PROMPT,    /* numbers of a choice: tokens, */
    METRICS_GENERATED,
    METRICS_MAX_TOKENS, /* what was asked for */
    METRICS_ASKED_N
};

enum metrics_reason { METRICS_STOP, METRICS_LENGTH, METRICS_ABORT, METRICS_ERROR };

enum metrics_stage { /* of a request that was cancelled, or whose client left */
                     METRICS_IN_QUEUE,
                     METRICS_IN_PREFILL,
                     METRICS_IN_DECODE,
                     METRICS_UNREAD, /* its answer was complete */
                     METRICS_STAGES
};

struct metrics_histogram {
    uint64_t counts[METRICS_BUCKETS + 1]; /* the last one: above all edges */
    double sum;
};

struct metrics {
    uint64_t replies[METRICS_ROUTES][METRICS_STATUSES];
    struct metrics_histogram series[METRICS_SERIES];
    uint64_t reasons[METRICS_REASONS]; /* why choices ended */
    uint64_t cancelled[METRICS_STAGES];
    uint64_t disconnects;
    uint64_t scrapes;
};

/* route is a router row, or -1. status 0: the client left before an answer. */
void metrics_reply(struct metrics *m, int route, int status);

void metrics_observe(struct metrics *m, enum metrics_fact fact, double value);
void metrics_ended(struct metrics *m, enum metrics_reason reason);
void metrics_cancelled(struct metrics *m, enum metrics_stage stage);
const char *metrics_stage_name(enum metrics_stage stage);

/* Adds all of it. vllm: the labels of vLLM's series; numbers of tokens have buckets up to
 * context, 0 = all. */
void metrics_render(struct text *out, const struct metrics *m, const char *vllm, int context);

#endif
