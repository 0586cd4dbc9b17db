#include <string.h>

#include "server/api/api.h"
#include "server/http.h"
#include "server/request.h"
#include "server/router.h"
#include "server/server.h"

void api_cancel(struct server *s, struct http_exchange *x) {
    char id[128];
    enum metrics_stage stage;
    struct api_error e;
    struct text body = {0};
    bool whole = router_parameter(x->route, x->path, id, sizeof id);
    int n = whole ? request_cancel(s, id, x->tenant, &stage) : 0;
    if (n == 0) {
        api_error_set(&e, API_ERROR_NO_REQUEST, NULL, "no request of yours called '%.64s' runs",
                      id);
        http_reply_error(x, &e);
        return;
    }
    text_adds(&body, "{\"id\":");
    text_add_json(&body, id);
    text_addf(&body, ",\"object\":\"request.cancelled\",\"cancelled\":%d,\"state\":\"%s\"}", n,
              metrics_stage_name(stage));
    http_header(x, "Cache-Control", "no-store");
    http_reply(x, 200, "application/json", &body);
}
