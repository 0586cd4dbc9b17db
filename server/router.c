#include "server/router.h"

#include <stdio.h>
#include <string.h>

#include "server/api/api.h"

static const struct router_row rows[] = {
    {"POST", "/v1/completions", "completions", false, api_completions},
    {"POST", "/v1/chat/completions", "chat_completions", false, api_chat},
    {"GET", "/v1/models", "models", false, api_models},
    {"GET", "/health", "health", true, api_health},
    {"GET", "/metrics", "metrics", true, api_metrics},
    {"GET", "/version", "version", false, api_version},
    {"GET", "/", "site", false, api_site},
    {"GET", "/index.html", "site", false, api_site},
    {"GET", "/app.js", "site", false, api_site},
    {"GET", "/style.css", "site", false, api_site},
};

static void add_method(char *allow, size_t size, const char *method) {
    size_t n = strlen(allow);
    bool get = !strcmp(method, "GET");
    snprintf(allow + n, size - n, "%s%s%s", n ? ", " : "", method, get ? ", HEAD" : "");
}

int router_find(const char *method, const char *path, char *allow, size_t size) {
    if (!strcmp(method, "HEAD")) method = "GET";
    allow[0] = 0;
    for (int i = 0; i < router_count(); i++) {
        if (strcmp(path, rows[i].path) != 0) continue;
        if (!strcmp(method, rows[i].method)) return i;
        add_method(allow, size, rows[i].method);
    }
    return allow[0] ? ROUTER_NO_METHOD : ROUTER_NO_PATH;
}

const struct router_row *router_get(int row) { return &rows[row]; }

int router_count(void) { return (int)(sizeof rows / sizeof *rows); }
