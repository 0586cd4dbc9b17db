#define _GNU_SOURCE /* memmem */

#include "tests/load/answer.h"

#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/load/reply.h"

__attribute__((format(printf, 2, 3))) static void wrong(struct answer *a, const char *format, ...) {
    if (a->wrong[0]) return;
    va_list args;
    va_start(args, format);
    vsnprintf(a->wrong, sizeof a->wrong, format, args);
    va_end(args);
}

void answer_begin(struct answer *a, const struct question *q, bool strict) {
    a->question = q;
    a->strict = strict;
    a->n = a->n_body = 0;
    a->id[0] = a->finish[0] = a->wrong[0] = 0;
    a->n_prompt = a->n_generated = -1;
    a->n_events = 0;
    a->done = a->failed = false;
}

void answer_deinit(struct answer *a) {
    free(a->text);
    free(a->body);
    a->text = a->body = NULL;
    a->size = a->body_size = 0;
}

static bool append(char **data, size_t *n, size_t *size, const char *bytes, size_t more) {
    if (*n + more > *size) {
        size_t wanted = 2 * (*n + more);
        char *grown = realloc(*data, wanted);
        if (!grown) return false;
        *data = grown;
        *size = wanted;
    }
    memcpy(*data + *n, bytes, more);
    *n += more;
    return true;
}

/* -- Scanning ------------------------------------------------------------------------------ */

static size_t put_utf8(char *out, unsigned c) {
    if (c < 0x80) return (size_t)(*out = (char)c, 1);
    size_t n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const unsigned char marks[] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (size_t i = n - 1; i > 0; i--, c >>= 6) out[i] = (char)(0x80 | (c & 0x3f));
    out[0] = (char)(marks[n] | c);
    return n;
}

static unsigned read_hex(const char *at) {
    char digits[5] = {at[0], at[1], at[2], at[3], 0};
    return (unsigned)strtoul(digits, NULL, 16);
}

/* One escape at *at, which is behind the backslash. */
static size_t unescape(char *out, const char **at, const char *end) {
    static const char from[] = "bfnrt", to[] = "\b\f\n\r\t";
    char letter = *(*at)++;
    const char *found = strchr(from, letter);
    if (found) return (size_t)(*out = to[found - from], 1);
    if (letter != 'u' || end - *at < 4) return (size_t)(*out = letter, 1);
    unsigned c = read_hex(*at);
    *at += 4;
    if (c >= 0xd800 && c < 0xdc00 && end - *at >= 6) {
        c = 0x10000 + ((c - 0xd800) << 10) + (read_hex(*at + 2) - 0xdc00);
        *at += 6;
    }
    return put_utf8(out, c);
}

/* Appends the string at p, whose opening quote is passed, to the text. */
static void take_text(struct answer *a, const char *p, const char *end) {
    while (p < end && *p != '"') {
        const char *from = p;
        while (p < end && *p != '"' && *p != '\\') p++;
        bool good = append(&a->text, &a->n, &a->size, from, (size_t)(p - from));
        if (p + 1 < end && *p == '\\') {
            char bytes[4];
            p++;
            size_t n = unescape(bytes, &p, end);
            good = good && append(&a->text, &a->n, &a->size, bytes, n);
        }
        if (!good) wrong(a, "out of memory for the text");
    }
}

static const char *find(const char *data, size_t n, const char *name) {
    const char *at = memmem(data, n, name, strlen(name));
    return at ? at + strlen(name) : NULL;
}

static void take_word(char *out, size_t size, const char *p, const char *end) {
    size_t n = 0;
    while (p + n < end && p[n] != '"' && n + 1 < size) n++;
    memcpy(out, p, n);
    out[n] = 0;
}

static int take_number(const char *data, size_t n, const char *name) {
    const char *at = find(data, n, name);
    char digits[16];
    if (!at) return -1;
    take_word(digits, sizeof digits, at, data + n);
    return atoi(digits);
}

/* The members that an event and an answer in one piece share. */
static void scan(struct answer *a, const char *data, size_t n) {
    enum case_kind shape = a->question->shape;
    bool chat = shape == CASE_CHAT || shape == CASE_CHAT_STREAM;
    const char *end = data + n, *at = find(data, n, chat ? "\"content\":\"" : "\"text\":\"");
    if (at) take_text(a, at, end);
    if ((at = find(data, n, "\"finish_reason\":\"")))
        take_word(a->finish, sizeof a->finish, at, end);
    if (!find(data, n, "\"usage\":{")) return;
    a->n_prompt = take_number(data, n, "\"prompt_tokens\":");
    a->n_generated = take_number(data, n, "\"completion_tokens\":");
}

/* -- Pieces -------------------------------------------------------------------------------- */

static void parse(struct answer *a, const char *data, size_t n) {
    json_error_t why;
    json_t *root = json_loadb(data, n, 0, &why);
    if (!root)
        wrong(a, "no JSON (%s): %.60s", why.text, data);
    else if (!json_is_object(root))
        wrong(a, "no object: %.60s", data);
    json_decref(root);
}

bool answer_event(struct answer *a, const char *data, size_t n) {
    size_t before = a->n;
    if (a->done) wrong(a, "an event after [DONE]");
    if (n == 6 && !memcmp(data, "[DONE]", 6)) {
        a->done = true;
        return false;
    }
    if (a->strict) parse(a, data, n);
    if (n > 9 && !memcmp(data, "{\"error\":", 9)) {
        a->failed = true;
        wrong(a, "an error in the stream: %.*s", (int)(n < 120 ? n : 120), data);
        return false;
    }
    char id[sizeof a->id];
    const char *at = find(data, n, "\"id\":\"");
    take_word(id, sizeof id, at ? at : data + n, data + n);
    if (!a->id[0])
        memcpy(a->id, id, sizeof id);
    else if (strcmp(a->id, id) != 0)
        wrong(a, "an event of %s in the stream of %s", id, a->id);
    scan(a, data, n);
    if (a->n == before) return false;
    a->n_events++;
    return true;
}

void answer_body(struct answer *a, const char *bytes, size_t n) {
    if (!append(&a->body, &a->n_body, &a->body_size, bytes, n)) wrong(a, "out of memory");
}

/* -- Verdicts ------------------------------------------------------------------------------ */

static void learn(const struct answer *a, struct known *k) {
    k->text = malloc(a->n + 1);
    if (!k->text) return;
    if (a->n) memcpy(k->text, a->text, a->n);
    k->n = a->n;
    k->n_prompt = a->n_prompt;
    k->n_generated = a->n_generated;
    memcpy(k->finish, a->finish, sizeof k->finish);
    k->set = true;
}

static void compare(struct answer *a, const struct known *k) {
    size_t same = 0;
    while (same < a->n && same < k->n && a->text[same] == k->text[same]) same++;
    if (same < a->n || same < k->n)
        wrong(a, "text differs at byte %zu: '%.*s', not '%.*s'", same,
              (int)(a->n - same < 40 ? a->n - same : 40), a->text ? a->text + same : "",
              (int)(k->n - same < 40 ? k->n - same : 40), k->text + same);
    if (strcmp(a->finish, k->finish) != 0)
        wrong(a, "finish_reason is '%s', not '%s'", a->finish, k->finish);
    if (a->n_generated != k->n_generated || a->n_prompt != k->n_prompt)
        wrong(a, "usage is %d + %d, not %d + %d", a->n_prompt, a->n_generated, k->n_prompt,
              k->n_generated);
}

static void check_echo(struct answer *a) {
    const struct question *q = a->question;
    size_t n_id = strlen(q->id), n_prompt = strlen(q->subject->prompt);
    if (a->n < n_id + 1 + n_prompt || memcmp(a->text, q->id, n_id) != 0 ||
        memcmp(a->text + n_id + 1, q->subject->prompt, n_prompt) != 0)
        wrong(a, "the echo is '%.*s', not '%s ...'", (int)(a->n < 60 ? a->n : 60),
              a->text ? a->text : "", q->id);
}

static void check_tokens(struct answer *a) {
    int limit = a->question->subject->max_tokens;
    if (strcmp(a->finish, "length") != 0 && strcmp(a->finish, "stop") != 0)
        wrong(a, "finish_reason is '%s'", a->finish);
    else if (a->n_generated > limit || (a->n_generated < limit && a->finish[0] == 'l'))
        wrong(a, "%d tokens, %d were asked for", a->n_generated, limit);
}

const char *answer_check(struct answer *a, const struct reply *reply, bool may_learn) {
    const struct question *q = a->question;
    if (reply->status != q->status)
        wrong(a, "status is %d, not %d: %.*s", reply->status, q->status,
              (int)(a->n_body < 90 ? a->n_body : 90), a->body ? a->body : "");
    if (reply->stream) {
        if (!a->done) wrong(a, "the stream ends without [DONE]");
    } else {
        if (a->strict && a->n_body) parse(a, a->body, a->n_body);
        if (a->n_body && q->subject) scan(a, a->body, a->n_body);
    }
    if (q->status != 200 && !find(a->body ? a->body : "", a->n_body, "\"error\":"))
        wrong(a, "a refusal without an error object");
    if (a->wrong[0] || !q->subject) return a->wrong[0] ? a->wrong : NULL;
    check_tokens(a);
    if (q->shape == CASE_ECHO)
        check_echo(a);
    else if (q->known && q->known->set)
        compare(a, q->known);
    else if (q->known && may_learn && !a->wrong[0])
        learn(a, q->known);
    return a->wrong[0] ? a->wrong : NULL;
}

const char *answer_check_part(struct answer *a) {
    const struct known *k = a->question->known;
    if (k && k->set && (a->n > k->n || (a->n && memcmp(a->text, k->text, a->n) != 0)))
        wrong(a, "the part that came is not the answer's beginning");
    return a->wrong[0] ? a->wrong : NULL;
}
