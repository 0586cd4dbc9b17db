#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tests/support/client.h"

#define COMPLETIONS "/v1/completions"
#define POST        "POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
#define GET         "GET /health HTTP/1.1\r\nHost: x\r\n"
#define CHUNKED     POST "Transfer-Encoding: chunked\r\n\r\n"

static const char *const quiet[] = {"--log-level", "error", NULL};

static int count(const char *text, const char *needle) {
    int n = 0;
    for (; (text = strstr(text, needle)); text += strlen(needle)) n++;
    return n;
}

/* One answer, of this status, as JSON in the API's shape; then the end. */
static void expect_refusal(struct client_server s, const char *request, int status) {
    struct client c = client_open(s);
    client_send(&c, request);
    struct client_reply r = client_reply(&c);
    cr_expect(r.status == status, "%.60s: %d", request, r.status);
    cr_expect(strstr(r.head, "Content-Type: application/json\r\n"), "%.60s: %s", request, r.head);
    cr_expect(strstr(r.head, "X-Request-Id: ") && strstr(r.head, "Connection: close"));
    json_t *root = json_loads(r.body, 0, NULL);
    cr_expect(root && *client_string(root, "error.message"), "%.60s: %s", request, r.body);
    json_decref(root);
    client_reply_free(&r);
    while (client_expect(&c, "\n\n\n")) {
    }
    cr_expect(c.n == 0, "%.60s: more came: %s", request, c.data);
    client_close(&c);
}

Test(hygiene, bad_messages_get_one_json_answer_and_the_end) {
    static const struct {
        int status;
        const char *request;
    } cases[] = {
        {400, "GET\r\n\r\n"},
        {400, "GET /health\r\n\r\n"},
        {400, "\x16\x03\x01\x02\x01"},
        {400, "{\"prompt\":\"a\"}\r\n\r\n"},
        {400, "GET /health HTTP/1.1\nHost: x\n\n"},
        {400, "GET /health HTTP/1.1\r\n\r\n"},
        {400, GET "Host: y\r\n\r\n"},
        {400, GET "A: b\r\n folded\r\n\r\n"},
        {400, GET "A : b\r\n\r\n"},
        {400, GET "A: \x01\r\n\r\n"},
        {400, "GET /a b HTTP/1.1\r\nHost: x\r\n\r\n"},
        {400, "GET /\x80 HTTP/1.1\r\nHost: x\r\n\r\n"},
        {505, "GET /health HTTP/2.0\r\nHost: x\r\n\r\n"},
        {505, "GET /health HTTP/9.9\r\nHost: x\r\n\r\n"},
        {400, POST "Content-Length: -5\r\n\r\n"},
        {400, POST "Content-Length: 99999999999999999999999\r\n\r\n"},
        {413, POST "Content-Length: 99999999999\r\n\r\n"},
        {413, POST "Expect: 100-continue\r\nContent-Length: 99999999999\r\n\r\n"},
        {400, POST "Content-Length: 2, 2\r\n\r\n{}"},
        {400, POST "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"},
        {400, CHUNKED "zz\r\n"},
        {400, CHUNKED "ffffffffffffffff\r\n"},
        {400, CHUNKED "3\r\nabcdef\r\n0\r\n\r\n"},
        {400, CHUNKED "3\nabc\r\n0\r\n\r\n"},
        {400, CHUNKED "0\r\nbad trailer\r\n\r\n"},
    };
    struct client_server s = client_start(quiet);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        expect_refusal(s, cases[i].request, cases[i].status);
    json_decref(client_json(s, COMPLETIONS, "{\"prompt\":\"a\"}", 200));
    client_stop(s);
}

static char *repeat(const char *head, const char *piece, int n, const char *tail) {
    char *text = malloc(strlen(head) + (size_t)n * strlen(piece) + strlen(tail) + 1);
    char *at = stpcpy(text, head);
    for (int i = 0; i < n; i++) at = stpcpy(at, piece);
    strcpy(at, tail);
    return text;
}

Test(hygiene, heads_have_a_limit) {
    static const struct {
        const char *head, *piece, *tail;
        int n, status;
    } cases[] = {
        {"GET /", "a", " HTTP/1.1\r\nHost: x\r\n\r\n", 8000, 404},
        {"GET /", "a", " HTTP/1.1\r\nHost: x\r\n\r\n", 8192, 414},
        {"GET /", "a", "", 300000, 414},
        {GET "A: ", "b", "\r\n\r\n", 16000, 200},
        {GET "A: ", "b", "\r\n\r\n", 17000, 431},
        {GET "A: ", "b", "", 1000000, 431},
        {GET, "Abcdefghij: klmnopqrstuvwxyz\r\n", "\r\n", 98, 200},
        {GET, "A: b\r\n", "\r\n", 101, 431},
        {GET "Cookie: ", "a=b;", "\r\n\r\n", 99, 200},
        {GET "Cookie: ", "a=b;", "\r\n\r\n", 3900, 431},
        {"GET /health?", "a=b&", " HTTP/1.1\r\nHost: x\r\n\r\n", 99, 200},
        {"GET /health?", "a=b&", " HTTP/1.1\r\nHost: x\r\n\r\n", 2000, 431},
    };
    struct client_server s = client_start(quiet);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *request = repeat(cases[i].head, cases[i].piece, cases[i].n, cases[i].tail);
        struct client c = client_open(s);
        client_send(&c, request);
        struct client_reply r = client_reply(&c);
        cr_expect(r.status == cases[i].status, "case %zu: %d, not %d", i, r.status,
                  cases[i].status);
        cr_expect(strstr(r.head, "application/json"), "case %zu: %s", i, r.head);
        client_reply_free(&r);
        client_close(&c);
        free(request);
    }
    client_stop(s);
}

/* Good requests before a bad one are answered, whether they take long or not. */
Test(hygiene, fault_waits_for_its_turn) {
    struct client_server s = client_start(quiet);
    struct client c = client_open(s);
    client_send(&c, GET "\r\n" POST "Content-Length: 16\r\n\r\n{\"prompt\":\"abc\"}" GET
                        "\r\nGET /health HTTP/1.1\r\nHost : x\r\n\r\n" GET "\r\n");
    while (client_expect(&c, "\n\n\n")) {
    }
    cr_expect(count(c.data, "HTTP/1.1 200") == 3, "%s", c.data);
    cr_expect(count(c.data, "HTTP/1.1 400") == 1, "%s", c.data);
    cr_expect(strstr(c.data, "\"text\":\"abc\""));
    client_close(&c);
    client_stop(s);
}

Test(hygiene, slow_requests_are_ended_with_an_answer) {
    static const char *const flags[] = {
        "--log-level", "error", "--header-timeout", "1", "--body-timeout", "2", NULL};
    struct client_server s = client_start(flags);
    static const char *const starts[] = {"G", GET "A: ", POST "Content-Length: 10\r\n\r\n{",
                                         CHUNKED "5\r\n{"};
    struct client clients[4];
    time_t start = time(NULL);
    for (int i = 0; i < 4; i++) {
        clients[i] = client_open(s);
        client_send(&clients[i], starts[i]);
    }
    for (int i = 0; i < 4; i++) {
        struct client_reply r = client_reply(&clients[i]);
        cr_expect(r.status == 408 && strstr(r.body, "request_incomplete"), "%d: %s", i, r.body);
        cr_expect(!client_expect(&clients[i], "x"));
        client_reply_free(&r);
        client_close(&clients[i]);
    }
    cr_expect(time(NULL) - start < 15);
    struct client idle = client_open(s); /* has sent nothing, and so is not slow */
    client_get(&idle, "/health");
    struct client_reply r = client_reply(&idle);
    cr_expect(r.status == 200);
    client_reply_free(&r);
    client_close(&idle);
    client_stop(s);
}

Test(hygiene, unusual_but_right_messages_are_served) {
    static const struct {
        const char *request, *says;
    } cases[] = {
        {"HEAD /health HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 200"},
        {"GET /health HTTP/1.0\r\n\r\n", "HTTP/1.1 200"},
        {"GET /health HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", "HTTP/1.1 200"},
        {"GET http://a.b/health HTTP/1.1\r\nHost: a.b\r\n\r\n", "\"status\":\"ok\""},
        {"GET http://a.b HTTP/1.1\r\nHost: a.b\r\n\r\n", "HTTP/1.1 200"},
        {"GET /health?a=b&c HTTP/1.1\r\nHost: x\r\n\r\n", "\"status\":\"ok\""},
        {"GET /%00 HTTP/1.1\r\nHost: x\r\n\r\n", "unknown_url"},
        {"GET /health%00 HTTP/1.1\r\nHost: x\r\n\r\n", "unknown_url"},
        {"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 404"},
        {"CONNECT a.b:80 HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 404"},
        {"BREW /health HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 405"},
        {GET "Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n", "HTTP/1.1 200"},
        {GET "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n",
         "HTTP/1.1 200"},
        {POST "Expect: 100-continue\r\nContent-Length: 16\r\n\r\n{\"prompt\":\"abc\"}",
         "\"text\":\"abc\""},
        {CHUNKED "4\r\n{\"pr\r\nC;x=y\r\nompt\":\"abc\"}\r\n0\r\nA: b\r\n\r\n", "\"text\":\"abc\""},
        {"\r\n" GET "\r\n", "\"status\":\"ok\""},
        {GET "Content-Length: 3\r\n\r\nabc" GET "\r\n", "HTTP/1.1 200"},
    };
    struct client_server s = client_start(quiet);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct client c = client_open(s);
        client_send(&c, cases[i].request);
        cr_expect(client_expect(&c, cases[i].says), "%s: %s", cases[i].request, c.data);
        client_close(&c);
    }
    client_stop(s);
}

Test(hygiene, nothing_is_read_from_a_head_only_answer) {
    struct client_server s = client_start(quiet);
    struct client c = client_open(s);
    client_send(&c, "HEAD /health HTTP/1.1\r\nHost: x\r\n\r\n" GET "\r\n");
    cr_assert(client_expect(&c, "\"status\""));
    cr_expect(count(c.data, "HTTP/1.1 200") == 2 && count(c.data, "\"status\"") == 1, "%s", c.data);
    client_close(&c);
    client_stop(s);
}

/* A request that is refused while it is still being written is answered, not reset. */
Test(hygiene, refused_uploads_see_their_answer) {
    struct client_server s = client_start(quiet);
    char *request =
        repeat(POST "Bad Header: x\r\nContent-Length: 1500000\r\n\r\n", "0123456789", 150000, "");
    for (int i = 0; i < 5; i++) expect_refusal(s, request, 400);
    free(request);
    client_stop(s);
}

static char *long_prompt(size_t n) {
    char *text = malloc(n + 64), *at = stpcpy(text, "{\"max_tokens\":3,\"prompt\":\"");
    for (size_t i = 0; i < n; i++) *at++ = (char)('a' + i % 26);
    strcpy(at, "\"}");
    return text;
}

/* They take another way, which has to end in the same answers. */
Test(hygiene, large_bodies_are_read_beside_the_loop) {
    struct client_server s = client_start(quiet);
    static const size_t sizes[] = {60000, 65000, 66000, 500000, 1900000};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        char *body = long_prompt(sizes[i]);
        json_t *root = client_json(s, COMPLETIONS, body, 200);
        cr_expect(json_integer_value(client_at(root, "usage.prompt_tokens")) ==
                  (json_int_t)sizes[i]);
        cr_expect(!strcmp(client_string(root, "choices.0.text"), "abc"));
        json_decref(root);
        body[sizes[i]] = '\n'; /* a control character in a string */
        root = client_json(s, COMPLETIONS, body, 400);
        cr_expect(strstr(client_string(root, "error.message"), "not valid JSON"));
        json_decref(root);
        struct client gone = client_open(s); /* it does not wait for the answer */
        client_post(&gone, COMPLETIONS, body);
        client_close(&gone);
        free(body);
    }
    json_decref(client_json(s, COMPLETIONS, "{\"prompt\":\"a\"}", 200));
    client_stop(s);
}

/* What one client has under way is not there for the next, and comes back when it leaves. */
Test(hygiene, uploads_share_a_budget) {
    static const char *const flags[] = {"--log-level", "error", "--max-uploads", "100000", NULL};
    struct client_server s = client_start(flags);
    char *body = long_prompt(60000);
    struct client first = client_open(s);
    client_send(&first, POST "Content-Length: 90000\r\n\r\n");
    client_send(&first, body);
    client_until(s, "gptqt_upload_bytes", 60000);
    struct client_reply r = client_call(s, COMPLETIONS, body);
    cr_expect(r.status == 503 && strstr(r.body, "out_of_memory"), "%d", r.status);
    cr_expect(strstr(r.head, "Retry-After: "));
    client_reply_free(&r);
    client_close(&first);
    for (int status = 0, i = 0; status != 200 && i < 1000; i++) {
        r = client_call(s, COMPLETIONS, body);
        status = r.status;
        cr_expect(status == 200 || i < 999);
        client_reply_free(&r);
    }
    free(body);
    client_stop(s);
}
