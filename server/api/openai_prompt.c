#include "server/api/openai_prompt.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/api/api_error.h"
#include "server/api/openai_readers.h"
#include "server/text.h"

static int no_memory(struct api_error *err) {
    return api_error_set(err, API_ERROR_MEMORY, NULL, "out of memory");
}

static int copy_text(struct openai_prompt *p, const json_t *value, struct api_error *err) {
    size_t n = json_string_length(value);
    p->text = malloc(n + 1);
    if (!p->text) return no_memory(err);
    memcpy(p->text, json_string_value(value), n);
    p->text[n] = 0;
    p->text_len = n;
    return 0;
}

static int read_text(struct openai_prompt *p, const json_t *value, const char *path,
                     struct api_error *err) {
    if (json_string_length(value) == 0)
        return api_error_set(err, API_ERROR_INVALID, path, "'%s' must not be empty", path);
    return copy_text(p, value, err);
}

static int read_ids(struct openai_prompt *p, const json_t *value, const char *path,
                    const struct openai_limits *limits, struct api_error *err) {
    size_t n = json_array_size(value);
    if (n == 0) return api_error_set(err, API_ERROR_INVALID, path, "'%s' must not be empty", path);
    p->ids = malloc(n * sizeof *p->ids);
    if (!p->ids) return no_memory(err);
    for (size_t i = 0; i < n; i++) {
        json_int_t number;
        if (!openai_whole(json_array_get(value, i), &number) || number < 0 ||
            number >= limits->vocab)
            return api_error_set(err, API_ERROR_INVALID, path,
                                 "'%s': element %zu is not a token id below %d", path, i,
                                 limits->vocab);
        p->ids[i] = (int32_t)number;
    }
    p->n_ids = n;
    return 0;
}

/* The ids that were taken out of the body before it was parsed. */
static int take_scanned(struct openai_request *r, const char *path,
                        const struct openai_limits *limits, struct api_error *err) {
    for (size_t i = 0; i < r->n_scanned; i++)
        if (r->scanned[i] >= limits->vocab)
            return api_error_set(err, API_ERROR_INVALID, path,
                                 "'%s': element %zu is not a token id below %d", path, i,
                                 limits->vocab);
    r->prompts[0].ids = r->scanned;
    r->prompts[0].n_ids = r->n_scanned;
    r->scanned = NULL;
    return 0;
}

static int read_one(struct openai_prompt *p, const json_t *value, const char *path,
                    const struct openai_limits *limits, struct api_error *err) {
    if (json_is_string(value)) return read_text(p, value, path, err);
    if (json_is_array(value)) return read_ids(p, value, path, limits, err);
    return api_error_set(err, API_ERROR_INVALID, path,
                         "'%s' must be a string, token ids, or a list of either", path);
}

static int add_prompts(struct openai_request *r, size_t n, struct api_error *err) {
    r->prompts = calloc(n, sizeof *r->prompts);
    if (!r->prompts) return no_memory(err);
    r->n_prompts = n;
    return 0;
}

int openai_prompt_parse(struct openai_request *r, const struct openai_field *f, const json_t *value,
                        const struct openai_limits *limits, struct api_error *err) {
    const json_t *first = json_array_get(value, 0);
    bool list = first && (json_is_string(first) || json_is_array(first));
    size_t n = list ? json_array_size(value) : 1;
    size_t most = r->kind == OPENAI_EMBEDDING ? OPENAI_MAX_INPUTS : OPENAI_MAX_CHOICES;
    if (n > most)
        return api_error_set(err, API_ERROR_INVALID, f->name, "'%s' holds more than %zu prompts",
                             f->name, most);
    if (add_prompts(r, n, err) < 0) return -ENOMEM;
    if (r->scanned) return take_scanned(r, f->name, limits, err);
    if (!list) return read_one(&r->prompts[0], value, f->name, limits, err);
    for (size_t i = 0; i < n; i++) {
        char path[32];
        snprintf(path, sizeof path, "%s[%zu]", f->name, i);
        int code = read_one(&r->prompts[i], json_array_get(value, i), path, limits, err);
        if (code < 0) return code;
    }
    return 0;
}

int openai_prompt_text(struct openai_request *r, const struct openai_field *f, const json_t *value,
                       const struct openai_limits *limits, struct api_error *err) {
    (void)limits;
    if (!json_is_string(value))
        return api_error_set(err, API_ERROR_INVALID, f->name, "'%s' must be a string", f->name);
    if (add_prompts(r, 1, err) < 0) return -ENOMEM;
    return copy_text(&r->prompts[0], value, err);
}

int openai_prompt_tokens(struct openai_request *r, const struct openai_field *f,
                         const json_t *value, const struct openai_limits *limits,
                         struct api_error *err) {
    if (!json_is_array(value))
        return api_error_set(err, API_ERROR_INVALID, f->name, "'%s' must be a list of token ids",
                             f->name);
    if (add_prompts(r, 1, err) < 0) return -ENOMEM;
    if (json_array_size(value) == 0) return 0;
    if (r->scanned) return take_scanned(r, f->name, limits, err);
    return read_ids(&r->prompts[0], value, f->name, limits, err);
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

/* The types of text parts, and what else tells the two forms of chats apart. */
struct chat_form {
    const char *list, *types[4];
    bool items; /* elements have a type themselves */
};

static const struct chat_form chat_form = {"messages", {"text"}, false};
static const struct chat_form item_form = {"input", {"input_text", "output_text", "text"}, true};

static bool is_text_type(const struct chat_form *form, const json_t *type) {
    const char *name = json_string_value(type);
    for (size_t i = 0; name && form->types[i]; i++)
        if (!strcmp(form->types[i], name)) return true;
    return false;
}

static int add_parts(struct text *out, const struct chat_form *form, const json_t *parts,
                     const char *path, struct api_error *err) {
    for (size_t i = 0; i < json_array_size(parts); i++) {
        char inner[96];
        const json_t *part = json_array_get(parts, i);
        if (!is_text_type(form, json_object_get(part, "type"))) {
            snprintf(inner, sizeof inner, "%s[%zu].type", path, i);
            return api_error_set(err, API_ERROR_INVALID, inner,
                                 "'%s': only parts of type \"%s\" are supported", inner,
                                 form->types[0]);
        }
        snprintf(inner, sizeof inner, "%s[%zu].text", path, i);
        if (i) text_add(out, "\n", 1);
        int code = add_string(out, json_object_get(part, "text"), inner, err);
        if (code < 0) return code;
    }
    return 0;
}

static int read_content(struct engine_message *m, const struct chat_form *form, const json_t *value,
                        const char *path, struct api_error *err) {
    struct text content = {0};
    int code = 0;
    if (json_is_array(value) && json_array_size(value) == 0)
        code = api_error_set(err, API_ERROR_INVALID, path, "'%s' must not be empty", path);
    else if (json_is_array(value))
        code = add_parts(&content, form, value, path, err);
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

/* Members of messages that are read, and those that answers have when they come back. */
static bool is_member(const char *name) {
    static const char *const names[] = {"role", "content", "type", "id", "status", "refusal"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(names[i], name)) return true;
    return false;
}

static int check_members(struct openai_request *r, const struct chat_form *form,
                         const json_t *value, size_t i, const struct openai_limits *limits,
                         struct api_error *err) {
    const char *name;
    json_t *member;
    json_object_foreach((json_t *)value, name, member) {
        char path[96];
        bool known = !strcmp(name, "name"); /* templates here have no place for it */
        if (json_is_null(member) || is_member(name)) continue;
        snprintf(path, sizeof path, "%s[%zu].%.40s", form->list, i, name);
        if (limits->strict && !known)
            return api_error_set(err, API_ERROR_INVALID, path, "'%s' is not a known field", path);
        snprintf(path, sizeof path, "%s[].%.40s", form->list, name);
        openai_note_ignored(r, path);
    }
    return 0;
}

static int check_message(const struct chat_form *form, const json_t *value, size_t i,
                         struct api_error *err) {
    static const char *const refused[] = {"tool_calls", "function_call", "audio"};
    char path[64];
    snprintf(path, sizeof path, "%s[%zu]", form->list, i);
    if (!json_is_object(value))
        return api_error_set(err, API_ERROR_INVALID, path, "'%s' must be an object", path);
    for (size_t k = 0; k < sizeof refused / sizeof *refused; k++) {
        const json_t *field = json_object_get(value, refused[k]);
        if (!field || json_is_null(field)) continue;
        snprintf(path, sizeof path, "%s[%zu].%s", form->list, i, refused[k]);
        return api_error_set(err, API_ERROR_INVALID, path, "'%s' is not supported", path);
    }
    const json_t *type = json_object_get(value, "type");
    if (!form->items || !type) return 0;
    if (json_is_string(type) && !strcmp(json_string_value(type), "message")) return 0;
    snprintf(path, sizeof path, "%s[%zu].type", form->list, i);
    return api_error_set(err, API_ERROR_INVALID, path,
                         "'%s': only items of type \"message\" are supported", path);
}

static int read_message(struct openai_request *r, const struct chat_form *form, const json_t *value,
                        size_t i, const struct openai_limits *limits, struct api_error *err) {
    char path[64];
    struct engine_message *m = &r->messages[i];
    int code = check_message(form, value, i, err);
    if (code == 0) code = check_members(r, form, value, i, limits, err);
    if (code < 0) return code;
    snprintf(path, sizeof path, "%s[%zu].role", form->list, i);
    code = read_role(m, json_object_get(value, "role"), path, err);
    if (code < 0) return code;
    snprintf(path, sizeof path, "%s[%zu].content", form->list, i);
    const json_t *content = json_object_get(value, "content");
    bool optional = !strcmp(m->role, "assistant");
    if (!optional && (!content || json_is_null(content)))
        return api_error_set(err, API_ERROR_INVALID, path, "'%s' is required", path);
    return read_content(m, form, content, path, err);
}

static int read_chat(struct openai_request *r, const struct chat_form *form, const json_t *value,
                     const struct openai_limits *limits, struct api_error *err) {
    size_t n = json_array_size(value);
    if (!json_is_array(value) || n == 0)
        return api_error_set(err, API_ERROR_INVALID, form->list,
                             "'%s' must be a list of at least one message", form->list);
    r->messages = calloc(n, sizeof *r->messages);
    if (!r->messages) return no_memory(err);
    r->n_messages = (int)n;
    for (size_t i = 0; i < n; i++) {
        int code = read_message(r, form, json_array_get(value, i), i, limits, err);
        if (code < 0) return code;
    }
    return 0;
}

int openai_prompt_messages(struct openai_request *r, const struct openai_field *f,
                           const json_t *value, const struct openai_limits *limits,
                           struct api_error *err) {
    (void)f;
    return read_chat(r, &chat_form, value, limits, err);
}

static int read_string(char **ret, const json_t *value, const char *path, struct api_error *err) {
    struct text text = {0};
    int code = add_string(&text, value, path, err);
    if (code == 0 && !(*ret = text_take(&text, NULL))) code = no_memory(err);
    text_deinit(&text);
    return code;
}

int openai_prompt_items(struct openai_request *r, const struct openai_field *f, const json_t *value,
                        const struct openai_limits *limits, struct api_error *err) {
    if (!json_is_string(value)) return read_chat(r, &item_form, value, limits, err);
    if (json_string_length(value) == 0)
        return api_error_set(err, API_ERROR_INVALID, f->name, "'%s' must not be empty", f->name);
    r->messages = calloc(1, sizeof *r->messages);
    if (!r->messages) return no_memory(err);
    r->n_messages = 1;
    r->messages[0].role = strdup("user");
    if (!r->messages[0].role) return no_memory(err);
    return read_string(&r->messages[0].content, value, f->name, err);
}

int openai_prompt_instructions(struct openai_request *r, const struct openai_field *f,
                               const json_t *value, const struct openai_limits *limits,
                               struct api_error *err) {
    (void)limits;
    return read_string(&r->instructions, value, f->name, err);
}

int openai_prompt_prepend(struct openai_request *r, struct api_error *err) {
    size_t n = (size_t)r->n_messages;
    if (!r->instructions) return 0;
    struct engine_message *all = calloc(n + 1, sizeof *all);
    if (!all || !(all[0].role = strdup("system")) || !(all[0].content = strdup(r->instructions))) {
        if (all) free(all[0].role);
        free(all);
        return no_memory(err);
    }
    memcpy(all + 1, r->messages, n * sizeof *all);
    free(r->messages);
    r->messages = all;
    r->n_messages++;
    return 0;
}
