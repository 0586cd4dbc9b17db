#include "server/health.h"

#include "engine/engine.h"

/* Paused sequences wait for their readers and are no work. */
static bool has_work(const struct engine_stats *stats) {
    return stats->running + stats->waiting > stats->paused;
}

void health_watch(struct health *h, const struct engine_stats *stats, int64_t now_ns) {
    if (!has_work(stats))
        h->work_ns = 0;
    else if (!h->work_ns)
        h->work_ns = now_ns;
}

int64_t health_step_age(const struct health *h, const struct engine_stats *stats, int64_t now_ns) {
    if (!h->work_ns) return 0;
    int64_t since = stats->last_step_ns > h->work_ns ? stats->last_step_ns : h->work_ns;
    return now_ns > since ? now_ns - since : 0;
}

static bool is_full(const struct engine_stats *stats) {
    if (stats->max_waiting && stats->waiting >= stats->max_waiting) return true;
    return stats->kv_blocks && !stats->kv_blocks_free && stats->waiting;
}

enum health_verdict health_judge(const struct health *h, const struct engine_stats *stats,
                                 bool leaving, int64_t now_ns, int64_t stall_ns) {
    if (stats->failed || stats->state == ENGINE_BROKEN) return HEALTH_FAILED;
    if (leaving || stats->draining) return HEALTH_DRAINING;
    if (!stats->ready) return HEALTH_STARTING;
    if (stall_ns && health_step_age(h, stats, now_ns) > stall_ns) return HEALTH_STALLED;
    return is_full(stats) ? HEALTH_BUSY : HEALTH_OK;
}

const char *health_name(enum health_verdict verdict) {
    static const char *const names[] = {"ok", "starting", "draining", "failed", "stalled", "busy"};
    return names[verdict];
}

bool health_is_ready(enum health_verdict verdict) { return verdict == HEALTH_OK; }

/* What a restart would mend. */
bool health_is_alive(enum health_verdict verdict) {
    return verdict != HEALTH_FAILED && verdict != HEALTH_STALLED;
}
