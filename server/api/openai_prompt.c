#include "server/api/openai_prompt.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/api/api_error.h"
#include "server/api/openai_parse.h"
#include "server/text.h"

static int no_memory(struct api_error *err) {
    return api_error_set(err, API_ERROR_MEMORY, NULL, "out of memory");
}

static int read_text(struct openai_prompt *p, const json_t *value, const char *path,
                     struct api_error *err) {
    size_t n = json_string_length(value);
    if (n == 0) return api_error_set(err, API_ERROR_INVALID, path, "'%s' must not be empty", path);
    p->text = malloc(n + 1);
    if (!p->text) return no_memory(err);
    memcpy(p->text, json_string_value(value), n);
    p->text[n] = 0;
    p->text_len = n;
    return 0;
}

static int read_ids(struct openai_prompt *p, const json_t *value, const char *path,
                    const struct openai_limits *limits, struct api_error *err) {
    size_t n = json_array_size(value);
    if (n == 0) return api_error_set(err, API_ERROR_INVALID, path, "'%s' must not be empty", path);
    if (n > limits->max_prompt_tokens)
        return api_error_set(err, API_ERROR_CONTEXT, path, "'%s' has %zu tokens, the limit is %zu",
                             path, n, limits->max_prompt_tokens);
    p->ids = malloc(n * sizeof *p->ids);
    if (!p->ids) return no_memory(err);
    for (size_t i = 0; i < n; i++) {
        const json_t *id = json_array_get(value, i);
        json_int_t number = json_integer_value(id);
        if (!json_is_integer(id) || number < 0 || number >= limits->vocab)
            return api_error_set(err, API_ERROR_INVALID, path,
                                 "'%s': element %zu is not a token id below %d", path, i,
                                 limits->vocab);
        p->ids[i] = (int32_t)number;
    }
    p->n_ids = n;
    return 0;
}

static int read_one(struct openai_prompt *p, const json_t *value, const char *path,
                    const struct openai_limits *limits, struct api_error *err) {
    if (json_is_string(value)) return read_text(p, value, path, err);
    if (json_is_array(value)) return read_ids(p, value, path, limits, err);
    return api_error_set(err, API_ERROR_INVALID, path,
                         "'%s' must be a string, token ids, or a list of either", path);
}

int openai_prompt_parse(struct openai_request *r, const json_t *value,
                        const struct openai_limits *limits, struct api_error *err) {
    const json_t *first = json_array_get(value, 0);
    bool list = first && (json_is_string(first) || json_is_array(first));
    size_t n = list ? json_array_size(value) : 1;
    if (n > OPENAI_MAX_CHOICES)
        return api_error_set(err, API_ERROR_INVALID, "prompt",
                             "'prompt' holds more than %d prompts", OPENAI_MAX_CHOICES);
    r->prompts = calloc(n, sizeof *r->prompts);
    if (!r->prompts) return no_memory(err);
    r->n_prompts = n;
    if (!list) return read_one(&r->prompts[0], value, "prompt", limits, err);
    for (size_t i = 0; i < n; i++) {
        char path[32];
        snprintf(path, sizeof path, "prompt[%zu]", i);
        int code = read_one(&r->prompts[i], json_array_get(value, i), path, limits, err);
        if (code < 0) return code;
    }
    return 0;
}

/* The engine's strings end at NUL, so one inside would cut the message silently. */
static int add_string(struct text *out, const json_t *value, const char *path,
                      struct api_error *err) {
    const char *string = json_string_value(value);
    size_t n = json_string_length(value);
    if (!string) return api_error_set(err, API_ERROR_INVALID, path, "'%s' must be a string", path);
    if (strlen(string) != n)
        return api_error_set(err, API_ERROR_INVALID, path, "'%s' must not hold U+0000", path);
    text_add(out, string, n);
    return 0;
}

static int add_parts(struct text *out, const json_t *parts, const char *path,
                     struct api_error *err) {
    for (size_t i = 0; i < json_array_size(parts); i++) {
        char inner[96];
        const json_t *part = json_array_get(parts, i);
        const json_t *type = json_object_get(part, "type");
        if (!json_is_string(type) || strcmp(json_string_value(type), "text") != 0) {
            snprintf(inner, sizeof inner, "%s[%zu].type", path, i);
            return api_error_set(err, API_ERROR_INVALID, inner,
                                 "'%s': only parts of type \"text\" are supported", inner);
        }
        snprintf(inner, sizeof inner, "%s[%zu].text", path, i);
        if (i) text_add(out, "\n", 1);
        int code = add_string(out, json_object_get(part, "text"), inner, err);
        if (code < 0) return code;
    }
    return 0;
}

static int read_content(struct engine_message *m, const json_t *value, const char *path,
                        struct api_error *err) {
    struct text content = {0};
    int code = 0;
    if (json_is_array(value))
        code = add_parts(&content, value, path, err);
    else if (value && !json_is_null(value))
        code = add_string(&content, value, path, err);
    if (code == 0 && !(m->content = text_take(&content, NULL))) code = no_memory(err);
    text_deinit(&content);
    return code;
}

static int read_role(struct engine_message *m, const json_t *value, const char *path,
                     struct api_error *err) {
    static const struct {
        const char *role, *as;
    } roles[] = {{"system", "system"},
                 {"developer", "system"},
                 {"user", "user"},
                 {"assistant", "assistant"}};
    const char *role = json_string_value(value);
    for (size_t i = 0; role && i < sizeof roles / sizeof *roles; i++) {
        if (strcmp(role, roles[i].role) != 0) continue;
        m->role = strdup(roles[i].as);
        return m->role ? 0 : no_memory(err);
    }
    return api_error_set(err, API_ERROR_INVALID, path,
                         "'%s' must be system, developer, user or assistant", path);
}

static int read_message(struct engine_message *m, const json_t *value, size_t i,
                        struct api_error *err) {
    static const char *const refused[] = {"tool_calls", "function_call", "audio"};
    char path[64];
    snprintf(path, sizeof path, "messages[%zu]", i);
    if (!json_is_object(value))
        return api_error_set(err, API_ERROR_INVALID, path, "'%s' must be an object", path);
    for (size_t k = 0; k < sizeof refused / sizeof *refused; k++) {
        const json_t *field = json_object_get(value, refused[k]);
        if (!field || json_is_null(field)) continue;
        snprintf(path, sizeof path, "messages[%zu].%s", i, refused[k]);
        return api_error_set(err, API_ERROR_INVALID, path, "'%s' is not supported", path);
    }
    snprintf(path, sizeof path, "messages[%zu].role", i);
    int code = read_role(m, json_object_get(value, "role"), path, err);
    if (code < 0) return code;
    snprintf(path, sizeof path, "messages[%zu].content", i);
    const json_t *content = json_object_get(value, "content");
    bool optional = !strcmp(m->role, "assistant");
    if (!optional && (!content || json_is_null(content)))
        return api_error_set(err, API_ERROR_INVALID, path, "'%s' is required", path);
    return read_content(m, content, path, err);
}

int openai_prompt_messages(struct openai_request *r, const json_t *value, struct api_error *err) {
    size_t n = json_array_size(value);
    if (!json_is_array(value) || n == 0)
        return api_error_set(err, API_ERROR_INVALID, "messages",
                             "'messages' must be a list of at least one message");
    r->messages = calloc(n, sizeof *r->messages);
    if (!r->messages) return no_memory(err);
    r->n_messages = (int)n;
    for (size_t i = 0; i < n; i++) {
        int code = read_message(&r->messages[i], json_array_get(value, i), i, err);
        if (code < 0) return code;
    }
    return 0;
}
