#include "server/quota.h"

#include <math.h>

static const double MINUTE_NS = 60e9;

static double level_at(const struct quota_bucket *b, int64_t now_ns) {
    double passed = now_ns > b->at_ns ? (double)(now_ns - b->at_ns) : 0;
    double level = b->level + passed * (double)b->size / MINUTE_NS;
    return level < (double)b->size ? level : (double)b->size;
}

static void add(struct quota_bucket *b, double amount, int64_t now_ns) {
    if (!b->size) return;
    b->level = level_at(b, now_ns) + amount;
    if (b->level > (double)b->size) b->level = (double)b->size;
    b->at_ns = now_ns;
}

/* What was used stays used under a new limit; a bucket that was off begins full. */
static void resize(struct quota_bucket *b, int64_t size, int64_t now_ns) {
    double used = b->size ? (double)b->size - level_at(b, now_ns) : 0;
    *b = (struct quota_bucket){size, (double)size - used, now_ns};
}

void quota_set(struct quota *q, const struct quota_limits *limits, int64_t now_ns) {
    q->concurrency = limits->concurrency;
    resize(&q->tokens, limits->tokens, now_ns);
    resize(&q->requests, limits->requests, now_ns);
}

static int64_t wait_for(const struct quota_bucket *b, double amount, int64_t now_ns) {
    if (!b->size) return 0;
    double lacking = amount - level_at(b, now_ns);
    return lacking > 0 ? (int64_t)ceil(lacking * MINUTE_NS / (double)b->size) : 0;
}

struct quota_verdict quota_check(const struct quota *q, int64_t tokens, int64_t now_ns) {
    struct quota_verdict v = {QUOTA_FITS, 0};
    int64_t wait;
    if (q->tokens.size && tokens > q->tokens.size) return (struct quota_verdict){QUOTA_NEVER, 0};
    /* When a place becomes free is not known: a second is asked for. */
    if (q->concurrency && q->n_running >= q->concurrency)
        v = (struct quota_verdict){QUOTA_CONCURRENCY, 1000000000};
    if ((wait = wait_for(&q->requests, 1, now_ns)) > v.wait_ns)
        v = (struct quota_verdict){QUOTA_REQUESTS, wait};
    if ((wait = wait_for(&q->tokens, (double)tokens, now_ns)) > v.wait_ns)
        v = (struct quota_verdict){QUOTA_TOKENS, wait};
    return v;
}

struct quota_verdict quota_take(struct quota *q, int64_t tokens, int64_t now_ns) {
    struct quota_verdict v = quota_check(q, tokens, now_ns);
    if (v.limit != QUOTA_FITS) return v;
    q->n_running++;
    add(&q->requests, -1, now_ns);
    add(&q->tokens, -(double)tokens, now_ns);
    return v;
}

void quota_settle(struct quota *q, int64_t taken, int64_t used, int64_t now_ns) {
    q->n_running--;
    add(&q->tokens, (double)(taken - used), now_ns);
}

int64_t quota_left(const struct quota_bucket *b, int64_t now_ns, int64_t *ret_full_ns) {
    double level = level_at(b, now_ns);
    *ret_full_ns = wait_for(b, (double)b->size, now_ns);
    return level > 0 ? (int64_t)level : 0;
}
