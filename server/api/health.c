#include "server/api/api.h"

#include <string.h>

#include "server/http.h"
#include "server/loop.h"
#include "server/server.h"
#include "server/settings.h"

/* DESIGN. One judgement, four questions. /health is what people and simple probes ask: it fails
 * when no request would be served. /health/live fails only where a restart helps, so that an
 * orchestrator does not kill a server that is merely loading, full or draining. /health/ready
 * fails also when this instance is full, so that others get the next request. /health/startup
 * fails until the model is loaded, and says how far it is. */

static enum health_verdict judge(struct server *s, struct engine_stats *stats, int64_t now) {
    engine_get_stats(s->engine, stats);
    health_watch(&s->health, stats, now);
    return health_judge(&s->health, stats, s->state > SERVER_SERVING, now,
                        s->settings->stall_timeout * 1000000000);
}

/* Probes come often and little changes between them: the text is kept until something does. */
static const struct text *render(struct health_page *page, const struct engine_stats *e,
                                 enum health_verdict verdict, int64_t age_ms) {
    if (page->body.n && !page->body.failed && page->verdict == verdict && page->age_ms == age_ms &&
        !memcmp(&page->stats, e, sizeof *e))
        return &page->body;
    double percent = e->load_total ? 100 * (double)e->load_done / (double)e->load_total : 0;
    memcpy(&page->stats, e, sizeof *e);
    page->verdict = verdict;
    page->age_ms = age_ms;
    text_clear(&page->body);
    text_addf(&page->body,
              "{\"status\":\"%s\",\"running\":%d,\"waiting\":%d,\"max_running\":%d,"
              "\"max_waiting\":%d,\"kv_blocks\":%lld,\"kv_blocks_free\":%lld,\"paused\":%d,"
              "\"last_step_age_seconds\":%lld.%03d",
              health_name(verdict), e->running, e->waiting, e->max_running, e->max_waiting,
              (long long)e->kv_blocks, (long long)e->kv_blocks_free, e->paused,
              (long long)(age_ms / 1000), (int)(age_ms % 1000));
    text_addf(&page->body, ",\"loaded_bytes\":%lld,\"total_bytes\":%lld,\"loaded_percent\":%.1f}",
              (long long)e->load_done, (long long)e->load_total, e->ready ? 100 : percent);
    return &page->body;
}

static void reply(struct server *s, struct http_exchange *x, bool (*good)(enum health_verdict)) {
    struct text body = {0};
    struct engine_stats e;
    memset(&e, 0, sizeof e); /* gaps too, as it is compared */
    int64_t now = loop_now_ns();
    enum health_verdict verdict = judge(s, &e, now);
    int64_t age_ns = health_step_age(&s->health, &e, now);
    const struct text *page = render(&s->health_page, &e, verdict, age_ns / 1000000);
    body.failed = page->failed;
    text_add(&body, page->data, page->n);
    http_header(x, "Cache-Control", "no-store");
    if (verdict == HEALTH_STARTING && !good(verdict)) http_header(x, "Retry-After", "1");
    http_reply(x, good(verdict) ? 200 : 503, "application/json", &body);
}

static bool is_serving(enum health_verdict verdict) {
    return verdict == HEALTH_OK || verdict == HEALTH_BUSY;
}

static bool has_started(enum health_verdict verdict) {
    return verdict != HEALTH_STARTING && verdict != HEALTH_FAILED;
}

void api_health(struct server *s, struct http_exchange *x) { reply(s, x, is_serving); }

void api_health_live(struct server *s, struct http_exchange *x) { reply(s, x, health_is_alive); }

void api_health_ready(struct server *s, struct http_exchange *x) { reply(s, x, health_is_ready); }

void api_health_startup(struct server *s, struct http_exchange *x) { reply(s, x, has_started); }
