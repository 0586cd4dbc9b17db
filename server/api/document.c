#include "server/api/api.h"

#include <string.h>

#include "server/api/openapi.h"
#include "server/http.h"
#include "server/server.h"
#include "server/settings.h"

void api_document(struct server *s, struct http_exchange *x) {
    const struct openapi_facts facts = {.vocab = s->info->vocab,
                                        .hidden = s->info->hidden,
                                        .strict = !strcmp(s->settings->unknown_fields, "strict")};
    struct text body = {0};
    openapi_render(&body, &facts);
    http_header(x, "Cache-Control", "no-cache");
    http_reply(x, 200, "application/json", &body);
}
