#include "server/api/api.h"

#include "server/http.h"

void api_version(struct server *s, struct http_exchange *x) {
    static const char body[] = "{\"version\":\"" GPTQT_VERSION "\"}";
    (void)s;
    http_reply_static(x, 200, "application/json", body, sizeof body - 1);
}
