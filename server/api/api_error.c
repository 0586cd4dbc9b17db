#include "server/api/api_error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "server/text.h"

struct row {
    int status, retry;
    const char *type, *code;
};

static const struct row rows[] = {
    [API_ERROR_INVALID] = {400, 0, "invalid_request_error", NULL},
    [API_ERROR_CONTEXT] = {400, 0, "invalid_request_error", "context_length_exceeded"},
    [API_ERROR_MODEL] = {404, 0, "invalid_request_error", "model_not_found"},
    [API_ERROR_NOT_FOUND] = {404, 0, "invalid_request_error", "unknown_url"},
    [API_ERROR_METHOD] = {405, 0, "invalid_request_error", "method_not_allowed"},
    [API_ERROR_TOO_LARGE] = {413, 0, "invalid_request_error", "request_too_large"},
    [API_ERROR_PROTOCOL] = {400, 0, "invalid_request_error", "malformed_http"},
    [API_ERROR_HEADERS] = {431, 0, "invalid_request_error", "headers_too_large"},
    [API_ERROR_TARGET] = {414, 0, "invalid_request_error", "uri_too_long"},
    [API_ERROR_VERSION] = {505, 0, "invalid_request_error", "http_version"},
    [API_ERROR_SLOW] = {408, 0, "invalid_request_error", "request_incomplete"},
    [API_ERROR_QUEUE] = {429, 1, "rate_limit_error", "server_overloaded"},
    [API_ERROR_CONNECTIONS] = {503, 1, "server_error", "too_many_connections"},
    [API_ERROR_DRAINING] = {503, 5, "server_error", "server_shutting_down"},
    [API_ERROR_LOADING] = {503, 2, "server_error", "model_loading"},
    [API_ERROR_TIMEOUT] = {504, 0, "server_error", "request_timeout"},
    [API_ERROR_MEMORY] = {503, 1, "server_error", "out_of_memory"},
    [API_ERROR_ENGINE] = {500, 0, "server_error", "engine_error"},
    [API_ERROR_KEY] = {401, 0, "invalid_request_error", "invalid_api_key"},
    [API_ERROR_RATE] = {429, 1, "rate_limit_error", "rate_limit_exceeded"},
    [API_ERROR_CANCELLED] = {499, 0, "invalid_request_error", "request_cancelled"},
    [API_ERROR_BROKEN] = {503, 10, "server_error", "engine_failed"},
    [API_ERROR_NO_REQUEST] = {404, 0, "invalid_request_error", "request_not_found"},
};

int api_error_set(struct api_error *e, enum api_error_kind kind, const char *param,
                  const char *format, ...) {
    if (!e) return -1;
    char line[sizeof e->error.text];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    e->kind = kind;
    e->retry = API_RETRY_TABLE;
    e->retry_ns = 0;
    snprintf(e->param, sizeof e->param, "%s", param ? param : "");
    error_set(&e->error, 0, "%s", line);
    return -1;
}

enum api_error_kind api_error_from_errno(int code) {
    switch (code) {
    case -EAGAIN:
        return API_ERROR_QUEUE;
    case -E2BIG:
        return API_ERROR_CONTEXT;
    case -EINVAL:
    case -EBADMSG:
    case -ENOTSUP:
        return API_ERROR_INVALID;
    case -ESHUTDOWN:
    case -ECANCELED:
        return API_ERROR_DRAINING;
    case -EBUSY:
        return API_ERROR_LOADING;
    case -ENOMEM:
        return API_ERROR_MEMORY;
    case -ETIMEDOUT:
        return API_ERROR_TIMEOUT;
    default:
        return API_ERROR_ENGINE;
    }
}

int api_error_status(enum api_error_kind kind) { return rows[kind].status; }

const char *api_error_code(enum api_error_kind kind) { return rows[kind].code; }

int api_error_count(void) { return (int)(sizeof rows / sizeof *rows); }

int api_error_retry(enum api_error_kind kind) { return rows[kind].retry; }

void api_error_render(struct text *out, const struct api_error *e) {
    const struct row *row = &rows[e->kind];
    text_adds(out, "{\"error\":{\"message\":");
    text_add_json(out, e->error.text);
    text_adds(out, ",\"type\":");
    text_add_json(out, row->type);
    text_adds(out, ",\"param\":");
    text_add_json(out, e->param[0] ? e->param : NULL);
    text_adds(out, ",\"code\":");
    text_add_json(out, row->code);
    text_adds(out, "}}");
}
