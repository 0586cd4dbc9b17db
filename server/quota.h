/* quota.h - meters what one tenant may use: requests at a time, requests and tokens a minute.
 *
 * Owns      nothing; struct quota lives with the caller.
 * Borrows   its arguments during the call.
 * Thread    one; pure: the caller tells the time (nanoseconds that never go back).
 * Fails     never; a refusal says by which limit and for how long.
 * Cost      O(1).
 *
 * Each rate is a bucket that holds a minute's worth and fills steadily. A request takes what it
 * may need at most, before it runs; at its end the difference to what it used comes back. So
 * a tenant cannot start more than it may finish, and pays for no more than it got. */
#ifndef SERVER_QUOTA_H
#define SERVER_QUOTA_H

#include <stdbool.h>
#include <stdint.h>

struct quota_limits { /* 0 = none */
    int concurrency;
    int64_t tokens, requests; /* a minute */
};

struct quota_bucket {
    int64_t size;  /* 0 = no limit */
    double level;  /* what is left; below 0 after a request that took more than it said */
    int64_t at_ns; /* when the level was right */
};

struct quota {
    int concurrency, n_running;
    struct quota_bucket tokens, requests;
};

enum quota_limit { QUOTA_FITS, QUOTA_CONCURRENCY, QUOTA_REQUESTS, QUOTA_TOKENS, QUOTA_NEVER };

struct quota_verdict {
    enum quota_limit limit; /* NEVER: more tokens than a whole minute has */
    int64_t wait_ns;        /* until the same could pass; 0 for FITS and NEVER */
};

/* Limits of a new tenant with full buckets, or new ones of a known tenant, who keeps what it
 * has used. */
void quota_set(struct quota *q, const struct quota_limits *limits, int64_t now_ns);

/* Whether a request of so many tokens would pass now. */
struct quota_verdict quota_check(const struct quota *q, int64_t tokens, int64_t now_ns);

/* Checks, and if it passes takes a place, a request and the tokens. */
struct quota_verdict quota_take(struct quota *q, int64_t tokens, int64_t now_ns);

/* The request that took so many tokens has ended and used others. */
void quota_settle(struct quota *q, int64_t taken, int64_t used, int64_t now_ns);

/* What is left of a bucket, and how long until it is full. */
int64_t quota_left(const struct quota_bucket *b, int64_t now_ns, int64_t *ret_full_ns);

#endif
