#include "server/api/openai_parse.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "server/api/api_error.h"
#include "server/api/openai_fields.h"
#include "server/api/openai_prompt.h"
#include "server/api/openai_readers.h"
#include "server/json_quota.h"
#include "server/prescan.h"

/* -- Fields -------------------------------------------------------------------------------- */

static int read_field(struct openai_request *r, const char *name, const json_t *value,
                      const struct openai_limits *limits, struct api_error *err) {
    const struct openai_field *f = openai_field_find(name, r->kind);
    if (json_is_null(value)) return 0;
    if (!f && limits->strict)
        return api_error_set(err, API_ERROR_INVALID, name, "'%.64s' is not a known field", name);
    if (f && f->read) return f->read(r, f, value, limits, err);
    openai_note_ignored(r, name);
    return 0;
}

static int read_fields(struct openai_request *r, json_t *root, const struct openai_limits *limits,
                       struct api_error *err) {
    const char *name;
    json_t *value;
    json_object_foreach(root, name, value) {
        int code = read_field(r, name, value, limits, err);
        if (code < 0) return code;
    }
    return 0;
}

/* -- What concerns several fields at once -------------------------------------------------- */

const char *openai_source_name(enum openai_kind kind) {
    static const char *const names[OPENAI_KINDS] = {"prompt", "messages", "input",
                                                    "input",  "prompt",   "tokens"};
    return names[kind];
}

static int check_source(const struct openai_request *r, struct api_error *err) {
    const char *name = openai_source_name(r->kind);
    if (r->kind == OPENAI_TOKENIZE && r->n_prompts && r->n_messages)
        return api_error_set(err, API_ERROR_INVALID, "messages",
                             "'messages' and 'prompt' do not go together");
    if (r->n_prompts || r->n_messages) return 0;
    return api_error_set(err, API_ERROR_INVALID, name, "'%s' is required", name);
}

static int check_logprobs(struct openai_request *r, struct api_error *err) {
    if (r->kind == OPENAI_CHAT && !r->logprobs_on && r->n_logprobs > 0)
        return api_error_set(err, API_ERROR_INVALID, "top_logprobs",
                             "'top_logprobs' needs 'logprobs': true");
    if (r->kind == OPENAI_CHAT && !r->logprobs_on) r->n_logprobs = -1;
    if (r->kind == OPENAI_CHAT && r->logprobs_on && r->n_logprobs < 0) r->n_logprobs = 0;
    if (r->stream && r->n_prompt_logprobs >= 0)
        return api_error_set(err, API_ERROR_INVALID, "prompt_logprobs",
                             "'prompt_logprobs' does not go with 'stream'");
    return 0;
}

static int check_best_of(const struct openai_request *r, struct api_error *err) {
    if (!r->best_of || r->best_of == r->n) return 0;
    if (r->best_of < r->n)
        return api_error_set(err, API_ERROR_INVALID, "best_of", "'best_of' is less than 'n'");
    if (!r->stream) return 0;
    return api_error_set(err, API_ERROR_INVALID, "best_of",
                         "a 'best_of' above 'n' does not go with 'stream'");
}

/* What a copy takes. */
static size_t prompt_bytes(const struct openai_request *r) {
    enum { MESSAGE = 96 }; /* the struct, and two allocations of the least size */
    size_t n = 0;
    for (size_t i = 0; i < r->n_prompts; i++)
        n += r->prompts[i].text_len + r->prompts[i].n_ids * sizeof *r->prompts[i].ids;
    for (int i = 0; i < r->n_messages; i++) n += MESSAGE + strlen(r->messages[i].content);
    return n;
}

/* More choices than the engine has places would never all be admitted: no overload, a mistake.
 * Embeddings come in turns instead. */
static int check_choices(const struct openai_request *r, const struct openai_limits *limits,
                         struct api_error *err) {
    size_t most = OPENAI_MAX_CHOICES;
    size_t width = (size_t)(r->best_of > r->n ? r->best_of : r->n);
    const char *name = r->best_of > r->n ? "best_of" : "n";
    if (r->kind == OPENAI_EMBEDDING) return 0;
    if (limits->max_choices && limits->max_choices < most) most = limits->max_choices;
    if (width * (r->n_prompts ? r->n_prompts : 1) > most)
        return api_error_set(err, API_ERROR_INVALID, name, "prompts times '%s' is more than %zu",
                             name, most);
    if (prompt_bytes(r) > OPENAI_MAX_COPIES / width)
        return api_error_set(err, API_ERROR_INVALID, name,
                             "the prompts' bytes times '%s' are more than %d", name,
                             OPENAI_MAX_COPIES);
    return 0;
}

/* A prompt of ids is known to be too long before the engine has seen it. */
static int check_lengths(const struct openai_request *r, const struct openai_limits *limits,
                         struct api_error *err) {
    if (r->truncate_prompt || r->kind == OPENAI_DETOKENIZE) return 0;
    for (size_t i = 0; i < r->n_prompts; i++)
        if (r->prompts[i].n_ids > limits->max_prompt_tokens)
            return api_error_set(err, API_ERROR_CONTEXT, openai_source_name(r->kind),
                                 "prompt %zu has %zu tokens, the limit is %zu", i,
                                 r->prompts[i].n_ids, limits->max_prompt_tokens);
    return 0;
}

static int check_request(struct openai_request *r, const struct openai_limits *limits,
                         struct api_error *err) {
    struct error why;
    if (r->max_completion_tokens) r->max_tokens = r->max_completion_tokens;
    if (check_source(r, err) < 0) return -EINVAL;
    if (check_lengths(r, limits, err) < 0) return -E2BIG;
    if (check_best_of(r, err) < 0) return -EINVAL;
    if (check_choices(r, limits, err) < 0) return -EINVAL;
    int most = r->max_tokens < 0 ? 0 : r->max_tokens;
    if (r->max_tokens && r->min_tokens > most)
        return api_error_set(err, API_ERROR_INVALID, "min_tokens",
                             "'min_tokens' is more than 'max_tokens'");
    if (sampler_check(&r->sampling, &why) < 0)
        return api_error_set(err, API_ERROR_INVALID, NULL, "%s", why.text);
    if (openai_prompt_prepend(r, err) < 0) return -ENOMEM;
    return check_logprobs(r, err);
}

/* -- The body ------------------------------------------------------------------------------ */

static int load(json_t **ret, struct prescan *found, enum openai_kind kind, char *body, size_t n,
                struct api_error *err) {
    static const char *const ids[OPENAI_KINDS] = {[OPENAI_COMPLETION] = "prompt",
                                                  [OPENAI_EMBEDDING] = "input",
                                                  [OPENAI_DETOKENIZE] = "tokens"};
    const struct prescan_limits limits = {OPENAI_MAX_DEPTH, OPENAI_MAX_CONTAINERS,
                                          OPENAI_MAX_VALUES, ids[kind]};
    struct error why;
    if (prescan_json(found, body, n, &limits, &why) < 0)
        return api_error_set(err, API_ERROR_INVALID, found->key, "%s", why.text);
    json_error_t where;
    int code = json_quota_load(ret, body, n, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL,
                               OPENAI_MAX_HEAP, &where);
    if (code == -E2BIG)
        return api_error_set(err, API_ERROR_TOO_LARGE, NULL,
                             "the body takes more than %d bytes of memory", OPENAI_MAX_HEAP);
    if (code == -ENOMEM) return api_error_set(err, API_ERROR_MEMORY, NULL, "out of memory");
    if (code < 0)
        return api_error_set(err, API_ERROR_INVALID, NULL,
                             "the body is not valid JSON: %s (byte %d)", where.text,
                             where.position);
    if (json_is_object(*ret)) return 0;
    return api_error_set(err, API_ERROR_INVALID, NULL, "the body must be a JSON object");
}

static void set_defaults(struct openai_request *r, enum openai_kind kind,
                         const struct openai_limits *limits) {
    static const enum engine_task tasks[OPENAI_KINDS] = {
        [OPENAI_EMBEDDING] = ENGINE_EMBED, [OPENAI_TOKENIZE] = ENGINE_TOKENIZE};
    r->kind = kind;
    r->task = tasks[kind];
    r->sampling = limits->sampling;
    r->n = 1;
    r->n_logprobs = r->n_prompt_logprobs = -1;
    r->max_tokens = kind == OPENAI_COMPLETION ? 16 : 0; /* as OpenAI's */
    r->pooling = limits->pooling;
    r->normalize = true;
}

int openai_parse(struct openai_request **ret, enum openai_kind kind, char *body, size_t n,
                 const struct openai_limits *limits, struct api_error *err) {
    struct prescan found;
    json_t *root = NULL;
    struct openai_request *r = calloc(1, sizeof *r);
    if (!r) return api_error_set(err, API_ERROR_MEMORY, NULL, "out of memory");
    set_defaults(r, kind, limits);
    int code = load(&root, &found, kind, body, n, err);
    r->scanned = found.ids;
    r->n_scanned = found.n_ids;
    if (code == 0) code = read_fields(r, root, limits, err);
    if (code == 0) code = check_request(r, limits, err);
    json_quota_release(root);
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
    free(r->instructions);
    free(r->scanned);
    free(r->bias);
    for (int i = 0; i < r->n_stops; i++) free(r->stops[i]);
    free(r);
}
