#include "server/admission.h"

#include "engine/engine.h"

static const double SECOND = 1e9;
static const double SHORTEST = 0.1, LONGEST = 60; /* seconds that clients are told to wait */

/* Sequences that end in a second while all places are taken; 0 = unknown. */
static double completion_rate(const struct engine_stats *e) {
    if (e->step_seconds <= 0 || e->finished <= 0 || e->generated_tokens <= 0) return 0;
    double tokens = (double)e->generated_tokens / (double)e->finished;
    return e->running / (tokens * e->step_seconds);
}

/* Seconds until this sequence gets a place; those before it get theirs first. */
static double place_wait(const struct engine_stats *e, int n) {
    int over = e->running + e->waiting + n - e->max_running;
    double rate = completion_rate(e);
    if (over <= 0 || rate <= 0) return 0;
    return over / rate;
}

static double predict(const struct engine_stats *e, const struct admission_ask *ask) {
    if (e->prefill_rate <= 0) return -1;
    double prompts = (double)(e->waiting_tokens + ask->tokens) / e->prefill_rate;
    double wait = place_wait(e, 1);
    /* Prompts are computed while places are waited for. */
    return (prompts > wait ? prompts : wait) + e->step_seconds;
}

static int64_t nanoseconds(double seconds) {
    if (seconds < SHORTEST) seconds = SHORTEST;
    if (seconds > LONGEST) seconds = LONGEST;
    return (int64_t)(seconds * SECOND);
}

static double or_one(double seconds) { return seconds > 0 ? seconds : 1; }

static void refuse(struct admission_verdict *v, enum admission_reason reason, double seconds) {
    v->reason = reason;
    v->retry_ns = reason == ADMISSION_NEVER ? 0 : nanoseconds(seconds);
}

struct admission_verdict admission_judge(const struct engine_stats *e,
                                         const struct admission_limits *limits,
                                         const struct admission_ask *ask) {
    int places = e->max_running + e->max_waiting, used = e->running + e->waiting;
    double ttft = predict(e, ask), late = ttft - (double)limits->ttft_ns / SECOND;
    int64_t tokens = e->waiting_tokens + ask->tokens - limits->waiting_tokens;
    struct admission_verdict v = {.ttft_ns = ttft < 0 ? -1 : (int64_t)(ttft * SECOND),
                                  .position = e->waiting};
    if (ask->n > places) {
        refuse(&v, ADMISSION_NEVER, 0);
    } else if (used + ask->n > places) {
        double rate = completion_rate(e);
        refuse(&v, ADMISSION_SEQUENCES, rate > 0 ? (used + ask->n - places) / rate : 1);
    } else if (used == 0) {
        v.reason = ADMISSION_FITS;
    } else if (limits->waiting_tokens && e->waiting_tokens > 0 && tokens > 0) {
        double rate = e->prefill_rate;
        refuse(&v, ADMISSION_TOKENS, or_one(rate > 0 ? (double)tokens / rate : 1));
    } else if (limits->ttft_ns && ttft > 0 && late > 0) {
        refuse(&v, ADMISSION_TTFT, late);
    }
    return v;
}
