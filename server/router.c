#include "server/router.h"

#include <stdio.h>
#include <string.h>

#include "server/api/api.h"

static const struct router_row rows[] = {
    {"POST", "/v1/completions", "completions", "Continues prompts", "CompletionRequest",
     "Completion", false, api_completions, ROUTER_WORK},
    {"POST", "/v1/chat/completions", "chat_completions", "Answers a conversation", "ChatRequest",
     "ChatCompletion", false, api_chat, ROUTER_WORK},
    {"POST", "/v1/responses", "responses", "Answers an input", "ResponseRequest", "Response", false,
     api_responses, ROUTER_WORK},
    {"POST", "/v1/embeddings", "embeddings", "Makes vectors of texts", "EmbeddingRequest",
     "EmbeddingList", false, api_embeddings, ROUTER_WORK},
    {"POST", "/tokenize", "tokenize", "Token ids of a text or conversation", "TokenizeRequest",
     "Tokens", false, api_tokenize, ROUTER_WORK},
    {"POST", "/v1/tokenize", "tokenize", "The same", "TokenizeRequest", "Tokens", false,
     api_tokenize, ROUTER_WORK},
    {"POST", "/detokenize", "detokenize", "The text of token ids", "DetokenizeRequest",
     "Detokenized", false, api_detokenize, 0},
    {"POST", "/v1/detokenize", "detokenize", "The same", "DetokenizeRequest", "Detokenized", false,
     api_detokenize, 0},
    {"POST", "/v1/explain", "explain",
     "What a completion would cost, and whether it would be taken", "ExplainRequest", "Explanation",
     false, api_explain, 0},
    {"DELETE", "/v1/requests/{id}", "cancel", "Ends a running request", NULL, "Cancelled", false,
     api_cancel, 0},
    {"GET", "/v1/models", "models", "The model, under each of its names", NULL, "ModelList", false,
     api_models, 0},
    {"GET", "/v1/models/{id}", "model", "The model of one name", NULL, "Model", false, api_model,
     0},
    {"GET", "/health", "health", "Whether new requests are taken", NULL, "Health", true, api_health,
     ROUTER_OPEN},
    {"GET", "/health/live", "health_live", "Whether a restart would not help", NULL, "Health", true,
     api_health_live, ROUTER_OPEN},
    {"GET", "/health/ready", "health_ready", "Whether the next request is served now", NULL,
     "Health", true, api_health_ready, ROUTER_OPEN},
    {"GET", "/health/startup", "health_startup", "How far the model is loaded", NULL, "Health",
     true, api_health_startup, ROUTER_OPEN},
    {"GET", "/ping", "health", NULL, NULL, NULL, true, api_health, ROUTER_OPEN},
    {"GET", "/v2/health/live", "health_live", NULL, NULL, NULL, true, api_health_live, ROUTER_OPEN},
    {"GET", "/v2/health/ready", "health_ready", NULL, NULL, NULL, true, api_health_ready,
     ROUTER_OPEN},
    {"GET", "/metrics", "metrics", "Numbers in Prometheus' text format", NULL, NULL, true,
     api_metrics, ROUTER_OPEN},
    {"GET", "/load", "load", "How many sequences are in the engine", NULL, "Load", true, api_load,
     ROUTER_OPEN},
    {"GET", "/is_sleeping", "is_sleeping", "Never: the model stays loaded", NULL, "Sleeping", true,
     api_is_sleeping, ROUTER_OPEN},
    {"GET", "/version", "version", "The program's version", NULL, "Version", false, api_version,
     ROUTER_OPEN},
    {"GET", "/openapi.json", "document", "This document", NULL, "Document", false, api_document,
     ROUTER_OPEN},
    {"GET", "/", "site", NULL, NULL, NULL, false, api_site, ROUTER_OPEN},
    {"GET", "/index.html", "site", NULL, NULL, NULL, false, api_site, ROUTER_OPEN},
    {"GET", "/app.js", "site", NULL, NULL, NULL, false, api_site, ROUTER_OPEN},
    {"GET", "/style.css", "site", NULL, NULL, NULL, false, api_site, ROUTER_OPEN},
};

static int hex(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

/* The next byte of the path, 0 at its end, or -1 for what is no path. */
static int next_byte(const char **path, bool *ret_escaped) {
    const char *p = *path;
    *ret_escaped = *p == '%';
    if (!*p) return 0;
    if (*p != '%') {
        *path = p + 1;
        return (unsigned char)*p;
    }
    int high = hex(p[1]), low = high < 0 ? -1 : hex(p[2]);
    if (low < 0 || high + low == 0) return -1;
    *path = p + 3;
    return high * 16 + low;
}

/* Decodes the rest of a path; false when it is empty, broken or longer than size - 1. */
static bool decode(const char *path, char *ret, size_t size) {
    size_t n = 0;
    bool escaped;
    for (int byte; (byte = next_byte(&path, &escaped)); n++) {
        if (byte < 0 || n + 1 >= size) return false;
        ret[n] = (char)byte;
    }
    ret[n] = 0;
    return n > 0;
}

/* Where the row's parameter begins in the path, or its end when it has none; NULL: no match. */
static const char *match(const struct router_row *row, const char *path) {
    const char *pattern = row->path;
    for (; *pattern && *pattern != '{'; pattern++) {
        bool escaped;
        int byte = next_byte(&path, &escaped);
        if (byte <= 0 || byte != (unsigned char)*pattern || (escaped && byte == '/')) return NULL;
    }
    if (!*pattern) return *path ? NULL : path;
    bool escaped;
    const char *rest = path;
    int byte = next_byte(&rest, &escaped);
    if (byte <= 0) return NULL;
    while (byte > 0) byte = next_byte(&rest, &escaped);
    return byte < 0 ? NULL : path;
}

static void add_method(char *allow, size_t size, const char *method) {
    size_t n = strlen(allow);
    bool get = !strcmp(method, "GET");
    snprintf(allow + n, size - n, "%s%s%s", n ? ", " : "", method, get ? ", HEAD" : "");
}

int router_find(const char *method, const char *path, char *allow, size_t size) {
    if (!strcmp(method, "HEAD")) method = "GET";
    allow[0] = 0;
    for (int i = 0; i < router_count(); i++) {
        if (!match(&rows[i], path)) continue;
        if (!strcmp(method, rows[i].method)) return i;
        add_method(allow, size, rows[i].method);
    }
    return allow[0] ? ROUTER_NO_METHOD : ROUTER_NO_PATH;
}

bool router_parameter(int row, const char *path, char *ret, size_t size) {
    const char *at = match(&rows[row], path);
    if (at && decode(at, ret, size)) return true;
    ret[0] = 0;
    return false;
}

const struct router_row *router_get(int row) { return &rows[row]; }

int router_count(void) { return (int)(sizeof rows / sizeof *rows); }
