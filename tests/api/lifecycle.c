#include <criterion/criterion.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "tests/support/client.h"

#define COMPLETIONS "/v1/completions"
#define CANCELLED   "gptqt_sequences_cancelled_total"

static const char *const quiet[] = {"--log-level", "error", NULL};

static void expect_idle(struct client_server s) {
    json_t *root = client_json(s, "/health", NULL, 200);
    cr_expect(json_integer_value(client_at(root, "running")) == 0);
    cr_expect(json_integer_value(client_at(root, "waiting")) == 0);
    json_decref(root);
}

static void expect_alive(struct client_server s) {
    json_decref(client_json(s, "/health/live", NULL, 200));
}

Test(lifecycle, client_that_leaves_is_cancelled_in_every_state) {
    static const struct {
        const char *body;
        int choices;
        bool stream;
    } cases[] = {
        {"{\"prompt\":\"@queue\"}", 1, false},
        {"{\"prompt\":\"@queue\",\"stream\":true}", 1, false},
        {"{\"prompt\":\"@hold\"}", 1, false},
        {"{\"prompt\":\"@hold\",\"stream\":true}", 1, true},
        {"{\"prompt\":\"@gate\",\"stream\":true,\"n\":3}", 3, true},
        {"{\"prompt\":[\"@hold\",\"@queue\",\"abc\"]}", 2, false},
    };
    struct client_server s = client_start(quiet);
    int submitted = 0, cancelled = 0;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct client c = client_open(s);
        client_post(&c, COMPLETIONS, cases[i].body);
        submitted += i == 5 ? 3 : cases[i].choices;
        client_until(s, "gptqt_sequences_total", submitted);
        if (cases[i].stream) cr_assert(client_expect(&c, "\r\n\r\n"));
        client_close(&c);
        cancelled += cases[i].choices;
        client_until(s, CANCELLED, cancelled);
        expect_idle(s);
    }
    client_stop(s);
}

/* A peer that vanishes with a reset, not with an orderly end. */
Test(lifecycle, reset_is_noticed_too) {
    struct client_server s = client_start(quiet);
    struct client c = client_open(s);
    struct linger hard = {.l_onoff = 1};
    client_post(&c, COMPLETIONS, "{\"prompt\":\"@hold\",\"stream\":true}");
    cr_assert(client_expect(&c, "\r\n\r\n"));
    setsockopt(c.fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    client_close(&c);
    client_until(s, CANCELLED, 1);
    expect_idle(s);
    client_stop(s);
}

/* Its sequence rests while it reads nothing, and goes on when it reads: nothing is lost. */
Test(lifecycle, slow_reader_rests_and_the_others_go_on) {
    struct client_server s = client_start(quiet);
    struct client c = client_open_small(s);
    client_post(&c, COMPLETIONS, "{\"prompt\":\"@flood\",\"stream\":true,\"max_tokens\":1000}");
    client_until(s, "gptqt_requests_paused", 1);
    json_decref(client_json(s, COMPLETIONS, "{\"prompt\":\"a\"}", 200));
    json_decref(client_json(s, "/health/ready", NULL, 200));
    struct client_reply r = client_reply(&c);
    size_t n = 0;
    for (size_t i = 0; i < r.n; i++) n += r.body[i] == 'x';
    cr_expect(n == 1000 * 16384 + 1001 * 3, "%zu", n);
    cr_expect(strstr(r.body, "[DONE]"));
    client_reply_free(&r);
    client_close(&c);
    expect_idle(s);
    client_stop(s);
}

/* A paused sequence can be given up, too. */
Test(lifecycle, slow_reader_that_leaves_is_cancelled) {
    struct client_server s = client_start(quiet);
    struct client c = client_open_small(s);
    client_post(&c, COMPLETIONS, "{\"prompt\":\"@flood\",\"stream\":true,\"max_tokens\":1000}");
    client_until(s, "gptqt_requests_paused", 1);
    client_close(&c);
    client_until(s, CANCELLED, 1);
    expect_idle(s);
    client_stop(s);
}

Test(lifecycle, long_streams_arrive_whole) {
    struct client_server s = client_start(quiet);
    struct client_reply r =
        client_call(s, COMPLETIONS, "{\"prompt\":\"@flood\",\"stream\":true,\"max_tokens\":40}");
    size_t n = 0;
    for (size_t i = 0; i < r.n; i++) n += r.body[i] == 'x';
    /* Of each of the 41 chunks, "text_completion", "index" and "text" have an x, too. */
    cr_expect(n == 40 * 16384 + 41 * 3, "%zu", n);
    cr_expect(strstr(r.body, "[DONE]"));
    client_reply_free(&r);
    client_stop(s);
}

Test(lifecycle, request_over_its_time_is_ended) {
    static const char *const flags[] = {"--log-level", "error", "--request-timeout", "1", NULL};
    struct client_server s = client_start(flags);
    struct client c = client_open(s);
    client_post(&c, COMPLETIONS, "{\"prompt\":\"@hold\",\"stream\":true}");
    json_t *root = client_json(s, COMPLETIONS, "{\"prompt\":\"@hold\"}", 504);
    cr_expect(!strcmp(client_string(root, "error.code"), "request_timeout"));
    json_decref(root);
    cr_expect(client_expect(&c, "request_timeout") && client_expect(&c, "[DONE]"));
    client_close(&c);
    client_until(s, CANCELLED, 2);
    client_stop(s);
}

Test(lifecycle, term_lets_running_requests_finish) {
    struct client_server s = client_start(quiet);
    struct client open = client_open(s), stream = client_open(s), whole = client_open(s);
    client_get(&open, "/health");
    struct client_reply r = client_reply(&open);
    client_reply_free(&r);
    client_post(&stream, COMPLETIONS, "{\"prompt\":\"@wait\",\"stream\":true}");
    client_post(&whole, COMPLETIONS, "{\"prompt\":\"@wait\"}");
    cr_assert(client_expect(&stream, "\r\n\r\n"));
    client_until(s, "gptqt_requests_running", 2);
    kill(s.pid, SIGTERM);
    cr_expect(client_expect(&stream, "\"finish_reason\":\"stop\""));
    cr_expect(client_expect(&stream, "data: [DONE]"));
    r = client_reply(&whole);
    cr_expect(r.status == 200 && strstr(r.body, "@wait"));
    client_reply_free(&r);
    cr_expect(client_wait(s) == 0);
    client_close(&open);
    client_close(&stream);
    client_close(&whole);
}

Test(lifecycle, draining_server_says_so_and_aborts_at_its_deadline) {
    static const char *const flags[] = {"--log-level", "error", "--shutdown-timeout", "1", NULL};
    struct client_server s = client_start(flags);
    struct client open = client_open(s), stream = client_open(s), whole = client_open(s);
    client_get(&open, "/health");
    struct client_reply r = client_reply(&open);
    cr_expect(r.status == 200);
    client_reply_free(&r);
    client_post(&whole, COMPLETIONS, "{\"prompt\":\"@hold\"}");
    client_post(&stream, COMPLETIONS, "{\"prompt\":[\"@hold\",\"@wait\"],\"stream\":true}");
    cr_assert(client_expect(&stream, "\r\n\r\n"));
    client_until(s, "gptqt_requests_running", 3);
    kill(s.pid, SIGTERM);
    cr_assert(client_expect(&stream, "\"finish_reason\":\"stop\"")); /* so it drains */
    client_get(&open, "/health");
    r = client_reply(&open);
    cr_expect(r.status == 503 && strstr(r.body, "\"status\":\"draining\""), "%s", r.body);
    cr_expect(strstr(r.head, "Connection: close"));
    client_reply_free(&r);
    cr_expect(client_expect(&stream, "\"code\":\"server_shutting_down\""));
    cr_expect(client_expect(&stream, "data: [DONE]"));
    r = client_reply(&whole);
    cr_expect(r.status == 503 && strstr(r.body, "server_shutting_down"));
    client_reply_free(&r);
    cr_expect(client_wait(s) == 0);
    client_close(&open);
    client_close(&stream);
    client_close(&whole);
}

Test(lifecycle, draining_server_refuses_new_requests) {
    struct client_server s = client_start(quiet);
    struct client open = client_open(s), stream = client_open(s);
    client_get(&open, "/health");
    struct client_reply r = client_reply(&open);
    client_reply_free(&r);
    client_post(&stream, COMPLETIONS, "{\"prompt\":[\"@hold\",\"@wait\"],\"stream\":true}");
    client_until(s, "gptqt_requests_running", 2);
    kill(s.pid, SIGTERM);
    cr_assert(client_expect(&stream, "\"finish_reason\":\"stop\""));
    client_post(&open, COMPLETIONS, "{\"prompt\":\"a\"}");
    r = client_reply(&open);
    cr_expect(r.status == 503 && strstr(r.body, "server_shutting_down"), "%s", r.body);
    client_reply_free(&r);
    client_close(&stream); /* the last one leaves: there is nothing to wait for */
    cr_expect(client_wait(s) == 0);
    client_close(&open);
}

/* What a balancer needs: it is told, and until it has looked elsewhere all is served. */
Test(lifecycle, leaving_server_serves_on_and_says_that_it_leaves) {
    static const char *const flags[] = {"--log-level", "error", "--drain-delay", "1", NULL};
    struct client_server s = client_start(flags);
    struct client idle = client_open(s), open = client_open(s), silent = client_open(s);
    client_get(&open, "/health/ready");
    struct client_reply r = client_reply(&open);
    cr_expect(r.status == 200 && !strstr(r.head, "Connection: close"));
    client_reply_free(&r);
    kill(s.pid, SIGTERM);
    do { /* the signal arrives some time */
        r = client_call(s, "/health/ready", NULL);
        int status = r.status;
        bool told = strstr(r.body, "\"status\":\"draining\"") != NULL;
        client_reply_free(&r);
        if (status == 503 && told) break;
    } while (true);
    r = client_call(s, COMPLETIONS, "{\"prompt\":\"new connection\"}");
    cr_expect(r.status == 200 && strstr(r.head, "Connection: close"), "%s", r.body);
    client_reply_free(&r);
    client_post(&open, COMPLETIONS, "{\"prompt\":\"old connection\"}");
    r = client_reply(&open);
    cr_expect(r.status == 200 && strstr(r.head, "Connection: close"), "%s", r.body);
    client_reply_free(&r);
    cr_expect(!client_expect(&open, "x"), "the connection stays open");
    expect_alive(s);
    client_close(&idle);
    client_close(&open);
    client_close(&silent);
    cr_expect(client_wait(s) == 0);
}

/* The listen queue is emptied, and what was accepted is served, also without a delay. */
Test(lifecycle, requests_under_way_at_the_signal_are_served) {
    struct client_server s = client_start(quiet);
    struct client early[40];
    for (int i = 0; i < 20; i++) early[i] = client_open(s);
    kill(s.pid, SIGSTOP);
    for (int i = 20; i < 40; i++) early[i] = client_open(s); /* they stay in the listen queue */
    kill(s.pid, SIGTERM);
    kill(s.pid, SIGCONT);
    for (int i = 0; i < 40; i++) client_post(&early[i], COMPLETIONS, "{\"prompt\":\"abc\"}");
    for (int i = 0; i < 40; i++) {
        struct client_reply r = client_reply(&early[i]);
        cr_expect(r.status == 200 && strstr(r.body, "abc"), "%d: %d", i, r.status);
        client_reply_free(&r);
        client_close(&early[i]);
    }
    cr_expect(client_wait(s) == 0);
}

Test(lifecycle, second_signal_aborts_at_once) {
    struct client_server s = client_start(quiet);
    struct client stream = client_open(s);
    client_post(&stream, COMPLETIONS, "{\"prompt\":[\"@hold\",\"@wait\"],\"stream\":true}");
    client_until(s, "gptqt_requests_running", 2);
    kill(s.pid, SIGTERM);
    cr_assert(client_expect(&stream, "\"finish_reason\":\"stop\""));
    kill(s.pid, SIGINT);
    cr_expect(client_expect(&stream, "server_shutting_down"));
    cr_expect(client_wait(s) == 1);
    client_close(&stream);
}

Test(lifecycle, wrong_usage_is_one_line_and_status_2) {
    static const struct {
        const char *flags[4];
        int status;
        const char *says;
    } cases[] = {
        {{"--port", "70000"}, 2, "--port: 70000 is outside 0..65535"},
        {{"--port", "x"}, 2, "--port: 'x' is not a whole number"},
        {{"--kv", "f8"}, 2, "--kv: 'f8' is not one of |f16|f32|int8|"},
        {{"--max-running", "0"}, 2, "--max-running: 0 is outside"},
        {{"--host", ""}, 2, "--host must not be empty"},
        {{"a", "b"}, 2, "one MODEL only, not also 'b'"},
        {{"--nonsense"}, 2, "nonsense"},
        {{"missing"}, 1, "missing: no such model"},
        {{"--host", "no.such.host.invalid"}, 1, "address 'no.such.host.invalid'"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[4096];
        int status = client_run(cases[i].flags, text, sizeof text);
        cr_expect(status == cases[i].status, "%s: %d", cases[i].says, status);
        cr_expect(strstr(text, cases[i].says), "%s: %s", cases[i].says, text);
    }
}

Test(lifecycle, port_in_use_is_a_failure_with_a_reason) {
    char port[16], text[4096];
    struct client_server s = client_start(quiet);
    snprintf(port, sizeof port, "%d", s.port);
    const char *const flags[] = {"--port", port, NULL};
    cr_expect(client_run(flags, text, sizeof text) == 1);
    cr_expect(strstr(text, "cannot listen on 127.0.0.1"), "%s", text);
    client_stop(s);
}
