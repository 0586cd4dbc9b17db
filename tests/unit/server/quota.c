#include "server/quota.h"

#include <criterion/criterion.h>
#include <stdlib.h>

#define SECOND INT64_C(1000000000)

static struct quota with(int concurrency, int64_t tokens, int64_t requests) {
    struct quota q = {0};
    struct quota_limits limits = {concurrency, tokens, requests};
    quota_set(&q, &limits, 0);
    return q;
}

Test(quota, none_lets_everything_in) {
    struct quota q = with(0, 0, 0);
    for (int i = 0; i < 1000; i++)
        cr_assert(quota_take(&q, INT64_C(1) << 40, 0).limit == QUOTA_FITS);
    cr_expect(q.n_running == 1000);
}

Test(quota, concurrency_counts_what_runs) {
    struct quota q = with(2, 0, 0);
    cr_expect(quota_take(&q, 1, 0).limit == QUOTA_FITS);
    cr_expect(quota_take(&q, 1, 0).limit == QUOTA_FITS);
    struct quota_verdict v = quota_take(&q, 1, 0);
    cr_expect(v.limit == QUOTA_CONCURRENCY && v.wait_ns == SECOND && q.n_running == 2);
    quota_settle(&q, 1, 1, 0);
    cr_expect(quota_take(&q, 1, 0).limit == QUOTA_FITS);
}

Test(quota, requests_come_back_steadily) {
    struct quota q = with(0, 0, 60);
    for (int i = 0; i < 60; i++) cr_assert(quota_take(&q, 0, 0).limit == QUOTA_FITS);
    struct quota_verdict v = quota_take(&q, 0, 0);
    cr_expect(v.limit == QUOTA_REQUESTS && v.wait_ns == SECOND);
    cr_expect(quota_take(&q, 0, SECOND - 1000).limit == QUOTA_REQUESTS);
    cr_expect(quota_take(&q, 0, SECOND).limit == QUOTA_FITS);
    cr_expect(quota_take(&q, 0, SECOND).limit == QUOTA_REQUESTS);
}

Test(quota, what_was_not_used_comes_back) {
    struct quota q = with(0, 600, 0);
    int64_t full;
    cr_expect(quota_take(&q, 500, 0).limit == QUOTA_FITS);
    struct quota_verdict v = quota_check(&q, 200, 0);
    cr_expect(v.limit == QUOTA_TOKENS && v.wait_ns == 10 * SECOND);
    quota_settle(&q, 500, 100, 0);
    cr_expect(quota_check(&q, 200, 0).limit == QUOTA_FITS);
    cr_expect(quota_left(&q.tokens, 0, &full) == 500 && full == 10 * SECOND);
    cr_expect(quota_left(&q.tokens, 60 * SECOND, &full) == 600 && full == 0);
}

Test(quota, who_used_more_than_he_said_pays_later) {
    struct quota q = with(0, 600, 0);
    int64_t full;
    cr_expect(quota_take(&q, 600, 0).limit == QUOTA_FITS);
    quota_settle(&q, 600, 1200, 0);
    cr_expect(quota_left(&q.tokens, 0, &full) == 0 && full == 120 * SECOND);
    cr_expect(quota_check(&q, 10, 60 * SECOND).wait_ns == SECOND);
}

Test(quota, what_can_never_fit_is_told_apart) {
    struct quota q = with(1, 600, 0);
    struct quota_verdict v = quota_take(&q, 601, 0);
    cr_expect(v.limit == QUOTA_NEVER && v.wait_ns == 0 && q.n_running == 0);
}

Test(quota, the_longest_wait_is_told) {
    struct quota q = with(0, 60, 60);
    for (int i = 0; i < 60; i++) quota_take(&q, 0, 0);
    quota_take(&q, 0, 0);
    q.tokens.level = 0;
    struct quota_verdict v = quota_check(&q, 30, 0);
    cr_expect(v.limit == QUOTA_TOKENS && v.wait_ns == 30 * SECOND);
}

Test(quota, new_limits_keep_what_was_used) {
    struct quota q = with(0, 600, 0);
    int64_t full;
    quota_take(&q, 400, 0);
    struct quota_limits more = {0, 1000, 0}, less = {0, 100, 0}, none = {0, 0, 0};
    quota_set(&q, &more, 0);
    cr_expect(quota_left(&q.tokens, 0, &full) == 600);
    quota_set(&q, &less, 0);
    cr_expect(quota_left(&q.tokens, 0, &full) == 0);
    quota_set(&q, &none, 0);
    cr_expect(quota_check(&q, 1 << 20, 0).limit == QUOTA_FITS);
}

/* In no minute more than two minutes' worth: a full bucket and what came in. */
Test(quota, rates_hold_for_any_arrivals) {
    struct quota q = with(0, 1000, 0);
    int64_t now = 0, used = 0;
    srand(7);
    for (int i = 0; i < 20000; i++) {
        int64_t tokens = rand() % 50, spent = tokens ? rand() % tokens : 0;
        now += rand() % (SECOND / 10);
        if (quota_take(&q, tokens, now).limit != QUOTA_FITS) continue;
        quota_settle(&q, tokens, spent, now);
        used += spent;
    }
    cr_expect((double)used <= 1000 + (double)now / 60e9 * 1000);
    cr_expect((double)used > (double)now / 60e9 * 900, "the rate is nearly used up");
    cr_expect(q.n_running == 0);
}
