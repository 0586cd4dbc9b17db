#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "tests/support/client.h"

#define COMPLETIONS "/v1/completions"
#define POST        "POST /v1/completions HTTP/1.1\r\n"

static const char *const quiet[] = {"--log-level", "error", NULL};

static int count(const char *text, const char *needle) {
    int n = 0;
    for (; (text = strstr(text, needle)); text += strlen(needle)) n++;
    return n;
}

Test(http, messages_with_two_readings_are_refused_and_nothing_is_smuggled) {
    static const char *const traps[] = {
        POST "Host: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"
             "GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
        POST "Host: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
             "GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
        POST "Host: x\r\nContent-Length: 2\r\nContent-Length: 40\r\n\r\n{}"
             "GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
        POST "Host: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n"
             "0\r\n\r\nGET /health HTTP/1.1\r\nHost: x\r\n\r\n",
        POST "Host: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        POST "Content-Length: 2\r\n\r\n{}GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
        POST "Host: x\r\nHost: y\r\nContent-Length: 2\r\n\r\n{}",
        ("GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello"
         "GET /health HTTP/1.1\r\nHost: x\r\n\r\n"),
        "GET /health HTTP/1.1\r\n\r\n",
    };
    struct client_server s = client_start(quiet);
    for (size_t i = 0; i < sizeof traps / sizeof *traps; i++) {
        struct client c = client_open(s);
        client_send(&c, traps[i]);
        while (client_expect(&c, "\n\n\n")) {
        } /* to the end: the connection is closed */
        cr_expect(c.n && !strncmp(c.data, "HTTP/1.1 400", 12), "%s: %s", traps[i], c.data);
        cr_expect(count(c.n ? c.data : "", "HTTP/1.1 ") == 1, "%s: %s", traps[i], c.data);
        cr_expect(c.n && strstr(c.data, "\"code\":\"malformed_http\""), "%s", traps[i]);
        client_close(&c);
    }
    client_stop(s);
}

Test(http, garbage_does_not_stop_the_server) {
    static const char *const garbage[] = {
        "\r\n\r\n\r\n",
        "GET\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "\x16\x03\x01\x02\x01",
        POST "Host: x\r\nContent-Length: -5\r\n\r\n",
        POST "Host: x\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        POST "Host: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        POST "Host: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
        POST "Host: x\r\nContent-Length: 50\r\n\r\n{\"prompt\"",
        "GET /%00%2e%2e/%0d%0aX: y HTTP/1.1\r\nHost: x\r\n\r\n",
        "BREW / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
    };
    struct client_server s = client_start(quiet);
    for (size_t i = 0; i < sizeof garbage / sizeof *garbage; i++) {
        struct client c = client_open(s);
        client_send(&c, garbage[i]);
        shutdown(c.fd, SHUT_WR);
        client_close(&c);
    }
    json_decref(client_json(s, COMPLETIONS, "{\"prompt\":\"a\"}", 200));
    client_stop(s);
}

Test(http, large_bodies_are_refused_before_they_are_read) {
    static const char *const flags[] = {"--log-level", "error", "--max-body", "1024", NULL};
    struct client_server s = client_start(flags);
    struct client c = client_open(s);
    client_send(&c, POST "Host: x\r\nContent-Length: 1025\r\n\r\n");
    struct client_reply r = client_reply(&c);
    cr_expect(r.status == 413 && strstr(r.body, "request_too_large"));
    cr_expect(!client_expect(&c, "x"), "the connection stays open");
    client_reply_free(&r);
    client_close(&c);

    c = client_open(s);
    client_send(&c, POST "Host: x\r\nTransfer-Encoding: chunked\r\n\r\n");
    for (int i = 0; i < 9; i++)
        client_send(&c, "80\r\n                                "
                        "                                "
                        "                                "
                        "                                \r\n");
    client_send(&c, "0\r\n\r\n");
    r = client_reply(&c);
    cr_expect(r.status == 413);
    client_reply_free(&r);
    client_close(&c);

    c = client_open(s);
    client_send(&c, POST "Host: x\r\nTransfer-Encoding: chunked\r\n\r\n"
                         "c\r\n{\"prompt\":\"a\r\n3\r\nb\"}\r\n0\r\n\r\n");
    r = client_reply(&c);
    cr_expect(r.status == 200 && strstr(r.body, "\"text\":\"ab\""));
    client_reply_free(&r);
    client_close(&c);
    client_stop(s);
}

Test(http, amplifying_bodies_are_refused_cheaply) {
    static const char *const pieces[] = {"{},", "[],", "[0],", "-1,", "\"\",", "[[[[[[[["};
    static const char head[] = "{\"prompt\":[", tail[] = "0]}";
    enum { SIZE = 2000000 };
    char *body = malloc(SIZE + 64);
    struct client_server s = client_start(quiet);
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
        size_t n = strlen(head), step = strlen(pieces[i]);
        memcpy(body, head, n);
        for (; n + step < SIZE; n += step) memcpy(body + n, pieces[i], step);
        memcpy(body + n, tail, sizeof tail);
        json_t *root = client_json(s, COMPLETIONS, body, 400);
        cr_expect(!strcmp(client_string(root, "error.param"), "prompt"), "%s: %s", pieces[i],
                  client_string(root, "error.message"));
        json_decref(root);
    }
    free(body);
    client_stop(s);
}

/* As many as fit the body, and no tree of JSON is made of them. */
Test(http, token_ids_are_read_by_the_hundred_thousand) {
    enum { N = 600000 };
    char *body = malloc(N * 3 + 64), *at = stpcpy(body, "{\"max_tokens\":2,\"prompt\":[");
    for (int i = 0; i < N; i++) at = stpcpy(at, i ? ",97" : "98");
    strcpy(at, "]}");
    struct client_server s = client_start(quiet);
    json_t *root = client_json(s, COMPLETIONS, body, 200);
    cr_expect(json_integer_value(client_at(root, "usage.prompt_tokens")) == N);
    cr_expect(!strcmp(client_string(root, "choices.0.text"), "ba"));
    json_decref(root);
    memcpy(at - 2, "99", 2);
    memcpy(at - 3, ",256]}", 7);
    root = client_json(s, COMPLETIONS, body, 400);
    cr_expect(strstr(client_string(root, "error.message"), "element 599999 is not a token id"),
              "%s", client_string(root, "error.message"));
    json_decref(root);
    free(body);
    client_stop(s);
}

Test(http, pipelined_requests_are_answered_in_order) {
    struct client_server s = client_start(quiet);
    struct client c = client_open(s);
    char body[64];
    for (int i = 0; i < 20; i++) {
        snprintf(body, sizeof body, "{\"prompt\":\"n%d\"%s}", i, i % 3 ? "" : ",\"stream\":true");
        client_post(&c, COMPLETIONS, body);
        client_get(&c, "/health");
    }
    for (int i = 0; i < 20; i++) {
        struct client_reply r = client_reply(&c);
        snprintf(body, sizeof body, i % 3 ? "\"text\":\"n%d\"" : "\"text\":\"n\"", i);
        cr_expect(strstr(r.body, body), "%d: %s", i, r.body);
        client_reply_free(&r);
        r = client_reply(&c);
        cr_expect(strstr(r.body, "\"status\":\"ok\""));
        client_reply_free(&r);
    }
    client_close(&c);
    client_stop(s);
}

/* libmicrohttpd takes events in batches of 128; an exact batch has its own path. */
Test(http, many_parallel_connections_are_served) {
    static const int crowds[] = {127, 128, 129, 256};
    static const char *const flags[] = {"--log-level", "error", "--max-waiting", "300", NULL};
    struct client_server s = client_start(flags);
    struct client clients[256];
    for (size_t k = 0; k < sizeof crowds / sizeof *crowds; k++) {
        for (int i = 0; i < crowds[k]; i++) clients[i] = client_open(s);
        for (int round = 0; round < 4; round++) {
            const char *body =
                round % 2 ? "{\"prompt\":\"abc\",\"stream\":true}" : "{\"prompt\":\"abc\"}";
            for (int i = 0; i < crowds[k]; i++) client_post(&clients[i], COMPLETIONS, body);
            for (int i = 0; i < crowds[k]; i++) {
                struct client_reply r = client_reply(&clients[i]);
                cr_assert(r.status == 200 && strstr(r.body, "\"finish_reason\":\"stop\""), "%s",
                          r.body);
                client_reply_free(&r);
            }
        }
        for (int i = 0; i < crowds[k]; i++) client_close(&clients[i]);
    }
    client_stop(s);
}

Test(http, connections_over_the_limit_get_an_answer) {
    static const char *const flags[] = {"--log-level", "error", "--max-connections", "4", NULL};
    struct client_server s = client_start(flags);
    struct client clients[8];
    int refused = 0;
    for (int i = 0; i < 8; i++) {
        clients[i] = client_open(s);
        client_get(&clients[i], i < 7 ? "/version" : "/health");
        struct client_reply r = client_reply(&clients[i]);
        refused += r.status == 503 && strstr(r.body, "too_many_connections");
        cr_expect(r.status == (i < 4 || i == 7 ? 200 : 503) || i > 4, "%d: %d", i, r.status);
        client_reply_free(&r);
    }
    cr_expect(refused > 0);
    for (int i = 0; i < 8; i++) client_close(&clients[i]);
    client_stop(s);
}

Test(http, unknown_paths_and_methods_get_json) {
    struct client_server s = client_start(quiet);
    struct client_reply r = client_call(s, "/nope", NULL);
    cr_expect(r.status == 404 && strstr(r.body, "unknown_url"));
    client_reply_free(&r);
    r = client_call(s, COMPLETIONS, NULL);
    cr_expect(r.status == 405 && strstr(r.head, "Allow: POST\r\n"));
    client_reply_free(&r);
    r = client_call(s, "/health", "{}");
    cr_expect(r.status == 405 && strstr(r.head, "Allow: GET, HEAD\r\n"));
    client_reply_free(&r);
    client_stop(s);
}

Test(http, request_ids_come_back_when_they_are_harmless) {
    struct client_server s = client_start(quiet);
    struct client c = client_open(s);
    client_send(&c, "GET /health HTTP/1.1\r\nHost: x\r\nX-Request-Id: abc-1.2\r\n\r\n");
    struct client_reply r = client_reply(&c);
    cr_expect(strstr(r.head, "X-Request-Id: abc-1.2\r\n"));
    client_reply_free(&r);
    client_send(&c, "GET /health HTTP/1.1\r\nHost: x\r\nX-Request-Id: a b\"c\r\n\r\n");
    r = client_reply(&c);
    cr_expect(strstr(r.head, "X-Request-Id: req-"));
    client_reply_free(&r);
    client_close(&c);
    client_stop(s);
}

Test(http, page_is_served_with_a_policy_and_a_tag) {
    struct client_server s = client_start(quiet);
    char request[256], tag[64];
    static const char *const paths[] = {"/", "/index.html", "/app.js", "/style.css"};
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        struct client c = client_open(s);
        client_get(&c, paths[i]);
        struct client_reply r = client_reply(&c);
        cr_expect(r.status == 200 && r.n > 100);
        cr_expect(strstr(r.head, "Content-Security-Policy: default-src 'none'; script-src 'self'"));
        cr_assert(strstr(r.head, "ETag: "));
        sscanf(strstr(r.head, "ETag: ") + 6, "%63[^\r]", tag);
        client_reply_free(&r);
        snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: x\r\nIf-None-Match: %s\r\n\r\n",
                 paths[i], tag);
        client_send(&c, request);
        r = client_reply(&c);
        cr_expect(r.status == 304 && r.n == 0, "%s", r.head);
        client_reply_free(&r);
        client_close(&c);
    }
    client_stop(s);
}

/* Asks until at most three are open: an idle one, the one that asks, the one that asked before. */
static void expect_few_connections(struct client_server s) {
    static const char name[] = "\ngptqt_connections ";
    time_t end = time(NULL) + 20;
    for (int n = 4; n > 3;) {
        struct client_reply r = client_call(s, "/metrics", NULL);
        const char *found = strstr(r.body, name);
        cr_assert(found);
        n = atoi(found + strlen(name));
        cr_assert(n <= 3 || time(NULL) < end, "%d connections stay open", n);
        client_reply_free(&r);
    }
}

/* Whatever they were at, and although older connections have not timed out. */
Test(http, connections_of_clients_that_left_are_closed) {
    struct client_server s = client_start(quiet);
    struct client idle = client_open(s);
    client_send(&idle, "GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
    struct client_reply r = client_reply(&idle);
    client_reply_free(&r);
    for (int i = 0; i < 10; i++) {
        struct client stream = client_open(s);
        client_post(&stream, COMPLETIONS, "{\"prompt\":\"@hold\",\"stream\":true}");
        cr_assert(client_expect(&stream, "HTTP/1.1 200"));
        client_close(&stream);
    }
    expect_few_connections(s);
    for (int i = 0; i < 40; i++) {
        struct client part = client_open(s);
        client_send(&part, i % 2 ? POST "Host: x\r\nContent-Length: 100\r\n\r\n{\"prompt\":"
                                 : POST "Host: x\r\nConte");
        client_close(&part);
    }
    expect_few_connections(s);
    client_close(&idle);
    client_stop(s);
}

Test(http, other_origins_are_let_in_only_when_asked_for) {
    static const char *const open_flags[] = {"--log-level", "error", "--cors", "http://a.b", NULL};
    static const char preflight[] = "OPTIONS /v1/completions HTTP/1.1\r\nHost: x\r\nOrigin: "
                                    "http://a.b\r\n\r\n";
    for (int open = 0; open < 2; open++) {
        struct client_server s = client_start(open ? open_flags : quiet);
        struct client c = client_open(s);
        client_send(&c, preflight);
        struct client_reply r = client_reply(&c);
        cr_expect(r.status == 204); /* OPTIONS is answered; the header lets in */
        cr_expect(!!strstr(r.head, "Access-Control-Allow-Origin: http://a.b") == open);
        client_reply_free(&r);
        client_close(&c);
        client_stop(s);
    }
}

Test(http, preflights_allow_what_the_api_takes_and_never_credentials) {
    static const char *const flags[] = {"--log-level", "error",  "--cors", "http://a.b",
                                        "--api-key",   "secret", NULL};
    struct client_server s = client_start(flags);
    static const char *const requests[] = {
        "OPTIONS /v1/requests/a HTTP/1.1\r\nHost: x\r\nOrigin: http://evil\r\n"
        "Access-Control-Request-Method: DELETE\r\n\r\n",
        "GET /v1/models HTTP/1.1\r\nHost: x\r\nOrigin: http://evil\r\n\r\n"};
    for (int i = 0; i < 2; i++) {
        struct client c = client_open(s);
        client_send(&c, requests[i]);
        struct client_reply r = client_reply(&c);
        /* A preflight has no key; what follows it needs one. */
        cr_expect(r.status == (i ? 401 : 204));
        cr_expect(strstr(r.head, "Access-Control-Allow-Origin: http://a.b\r\n"));
        cr_expect(!strstr(r.head, "evil") && !strstr(r.head, "Allow-Credentials"));
        cr_expect(strstr(r.head, "Vary: Origin\r\n"));
        cr_expect(strstr(r.head, "Access-Control-Expose-Headers: *, ") &&
                  strstr(r.head, ", Retry-After, ") && strstr(r.head, ", X-Ignored-Params, "));
        cr_expect(!!strstr(r.head, "DELETE") == !i && !!strstr(r.head, "Authorization") == !i);
        client_reply_free(&r);
        client_close(&c);
    }
    client_stop(s);
}

Test(http, facts_are_there_for_routers_and_people) {
    struct client_server s = client_start(quiet);
    json_t *root = client_json(s, "/v1/models", NULL, 200);
    cr_expect(!strcmp(client_string(root, "data.0.id"), "builtin"));
    cr_expect(json_integer_value(client_at(root, "data.0.max_model_len")) > 0);
    json_decref(root);
    root = client_json(s, "/version", NULL, 200);
    cr_expect(*client_string(root, "version"));
    json_decref(root);
    json_decref(client_json(s, COMPLETIONS, "{\"prompt\":\"abc\"}", 200));
    struct client_reply r = client_call(s, "/metrics", NULL);
    cr_expect(strstr(r.body, "gptqt_http_requests_total{route=\"completions\","
                             "path=\"/v1/completions\",status=\"200\"} 1\n"));
    cr_expect(strstr(r.body, "gptqt_time_to_first_token_seconds_count 1\n"));
    cr_expect(strstr(r.body, "gptqt_inter_token_seconds_count 2\n"));
    cr_expect(strstr(r.body, "gptqt_request_seconds_bucket{le=\"+Inf\"} 1\n"));
    cr_expect(strstr(r.body, "gptqt_generated_tokens_total 3\n"));
    client_reply_free(&r);
    client_stop(s);
}
