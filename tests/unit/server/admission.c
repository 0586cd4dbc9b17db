#include "server/admission.h"

#include <criterion/criterion.h>

#include "engine/engine.h"

#define SECOND INT64_C(1000000000)

/* 1000 prompt tokens a second; sequences of 100 tokens in steps of 10 ms, so one ends each
 * quarter of a second while four run. */
static const struct engine_stats half_full = {.max_running = 4,
                                              .max_waiting = 8,
                                              .running = 4,
                                              .waiting = 2,
                                              .waiting_tokens = 3000,
                                              .prefill_rate = 1000,
                                              .step_seconds = 0.01,
                                              .finished = 10,
                                              .generated_tokens = 1000};

static struct admission_verdict judge(const struct engine_stats *e, int64_t tokens, int64_t ttft,
                                      int n, int64_t size) {
    struct admission_limits limits = {tokens, ttft};
    struct admission_ask ask = {n, size};
    return admission_judge(e, &limits, &ask);
}

Test(admission, without_limits_places_count) {
    struct engine_stats e = half_full;
    struct admission_verdict v = judge(&e, 0, 0, 6, 1000000);
    cr_expect(v.reason == ADMISSION_FITS && v.retry_ns == 0 && v.position == 2);
    v = judge(&e, 0, 0, 7, 0);
    cr_expect(v.reason == ADMISSION_SEQUENCES && v.retry_ns == SECOND / 4);
    e.step_seconds = 0;
    v = judge(&e, 0, 0, 7, 0);
    cr_expect(v.reason == ADMISSION_SEQUENCES && v.retry_ns == SECOND);
}

Test(admission, more_than_there_are_places_never_fits) {
    struct engine_stats e = half_full;
    struct admission_verdict v = judge(&e, 0, 0, 13, 0);
    cr_expect(v.reason == ADMISSION_NEVER && v.retry_ns == 0);
}

Test(admission, waiting_tokens_are_bounded) {
    struct engine_stats e = half_full;
    cr_expect(judge(&e, 4000, 0, 1, 1000).reason == ADMISSION_FITS);
    struct admission_verdict v = judge(&e, 4000, 0, 1, 3000);
    cr_expect(v.reason == ADMISSION_TOKENS && v.retry_ns == 2 * SECOND);
    e.prefill_rate = 0;
    v = judge(&e, 4000, 0, 1, 3000);
    cr_expect(v.reason == ADMISSION_TOKENS && v.retry_ns == SECOND);
    e.waiting_tokens = 0; /* nobody waits: the only one may be as large as it likes */
    cr_expect(judge(&e, 4000, 0, 1, 100000).reason == ADMISSION_FITS);
}

Test(admission, time_to_first_token_is_predicted) {
    struct engine_stats e = half_full;
    struct admission_verdict v = judge(&e, 0, 0, 1, 1000);
    /* 4000 tokens at 1000 a second, and a step. */
    cr_expect(v.reason == ADMISSION_FITS && v.ttft_ns == 4 * SECOND + SECOND / 100);
    e.waiting_tokens = 0;
    v = judge(&e, 0, 0, 1, 0);
    /* The third in the queue: the third of the running ones has to end. */
    cr_expect(v.ttft_ns > 75 * (SECOND / 100) && v.ttft_ns < 77 * (SECOND / 100));
    e.running = e.waiting = 0;
    v = judge(&e, 0, 0, 1, 0);
    cr_expect(v.ttft_ns == SECOND / 100);
    e.prefill_rate = 0;
    cr_expect(judge(&e, 0, 0, 1, 0).ttft_ns == -1);
}

Test(admission, a_late_first_token_is_a_reason) {
    struct engine_stats e = half_full;
    struct admission_verdict v = judge(&e, 0, 2 * SECOND, 1, 1000);
    cr_expect(v.reason == ADMISSION_TTFT);
    cr_expect(v.retry_ns > 2 * SECOND && v.retry_ns < 2 * SECOND + SECOND / 50);
    cr_expect(judge(&e, 0, 5 * SECOND, 1, 1000).reason == ADMISSION_FITS);
    e.prefill_rate = 0; /* not known: no reason */
    cr_expect(judge(&e, 0, 2 * SECOND, 1, 1000).reason == ADMISSION_FITS);
}

Test(admission, an_idle_engine_takes_what_is_late_anyway) {
    struct engine_stats e = half_full;
    e.running = e.waiting = 0;
    e.waiting_tokens = 0;
    cr_expect(judge(&e, 10, SECOND, 1, 100000).reason == ADMISSION_FITS);
}

Test(admission, clients_are_not_sent_away_for_hours) {
    struct engine_stats e = half_full;
    e.waiting_tokens = INT64_C(1) << 40;
    cr_expect(judge(&e, 1000, 0, 1, 0).retry_ns == 60 * SECOND);
    e = half_full;
    e.step_seconds = 1e-9;
    cr_expect(judge(&e, 0, 0, 7, 0).retry_ns == SECOND / 10);
}
