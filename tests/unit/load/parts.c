#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/load/answer.h"
#include "tests/load/events.h"
#include "tests/load/latency.h"
#include "tests/load/reply.h"
#include "tests/load/report.h"

/* -- Latency ------------------------------------------------------------------------------- */

Test(latency, percentiles_are_near_and_never_below) {
    struct latency *l = calloc(1, sizeof *l);
    cr_assert(l);
    for (int i = 1; i <= 100000; i++) latency_add(l, i * 1000LL);
    static const double fractions[] = {0.001, 0.5, 0.9, 0.99, 0.999};
    for (size_t i = 0; i < sizeof fractions / sizeof *fractions; i++) {
        double got = (double)latency_at(l, fractions[i]), truth = fractions[i] * 1e8;
        cr_expect(got >= truth && got <= 1.02 * truth + 1000, "%g: %g, not %g", fractions[i], got,
                  truth);
    }
    cr_expect(latency_at(l, 1) == 100000000);
    free(l);
}

Test(latency, extremes_have_a_place) {
    struct latency *l = calloc(1, sizeof *l);
    cr_assert(l);
    cr_expect(latency_at(l, 0.5) == 0);
    latency_add(l, -5);
    latency_add(l, INT64_MAX);
    cr_expect(l->n == 2);
    cr_expect(latency_at(l, 0.1) == 0);
    free(l);
}

/* -- HTTP ---------------------------------------------------------------------------------- */

struct heard {
    char text[256];
    size_t n;
};

static void hear(void *arg, const char *bytes, size_t n) {
    struct heard *h = arg;
    cr_assert(h->n + n < sizeof h->text);
    memcpy(h->text + h->n, bytes, n);
    h->n += n;
}

/* Feeds the wire in pieces of this size; the answer must end exactly where the wire does. */
static struct reply feed(const char *wire, size_t piece, struct heard *heard) {
    struct reply r = {.body = hear, .arg = heard};
    size_t n = strlen(wire), at = 0;
    reply_reset(&r);
    int code = 0;
    while (at < n) {
        size_t used = 0, now = n - at < piece ? n - at : piece;
        cr_assert(code == 0, "complete after %zu of %zu bytes", at, n);
        code = reply_feed(&r, wire + at, now, &used);
        at += used;
    }
    cr_assert(code == 1);
    return r;
}

Test(reply, is_read_in_pieces_of_any_size) {
    static const struct {
        const char *wire, *body;
        int status;
    } cases[] = {
        {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Request-Id: a-1\r\n\r\nhello", "hello", 200},
        {"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nX-Request-Id: a-1\r\n\r\n"
         "3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n",
         "abc0123456789", 200},
        {"HTTP/1.1 503 Busy\r\nX-Request-Id: a-1\r\nContent-Length: 0\r\n\r\n", "", 503},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (size_t piece = 1; piece < 90; piece++) {
            struct heard heard = {.n = 0};
            struct reply r = feed(cases[i].wire, piece, &heard);
            cr_expect(r.status == cases[i].status);
            cr_expect(!strcmp(r.id, "a-1"));
            cr_expect(heard.n == strlen(cases[i].body) &&
                      !memcmp(heard.text, cases[i].body, heard.n));
        }
    }
}

Test(reply, leaves_the_next_answer_alone) {
    struct heard heard = {.n = 0};
    struct reply r = {.body = hear, .arg = &heard};
    static const char wire[] = "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\naHTTP";
    size_t used;
    reply_reset(&r);
    cr_expect(reply_feed(&r, wire, sizeof wire - 1, &used) == 1);
    cr_expect(used == sizeof wire - 1 - 4);
}

Test(reply, refuses_what_is_no_answer) {
    static const char *const wires[] = {
        "SSH-2.0\r\n\r\n", "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n"};
    for (size_t i = 0; i < sizeof wires / sizeof *wires; i++) {
        struct heard heard = {.n = 0};
        struct reply r = {.body = hear, .arg = &heard};
        size_t used;
        reply_reset(&r);
        cr_expect(reply_feed(&r, wires[i], strlen(wires[i]), &used) == -EPROTO, "%s", wires[i]);
    }
}

/* -- Events -------------------------------------------------------------------------------- */

static void hear_event(void *arg, const char *data, size_t n) {
    hear(arg, data, n);
    hear(arg, "|", 1);
}

Test(events, are_cut_in_pieces_of_any_size) {
    static const char wire[] = "data: one\n\n: ping\n\nevent: x\ndata: two\n\ndata: [DONE]\n\n";
    for (size_t piece = 1; piece < sizeof wire; piece++) {
        struct heard heard = {.n = 0};
        struct events e = {.event = hear_event, .arg = &heard};
        for (size_t at = 0; at < sizeof wire - 1; at += piece) {
            size_t left = sizeof wire - 1 - at;
            cr_assert(events_feed(&e, wire + at, left < piece ? left : piece) == 0);
        }
        cr_expect(heard.n == 15 && !memcmp(heard.text, "one|two|[DONE]|", 15), "%zu: %.*s", piece,
                  (int)heard.n, heard.text);
        events_deinit(&e);
    }
}

/* -- Answers ------------------------------------------------------------------------------- */

static char prompt[] = "ab";
static struct subject subject = {.prompt = prompt, .max_tokens = 2};

static const char *judge(enum case_kind shape, struct known *known, const char *const *events,
                         const char *body) {
    static char why[200];
    static struct question q;
    struct reply r = {.status = 200, .stream = events != NULL};
    struct answer a = {.question = NULL};
    q = (struct question){
        .shape = shape, .subject = &subject, .known = known, .status = 200, .id = "me"};
    answer_begin(&a, &q, true);
    for (; events && *events; events++) answer_event(&a, *events, strlen(*events));
    if (body) answer_body(&a, body, strlen(body));
    const char *verdict = answer_check(&a, &r, false);
    snprintf(why, sizeof why, "%s", verdict ? verdict : "");
    answer_deinit(&a);
    return why;
}

#define EVENT(id, text, end)                                                                       \
    "{\"id\":\"" id "\",\"choices\":[{\"text\":\"" text "\",\"finish_reason\":" end "}]}"
#define USAGE                                                                                      \
    "{\"id\":\"1\",\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2}}"

Test(answer, right_ones_pass_and_each_fault_is_named) {
    char text[] = "h\xc3\xa9\n\xf0\x9f\x98\x80";
    struct known known = {true, text, sizeof text - 1, 3, 2, "length"};
#define START EVENT("1", "h\\u00e9", "null"), EVENT("1", "\\n\\ud83d\\ude00", "null")
    static const struct {
        const char *events[8], *expected;
    } cases[] = {
        {{START, EVENT("1", "", "\"length\""), USAGE, "[DONE]"}, ""},
        {{START, EVENT("1", "", "\"length\""), USAGE}, "without [DONE]"},
        {{START, EVENT("2", "", "\"length\""), USAGE, "[DONE]"}, "in the stream of"},
        {{START, EVENT("1", "x", "\"length\""), USAGE, "[DONE]"}, "differs at byte 8"},
        {{EVENT("1", "h", "\"length\""), USAGE, "[DONE]"}, "differs at byte 1"},
        {{START, EVENT("1", "", "\"stop\""), USAGE, "[DONE]"}, "finish_reason is 'stop'"},
        {{START, EVENT("1", "", "\"length\""), "[DONE]"}, "tokens"},
        {{START, "{\"id\":\"1\"", EVENT("1", "", "\"length\""), USAGE, "[DONE]"}, "no JSON"},
        {{START, "{\"error\":{}}", "[DONE]"}, "an error in the stream"},
        {{START, EVENT("1", "", "\"length\""), USAGE, "[DONE]", USAGE}, "after [DONE]"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *why = judge(CASE_STREAM, &known, cases[i].events, NULL);
        cr_expect(*cases[i].expected ? strstr(why, cases[i].expected) != NULL : !*why, "%zu: '%s'",
                  i, why);
    }
}

Test(answer, echo_is_the_questions_own) {
    static const char *const form =
        "{\"choices\":[{\"text\":\"%s ab!\",\"finish_reason\":\"length\"}],"
        "\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}}";
    char body[256];
    snprintf(body, sizeof body, form, "me");
    cr_expect(!*judge(CASE_ECHO, NULL, NULL, body));
    snprintf(body, sizeof body, form, "you");
    cr_expect(strstr(judge(CASE_ECHO, NULL, NULL, body), "the echo is"));
}

/* -- Report -------------------------------------------------------------------------------- */

Test(report, fairness_is_jains_index) {
    struct report *r = calloc(1, sizeof *r);
    cr_assert(r);
    r->n_keys = 4;
    for (int i = 0; i < 4; i++) report_tokens(r, i, 100);
    cr_expect(report_fairness(r) > 0.9999);
    report_tokens(r, 0, 100000);
    cr_expect(report_fairness(r) < 0.26);
    free(r);
}
