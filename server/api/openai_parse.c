#include "server/api/openai_parse.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/api/api_error.h"
#include "server/api/openai_prompt.h"
#include "server/model_names.h"
#include "server/prescan.h"

enum where { COMPLETION = 1, CHAT = 2, BOTH = 3 };

struct field;

/* Reads value into r, or refuses it. */
typedef int field_reader(struct openai_request *r, const struct field *f, const json_t *value,
                         const struct openai_limits *limits, struct api_error *err);

struct field {
    const char *name;
    enum where where;
    field_reader *read;
    size_t offset;
    double min, max;
};

static void *place(struct openai_request *r, const struct field *f) {
    return (char *)r + f->offset;
}

static int wrong_type(const struct field *f, const char *type, struct api_error *err) {
    return api_error_set(err, API_ERROR_INVALID, f->name, "'%s' must be %s", f->name, type);
}

static int read_real(struct openai_request *r, const struct field *f, const json_t *value,
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

static int read_int(struct openai_request *r, const struct field *f, const json_t *value,
                    const struct openai_limits *limits, struct api_error *err) {
    (void)limits;
    if (!json_is_integer(value)) return wrong_type(f, "an integer", err);
    json_int_t number = json_integer_value(value);
    if (number < (json_int_t)f->min || number > (json_int_t)f->max)
        return api_error_set(err, API_ERROR_INVALID, f->name, "'%s' must be in %.0f..%.0f", f->name,
                             f->min, f->max);
    *(int *)place(r, f) = (int)number;
    return 0;
}

static int read_bool(struct openai_request *r, const struct field *f, const json_t *value,
                     const struct openai_limits *limits, struct api_error *err) {
    (void)limits;
    if (!json_is_boolean(value)) return wrong_type(f, "true or false", err);
    *(bool *)place(r, f) = json_is_true(value);
    return 0;
}

/* 0 and -1 both switch it off in the servers that know this field. */
static int read_top_k(struct openai_request *r, const struct field *f, const json_t *value,
                      const struct openai_limits *limits, struct api_error *err) {
    int code = read_int(r, f, value, limits, err);
    if (code == 0 && r->sampling.top_k < 0) r->sampling.top_k = 0;
    return code;
}

static int read_seed(struct openai_request *r, const struct field *f, const json_t *value,
                     const struct openai_limits *limits, struct api_error *err) {
    (void)limits;
    if (!json_is_integer(value)) return wrong_type(f, "an integer", err);
    r->has_seed = true;
    r->seed = (uint64_t)json_integer_value(value);
    return 0;
}

static int read_model(struct openai_request *r, const struct field *f, const json_t *value,
                      const struct openai_limits *limits, struct api_error *err) {
    (void)r;
    if (!json_is_string(value)) return wrong_type(f, "a string", err);
    const char *name = json_string_value(value);
    if (!*name || limits->any_model || model_names_has(limits->models, name)) return 0;
    return api_error_set(err, API_ERROR_MODEL, f->name,
                         "the model '%.64s' does not exist; this server has '%.64s'", name,
                         limits->models);
}

static int add_stop(struct openai_request *r, const struct field *f, const json_t *value,
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
    if (!copy) return api_error_set(err, API_ERROR_MEMORY, NULL, "out of memory");
    r->stops[r->n_stops++] = copy;
    return 0;
}

static int read_stop(struct openai_request *r, const struct field *f, const json_t *value,
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

/* {"50256": -100}: ids as keys. */
static int read_bias(struct openai_request *r, const struct field *f, const json_t *value,
                     const struct openai_limits *limits, struct api_error *err) {
    if (!json_is_object(value)) return wrong_type(f, "an object", err);
    size_t n = json_object_size(value);
    if (n > SAMPLER_MAX_BIAS)
        return api_error_set(err, API_ERROR_INVALID, f->name, "at most %d entries in 'logit_bias'",
                             SAMPLER_MAX_BIAS);
    r->bias = n ? malloc(n * sizeof *r->bias) : NULL;
    if (n && !r->bias) return api_error_set(err, API_ERROR_MEMORY, NULL, "out of memory");
    const char *key;
    json_t *bias;
    json_object_foreach((json_t *)value, key, bias) {
        char *end;
        errno = 0;
        long id = strtol(key, &end, 10);
        if (errno || *key < '0' || *key > '9' || *end || id >= limits->vocab)
            return api_error_set(err, API_ERROR_INVALID, f->name,
                                 "'logit_bias': '%.20s' is not a token id below %d", key,
                                 limits->vocab);
        double number = json_number_value(bias);
        if (!json_is_number(bias) || !(number >= f->min && number <= f->max))
            return api_error_set(err, API_ERROR_INVALID, f->name,
                                 "'logit_bias': the value of %ld must be in %g..%g", id, f->min,
                                 f->max);
        r->bias[r->n_bias++] = (struct sampler_bias){(int32_t)id, (float)number};
    }
    return 0;
}

static int read_stream_options(struct openai_request *r, const struct field *f, const json_t *value,
                               const struct openai_limits *limits, struct api_error *err) {
    (void)limits;
    if (!json_is_object(value)) return wrong_type(f, "an object", err);
    const json_t *usage = json_object_get(value, "include_usage");
    if (!usage || json_is_null(usage)) return 0;
    if (!json_is_boolean(usage))
        return api_error_set(err, API_ERROR_INVALID, "stream_options.include_usage",
                             "'stream_options.include_usage' must be true or false");
    r->include_usage = json_is_true(usage);
    return 0;
}

static int read_prompt(struct openai_request *r, const struct field *f, const json_t *value,
                       const struct openai_limits *limits, struct api_error *err) {
    (void)f;
    return openai_prompt_parse(r, value, limits, err);
}

static int read_messages(struct openai_request *r, const struct field *f, const json_t *value,
                         const struct openai_limits *limits, struct api_error *err) {
    (void)f;
    (void)limits;
    return openai_prompt_messages(r, value, err);
}

static int refuse(struct openai_request *r, const struct field *f, const json_t *value,
                  const struct openai_limits *limits, struct api_error *err) {
    (void)r;
    (void)limits;
    bool empty = (json_is_array(value) && json_array_size(value) == 0) ||
                 (json_is_object(value) && json_object_size(value) == 0);
    if (empty) return 0;
    return api_error_set(err, API_ERROR_INVALID, f->name, "'%s' is not supported", f->name);
}

static int refuse_but(const struct field *f, bool allowed, const char *only,
                      struct api_error *err) {
    if (allowed) return 0;
    return api_error_set(err, API_ERROR_INVALID, f->name, "'%s' may only be %s", f->name, only);
}

static bool is_string(const json_t *value, const char *string) {
    return json_is_string(value) && !strcmp(json_string_value(value), string);
}

static int only_text_format(struct openai_request *r, const struct field *f, const json_t *value,
                            const struct openai_limits *limits, struct api_error *err) {
    (void)r;
    (void)limits;
    return refuse_but(f, is_string(json_object_get(value, "type"), "text"), "{\"type\":\"text\"}",
                      err);
}

static int only_text_modality(struct openai_request *r, const struct field *f, const json_t *value,
                              const struct openai_limits *limits, struct api_error *err) {
    (void)r;
    (void)limits;
    bool text = json_array_size(value) == 1 && is_string(json_array_get(value, 0), "text");
    return refuse_but(f, text, "[\"text\"]", err);
}

static int only_no_tools(struct openai_request *r, const struct field *f, const json_t *value,
                         const struct openai_limits *limits, struct api_error *err) {
    (void)r;
    (void)limits;
    bool none = is_string(value, "none") || is_string(value, "auto");
    return refuse_but(f, none, "\"none\" or \"auto\"", err);
}

static int only_empty_string(struct openai_request *r, const struct field *f, const json_t *value,
                             const struct openai_limits *limits, struct api_error *err) {
    (void)r;
    (void)limits;
    return refuse_but(f, is_string(value, ""), "empty", err);
}

/* best_of > n asks for candidates to be thrown away; equal to n it changes nothing. It is read
 * after n, which stands above it in the table. */
static int read_best_of(struct openai_request *r, const struct field *f, const json_t *value,
                        const struct openai_limits *limits, struct api_error *err) {
    (void)limits;
    if (!json_is_integer(value)) return wrong_type(f, "an integer", err);
    return refuse_but(f, json_integer_value(value) == r->n, "equal to 'n'", err);
}

#define AT(member) offsetof(struct openai_request, member)

static const struct field fields[] = {
    {"model", BOTH, read_model, 0, 0, 0},
    {"prompt", COMPLETION, read_prompt, 0, 0, 0},
    {"messages", CHAT, read_messages, 0, 0, 0},
    {"max_tokens", BOTH, read_int, AT(max_tokens), 1, 1 << 24},
    {"max_completion_tokens", CHAT, read_int, AT(max_tokens), 1, 1 << 24},
    {"min_tokens", BOTH, read_int, AT(min_tokens), 0, 1 << 24},
    {"n", BOTH, read_int, AT(n), 1, OPENAI_MAX_CHOICES},
    {"best_of", COMPLETION, read_best_of, 0, 0, 0},
    {"temperature", BOTH, read_real, AT(sampling.temperature), 0, 2},
    {"top_p", BOTH, read_real, AT(sampling.top_p), 1e-6, 1},
    {"top_k", BOTH, read_top_k, AT(sampling.top_k), -1, 1 << 24},
    {"min_p", BOTH, read_real, AT(sampling.min_p), 0, 0.999999},
    {"frequency_penalty", BOTH, read_real, AT(sampling.frequency_penalty), -2, 2},
    {"presence_penalty", BOTH, read_real, AT(sampling.presence_penalty), -2, 2},
    {"repetition_penalty", BOTH, read_real, AT(sampling.repetition_penalty), 0.01, 10},
    {"seed", BOTH, read_seed, 0, 0, 0},
    {"stop", BOTH, read_stop, 0, 0, 0},
    {"stream", BOTH, read_bool, AT(stream), 0, 0},
    {"stream_options", BOTH, read_stream_options, 0, 0, 0},
    {"echo", COMPLETION, read_bool, AT(echo), 0, 0},
    {"ignore_eos", BOTH, read_bool, AT(ignore_eos), 0, 0},
    {"logprobs", COMPLETION, read_int, AT(n_logprobs), 0, ENGINE_MAX_LOGPROBS},
    {"logprobs", CHAT, read_bool, AT(logprobs_on), 0, 0},
    {"top_logprobs", CHAT, read_int, AT(n_logprobs), 0, ENGINE_MAX_LOGPROBS},
    {"suffix", COMPLETION, only_empty_string, 0, 0, 0},
    {"logit_bias", BOTH, read_bias, 0, -100, 100},
    {"response_format", BOTH, only_text_format, 0, 0, 0},
    {"modalities", CHAT, only_text_modality, 0, 0, 0},
    {"tools", CHAT, refuse, 0, 0, 0},
    {"tool_choice", CHAT, only_no_tools, 0, 0, 0},
    {"functions", CHAT, refuse, 0, 0, 0},
    {"function_call", CHAT, only_no_tools, 0, 0, 0},
    {"audio", CHAT, refuse, 0, 0, 0},
    {"images", CHAT, refuse, 0, 0, 0},
};

static int read_fields(struct openai_request *r, const json_t *root,
                       const struct openai_limits *limits, struct api_error *err) {
    enum where here = r->kind == OPENAI_CHAT ? CHAT : COMPLETION;
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        const struct field *f = &fields[i];
        const json_t *value = (f->where & here) ? json_object_get(root, f->name) : NULL;
        if (!value || json_is_null(value)) continue;
        int code = f->read(r, f, value, limits, err);
        if (code < 0) return code;
    }
    return 0;
}

static int check_logprobs(struct openai_request *r, struct api_error *err) {
    if (r->kind == OPENAI_CHAT && !r->logprobs_on && r->n_logprobs > 0)
        return api_error_set(err, API_ERROR_INVALID, "top_logprobs",
                             "'top_logprobs' needs 'logprobs': true");
    if (r->kind == OPENAI_CHAT && !r->logprobs_on) r->n_logprobs = -1;
    if (r->kind == OPENAI_CHAT && r->logprobs_on && r->n_logprobs < 0) r->n_logprobs = 0;
    if (r->echo && r->n_logprobs >= 0)
        return api_error_set(err, API_ERROR_INVALID, "logprobs",
                             "'logprobs' together with 'echo' is not supported");
    return 0;
}

/* More choices than the engine has places would never all be admitted: no overload, a mistake. */
static int check_choices(const struct openai_request *r, const struct openai_limits *limits,
                         struct api_error *err) {
    size_t most = OPENAI_MAX_CHOICES, choices = (size_t)r->n * (r->n_prompts ? r->n_prompts : 1);
    if (limits->max_choices && limits->max_choices < most) most = limits->max_choices;
    if (choices <= most) return 0;
    return api_error_set(err, API_ERROR_INVALID, "n", "prompts times 'n' is more than %zu", most);
}

/* What concerns several fields at once. */
static int check_request(struct openai_request *r, const struct openai_limits *limits,
                         struct api_error *err) {
    struct error why;
    if (r->kind == OPENAI_COMPLETION && r->n_prompts == 0)
        return api_error_set(err, API_ERROR_INVALID, "prompt", "'prompt' is required");
    if (r->kind == OPENAI_CHAT && r->n_messages == 0)
        return api_error_set(err, API_ERROR_INVALID, "messages", "'messages' is required");
    if (check_choices(r, limits, err) < 0) return -EINVAL;
    if (r->max_tokens && r->min_tokens > r->max_tokens)
        return api_error_set(err, API_ERROR_INVALID, "min_tokens",
                             "'min_tokens' is more than 'max_tokens'");
    if (sampler_check(&r->sampling, &why) < 0)
        return api_error_set(err, API_ERROR_INVALID, NULL, "%s", why.text);
    return check_logprobs(r, err);
}

static int load(json_t **ret, struct prescan *found, char *body, size_t n, struct api_error *err) {
    static const struct prescan_limits limits = {OPENAI_MAX_DEPTH, OPENAI_MAX_CONTAINERS,
                                                 OPENAI_MAX_VALUES};
    struct error why;
    if (prescan_json(found, body, n, &limits, &why) < 0)
        return api_error_set(err, API_ERROR_INVALID, found->key, "%s", why.text);
    json_error_t where;
    json_t *root = json_loadb(body, n, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &where);
    if (!root && json_error_code(&where) == json_error_out_of_memory)
        return api_error_set(err, API_ERROR_MEMORY, NULL, "out of memory");
    if (!root)
        return api_error_set(err, API_ERROR_INVALID, NULL,
                             "the body is not valid JSON: %s (byte %d)", where.text,
                             where.position);
    if (!json_is_object(root)) {
        json_decref(root);
        return api_error_set(err, API_ERROR_INVALID, NULL, "the body must be a JSON object");
    }
    *ret = root;
    return 0;
}

int openai_parse(struct openai_request **ret, enum openai_kind kind, char *body, size_t n,
                 const struct openai_limits *limits, struct api_error *err) {
    struct prescan found;
    json_t *root = NULL;
    struct openai_request *r = calloc(1, sizeof *r);
    if (!r) return api_error_set(err, API_ERROR_MEMORY, NULL, "out of memory");
    r->kind = kind;
    r->sampling = limits->sampling;
    r->n = 1;
    r->n_logprobs = r->n_prompt_logprobs = -1;
    r->max_tokens = kind == OPENAI_COMPLETION ? 16 : 0; /* as OpenAI's */

    int code = load(&root, &found, body, n, err);
    if (code == 0) code = read_fields(r, root, limits, err);
    if (code == 0) code = check_request(r, limits, err);
    json_decref(root);
    if (code < 0) {
        openai_request_free(r);
        return code;
    }
    if (found.has_seed) r->seed = found.seed;
    *ret = r;
    return 0;
}

void openai_request_free(struct openai_request *r) {
    if (!r) return;
    for (size_t i = 0; i < r->n_prompts; i++) {
        free(r->prompts[i].text);
        free(r->prompts[i].ids);
    }
    free(r->prompts);
    for (int i = 0; i < r->n_messages; i++) {
        free(r->messages[i].role);
        free(r->messages[i].content);
    }
    free(r->messages);
    free(r->bias);
    for (int i = 0; i < r->n_stops; i++) free(r->stops[i]);
    free(r);
}
