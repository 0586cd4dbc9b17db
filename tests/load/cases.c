#include "tests/load/cases.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const names[CASE_KINDS] = {
    "health", "completion", "stream", "chat", "chat-stream", "echo", "slow", "cancel", "bad"};

static const char *const words[] = {"there", "was",   "a",    "little", "girl", "who",   "found",
                                    "the",   "big",   "dog",  "and",    "they", "went",  "to",
                                    "park",  "where", "sun",  "played", "with", "red",   "ball",
                                    "happy", "until", "tree", "said",   "mom",  "smiled"};

static const struct {
    const char *method, *path, *body;
    int status;
} bad[] = {
    {"POST", "/v1/completions", "{\"prompt\":", 400},
    {"POST", "/v1/completions", "", 400},
    {"POST", "/v1/completions", "[1,2,3]", 400},
    {"POST", "/v1/completions", "{\"prompt\":12}", 400},
    {"POST", "/v1/completions", "{\"prompt\":\"x\",\"max_tokens\":\"many\"}", 400},
    {"POST", "/v1/completions", "{\"prompt\":\"x\",\"temperature\":99}", 400},
    {"POST", "/v1/completions", "{\"prompt\":\"x\",\"stop\":[\"\"]}", 400},
    {"POST", "/v1/completions", "{\"prompt\":\"x\",\"n\":0}", 400},
    {"POST", "/v1/completions", "{\"prompt\":\"\\ud800\"}", 400},
    {"POST", "/v1/completions", "{\"prompt\":[-1]}", 400},
    {"POST", "/v1/completions", "{\"prompt\":\"x\",\"model\":\"no such model\"}", 404},
    {"POST", "/v1/chat/completions", "{\"messages\":[]}", 400},
    {"POST", "/v1/chat/completions", "{\"messages\":[{\"role\":\"king\",\"content\":\"x\"}]}", 400},
    {"GET", "/no/such/path", "", 404},
    {"DELETE", "/v1/completions", "", 405},
};

static uint64_t mix_bits(uint64_t z) {
    z += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static int between(int low, int high, uint64_t random) {
    return high > low ? low + (int)(random % (uint64_t)(high - low + 1)) : low;
}

const char *cases_name(enum case_kind kind) { return names[kind]; }

static int read_mix(struct cases *c, const char *mix, char *why, size_t why_size) {
    for (const char *at = mix; *at;) {
        char name[24];
        int weight = 1, used = 0, kind = 0;
        if (sscanf(at, "%23[a-z-]%n=%d%n", name, &used, &weight, &used) < 1) break;
        while (kind < CASE_KINDS && strcmp(names[kind], name) != 0) kind++;
        if (kind == CASE_KINDS || weight < 0) {
            snprintf(why, why_size, "mix: there is no case '%s'", name);
            return -EINVAL;
        }
        c->weights[kind] += weight;
        c->total += weight;
        at += used;
        if (*at == ',') at++;
    }
    if (c->total > 0) return 0;
    snprintf(why, why_size, "mix: '%s' has no case", mix);
    return -EINVAL;
}

static char *make_prompt(int index, int n_words) {
    char *prompt = malloc((size_t)n_words * 8 + 48);
    if (!prompt) return NULL;
    int n = sprintf(prompt, "Once upon a time, %d,", index);
    for (int i = 0; i < n_words; i++) {
        uint64_t r = mix_bits((uint64_t)index * 1000003u + (uint64_t)i);
        n += sprintf(prompt + n, " %s", words[r % (sizeof words / sizeof *words)]);
    }
    return prompt;
}

/* What is in every body after the prompt. */
static void tail_of(char *tail, size_t size, const struct cases *c, const struct subject *s,
                    bool stream, bool ignore_eos) {
    snprintf(tail, size, ",%s%s%s\"max_tokens\":%d,\"temperature\":0%s%s}",
             c->model ? "\"model\":\"" : "", c->model ? c->model : "", c->model ? "\"," : "",
             s->max_tokens, ignore_eos ? ",\"ignore_eos\":true" : "",
             stream ? ",\"stream\":true,\"stream_options\":{\"include_usage\":true}" : "");
}

static int make_bodies(const struct cases *c, struct subject *s, bool ignore_eos) {
    for (int kind = CASE_COMPLETION; kind <= CASE_ECHO; kind++) {
        char tail[512];
        size_t size = strlen(s->prompt) + sizeof tail + 96;
        char *body = s->bodies[kind] = malloc(size);
        if (!body) return -ENOMEM;
        bool chat = kind == CASE_CHAT || kind == CASE_CHAT_STREAM;
        tail_of(tail, sizeof tail, c, s, kind == CASE_STREAM || kind == CASE_CHAT_STREAM,
                ignore_eos);
        if (kind == CASE_ECHO) /* goes behind the id */
            snprintf(body, size, " %s\",\"echo\":true%s", s->prompt, tail);
        else if (chat)
            snprintf(body, size, "{\"messages\":[{\"role\":\"user\",\"content\":\"%s\"}]%s",
                     s->prompt, tail);
        else
            snprintf(body, size, "{\"prompt\":\"%s\"%s", s->prompt, tail);
    }
    return 0;
}

int cases_init(struct cases *c, const struct cases_options *o, char *why, size_t why_size) {
    *c = (struct cases){.host = o->host, .model = o->model, .n = o->n_subjects};
    int r = read_mix(c, o->mix, why, why_size);
    if (r < 0) return r;
    c->subjects = calloc((size_t)c->n, sizeof *c->subjects);
    if (!c->subjects) return -ENOMEM;
    for (int i = 0; i < c->n; i++) {
        struct subject *s = &c->subjects[i];
        s->max_tokens = between(o->min_tokens, o->max_tokens, mix_bits(2 * (uint64_t)i + 1));
        s->prompt = make_prompt(i, between(o->min_words, o->max_words, mix_bits(2 * (uint64_t)i)));
        if (!s->prompt) return -ENOMEM;
        r = make_bodies(c, s, !(o->end_allowed && i % 2));
        if (r < 0) return r;
    }
    return 0;
}

void cases_deinit(struct cases *c) {
    for (int i = 0; c->subjects && i < c->n; i++) {
        struct subject *s = &c->subjects[i];
        free(s->prompt);
        free(s->known[0].text);
        free(s->known[1].text);
        for (int k = 0; k < CASE_KINDS; k++) free(s->bodies[k]);
    }
    free(c->subjects);
    *c = (struct cases){0};
}

enum case_kind cases_pick(const struct cases *c, uint64_t random) {
    int at = (int)(random % (uint64_t)c->total), kind = 0;
    while (at >= c->weights[kind]) at -= c->weights[kind++];
    return (enum case_kind)kind;
}

static enum case_kind shape_of(enum case_kind kind, uint64_t random) {
    static const enum case_kind any[] = {CASE_COMPLETION, CASE_STREAM, CASE_STREAM};
    if (kind == CASE_SLOW) return CASE_STREAM;
    return kind == CASE_CANCEL ? any[random % 3] : kind;
}

static int write_request(const struct cases *c, struct question *q, const char *key,
                         const char *method, const char *path, const char *lead, const char *body) {
    size_t n_lead = strlen(lead), n_body = strlen(body), wanted = n_lead + n_body + 1024;
    if (wanted > q->size) {
        char *bytes = realloc(q->bytes, wanted);
        if (!bytes) return -ENOMEM;
        q->bytes = bytes;
        q->size = wanted;
    }
    int n = snprintf(q->bytes, 1024, "%s %s HTTP/1.1\r\nHost: %s\r\nX-Request-Id: %s\r\n", method,
                     path, c->host, q->id);
    if (key) n += snprintf(q->bytes + n, 400, "Authorization: Bearer %.300s\r\n", key);
    if (strcmp(method, "POST") != 0)
        n += sprintf(q->bytes + n, "\r\n");
    else
        n += sprintf(q->bytes + n, "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n",
                     n_lead + n_body);
    memcpy(q->bytes + n, lead, n_lead);
    memcpy(q->bytes + n + n_lead, body, n_body);
    q->n = (size_t)n + n_lead + n_body;
    return 0;
}

int cases_ask(const struct cases *c, struct question *q, enum case_kind kind, uint64_t random,
              const char *id, const char *key) {
    char lead[80] = "";
    q->kind = kind;
    q->shape = shape_of(kind, random >> 40);
    q->subject = NULL;
    q->known = NULL;
    q->status = 200;
    snprintf(q->id, sizeof q->id, "%s", id);
    if (kind == CASE_HEALTH) return write_request(c, q, key, "GET", "/health", "", "");
    if (kind == CASE_BAD) {
        size_t i = random % (sizeof bad / sizeof *bad);
        q->status = bad[i].status;
        return write_request(c, q, key, bad[i].method, bad[i].path, "", bad[i].body);
    }
    struct subject *s = &c->subjects[random % (uint64_t)c->n];
    bool chat = q->shape == CASE_CHAT || q->shape == CASE_CHAT_STREAM;
    q->subject = s;
    if (q->shape == CASE_ECHO)
        snprintf(lead, sizeof lead, "{\"prompt\":\"%s", id);
    else
        q->known = &s->known[chat];
    return write_request(c, q, key, "POST", chat ? "/v1/chat/completions" : "/v1/completions", lead,
                         s->bodies[q->shape]);
}
