#include "server/api/api.h"

#include "server/http.h"
#include "server/loop.h"
#include "server/server.h"

static const char *state_of(const struct server *s, const struct engine_stats *stats) {
    if (stats->failed) return "failed";
    if (stats->draining || s->state != SERVER_SERVING) return "draining";
    return stats->ready ? "ok" : "starting";
}

/* The age of the last step lets a watcher see an engine that has work and does not move. */
void api_health(struct server *s, struct http_exchange *x) {
    struct text body = {0};
    struct engine_stats stats;
    engine_get_stats(s->engine, &stats);
    const char *state = state_of(s, &stats);
    double age = stats.last_step_ns ? (double)(loop_now_ns() - stats.last_step_ns) / 1e9 : 0;
    text_addf(&body,
              "{\"status\":\"%s\",\"running\":%d,\"waiting\":%d,\"max_running\":%d,"
              "\"max_waiting\":%d,\"kv_blocks\":%lld,\"kv_blocks_free\":%lld,"
              "\"last_step_age_seconds\":%.3f}",
              state, stats.running, stats.waiting, stats.max_running, stats.max_waiting,
              (long long)stats.kv_blocks, (long long)stats.kv_blocks_free, age);
    http_header(x, "Cache-Control", "no-store");
    http_reply(x, state[0] == 'o' ? 200 : 503, "application/json", &body);
}
