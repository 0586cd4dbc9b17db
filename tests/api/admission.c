#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "tests/support/client.h"

#define COMPLETIONS "/v1/completions"

static const char *const quiet[] = {"--log-level", "error", NULL};

static struct client_reply ask(struct client_server s, const char *method, const char *target,
                               const char *headers, const char *body) {
    char message[2048];
    struct client c = client_open(s);
    snprintf(message, sizeof message,
             "%s %s HTTP/1.1\r\nHost: a\r\nContent-Length: %zu\r\n%s\r\n%s", method, target,
             strlen(body), headers, body);
    client_send(&c, message);
    struct client_reply r = client_reply(&c);
    client_close(&c);
    return r;
}

static void expect(struct client_server s, const char *headers, const char *body, int status,
                   const char *needle) {
    struct client_reply r = ask(s, "POST", COMPLETIONS, headers, body);
    cr_expect(r.status == status && (strstr(r.head, needle) || strstr(r.body, needle)),
              "%s: %d %s %s", body, r.status, r.head, r.body);
    client_reply_free(&r);
}

/* -- Room ---------------------------------------------------------------------------------- */

Test(admission, places_are_counted_for_all_choices_at_once) {
    const char *flags[] = {"--max-running", "2", "--max-waiting", "2", "--log-level",
                           "error",         NULL};
    struct client_server s = client_start(flags);
    struct client c = client_open(s);
    client_post(&c, COMPLETIONS, "{\"prompt\":\"@hold\",\"n\":2,\"stream\":true}");
    client_until(s, "gptqt_requests_running", 2);
    expect(s, "", "{\"prompt\":\"a\",\"n\":3}", 429, "\"code\":\"server_overloaded\"");
    expect(s, "", "{\"prompt\":\"a\",\"n\":3}", 429, "x-should-retry: true\r\n");
    expect(s, "", "{\"prompt\":\"a\",\"n\":3}", 429, "Retry-After: 1\r\n");
    client_until(s, "gptqt_sequences_total", 2);
    client_close(&c);
    client_until(s, "gptqt_sequences_cancelled_total", 2);
    expect(s, "", "{\"prompt\":\"a\",\"n\":3}", 200, "\"index\":2");
    client_stop(s);
}

Test(admission, a_full_queue_is_told_before_the_body) {
    const char *flags[] = {"--max-running", "1", "--max-waiting", "0", "--log-level",
                           "error",         NULL};
    struct client_server s = client_start(flags);
    struct client c = client_open(s), late = client_open(s);
    client_post(&c, COMPLETIONS, "{\"prompt\":\"@hold\",\"stream\":true}");
    cr_assert(client_expect(&c, "\r\n\r\n"));
    /* A megabyte is announced, and none of it is sent. */
    client_send(&late,
                "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n");
    struct client_reply r = client_reply(&late);
    cr_expect(r.status == 429 && strstr(r.head, "retry-after-ms: "));
    client_reply_free(&r);
    client_close(&late);
    client_close(&c);
    client_stop(s);
}

Test(admission, waiting_tokens_are_bounded) {
    const char *flags[] = {"--max-waiting-tokens", "5000", "--log-level", "error", NULL};
    struct client_server s = client_start(flags);
    struct client c = client_open(s);
    client_post(&c, COMPLETIONS, "{\"prompt\":\"@hold\",\"stream\":true}");
    cr_assert(client_expect(&c, "\r\n\r\n"));
    expect(s, "", "{\"prompt\":\"@busy 4990 1000 0.01\"}", 200, "");
    expect(s, "", "{\"prompt\":\"a\"}", 200, "");
    expect(s, "", "{\"prompt\":[1,2,3,4,5,6,7,8,9,10,11]}", 429, "the limit is 5000");
    expect(s, "", "{\"prompt\":\"@busy 7000 1000 0.01\"}", 200, "");
    expect(s, "", "{\"prompt\":\"a\"}", 429, "Retry-After: 2\r\n");
    expect(s, "", "{\"prompt\":\"a\"}", 429, "retry-after-ms: 2000\r\n");
    client_close(&c);
    client_stop(s);
}

Test(admission, late_first_tokens_are_refused) {
    const char *flags[] = {"--max-ttft", "5000", "--log-level", "error", NULL};
    struct client_server s = client_start(flags);
    struct client c = client_open(s);
    client_post(&c, COMPLETIONS, "{\"prompt\":\"@hold\",\"stream\":true}");
    cr_assert(client_expect(&c, "\r\n\r\n"));
    expect(s, "", "{\"prompt\":\"@busy 9000 1000 0.5\"}", 200, "");
    expect(s, "", "{\"prompt\":\"a\"}", 429, "retry-after-ms: 4500\r\n");
    expect(s, "", "{\"prompt\":\"a\"}", 429, "the first token would come in about 9.5 s");
    client_close(&c);
    /* The engine counts it as gone before the server, who judges, has heard of it. */
    client_until(s,
                 "vllm:request_success_total{model_name=\"builtin\",engine=\"0\","
                 "finished_reason=\"abort\"}",
                 1);
    /* With nobody there it is taken, and the numbers change. */
    expect(s, "", "{\"prompt\":\"@busy 0 1000 0.5\"}", 200, "");
    client_stop(s);
}

/* -- Deadlines ----------------------------------------------------------------------------- */

Test(admission, deadlines_come_from_flags_and_headers) {
    const char *flags[] = {"--queue-timeout",
                           "5",
                           "--first-token-timeout",
                           "7",
                           "--request-timeout",
                           "9",
                           "--log-level",
                           "error",
                           NULL};
    struct client_server s = client_start(flags);
    expect(s, "", "{\"prompt\":\"@limits\"}", 200, "\"text\":\"111 2000 2000\"");
    expect(s, "x-first-token-timeout-ms: 6000\r\n", "{\"prompt\":\"@limits\"}", 200,
           "\"text\":\"111 1000 3000\"");
    expect(s, "x-queue-timeout-ms: 1000\r\nx-request-timeout-ms: 8000\r\n",
           "{\"prompt\":\"@limits\"}", 200, "\"text\":\"111 6000 1000\"");
    /* The server's own limit is the longest. */
    expect(s, "x-request-timeout-ms: 80000\r\n", "{\"prompt\":\"@limits\"}", 200,
           "\"text\":\"111 2000 2000\"");
    client_stop(s);
    const char *none[] = {"--request-timeout", "0", "--log-level", "error", NULL};
    s = client_start(none);
    expect(s, "", "{\"prompt\":\"@limits\"}", 200, "\"text\":\"000 0 0\"");
    expect(s, "x-queue-timeout-ms: 20\r\n", "{\"prompt\":\"@limits\"}", 200, "\"text\":\"100 ");
    client_stop(s);
}

Test(admission, wrong_deadlines_are_named) {
    static const char *const bad[] = {"0", "-1", "1.5", "x", "86400001", "99999999999", ""};
    struct client_server s = client_start(quiet);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char header[64];
        snprintf(header, sizeof header, "x-request-timeout-ms: %s\r\n", bad[i]);
        expect(s, header, "{\"prompt\":\"a\"}", 400, "\"param\":\"x-request-timeout-ms\"");
    }
    client_stop(s);
}

Test(admission, an_expired_request_is_a_504_that_names_the_limit) {
    struct client_server s = client_start(quiet);
    expect(s, "", "{\"prompt\":\"@expire\"}", 504, "the queue deadline has passed");
    expect(s, "x-request-timeout-ms: 100\r\n", "{\"prompt\":\"@hold\"}", 504,
           "longer than 0.100 s");
    client_stop(s);
}

/* -- Cancelling ---------------------------------------------------------------------------- */

static void cancel(struct client_server s, const char *id, int status, const char *needle) {
    char target[128];
    snprintf(target, sizeof target, "/v1/requests/%s", id);
    struct client_reply r = ask(s, "DELETE", target, "", "");
    cr_expect(r.status == status && strstr(r.body, needle), "%d %s", r.status, r.body);
    client_reply_free(&r);
}

Test(admission, running_requests_are_cancelled_by_id) {
    static const struct {
        const char *body, *state;
        int status; /* 0: the stream has begun */
    } cases[] = {
        {"{\"prompt\":\"@queue\"}", "queued", 499},
        {"{\"prompt\":\"@hold\"}", "prefill", 499},
        {"{\"prompt\":\"@hold\",\"stream\":true}", "prefill", 0},
        {"{\"prompt\":[\"@gate\",\"@open 1\"],\"n\":1,\"stream\":true}", "decode", 0},
    };
    struct client_server s = client_start(quiet);
    cancel(s, "mine", 404, "\"code\":\"request_not_found\"");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char head[256], wanted[64], series[96];
        struct client c = client_open(s);
        snprintf(head, sizeof head,
                 "POST /v1/completions HTTP/1.1\r\nHost: a\r\nX-Request-Id: mine\r\n"
                 "Content-Length: %zu\r\n\r\n%s",
                 strlen(cases[i].body), cases[i].body);
        client_send(&c, head);
        if (i == 0) client_until(s, "gptqt_requests_waiting", 1);
        if (i > 0) client_until(s, "gptqt_requests_running", 1);
        if (cases[i].status == 0) cr_assert(client_expect(&c, "\r\n\r\n"));
        if (i == 3) cr_assert(client_expect(&c, "\"a\""));
        /* A state is what the loop has heard of: asked after an answer that came later. */
        json_decref(client_json(s, COMPLETIONS, "{\"prompt\":\"x\"}", 200));
        snprintf(wanted, sizeof wanted, "\"state\":\"%s\"", cases[i].state);
        cancel(s, "mine", 200, wanted);
        if (cases[i].status) {
            struct client_reply r = client_reply(&c);
            cr_expect(r.status == 499 && strstr(r.body, "\"code\":\"request_cancelled\""));
            client_reply_free(&r);
        } else {
            cr_expect(client_expect(&c, "\"code\":\"request_cancelled\""));
            cr_expect(client_expect(&c, "data: [DONE]"));
        }
        client_close(&c);
        client_until(s, "gptqt_requests_running", 0);
        cancel(s, "mine", 404, "request_not_found");
        snprintf(series, sizeof series, "gptqt_requests_cancelled_total{state=\"%s\"}",
                 cases[i].state);
        client_until(s, series, i == 2 ? 2 : 1);
    }
    client_stop(s);
}

/* -- Memory -------------------------------------------------------------------------------- */

static double metric(struct client_server s, const char *name) {
    struct client_reply r = client_call(s, "/metrics", NULL);
    const char *at = strstr(r.body, name);
    double value = -1;
    cr_assert(at && sscanf(at + strlen(name), "%lf", &value) == 1, "%s", name);
    client_reply_free(&r);
    return value;
}

Test(admission, all_slow_readers_share_one_budget) {
    const char *flags[] = {
        "--memory-limit", "140M", "--max-connections", "100", "--max-running", "80", "--log-level",
        "error",          NULL};
    enum { READERS = 30 };
    struct client_server s = client_start(flags);
    struct client readers[READERS];
    for (int i = 0; i < READERS; i++) {
        readers[i] = client_open_small(s);
        client_post(&readers[i], COMPLETIONS,
                    "{\"prompt\":\"@flood\",\"stream\":true,\"max_tokens\":1000000}");
    }
    client_until(s, "gptqt_requests_paused", READERS);
    double budget = metric(s, "\ngptqt_memory_bytes{arena=\"streams\"}");
    double queued = metric(s, "\ngptqt_stream_bytes");
    cr_expect(budget > 8 << 20 && budget < 9 << 20, "%g", budget);
    cr_expect(queued > 1 << 20 && queued <= budget, "%g of %g", queued, budget);
    for (int i = 0; i < READERS; i++) client_close(&readers[i]);
    client_until(s, "gptqt_sequences_cancelled_total", READERS);
    cr_expect(metric(s, "\ngptqt_stream_bytes") < 1);
    client_stop(s);
}

Test(admission, too_small_a_memory_limit_ends_the_start) {
    const char *flags[] = {"--memory-limit", "64M", NULL};
    char text[2048];
    cr_expect(client_run(flags, text, sizeof text) == 1);
    cr_expect(strstr(text, "memory-limit: 64.0 MiB, but the server takes"), "%s", text);
}

/* -- Explaining ---------------------------------------------------------------------------- */

static json_t *explain(struct client_server s, const char *body, int status) {
    return client_json(s, "/v1/explain", body, status);
}

static int64_t number(const json_t *root, const char *path) {
    return json_integer_value(client_at(root, path));
}

Test(admission, explain_counts_and_runs_nothing) {
    struct client_server s = client_start(quiet);
    json_t *root = explain(s, "{\"prompt\":[\"abc\",\"de\"],\"n\":3,\"max_tokens\":10}", 200);
    cr_expect(number(root, "prompts") == 2 && number(root, "sequences") == 6);
    cr_expect(json_is_false(client_at(root, "estimated")));
    cr_expect(number(root, "prompt_tokens") == 7); /* each begins with one of its own */
    cr_expect(number(root, "max_new_tokens") == 10);
    cr_expect(number(root, "kv_blocks") > 0 && number(root, "queue_position") == 0);
    cr_expect(!strcmp(client_string(root, "admission.verdict"), "admit"));
    cr_expect(number(root, "admission.status") == 200);
    json_decref(root);
    root = explain(s, "{\"messages\":[{\"role\":\"user\",\"content\":\"abcd\"}],\"stream\":true}",
                   200);
    cr_expect(number(root, "prompts") == 1 && number(root, "prompt_tokens") > 3);
    json_decref(root);
    root = explain(s, "{\"prompt\":\"a\",\"temperature\":9}", 400);
    cr_expect(!strcmp(client_string(root, "error.param"), "temperature"));
    json_decref(root);
    json_decref(explain(s, "{}", 400));
    client_until(s, "gptqt_generated_tokens_total", 0);
    client_stop(s);
}

Test(admission, explain_tells_the_refusal) {
    const char *flags[] = {"--max-ttft", "5000", "--log-level", "error", NULL};
    struct client_server s = client_start(flags);
    struct client c = client_open(s);
    client_post(&c, COMPLETIONS, "{\"prompt\":\"@hold\",\"stream\":true}");
    cr_assert(client_expect(&c, "\r\n\r\n"));
    expect(s, "", "{\"prompt\":\"@busy 9000 1000 0.5\"}", 200, "");
    json_t *root = explain(s, "{\"prompt\":\"a\"}", 200);
    cr_expect(!strcmp(client_string(root, "admission.verdict"), "refuse"));
    cr_expect(!strcmp(client_string(root, "admission.code"), "server_overloaded"));
    cr_expect(number(root, "admission.status") == 429);
    cr_expect(number(root, "admission.retry_after_ms") >= 4500);
    cr_expect(json_number_value(client_at(root, "predicted_ttft_ms")) > 9000);
    json_decref(root);
    /* A server that takes nothing more still says so, from a guess. */
    root = explain(s, "{\"prompt\":\"@full\"}", 200);
    cr_expect(json_is_true(client_at(root, "estimated")) && number(root, "prompt_tokens") == 2);
    json_decref(root);
    client_close(&c);
    client_stop(s);
}
