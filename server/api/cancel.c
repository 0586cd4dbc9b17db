#include "server/api/api.h"
#include "server/http.h"
#include "server/request.h"
#include "server/router.h"

void api_cancel(struct server *s, struct http_exchange *x) {
    char id[128];
    struct api_error e;
    bool whole = router_parameter(x->route, x->path, id, sizeof id);
    if (whole && request_cancel(s, id, x)) return;
    api_error_set(&e, API_ERROR_NO_REQUEST, NULL, "no request of yours called '%.64s' runs", id);
    http_reply_error(x, &e);
}
