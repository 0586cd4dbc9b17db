#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/request_parts.h"
#include "server/server.h"

static char *copy_bytes(const char *bytes, size_t n) {
    char *copy = malloc(n + 1);
    if (!copy) return NULL;
    memcpy(copy, bytes, n);
    copy[n] = 0;
    return copy;
}

static bool copy_messages(struct engine_request *to, const struct openai_request *from) {
    to->messages = calloc((size_t)from->n_messages, sizeof *to->messages);
    if (!to->messages) return false;
    to->n_messages = from->n_messages;
    for (int i = 0; i < from->n_messages; i++) {
        to->messages[i].role = strdup(from->messages[i].role);
        to->messages[i].content = strdup(from->messages[i].content);
        if (!to->messages[i].role || !to->messages[i].content) return false;
    }
    return true;
}

static bool copy_prompt(struct engine_request *to, const struct openai_prompt *prompt) {
    if (prompt->text) {
        to->text = copy_bytes(prompt->text, prompt->text_len);
        to->text_len = prompt->text_len;
        return to->text != NULL;
    }
    to->ids = malloc(prompt->n_ids * sizeof *to->ids);
    if (!to->ids) return false;
    memcpy(to->ids, prompt->ids, prompt->n_ids * sizeof *to->ids);
    to->n_ids = prompt->n_ids;
    return true;
}

/* The last of a prompt's choices takes the prompt itself: it may be megabytes. */
static bool set_prompt(struct engine_request *to, struct openai_request *from, int prompt,
                       bool last) {
    if (from->n_prompts == 0) {
        if (!last) return copy_messages(to, from);
        to->messages = from->messages;
        to->n_messages = from->n_messages;
        from->messages = NULL;
        from->n_messages = 0;
        return true;
    }
    struct openai_prompt *p = &from->prompts[prompt];
    if (!last) return copy_prompt(to, p);
    to->text = p->text;
    to->text_len = p->text_len;
    to->ids = p->ids;
    to->n_ids = p->n_ids;
    *p = (struct openai_prompt){0};
    return true;
}

static bool copy_lists(struct engine_request *to, const struct openai_request *from) {
    if (from->n_bias) {
        size_t bytes = (size_t)from->n_bias * sizeof *from->bias;
        struct sampler_bias *bias = malloc(bytes);
        if (!bias) return false;
        memcpy(bias, from->bias, bytes);
        to->sampling.bias = bias;
        to->sampling.n_bias = from->n_bias;
    }
    for (; to->n_stops < from->n_stops; to->n_stops++) {
        to->stops[to->n_stops] = strdup(from->stops[to->n_stops]);
        if (!to->stops[to->n_stops]) return false;
    }
    memcpy(to->stop_ids, from->stop_ids, sizeof to->stop_ids);
    to->n_stop_ids = from->n_stop_ids;
    return true;
}

/* Whose request it is, how urgent, and with whom it may share keys and values. */
static void set_claim(struct engine_claim *claim, const struct request *r) {
    claim->priority = r->wanted->priority;
    claim->salt = r->wanted->salt;
    gate_claim(r->server, &r->pass, r->start_ns, claim);
}

static void set_options(struct engine_request *to, const struct openai_request *from) {
    to->task = from->task;
    to->pooling = from->pooling;
    to->normalize = from->normalize;
    to->sampling = from->sampling;
    to->max_tokens = from->max_tokens;
    to->min_tokens = from->min_tokens;
    to->ignore_eos = from->ignore_eos;
    to->echo = from->echo;
    to->n_logprobs = from->n_logprobs;
    to->n_prompt_logprobs = from->n_prompt_logprobs;
    to->truncate_prompt = from->truncate_prompt;
    to->no_special = from->no_special;
    to->keep_special = from->keep_special;
    to->keep_stop = from->keep_stop;
    to->return_tokens = from->return_token_ids;
    if (from->echo && from->n_logprobs > to->n_prompt_logprobs)
        to->n_prompt_logprobs = from->n_logprobs;
    /* The best of several are found by their tokens' probabilities. */
    if (from->best_of > from->n && to->n_logprobs < 0) to->n_logprobs = 0;
}

/* Choices of one prompt differ by their seed, and a given seed repeats all of them. NULL: out of
 * memory. */
static struct engine_request *make(struct request *r, struct choice *c) {
    struct openai_request *wanted = r->wanted;
    int nth = c->index % r->width;
    struct engine_request *to = engine_request_new();
    if (!to) return NULL;
    set_options(to, wanted);
    set_claim(&to->claim, r);
    to->seed = wanted->has_seed ? wanted->seed + (uint64_t)nth : server_random(r->server);
    to->tag = (uint64_t)(uintptr_t)c;
    if (set_prompt(to, wanted, c->index / r->width, nth == r->width - 1) && copy_lists(to, wanted))
        return to;
    engine_request_free(to);
    return NULL;
}

static int hand_over(struct request *r, struct engine_request **requests, uint64_t *tickets, int n,
                     struct api_error *e) {
    struct error why;
    int code = engine_submit_all(r->server->engine, tickets, requests, n, &why);
    if (code < 0) return request_engine_error(e, r->wanted->kind, code, why.text);
    for (int i = 0; i < n; i++) {
        r->choices[r->n_submitted].ticket = tickets[i];
        r->choices[r->n_submitted++].submitted = true;
    }
    r->n_running += n;
    return 0;
}

/* A prompt that waits for its turn is needed again. */
static void take_back(struct request *r, int choice, struct engine_request *request) {
    if (!request || r->wanted->kind != OPENAI_EMBEDDING) return;
    struct openai_prompt *p = &r->wanted->prompts[choice];
    *p = (struct openai_prompt){request->text, request->text_len, request->ids, request->n_ids};
    request->text = NULL;
    request->ids = NULL;
}

int request_submit(struct request *r, int n, struct api_error *e) {
    struct engine_request **requests = calloc((size_t)n, sizeof *requests);
    uint64_t *tickets = calloc((size_t)n, sizeof *tickets);
    bool made = requests && tickets;
    for (int i = 0; made && i < n; i++) {
        requests[i] = make(r, &r->choices[r->n_submitted + i]);
        made = requests[i] != NULL;
    }
    int code = made ? hand_over(r, requests, tickets, n, e)
                    : api_error_set(e, API_ERROR_MEMORY, NULL, "out of memory");
    for (int i = 0; code < 0 && requests && i < n; i++) {
        take_back(r, r->n_submitted + i, requests[i]);
        engine_request_free(requests[i]);
    }
    free(requests);
    free(tickets);
    return code;
}

int request_engine_error(struct api_error *e, enum openai_kind kind, int code,
                         const char *message) {
    char param[sizeof e->param] = "";
    enum api_error_kind error = api_error_from_errno(code);
    size_t n = strspn(message, "abcdefghijklmnopqrstuvwxyz_");
    if (error == API_ERROR_INVALID && n < sizeof param && message[n] == ':')
        memcpy(param, message, n);
    if (!strcmp(param, "prompt") || !strcmp(param, "messages"))
        snprintf(param, sizeof param, "%s", openai_source_name(kind));
    return api_error_set(e, error, param, "%s", message);
}
