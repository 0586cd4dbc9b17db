/* health.h - says whether this server can do what it is asked for.
 *
 * Owns      when work was seen first; embedded in struct server.
 * Borrows   the statistics during the call.
 * Thread    the loop's.
 * Fails     never.
 * Cost      O(1); no clock is read, time is passed in.
 *
 * The engine's thread leaves the time of its last step as a heartbeat. Idle engines take no
 * steps, so the heartbeat's age counts from when there was work at the earliest. */
#ifndef SERVER_HEALTH_H
#define SERVER_HEALTH_H

#include <stdbool.h>
#include <stdint.h>

struct engine_stats;

enum health_verdict {
    HEALTH_OK,
    HEALTH_STARTING, /* the model is being loaded */
    HEALTH_DRAINING,
    HEALTH_FAILED,  /* the engine is broken */
    HEALTH_STALLED, /* there is work, and no step has ended for too long */
    HEALTH_BUSY     /* the queue is full, or KV blocks have run out: the next request would wait
                       long or be refused */
};

struct health {
    int64_t work_ns; /* since when there has been work; 0 = there is none */
};

/* Call it every second or so, and before a judgement. */
void health_watch(struct health *h, const struct engine_stats *stats, int64_t now_ns);

/* Nanoseconds that the engine has had work without ending a step. */
int64_t health_step_age(const struct health *h, const struct engine_stats *stats, int64_t now_ns);

enum health_verdict health_judge(const struct health *h, const struct engine_stats *stats,
                                 bool leaving, int64_t now_ns, int64_t stall_ns);

const char *health_name(enum health_verdict verdict);

/* Whether an instance with this verdict should stay in rotation, and whether it should live. */
bool health_is_ready(enum health_verdict verdict);
bool health_is_alive(enum health_verdict verdict);

#endif
