#include "server/api/api.h"

#include <string.h>

#include "server/http.h"
#include "web/assets.h"

/* The page loads its own two files, talks to this server, and nothing else. */
static const char policy[] =
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

void api_site(struct server *s, struct http_exchange *x) {
    (void)s;
    const char *path = !strcmp(x->path, "/") ? "/index.html" : x->path;
    const struct asset *asset = assets_find(path);
    if (!asset) {
        struct text none = {0};
        http_reply(x, 404, "text/plain", &none);
        return;
    }
    http_header(x, "ETag", asset->tag);
    http_header(x, "Cache-Control", "no-cache");
    http_header(x, "Content-Security-Policy", policy);
    http_header(x, "Referrer-Policy", "no-referrer");
    const char *known = http_get(x, "If-None-Match");
    if (known && strstr(known, asset->tag))
        http_reply_static(x, 304, NULL, "", 0);
    else
        http_reply_static(x, 200, asset->type, asset->bytes, asset->size);
}
