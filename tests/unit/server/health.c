#include "server/health.h"

#include <criterion/criterion.h>
#include <string.h>

#include "engine/engine.h"

#define SECOND INT64_C(1000000000)

static const struct engine_stats serving = {.ready = true,
                                            .state = ENGINE_READY,
                                            .max_running = 4,
                                            .max_waiting = 8,
                                            .kv_blocks = 10,
                                            .kv_blocks_free = 5};

static enum health_verdict judge(struct health *h, const struct engine_stats *stats, int64_t now) {
    health_watch(h, stats, now);
    return health_judge(h, stats, false, now, 10 * SECOND);
}

Test(health, states_have_their_verdicts) {
    struct health h = {0};
    struct engine_stats e = serving;
    cr_expect(judge(&h, &e, 1) == HEALTH_OK);
    e.waiting = 8;
    cr_expect(judge(&h, &e, 1) == HEALTH_BUSY);
    e.waiting = 1;
    e.kv_blocks_free = 0;
    cr_expect(judge(&h, &e, 1) == HEALTH_BUSY);
    e.waiting = 0; /* all blocks are in use, but nobody waits for one */
    cr_expect(judge(&h, &e, 1) == HEALTH_OK);
    cr_expect(health_judge(&h, &e, true, 1, 0) == HEALTH_DRAINING);
    e.ready = false;
    e.state = ENGINE_LOADING;
    cr_expect(judge(&h, &e, 1) == HEALTH_STARTING);
    e.failed = true;
    cr_expect(judge(&h, &e, 1) == HEALTH_FAILED);
}

Test(health, engine_without_queue_is_not_full) {
    struct health h = {0};
    struct engine_stats e = serving;
    e.max_waiting = 0;
    cr_expect(judge(&h, &e, 1) == HEALTH_OK);
}

Test(health, old_heartbeat_of_an_idle_engine_is_fine) {
    struct health h = {0};
    struct engine_stats e = serving;
    e.last_step_ns = 1 * SECOND;
    cr_expect(judge(&h, &e, 1000 * SECOND) == HEALTH_OK);
    e.running = 1; /* work comes: it has ten seconds from now */
    cr_expect(judge(&h, &e, 1000 * SECOND) == HEALTH_OK);
    cr_expect(judge(&h, &e, 1009 * SECOND) == HEALTH_OK);
    cr_expect(health_step_age(&h, &e, 1009 * SECOND) == 9 * SECOND);
    cr_expect(judge(&h, &e, 1011 * SECOND) == HEALTH_STALLED);
    e.last_step_ns = 1011 * SECOND; /* it moves again */
    cr_expect(judge(&h, &e, 1012 * SECOND) == HEALTH_OK);
    e.paused = 1; /* all that is left waits for its reader */
    cr_expect(judge(&h, &e, 1100 * SECOND) == HEALTH_OK);
}

Test(health, each_probe_has_its_own_question) {
    cr_expect(health_is_ready(HEALTH_OK) && health_is_alive(HEALTH_OK));
    for (enum health_verdict v = HEALTH_STARTING; v <= HEALTH_BUSY; v++) {
        cr_expect(!health_is_ready(v));
        cr_expect(health_is_alive(v) == (v != HEALTH_FAILED && v != HEALTH_STALLED), "%s",
                  health_name(v));
    }
}
