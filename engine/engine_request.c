#include "engine/engine_request.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/engine.h"
#include "engine/sequence.h"
#include "kernels/error.h"

enum { MOST_CUT_TEXT = 1 << 20 /* bytes; about 0.1 s */ };

struct engine_request *engine_request_new(void) {
    struct engine_request *request = calloc(1, sizeof *request);
    if (!request) return NULL;
    sampler_defaults(&request->sampling);
    request->n_logprobs = request->n_prompt_logprobs = -1;
    return request;
}

void engine_request_drop_prompt(struct engine_request *request) {
    for (int i = 0; request->messages && i < request->n_messages; i++) {
        free(request->messages[i].role);
        free(request->messages[i].content);
    }
    free(request->messages);
    free(request->text);
    free(request->ids);
    request->messages = NULL;
    request->text = NULL;
    request->ids = NULL;
}

void engine_request_free(struct engine_request *request) {
    if (!request) return;
    engine_request_drop_prompt(request);
    for (int i = 0; i < ENGINE_MAX_STOPS; i++) free(request->stops[i]);
    free((void *)request->sampling.bias);
    free(request);
}

size_t engine_request_room(const struct engine_request *request, int context) {
    if (request->task == ENGINE_TOKENIZE) return INT32_MAX;
    bool answers = request->task == ENGINE_GENERATE && request->max_tokens >= 0;
    return (size_t)(answers ? context - 1 : context);
}

size_t engine_request_kept(const struct engine_request *request, int context, size_t n) {
    size_t most = n, room = engine_request_room(request, context);
    if (request->truncate_prompt > 0) most = (size_t)request->truncate_prompt;
    if (request->truncate_prompt < 0) {
        bool counted = request->task == ENGINE_GENERATE && request->max_tokens > 0;
        most = room;
        if (counted)
            most = request->max_tokens < context ? (size_t)(context - request->max_tokens) : 1;
    }
    return n < most ? n : most;
}

static int check_ids(const struct engine_request *request, const struct sequence_shape *shape,
                     struct error *err) {
    size_t kept = engine_request_kept(request, shape->context, request->n_ids);
    if (kept > engine_request_room(request, shape->context))
        return error_set(err, -E2BIG,
                         "this model's maximum context length is %d tokens, the prompt has %zu",
                         shape->context, request->n_ids);
    for (size_t i = 0; i < request->n_ids; i++)
        if (request->ids[i] < 0 || request->ids[i] >= shape->vocab)
            return error_set(err, -EINVAL, "prompt: token %zu is %d, the vocabulary has %d", i,
                             request->ids[i], shape->vocab);
    return 0;
}

static int check_messages(const struct engine_request *request, size_t *ret_bytes,
                          struct error *err) {
    size_t bytes = 0;
    if (request->n_messages < 1) return error_set(err, -EINVAL, "messages: there are none");
    for (int i = 0; i < request->n_messages; i++) {
        const struct engine_message *m = &request->messages[i];
        if (!m->role || !m->content)
            return error_set(err, -EINVAL, "messages: number %d has no role or content", i);
        bytes += strlen(m->content);
    }
    *ret_bytes = bytes;
    return 0;
}

static int check_prompt(const struct engine_request *request, const struct sequence_shape *shape,
                        size_t max_text, struct error *err) {
    size_t bytes = request->text_len;
    /* Such a prompt need not fit; yet the engine thread stops for as long as tokenizing takes. */
    bool cut = request->truncate_prompt != 0 || request->task == ENGINE_TOKENIZE;
    if (cut && max_text < MOST_CUT_TEXT) max_text = MOST_CUT_TEXT;
    if (!!request->text + !!request->ids + !!request->messages != 1)
        return error_set(err, -EINVAL, "prompt: exactly one of text, ids and messages is needed");
    if (request->ids) return check_ids(request, shape, err);
    if (!shape->tokenizer)
        return error_set(err, -EINVAL, "prompt: the model has no tokenizer, only ids are accepted");
    if (request->messages) {
        if (!shape->chat) return error_set(err, -EINVAL, "messages: %s", shape->chat_reason);
        int r = check_messages(request, &bytes, err);
        if (r < 0) return r;
        /* The template puts at least a token around each. */
        if (request->n_messages >= shape->context && !cut)
            return error_set(err, -E2BIG,
                             "this model's maximum context length is %d tokens, the prompt has %d "
                             "messages",
                             shape->context, request->n_messages);
    }
    if (bytes > max_text)
        return cut ? error_set(err, -E2BIG, "the prompt has %zu bytes, limit %zu", bytes, max_text)
                   : error_set(err, -E2BIG,
                               "the prompt has %zu bytes, more than %d tokens can hold", bytes,
                               shape->context);
    return 0;
}

static int check_stops(const struct engine_request *request, const struct sequence_shape *shape,
                       struct error *err) {
    if (request->n_stops < 0 || request->n_stops > ENGINE_MAX_STOPS)
        return error_set(err, -EINVAL, "stop: at most %d strings", ENGINE_MAX_STOPS);
    if (request->n_stops > 0 && !shape->tokenizer)
        return error_set(err, -EINVAL, "stop: the model has no tokenizer");
    for (int i = 0; i < request->n_stops; i++) {
        const char *stop = request->stops[i];
        if (!stop || !*stop) return error_set(err, -EINVAL, "stop: a string is empty");
        if (strlen(stop) > STOP_MAX_BYTES)
            return error_set(err, -EINVAL, "stop: a string is longer than %d bytes",
                             STOP_MAX_BYTES);
    }
    if (request->n_stop_ids < 0 || request->n_stop_ids > ENGINE_MAX_STOP_IDS)
        return error_set(err, -EINVAL, "stop_token_ids: at most %d tokens", ENGINE_MAX_STOP_IDS);
    for (int i = 0; i < request->n_stop_ids; i++)
        if (request->stop_ids[i] < 0 || request->stop_ids[i] >= shape->vocab)
            return error_set(err, -EINVAL, "stop_token_ids: %d is not in the vocabulary of %d",
                             request->stop_ids[i], shape->vocab);
    return 0;
}

static int check_lengths(const struct engine_request *request, struct error *err) {
    if (request->max_tokens < -1)
        return error_set(err, -EINVAL, "max_tokens: must not be negative");
    if (request->max_tokens < 0 && request->min_tokens > 0)
        return error_set(err, -EINVAL, "min_tokens: no tokens are wanted");
    if (request->truncate_prompt < -1)
        return error_set(err, -EINVAL, "truncate_prompt_tokens: must be -1 or more");
    if (request->min_tokens < 0) return error_set(err, -EINVAL, "min_tokens: must not be negative");
    if (request->max_tokens > 0 && request->min_tokens > request->max_tokens)
        return error_set(err, -EINVAL, "min_tokens: more than max_tokens (%d)",
                         request->max_tokens);
    if (request->n_logprobs < -1 || request->n_logprobs > ENGINE_MAX_LOGPROBS)
        return error_set(err, -EINVAL, "logprobs: at most %d", ENGINE_MAX_LOGPROBS);
    if (request->n_prompt_logprobs < -1 || request->n_prompt_logprobs > ENGINE_MAX_LOGPROBS)
        return error_set(err, -EINVAL, "prompt_logprobs: at most %d", ENGINE_MAX_LOGPROBS);
    return 0;
}

static int check_claim(const struct engine_claim *claim, struct error *err) {
    if (claim->tenant < 0 || claim->tenant >= ENGINE_MAX_TENANTS)
        return error_set(err, -EINVAL, "tenant: must lie in 0..%d", ENGINE_MAX_TENANTS - 1);
    if (claim->weight != 0 && !(claim->weight >= 1e-3f && claim->weight <= 1e3f))
        return error_set(err, -EINVAL, "weight: must be 0 or lie in 0.001..1000");
    if (claim->queue_ns < 0 || claim->first_ns < 0 || claim->total_ns < 0)
        return error_set(err, -EINVAL, "deadline: must not be negative");
    return 0;
}

int engine_request_check(const struct engine_request *request, const struct sequence_shape *shape,
                         size_t max_text, struct error *err) {
    int r = sampler_check(&request->sampling, err);
    if (r == 0) r = check_claim(&request->claim, err);
    if (r == 0) r = check_lengths(request, err);
    if (r == 0) r = check_stops(request, shape, err);
    if (r == 0) r = check_prompt(request, shape, max_text, err);
    return r;
}
