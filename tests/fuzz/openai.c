/* Bytes as the body of a completion and of a chat. A request that is accepted must be usable: the
 * promises of its header are checked. */
#include "server/api/openai_parse.h"

#include <stdlib.h>
#include <string.h>

#include "server/api/api_error.h"
#include "tests/fuzz/driver.h"

static void check(int promise) {
    if (!promise) __builtin_trap();
}

static void check_request(const struct openai_request *r, const struct openai_limits *limits) {
    check(r->n >= 1 && r->max_tokens >= 0 && r->min_tokens >= 0);
    check(r->n_prompts * (size_t)r->n <= OPENAI_MAX_CHOICES);
    check((r->kind == OPENAI_CHAT) == (r->n_messages > 0));
    check((r->kind == OPENAI_COMPLETION) == (r->n_prompts > 0));
    check(r->n_logprobs >= -1 && r->n_logprobs <= ENGINE_MAX_LOGPROBS);
    check(r->n_stops >= 0 && r->n_stops <= ENGINE_MAX_STOPS && r->n_bias <= SAMPLER_MAX_BIAS);
    check(sampler_check(&r->sampling, NULL) == 0);
    for (size_t i = 0; i < r->n_prompts; i++) {
        const struct openai_prompt *p = &r->prompts[i];
        check(p->text ? p->text_len > 0 : p->n_ids > 0 && p->n_ids <= limits->max_prompt_tokens);
        for (size_t k = 0; k < p->n_ids; k++) check(p->ids[k] >= 0 && p->ids[k] < limits->vocab);
    }
    for (int i = 0; i < r->n_messages; i++) check(r->messages[i].role && r->messages[i].content);
    for (int i = 0; i < r->n_stops; i++) check(r->stops[i][0] != 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct openai_limits limits = {.models = "m", .max_prompt_tokens = 1000, .vocab = 1000};
    sampler_defaults(&limits.sampling);
    for (int kind = OPENAI_COMPLETION; kind <= OPENAI_CHAT; kind++) {
        struct openai_request *r = NULL;
        struct api_error err;
        char *body = malloc(size + 1);
        if (!body) return 0;
        if (size) memcpy(body, data, size);
        if (openai_parse(&r, (enum openai_kind)kind, body, size, &limits, &err) == 0)
            check_request(r, &limits);
        else
            check(r == NULL && err.error.text[0] != 0);
        openai_request_free(r);
        free(body);
    }
    return 0;
}
