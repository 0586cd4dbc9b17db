#include "server/gate.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "engine/text_file.h"
#include "kernels/error.h"
#include "server/api/api_error.h"
#include "server/api/openai_parse.h"
#include "server/http.h"
#include "server/loop.h"
#include "server/server.h"
#include "server/settings.h"
#include "server/tenants.h"

static const int64_t SECOND_NS = 1000000000, MS_NS = 1000000;

enum {
    BYTES_PER_TOKEN = 4, /* of text, before it is tokenized */
    UNSAID_TOKENS = 256, /* taken for an answer whose length is left open, until it ends */
    LONGEST_MS = 86400000
};

/* -- Who ----------------------------------------------------------------------------------- */

int gate_load(struct server *s, struct error *err) {
    const struct settings *c = s->settings;
    struct keys *keys = NULL;
    char *text = NULL;
    size_t n = 0;
    if (!c->api_keys && !c->api_key) return 0;
    int r = c->api_keys ? text_file_read(&text, &n, c->api_keys, err) : 0;
    if (r == 0) r = keys_parse_with(&keys, text, n, c->api_keys, c->api_key, err);
    if (r == 0 && (r = tenants_set_keys(s->tenants, keys, loop_now_ns(), err)) < 0) keys_free(keys);
    if (text) keys_wipe(text, n);
    free(text);
    return r;
}

/* NULL when there is none. */
static const char *shown_key(const struct http_exchange *x) {
    static const char scheme[] = "Bearer ";
    const char *value = http_get(x, "Authorization");
    if (value && !strncasecmp(value, scheme, sizeof scheme - 1)) {
        value += sizeof scheme - 1;
        return value + strspn(value, " ");
    }
    return http_get(x, "X-Api-Key");
}

int gate_identify(struct server *s, struct http_exchange *x, bool open, struct api_error *e) {
    if (!s->tenants->keys) {
        x->tenant = tenants_of_id(s->tenants, http_get(x, "x-gateway-inference-fairness-id"));
        return 0;
    }
    const char *shown = shown_key(x);
    int tenant = shown ? tenants_find(s->tenants, shown, strlen(shown)) : -1;
    if (tenant >= 0) {
        x->tenant = tenant;
        snprintf(x->key, sizeof x->key, "%s", s->tenants->list[tenant].name);
        return 0;
    }
    if (open) return 0;
    http_header(x, "WWW-Authenticate",
                shown ? "Bearer realm=\"gptqt\", error=\"invalid_token\""
                      : "Bearer realm=\"gptqt\"");
    return api_error_set(e, API_ERROR_KEY, NULL,
                         shown ? "this API key is not known"
                               : "an API key is needed: Authorization: Bearer KEY");
}

/* -- How much ------------------------------------------------------------------------------ */

static void add_bucket(struct http_exchange *x, const struct quota_bucket *b,
                       const char *const names[3]) {
    char value[32];
    int64_t full, left;
    if (!b->size) return;
    left = quota_left(b, loop_now_ns(), &full);
    snprintf(value, sizeof value, "%" PRId64, b->size);
    http_header(x, names[0], value);
    snprintf(value, sizeof value, "%" PRId64, left);
    http_header(x, names[1], value);
    snprintf(value, sizeof value, "%.3fs", (double)full / (double)SECOND_NS);
    http_header(x, names[2], value);
}

static void add_rates(const struct server *s, struct http_exchange *x) {
    static const char *const requests[] = {"x-ratelimit-limit-requests",
                                           "x-ratelimit-remaining-requests",
                                           "x-ratelimit-reset-requests"};
    static const char *const tokens[] = {"x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens",
                                         "x-ratelimit-reset-tokens"};
    const struct quota *q = &s->tenants->list[x->tenant].quota;
    add_bucket(x, &q->requests, requests);
    add_bucket(x, &q->tokens, tokens);
}

static int over_quota(const struct quota *q, const struct quota_verdict *v, int64_t tokens,
                      struct api_error *e) {
    switch (v->limit) {
    case QUOTA_FITS:
        return 0;
    case QUOTA_CONCURRENCY:
        api_error_set(e, API_ERROR_RATE, NULL, "%d requests of this key run already, its limit",
                      q->n_running);
        break;
    case QUOTA_REQUESTS:
        api_error_set(e, API_ERROR_RATE, NULL, "this key has %" PRId64 " requests a minute",
                      q->requests.size);
        break;
    case QUOTA_TOKENS:
        api_error_set(e, API_ERROR_RATE, NULL,
                      "this key has %" PRId64 " tokens a minute; this request may need %" PRId64,
                      q->tokens.size, tokens);
        break;
    case QUOTA_NEVER:
        api_error_set(e, API_ERROR_RATE, NULL,
                      "this request may need %" PRId64 " tokens, more than the %" PRId64
                      " that this key has in a minute",
                      tokens, q->tokens.size);
        e->retry = API_RETRY_NEVER;
        return -1;
    }
    e->retry_ns = v->wait_ns;
    return -1;
}

int gate_quota(const struct server *s, int tenant, int64_t tokens, struct api_error *e) {
    const struct quota *q = &s->tenants->list[tenant].quota;
    struct quota_verdict v = quota_check(q, tokens, loop_now_ns());
    return over_quota(q, &v, tokens, e);
}

int64_t gate_prompt_tokens(const struct openai_request *wanted) {
    int64_t tokens = 0;
    for (size_t i = 0; i < wanted->n_prompts; i++) {
        const struct openai_prompt *p = &wanted->prompts[i];
        tokens += (int64_t)(p->n_ids + (p->text_len + BYTES_PER_TOKEN - 1) / BYTES_PER_TOKEN);
    }
    for (int i = 0; i < wanted->n_messages; i++)
        tokens += (int64_t)(strlen(wanted->messages[i].content) / BYTES_PER_TOKEN + 4);
    return tokens;
}

/* -- Whether ------------------------------------------------------------------------------- */

int gate_judge(struct server *s, const struct admission_ask *ask, struct admission_verdict *ret,
               struct api_error *e) {
    const struct settings *c = s->settings;
    const struct admission_limits limits = {c->max_waiting_tokens, c->max_ttft * MS_NS};
    struct engine_stats stats;
    engine_get_stats(s->engine, &stats);
    struct admission_verdict v = *ret = admission_judge(&stats, &limits, ask);
    switch (v.reason) {
    case ADMISSION_FITS:
        return 0;
    case ADMISSION_SEQUENCES:
        api_error_set(e, API_ERROR_QUEUE, NULL,
                      "%d sequences run and %d wait, there is no place for %d more", stats.running,
                      stats.waiting, ask->n);
        break;
    case ADMISSION_TOKENS:
        api_error_set(e, API_ERROR_QUEUE, NULL,
                      "%" PRId64 " prompt tokens wait, the limit is %" PRId64, stats.waiting_tokens,
                      limits.waiting_tokens);
        break;
    case ADMISSION_TTFT:
        api_error_set(e, API_ERROR_QUEUE, NULL,
                      "the first token would come in about %.1f s, the limit is %.1f s",
                      (double)v.ttft_ns / 1e9, (double)limits.ttft_ns / 1e9);
        break;
    case ADMISSION_NEVER:
        api_error_set(e, API_ERROR_QUEUE, NULL, "%d sequences are more than this server has places",
                      ask->n);
        e->retry = API_RETRY_NEVER;
        return -1;
    }
    e->retry_ns = v.retry_ns;
    return -1;
}

void gate_overloaded(struct server *s, struct api_error *e) {
    struct admission_verdict v;
    const struct admission_ask ask = {1, 0};
    struct api_error other;
    if (e->kind == API_ERROR_QUEUE && gate_judge(s, &ask, &v, &other) < 0)
        e->retry_ns = other.retry_ns;
}

static int judge_state(const struct server *s, struct api_error *e) {
    struct engine_stats stats;
    if (s->state >= SERVER_DRAINING)
        return api_error_set(e, API_ERROR_DRAINING, NULL, "the server is shutting down");
    if (!s->info)
        return api_error_set(e, API_ERROR_LOADING, NULL,
                             "the model is being loaded; see /health/startup");
    engine_get_stats(s->engine, &stats);
    if (stats.failed) return api_error_set(e, API_ERROR_BROKEN, NULL, "the engine has failed");
    return 0;
}

int gate_look(struct server *s, struct http_exchange *x, struct api_error *e) {
    const struct admission_ask least = {1, 0};
    struct admission_verdict admission;
    int r = judge_state(s, e);
    if (r < 0) return r;
    if (gate_quota(s, x->tenant, 0, e) < 0) {
        add_rates(s, x);
        return -1;
    }
    return gate_judge(s, &least, &admission, e);
}

/* -- Until when ---------------------------------------------------------------------------- */

/* The shorter one of the server's limit and the client's counts. */
static int read_limit(int64_t *ret, const struct http_exchange *x, const char *header,
                      int64_t seconds, struct api_error *e) {
    const char *value = http_get(x, header);
    *ret = seconds * SECOND_NS;
    if (!value) return 0;
    size_t digits = strspn(value, "0123456789");
    int64_t ms = digits && digits < 10 && !value[digits] ? strtoll(value, NULL, 10) : 0;
    if (ms < 1 || ms > LONGEST_MS)
        return api_error_set(e, API_ERROR_INVALID, header, "%s: must be 1 to %d milliseconds",
                             header, LONGEST_MS);
    if (!*ret || ms * MS_NS < *ret) *ret = ms * MS_NS;
    return 0;
}

static int read_limits(struct gate_pass *pass, const struct server *s,
                       const struct http_exchange *x, struct api_error *e) {
    const struct settings *c = s->settings;
    int r = read_limit(&pass->queue_ns, x, "x-queue-timeout-ms", c->queue_timeout, e);
    if (r == 0)
        r = read_limit(&pass->first_ns, x, "x-first-token-timeout-ms", c->first_token_timeout, e);
    if (r == 0) r = read_limit(&pass->total_ns, x, "x-request-timeout-ms", c->request_timeout, e);
    return r;
}

/* -- Passing ------------------------------------------------------------------------------- */

int gate_enter(struct server *s, struct gate_pass *pass, struct http_exchange *x,
               const struct openai_request *wanted, int n, struct api_error *e) {
    struct quota *q = &s->tenants->list[x->tenant].quota;
    bool generates = wanted->task == ENGINE_GENERATE;
    int64_t prompt = gate_prompt_tokens(wanted), tokens = prompt;
    const struct admission_ask ask = {n, wanted->task == ENGINE_TOKENIZE ? 0 : prompt};
    struct admission_verdict admission;
    int r = read_limits(pass, s, x, e);
    if (r < 0) return r;
    if (wanted->task == ENGINE_TOKENIZE) tokens = 0;
    if (generates && wanted->max_tokens >= 0)
        tokens += (int64_t)n * (wanted->max_tokens ? wanted->max_tokens : UNSAID_TOKENS);
    /* Room first: a refusal must not cost quota. */
    if ((r = gate_judge(s, &ask, &admission, e)) < 0) return r;
    struct quota_verdict v = quota_take(q, tokens, loop_now_ns());
    add_rates(s, x);
    if (over_quota(q, &v, tokens, e) < 0) return -1;
    pass->entered = true;
    pass->tenant = x->tenant;
    pass->taken = tokens;
    return 0;
}

void gate_leave(struct server *s, struct gate_pass *pass, int64_t used) {
    if (!pass->entered) return;
    pass->entered = false;
    quota_settle(&s->tenants->list[pass->tenant].quota, pass->taken, used, loop_now_ns());
}

/* splitmix64's last part: a client's salt must not be able to undo the key's. */
static uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

void gate_claim(const struct server *s, const struct gate_pass *pass, int64_t start_ns,
                struct engine_claim *claim) {
    const struct tenant *tenant = &s->tenants->list[pass->tenant];
    claim->tenant = pass->tenant;
    claim->weight = tenant->weight;
    if (claim->priority < tenant->priority) claim->priority = tenant->priority;
    if (tenant->salt) claim->salt = mix(tenant->salt ^ mix(claim->salt));
    if (pass->queue_ns) claim->queue_ns = start_ns + pass->queue_ns;
    if (pass->first_ns) claim->first_ns = start_ns + pass->first_ns;
    if (pass->total_ns) claim->total_ns = start_ns + pass->total_ns;
}
