/* admission.h - decides whether the engine has room for one more request, and when it will.
 *
 * Owns      nothing.
 * Borrows   its arguments during the call.
 * Thread    any; pure: no clock, no engine.
 * Fails     never: what cannot be predicted is not a reason to refuse.
 * Cost      O(1).
 *
 * A queue that is bounded only in requests grows in time without bound, as one of them may be
 * a book. So it is also bounded in tokens, and in the time until a new request's first one. A
 * request that finds nobody before it is always taken, whatever its size. */
#ifndef SERVER_ADMISSION_H
#define SERVER_ADMISSION_H

#include <stdint.h>

struct engine_stats;

struct admission_limits { /* 0 = none */
    int64_t waiting_tokens, ttft_ns;
};

struct admission_ask {
    int n;          /* sequences, all or none */
    int64_t tokens; /* of their prompts */
};

enum admission_reason {
    ADMISSION_FITS,
    ADMISSION_SEQUENCES, /* the queue has no n places */
    ADMISSION_TOKENS,    /* too many prompt tokens wait */
    ADMISSION_TTFT,      /* the first token would come too late */
    ADMISSION_NEVER      /* n is more than the engine ever takes */
};

struct admission_verdict {
    enum admission_reason reason;
    int64_t ttft_ns;  /* predicted; -1 = unknown */
    int64_t retry_ns; /* when the same may fit; 0 for FITS and NEVER */
    int position;     /* sequences that come first */
};

struct admission_verdict admission_judge(const struct engine_stats *stats,
                                         const struct admission_limits *limits,
                                         const struct admission_ask *ask);

#endif
