#include "server/api/api.h"

#include "server/http.h"
#include "server/server.h"

void api_version(struct server *s, struct http_exchange *x) {
    static const char body[] = "{\"version\":\"" GPTQT_VERSION "\"}";
    (void)s;
    http_reply_static(x, 200, "application/json", body, sizeof body - 1);
}

/* As vLLM has it: requests that have not ended. */
void api_load(struct server *s, struct http_exchange *x) {
    struct text body = {0};
    struct engine_stats stats;
    engine_get_stats(s->engine, &stats);
    text_addf(&body, "{\"server_load\":%d}", stats.running + stats.waiting);
    http_header(x, "Cache-Control", "no-store");
    http_reply(x, 200, "application/json", &body);
}

void api_is_sleeping(struct server *s, struct http_exchange *x) {
    static const char body[] = "{\"is_sleeping\":false}";
    (void)s;
    http_reply_static(x, 200, "application/json", body, sizeof body - 1);
}
