#include <criterion/criterion.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/support/client.h"

#define COMPLETIONS "/v1/completions"

static char path[64];

static void write_keys(const char *text) {
    FILE *f = fopen(path, "w");
    cr_assert(f && fputs(text, f) >= 0 && fclose(f) == 0);
}

static struct client_server start(const char *text) {
    const char *flags[] = {"--log-level", "error", "--api-keys", path, NULL};
    snprintf(path, sizeof path, "/tmp/gptqt-keys-XXXXXX");
    int fd = mkstemp(path);
    cr_assert(fd >= 0);
    close(fd);
    write_keys(text);
    return client_start(flags);
}

static void stop(struct client_server s) {
    client_stop(s);
    unlink(path);
}

/* One request with these headers, each with its line end; body NULL: none. */
static struct client_reply ask(struct client_server s, const char *method, const char *target,
                               const char *headers, const char *body) {
    char message[2048];
    struct client c = client_open(s);
    snprintf(message, sizeof message,
             "%s %s HTTP/1.1\r\nHost: a\r\nContent-Length: %zu\r\n%s\r\n%s", method, target,
             body ? strlen(body) : 0, headers, body ? body : "");
    client_send(&c, message);
    struct client_reply r = client_reply(&c);
    client_close(&c);
    return r;
}

static int status_of(struct client_server s, const char *headers, const char *body) {
    struct client_reply r = ask(s, "POST", COMPLETIONS, headers, body);
    int status = r.status;
    client_reply_free(&r);
    return status;
}

static void expect_text(struct client_server s, const char *headers, const char *prompt,
                        const char *text) {
    char body[256], wanted[256];
    snprintf(body, sizeof body, "{\"prompt\":\"%s\",\"max_tokens\":100}", prompt);
    snprintf(wanted, sizeof wanted, "\"text\":\"%s\"", text);
    struct client_reply r = ask(s, "POST", COMPLETIONS, headers, body);
    cr_expect(r.status == 200 && strstr(r.body, wanted), "%d %s", r.status, r.body);
    client_reply_free(&r);
}

#define ANN "Authorization: Bearer ka\r\n"
#define BOB "X-Api-Key: kb\r\n"

Test(keys, who_has_none_is_told_how) {
    struct client_server s = start("ann ka\nbob kb\n");
    struct client_reply r = ask(s, "POST", COMPLETIONS, "", "{\"prompt\":\"a\"}");
    cr_expect(r.status == 401 && strstr(r.body, "\"code\":\"invalid_api_key\""));
    cr_expect(strstr(r.head, "WWW-Authenticate: Bearer realm=\"gptqt\"\r\n"));
    cr_expect(!strstr(r.head, "Retry-After"));
    client_reply_free(&r);
    r = ask(s, "POST", COMPLETIONS, "Authorization: Bearer kc\r\n", "{\"prompt\":\"a\"}");
    cr_expect(r.status == 401 && strstr(r.head, "error=\"invalid_token\""));
    client_reply_free(&r);
    stop(s);
}

Test(keys, both_headers_and_every_endpoint_count) {
    struct client_server s = start("ann ka\nbob kb\n");
    static const char *const bad[] = {"",
                                      "Authorization: ka\r\n",
                                      "Authorization: Basic ka\r\n",
                                      "Authorization: Bearer\r\n",
                                      "Authorization: Bearer kaa\r\n",
                                      "X-Api-Key: \r\n",
                                      "X-Api-Key: ann\r\n"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        cr_expect(status_of(s, bad[i], "{\"prompt\":\"a\"}") == 401, "%s", bad[i]);
    cr_expect(status_of(s, ANN, "{\"prompt\":\"a\"}") == 200);
    cr_expect(status_of(s, BOB, "{\"prompt\":\"a\"}") == 200);
    cr_expect(status_of(s, "Authorization: bearer  kb\r\n", "{\"prompt\":\"a\"}") == 200);
    static const struct {
        const char *method, *target;
        int status;
    } cases[] = {{"GET", "/v1/models", 401},    {"POST", "/tokenize", 401},
                 {"POST", "/v1/explain", 401},  {"DELETE", "/v1/requests/a", 401},
                 {"GET", "/health", 200},       {"GET", "/metrics", 200},
                 {"GET", "/health/ready", 200}, {"GET", "/", 200},
                 {"GET", "/openapi.json", 200}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct client_reply r = ask(s, cases[i].method, cases[i].target, "", NULL);
        cr_expect(r.status == cases[i].status, "%s: %d", cases[i].target, r.status);
        client_reply_free(&r);
    }
    stop(s);
}

/* The refusal of a short body leaves the connection in order. */
Test(keys, a_connection_goes_on_after_a_refusal) {
    struct client_server s = start("ann ka\n");
    struct client c = client_open(s);
    client_post(&c, COMPLETIONS, "{\"prompt\":\"a\"}");
    struct client_reply r = client_reply(&c);
    cr_expect(r.status == 401 && !strstr(r.head, "Connection: close"));
    client_reply_free(&r);
    client_send(&c, "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 14\r\n" ANN
                    "\r\n{\"prompt\":\"a\"}");
    r = client_reply(&c);
    cr_expect(r.status == 200);
    client_reply_free(&r);
    client_close(&c);
    stop(s);
}

Test(keys, each_is_a_tenant_with_its_own_cache) {
    struct client_server s = start("ann ka weight=2\nbob kb priority=5\n");
    struct client_reply a =
        ask(s, "POST", COMPLETIONS, ANN, "{\"prompt\":\"@tenant\",\"max_tokens\":99}");
    struct client_reply b =
        ask(s, "POST", COMPLETIONS, BOB, "{\"prompt\":\"@tenant\",\"max_tokens\":99}");
    const char *text_a = strstr(a.body, "\"text\":\""), *text_b = strstr(b.body, "\"text\":\"");
    int tenant_a = 0, tenant_b = 0;
    float weight_a = 0, weight_b = 0;
    unsigned long long salt_a = 0, salt_b = 0;
    cr_assert(text_a && sscanf(text_a + 8, "%d %f %llx", &tenant_a, &weight_a, &salt_a) == 3);
    cr_assert(text_b && sscanf(text_b + 8, "%d %f %llx", &tenant_b, &weight_b, &salt_b) == 3);
    cr_expect(tenant_a > 0 && tenant_b > 0 && tenant_a != tenant_b);
    cr_expect(weight_a > 1.9f && weight_b < 1.1f);
    cr_expect(salt_a && salt_b && salt_a != salt_b);
    client_reply_free(&a);
    client_reply_free(&b);
    /* Nobody is more urgent than his key allows. */
    a = ask(s, "POST", COMPLETIONS, BOB,
            "{\"prompt\":\"@claim\",\"priority\":-9,\"max_tokens\":9}");
    cr_expect(strstr(a.body, "\"text\":\"5 1 "), "%s", a.body);
    client_reply_free(&a);
    a = ask(s, "POST", COMPLETIONS, BOB, "{\"prompt\":\"@claim\",\"priority\":7,\"max_tokens\":9}");
    cr_expect(strstr(a.body, "\"text\":\"7 1 "), "%s", a.body);
    client_reply_free(&a);
    stop(s);
}

Test(keys, concurrency_is_bounded_for_each) {
    struct client_server s = start("ann ka concurrency=1\nbob kb\n");
    struct client c = client_open(s);
    client_send(&c, "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 33\r\n" ANN
                    "\r\n{\"prompt\":\"@hold\",\"stream\":true}\n");
    cr_assert(client_expect(&c, "\r\n\r\n"));
    struct client_reply r = ask(s, "POST", COMPLETIONS, ANN, "{\"prompt\":\"a\"}");
    cr_expect(r.status == 429 && strstr(r.body, "\"code\":\"rate_limit_exceeded\""), "%s", r.body);
    cr_expect(strstr(r.head, "Retry-After: 1\r\n") && strstr(r.head, "retry-after-ms: 1000\r\n"));
    cr_expect(strstr(r.head, "x-should-retry: true\r\n"));
    client_reply_free(&r);
    cr_expect(status_of(s, BOB, "{\"prompt\":\"a\"}") == 200);
    client_close(&c);
    /* The engine's own count is up before the server has heard of it, and of the freed place. */
    client_until(s,
                 "vllm:request_success_total{model_name=\"builtin\",engine=\"0\","
                 "finished_reason=\"abort\"}",
                 1);
    cr_expect(status_of(s, ANN, "{\"prompt\":\"a\"}") == 200);
    stop(s);
}

Test(keys, requests_and_tokens_a_minute_are_metered) {
    struct client_server s = start("ann ka requests-per-minute=2\nbob kb tokens-per-minute=100\n");
    struct client_reply r = ask(s, "POST", COMPLETIONS, ANN, "{\"prompt\":\"a\"}");
    cr_expect(r.status == 200 && strstr(r.head, "x-ratelimit-limit-requests: 2\r\n"));
    cr_expect(strstr(r.head, "x-ratelimit-remaining-requests: 1\r\n"));
    cr_expect(strstr(r.head, "x-ratelimit-reset-requests: 30.000s\r\n") ||
              strstr(r.head, "x-ratelimit-reset-requests: 29.9"));
    cr_expect(!strstr(r.head, "limit-tokens"));
    client_reply_free(&r);
    cr_expect(status_of(s, ANN, "{\"prompt\":\"a\"}") == 200);
    r = ask(s, "POST", COMPLETIONS, ANN, "{\"prompt\":\"a\"}");
    cr_expect(r.status == 429 && strstr(r.head, "x-ratelimit-remaining-requests: 0\r\n"));
    cr_expect(strstr(r.head, "Retry-After: 30\r\n") || strstr(r.head, "Retry-After: 29\r\n"));
    client_reply_free(&r);

    /* 1 token of prompt (guessed) and 90: too much while it runs, next to nothing afterwards. */
    r = ask(s, "POST", COMPLETIONS, BOB, "{\"prompt\":\"abc\",\"max_tokens\":90}");
    cr_expect(r.status == 200 && strstr(r.head, "x-ratelimit-limit-tokens: 100\r\n"));
    cr_expect(strstr(r.head, "x-ratelimit-remaining-tokens: 9\r\n"), "%s", r.head);
    client_reply_free(&r);
    cr_expect(status_of(s, BOB, "{\"prompt\":\"abc\",\"max_tokens\":90}") == 200);
    r = ask(s, "POST", COMPLETIONS, BOB, "{\"prompt\":\"abc\",\"max_tokens\":101}");
    cr_expect(r.status == 429 && strstr(r.head, "x-should-retry: false\r\n"));
    cr_expect(!strstr(r.head, "Retry-After"));
    client_reply_free(&r);
    stop(s);
}

/* It is a request, but computes no tokens. */
Test(keys, counting_tokens_costs_none) {
    struct client_server s = start("ann ka tokens-per-minute=4\n");
    for (int i = 0; i < 2; i++) {
        struct client_reply r = ask(s, "POST", "/tokenize", ANN, "{\"prompt\":\"a long text\"}");
        cr_expect(r.status == 200 && strstr(r.head, "x-ratelimit-remaining-tokens: 4\r\n"), "%s",
                  r.head);
        client_reply_free(&r);
    }
    stop(s);
}

Test(keys, hangup_reads_them_again) {
    struct client_server s = start("ann ka\n");
    cr_expect(status_of(s, BOB, "{\"prompt\":\"a\"}") == 401);
    write_keys("ann ka\nbob kb\n");
    kill(s.pid, SIGHUP);
    /* The signal is taken up in another turn of the loop: asked until it was. */
    int status = 401;
    for (int i = 0; i < 2000 && status == 401; i++)
        status = status_of(s, BOB, "{\"prompt\":\"a\"}");
    cr_expect(status == 200);
    write_keys("bob kb\n");
    kill(s.pid, SIGHUP);
    status = 200;
    for (int i = 0; i < 2000 && status == 200; i++)
        status = status_of(s, ANN, "{\"prompt\":\"a\"}");
    cr_expect(status == 401);
    stop(s);
}

Test(keys, a_broken_file_changes_nothing) {
    struct client_server s = start("ann ka requests-per-minute=1000\n");
    write_keys("ann ka wheight=1\n");
    kill(s.pid, SIGHUP);
    /* A good file after it: by then the broken one has been seen. */
    cr_expect(status_of(s, ANN, "{\"prompt\":\"a\"}") == 200);
    write_keys("ann ka requests-per-minute=1000\nbob kb\n");
    kill(s.pid, SIGHUP);
    int status = 401;
    for (int i = 0; i < 2000 && status == 401; i++) {
        cr_assert(status_of(s, ANN, "{\"prompt\":\"a\"}") != 401);
        status = status_of(s, BOB, "{\"prompt\":\"a\"}");
    }
    cr_expect(status == 200);
    stop(s);
}

Test(keys, a_broken_file_at_the_start_is_named) {
    char text[1024];
    const char *flags[] = {"--api-keys", path, NULL};
    snprintf(path, sizeof path, "/tmp/gptqt-keys-XXXXXX");
    int fd = mkstemp(path);
    cr_assert(fd >= 0);
    close(fd);
    write_keys("# fine\nann ka weight=heavy\n");
    cr_expect(client_run(flags, text, sizeof text) == 1);
    cr_expect(strstr(text, path) && strstr(text, ":2: weight must be in"), "%s", text);
    unlink(path);
    cr_expect(client_run(flags, text, sizeof text) == 1);
    cr_expect(strstr(text, path), "%s", text);
}

Test(keys, the_only_key_is_not_logged) {
    const char *flags[] = {"--api-key", "s3cret", "--log-level", "error", NULL};
    struct client_server s = client_start(flags);
    cr_expect(status_of(s, "Authorization: Bearer s3cret\r\n", "{\"prompt\":\"a\"}") == 200);
    cr_expect(status_of(s, "", "{\"prompt\":\"a\"}") == 401);
    client_stop(s);
}

Test(keys, without_keys_fairness_ids_are_tenants) {
    const char *flags[] = {"--log-level", "error", NULL};
    struct client_server s = client_start(flags);
    expect_text(s, "", "@tenant", "0 1 0");
    struct client_reply r = ask(s, "POST", COMPLETIONS, "x-gateway-inference-fairness-id: u\r\n",
                                "{\"prompt\":\"@tenant\"}");
    cr_expect(r.status == 200 && !strstr(r.body, "\"text\":\"0 1 0\""), "%s", r.body);
    client_reply_free(&r);
    stop(s);
}
