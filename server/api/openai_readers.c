#include "server/api/openai_readers.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "server/api/api_error.h"
#include "server/model_names.h"
#include "server/text.h"

static void *place(struct openai_request *r, const struct openai_field *f) {
    return (char *)r + f->offset;
}

static int wrong_type(const struct openai_field *f, const char *type, struct api_error *err) {
    return api_error_set(err, API_ERROR_INVALID, f->name, "'%s' must be %s", f->name, type);
}

static int no_memory(struct api_error *err) {
    return api_error_set(err, API_ERROR_MEMORY, NULL, "out of memory");
}

/* Whether the name stands in "a, b". */
static bool is_listed(const char *list, const char *name) {
    size_t n = strlen(name);
    for (const char *at = list; (at = strstr(at, name)); at += n)
        if ((at == list || at[-1] == ' ') && (!at[n] || at[n] == ',')) return true;
    return false;
}

/* Names go into a header, so what is not plain is shown as '?'. */
void openai_note_ignored(struct openai_request *r, const char *name) {
    static const char plain[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.[]";
    size_t n = strlen(r->ignored), length = strlen(name), room = sizeof r->ignored - sizeof ", ...";
    if (!length) {
        name = "?";
        length = 1;
    }
    if (is_listed(r->ignored, name)) return;
    if (n >= 3 && !strcmp(r->ignored + n - 3, "...")) return;
    if (n) n += strlen(strcpy(r->ignored + n, ", "));
    if (n + length > room) {
        strcpy(r->ignored + n, "...");
        return;
    }
    for (size_t i = 0; i < length; i++) r->ignored[n + i] = strchr(plain, name[i]) ? name[i] : '?';
    r->ignored[n + length] = 0;
}

/* -- Plain values -------------------------------------------------------------------------- */

int openai_read_real(struct openai_request *r, const struct openai_field *f, const json_t *value,
                     const struct openai_limits *limits, struct api_error *err) {
    (void)limits;
    if (!json_is_number(value)) return wrong_type(f, "a number", err);
    double number = json_number_value(value);
    if (!isfinite(number) || number < f->min || number > f->max)
        return api_error_set(err, API_ERROR_INVALID, f->name, "'%s' must be in %g..%g", f->name,
                             f->min, f->max);
    *(float *)place(r, f) = (float)number;
    return 0;
}

bool openai_whole(const json_t *value, json_int_t *ret) {
    double number = json_number_value(value);
    if (json_is_integer(value)) {
        *ret = json_integer_value(value);
        return true;
    }
    if (!json_is_real(value) || !(fabs(number) < 1e15) || floor(number) != number) return false;
    *ret = (json_int_t)number;
    return true;
}

int openai_read_int(struct openai_request *r, const struct openai_field *f, const json_t *value,
                    const struct openai_limits *limits, struct api_error *err) {
    (void)limits;
    json_int_t number;
    if (!openai_whole(value, &number)) return wrong_type(f, "an integer", err);
    if (number < (json_int_t)f->min || number > (json_int_t)f->max)
        return api_error_set(err, API_ERROR_INVALID, f->name, "'%s' must be in %.0f..%.0f", f->name,
                             f->min, f->max);
    *(int *)place(r, f) = (int)number;
    return 0;
}

int openai_read_bool(struct openai_request *r, const struct openai_field *f, const json_t *value,
                     const struct openai_limits *limits, struct api_error *err) {
    (void)limits;
    if (!json_is_boolean(value)) return wrong_type(f, "true or false", err);
    *(bool *)place(r, f) = json_is_true(value);
    return 0;
}

int openai_read_not(struct openai_request *r, const struct openai_field *f, const json_t *value,
                    const struct openai_limits *limits, struct api_error *err) {
    int code = openai_read_bool(r, f, value, limits, err);
    if (code == 0) *(bool *)place(r, f) = !*(bool *)place(r, f);
    return code;
}

/* Adds the value as the table writes such: compact, ' for ". What has no place there is no value
 * of the table's. */
static void write_value(struct text *out, const json_t *value, int depth) {
    const char *name;
    json_t *member;
    if (out->n > 64 || depth > 3) return;
    if (json_is_string(value)) {
        text_addf(out, "'%.64s'", json_string_value(value));
    } else if (json_is_number(value)) {
        text_addf(out, "%.17g", json_number_value(value));
    } else if (json_is_array(value)) {
        text_adds(out, "[");
        for (size_t i = 0; i < json_array_size(value) && out->n < 64; i++) {
            if (i) text_adds(out, ",");
            write_value(out, json_array_get(value, i), depth + 1);
        }
        text_adds(out, "]");
    } else if (json_is_object(value)) {
        bool first = true;
        text_adds(out, "{");
        json_object_foreach((json_t *)value, name, member) {
            if (out->n > 64) return;
            text_addf(out, "%s'%.64s':", first ? "" : ",", name);
            first = false;
            write_value(out, member, depth + 1);
        }
        text_adds(out, "}");
    } else {
        text_adds(out, json_is_true(value) ? "true" : json_is_false(value) ? "false" : "null");
    }
}

/* Whether the list "[a,b]" has the item, which may hold commas itself. */
static bool has_item(const char *list, const char *item) {
    size_t n = strlen(item);
    int depth = 0;
    for (const char *p = list, *start = list + 1; *p; p++) {
        if (*p == '[' || *p == '{') depth++;
        bool end = depth == 1 && (*p == ',' || *p == ']');
        if (end && (size_t)(p - start) == n && n && !memcmp(start, item, n)) return true;
        if (end) start = p + 1;
        if (*p == ']' || *p == '}') depth--;
    }
    return false;
}

int openai_read_refused(struct openai_request *r, const struct openai_field *f, const json_t *value,
                        const struct openai_limits *limits, struct api_error *err) {
    (void)r;
    (void)limits;
    struct text own = {0}, list = {0};
    write_value(&own, value, 0);
    openai_field_json(&list, f->schema);
    bool failed = own.failed || list.failed;
    bool neutral = !failed && has_item(f->schema, own.data);
    if (failed)
        no_memory(err);
    else if (!neutral && list.n > strlen("[]"))
        api_error_set(err, API_ERROR_INVALID, f->name,
                      "'%s' is not supported; it may only be one of %s", f->name, list.data);
    else if (!neutral)
        api_error_set(err, API_ERROR_INVALID, f->name, "'%s' is not supported", f->name);
    text_deinit(&own);
    text_deinit(&list);
    return neutral ? 0 : -EINVAL;
}

/* -- Sampling ------------------------------------------------------------------------------ */

/* OpenAI's 0 means no tokens, the engine's the whole context. */
int openai_read_max_tokens(struct openai_request *r, const struct openai_field *f,
                           const json_t *value, const struct openai_limits *limits,
                           struct api_error *err) {
    int code = openai_read_int(r, f, value, limits, err);
    if (code == 0 && r->max_tokens == 0) r->max_tokens = -1;
    return code;
}

/* 0 and -1 both switch it off in the servers that know this field. */
int openai_read_top_k(struct openai_request *r, const struct openai_field *f, const json_t *value,
                      const struct openai_limits *limits, struct api_error *err) {
    int code = openai_read_int(r, f, value, limits, err);
    if (code == 0 && r->sampling.top_k < 0) r->sampling.top_k = 0;
    return code;
}

int openai_read_seed(struct openai_request *r, const struct openai_field *f, const json_t *value,
                     const struct openai_limits *limits, struct api_error *err) {
    (void)limits;
    json_int_t number;
    if (!openai_whole(value, &number)) return wrong_type(f, "an integer", err);
    r->has_seed = true;
    r->seed = (uint64_t)number;
    return 0;
}

static int add_stop(struct openai_request *r, const struct openai_field *f, const json_t *value,
                    struct api_error *err) {
    if (!json_is_string(value)) return wrong_type(f, "a string or a list of strings", err);
    const char *text = json_string_value(value);
    size_t n = json_string_length(value);
    if (n == 0 || strlen(text) != n)
        return api_error_set(err, API_ERROR_INVALID, f->name,
                             "'stop' must not hold empty strings or U+0000");
    if (n > 1024)
        return api_error_set(err, API_ERROR_INVALID, f->name,
                             "a 'stop' string is longer than 1024 bytes");
    char *copy = strdup(text);
    if (!copy) return no_memory(err);
    r->stops[r->n_stops++] = copy;
    return 0;
}

int openai_read_stop(struct openai_request *r, const struct openai_field *f, const json_t *value,
                     const struct openai_limits *limits, struct api_error *err) {
    (void)limits;
    if (!json_is_array(value)) return add_stop(r, f, value, err);
    if (json_array_size(value) > ENGINE_MAX_STOPS)
        return api_error_set(err, API_ERROR_INVALID, f->name, "at most %d 'stop' strings",
                             ENGINE_MAX_STOPS);
    for (size_t i = 0; i < json_array_size(value); i++) {
        int code = add_stop(r, f, json_array_get(value, i), err);
        if (code < 0) return code;
    }
    return 0;
}

int openai_read_stop_ids(struct openai_request *r, const struct openai_field *f,
                         const json_t *value, const struct openai_limits *limits,
                         struct api_error *err) {
    size_t n = json_array_size(value);
    if (!json_is_array(value)) return wrong_type(f, "a list of token ids", err);
    if (n > ENGINE_MAX_STOP_IDS)
        return api_error_set(err, API_ERROR_INVALID, f->name, "'%s' may have %d ids at most",
                             f->name, ENGINE_MAX_STOP_IDS);
    for (size_t i = 0; i < n; i++) {
        json_int_t id;
        if (!openai_whole(json_array_get(value, i), &id) || id < 0 || id >= limits->vocab)
            return api_error_set(err, API_ERROR_INVALID, f->name,
                                 "'%s': element %zu is not a token id below %d", f->name, i,
                                 limits->vocab);
        r->stop_ids[r->n_stop_ids++] = (int32_t)id;
    }
    return 0;
}

static int add_bias(struct openai_request *r, const struct openai_field *f, const char *key,
                    const json_t *value, int vocab, struct api_error *err) {
    char *end;
    errno = 0;
    long id = strtol(key, &end, 10);
    if (errno || *key < '0' || *key > '9' || *end || id >= vocab)
        return api_error_set(err, API_ERROR_INVALID, f->name,
                             "'%s': '%.20s' is not a token id below %d", f->name, key, vocab);
    double number = json_number_value(value);
    if (!json_is_number(value) || !(number >= f->min && number <= f->max))
        return api_error_set(err, API_ERROR_INVALID, f->name,
                             "'%s': the value of %ld must be in %g..%g", f->name, id, f->min,
                             f->max);
    r->bias[r->n_bias++] = (struct sampler_bias){(int32_t)id, (float)number};
    return 0;
}

/* {"50256": -100}: ids as keys. */
int openai_read_bias(struct openai_request *r, const struct openai_field *f, const json_t *value,
                     const struct openai_limits *limits, struct api_error *err) {
    if (!json_is_object(value)) return wrong_type(f, "an object", err);
    size_t n = json_object_size(value);
    if (n > SAMPLER_MAX_BIAS)
        return api_error_set(err, API_ERROR_INVALID, f->name, "at most %d entries in '%s'",
                             SAMPLER_MAX_BIAS, f->name);
    r->bias = n ? malloc(n * sizeof *r->bias) : NULL;
    if (n && !r->bias) return no_memory(err);
    const char *key;
    json_t *bias;
    json_object_foreach((json_t *)value, key, bias) {
        int code = add_bias(r, f, key, bias, limits->vocab, err);
        if (code < 0) return code;
    }
    return 0;
}

/* -- What to do with the answer ------------------------------------------------------------ */

static int read_option(bool *ret, const json_t *value, const char *name, const char *path,
                       struct api_error *err) {
    const json_t *option = json_object_get(value, name);
    if (!option || json_is_null(option)) return 0;
    if (!json_is_boolean(option))
        return api_error_set(err, API_ERROR_INVALID, path, "'%s' must be true or false", path);
    *ret = json_is_true(option);
    return 0;
}

int openai_read_stream_options(struct openai_request *r, const struct openai_field *f,
                               const json_t *value, const struct openai_limits *limits,
                               struct api_error *err) {
    (void)limits;
    if (!json_is_object(value)) return wrong_type(f, "an object", err);
    int code =
        read_option(&r->include_usage, value, "include_usage", "stream_options.include_usage", err);
    if (code < 0) return code;
    code = read_option(&r->continuous_usage, value, "continuous_usage_stats",
                       "stream_options.continuous_usage_stats", err);
    r->continuous_usage = r->continuous_usage && r->include_usage;
    return code;
}

int openai_read_id(struct openai_request *r, const struct openai_field *f, const json_t *value,
                   const struct openai_limits *limits, struct api_error *err) {
    static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                  "0123456789-_.:";
    (void)limits;
    size_t n = json_string_length(value);
    const char *id = json_string_value(value);
    if (!id || n == 0 || n > OPENAI_MAX_ID || strspn(id, allowed) != n)
        return api_error_set(err, API_ERROR_INVALID, f->name,
                             "'%s' must have 1 to %d letters, digits or any of -_.:", f->name,
                             OPENAI_MAX_ID);
    memcpy(r->request_id, id, n + 1);
    return 0;
}

/* -- Whose it is, and how much of it ------------------------------------------------------- */

int openai_read_model(struct openai_request *r, const struct openai_field *f, const json_t *value,
                      const struct openai_limits *limits, struct api_error *err) {
    (void)r;
    if (!json_is_string(value)) return wrong_type(f, "a string", err);
    const char *name = json_string_value(value);
    if (!*name || limits->any_model || model_names_has(limits->models, name)) return 0;
    return api_error_set(err, API_ERROR_MODEL, f->name,
                         "the model '%.64s' does not exist; this server has '%.64s'", name,
                         limits->models);
}

/* FNV-1a; two salts of one hash would share beginnings of prompts, nothing worse. */
int openai_read_salt(struct openai_request *r, const struct openai_field *f, const json_t *value,
                     const struct openai_limits *limits, struct api_error *err) {
    (void)limits;
    size_t n = json_string_length(value);
    const char *salt = json_string_value(value);
    if (!salt || n == 0) return wrong_type(f, "a string that is not empty", err);
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < n; i++) hash = (hash ^ (unsigned char)salt[i]) * 0x100000001b3u;
    r->salt = hash ? hash : 1;
    return 0;
}

int openai_read_truncate(struct openai_request *r, const struct openai_field *f,
                         const json_t *value, const struct openai_limits *limits,
                         struct api_error *err) {
    int code = openai_read_int(r, f, value, limits, err);
    if (code == 0 && r->truncate_prompt == 0) return wrong_type(f, "-1 or at least 1", err);
    return code;
}

int openai_read_truncation(struct openai_request *r, const struct openai_field *f,
                           const json_t *value, const struct openai_limits *limits,
                           struct api_error *err) {
    (void)limits;
    const char *how = json_string_value(value);
    if (!how || (strcmp(how, "auto") != 0 && strcmp(how, "disabled") != 0))
        return wrong_type(f, "\"auto\" or \"disabled\"", err);
    r->truncate_prompt = !strcmp(how, "auto") ? -1 : 0;
    return 0;
}

/* -- Embeddings ---------------------------------------------------------------------------- */

int openai_read_encoding(struct openai_request *r, const struct openai_field *f,
                         const json_t *value, const struct openai_limits *limits,
                         struct api_error *err) {
    (void)limits;
    const char *how = json_string_value(value);
    if (!how || (strcmp(how, "float") != 0 && strcmp(how, "base64") != 0))
        return wrong_type(f, "\"float\" or \"base64\"", err);
    r->base64 = !strcmp(how, "base64");
    return 0;
}

int openai_read_pooling(struct openai_request *r, const struct openai_field *f, const json_t *value,
                        const struct openai_limits *limits, struct api_error *err) {
    (void)limits;
    const char *how = json_string_value(value);
    if (!how || (strcmp(how, "last") != 0 && strcmp(how, "mean") != 0))
        return wrong_type(f, "\"last\" or \"mean\"", err);
    r->pooling = !strcmp(how, "mean") ? POOLING_MEAN : POOLING_LAST;
    return 0;
}

/* Cut vectors are meaningful only of models that were trained for it; none of ours says so. */
int openai_read_dimensions(struct openai_request *r, const struct openai_field *f,
                           const json_t *value, const struct openai_limits *limits,
                           struct api_error *err) {
    (void)r;
    json_int_t number;
    if (!openai_whole(value, &number)) return wrong_type(f, "an integer", err);
    if (number == limits->hidden) return 0;
    return api_error_set(err, API_ERROR_INVALID, f->name,
                         "'%s': the vectors of this model have %d elements", f->name,
                         limits->hidden);
}
