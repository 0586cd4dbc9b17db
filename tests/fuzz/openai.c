/* Bytes as the body of each kind of request. A request that is accepted must be usable: the
 * promises of its header are checked. */
#include "server/api/openai_parse.h"

#include <stdlib.h>
#include <string.h>

#include "server/api/api_error.h"
#include "tests/fuzz/driver.h"

static void check(int promise) {
    if (!promise) __builtin_trap();
}

/* What kind of source a request of each kind has. */
static void check_source(const struct openai_request *r, const struct openai_limits *limits) {
    bool chat = r->kind == OPENAI_CHAT || r->kind == OPENAI_RESPONSE;
    bool empty = r->kind == OPENAI_TOKENIZE || r->kind == OPENAI_DETOKENIZE; /* is allowed */
    check((r->n_messages > 0) != (r->n_prompts > 0));
    check(r->kind == OPENAI_TOKENIZE || chat == (r->n_messages > 0));
    for (size_t i = 0; i < r->n_prompts; i++) {
        const struct openai_prompt *p = &r->prompts[i];
        check(!p->text || !p->ids);
        check(empty || p->text_len > 0 || p->n_ids > 0);
        check(r->truncate_prompt || r->kind == OPENAI_DETOKENIZE ||
              p->n_ids <= limits->max_prompt_tokens);
        for (size_t k = 0; k < p->n_ids; k++) check(p->ids[k] >= 0 && p->ids[k] < limits->vocab);
    }
    for (int i = 0; i < r->n_messages; i++) check(r->messages[i].role && r->messages[i].content);
}

static void check_request(const struct openai_request *r, const struct openai_limits *limits) {
    size_t most = r->kind == OPENAI_EMBEDDING ? OPENAI_MAX_INPUTS : OPENAI_MAX_CHOICES;
    int width = r->best_of > r->n ? r->best_of : r->n;
    check(r->n >= 1 && r->max_tokens >= -1 && r->min_tokens >= 0);
    check((r->n_prompts ? r->n_prompts : 1) * (size_t)width <= most);
    check(!r->stream || (width == r->n && r->n_prompt_logprobs < 0));
    check(r->n_logprobs >= -1 && r->n_logprobs <= ENGINE_MAX_LOGPROBS);
    check(r->n_prompt_logprobs >= -1 && r->n_prompt_logprobs <= ENGINE_MAX_LOGPROBS);
    check(r->n_stops >= 0 && r->n_stops <= ENGINE_MAX_STOPS && r->n_bias <= SAMPLER_MAX_BIAS);
    check(r->n_stop_ids >= 0 && r->n_stop_ids <= ENGINE_MAX_STOP_IDS && r->truncate_prompt >= -1);
    check(sampler_check(&r->sampling, NULL) == 0);
    check_source(r, limits);
    for (int i = 0; i < r->n_stops; i++) check(r->stops[i][0] != 0);
    for (const char *p = r->ignored; *p; p++) check(*p >= ' ' && *p < 127);
    check(strlen(r->ignored) < sizeof r->ignored && strlen(r->request_id) <= OPENAI_MAX_ID);
}

static void try(const uint8_t *data, size_t size, enum openai_kind kind, bool strict) {
    struct openai_limits limits = {
        .models = "m", .max_prompt_tokens = 1000, .vocab = 1000, .strict = strict};
    struct openai_request *r = NULL;
    struct api_error err;
    char *body = malloc(size + 1); /* the parser may write */
    if (!body) return;
    sampler_defaults(&limits.sampling);
    if (size) memcpy(body, data, size);
    if (openai_parse(&r, kind, body, size, &limits, &err) == 0)
        check_request(r, &limits);
    else
        check(r == NULL && err.error.text[0] != 0);
    openai_request_free(r);
    free(body);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    for (int kind = 0; kind < OPENAI_KINDS; kind++)
        try(data, size, (enum openai_kind)kind, kind % 2);
    return 0;
}
