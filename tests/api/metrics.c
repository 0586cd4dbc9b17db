#include <criterion/criterion.h>
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/support/client.h"

#define COMPLETIONS "/v1/completions"

static const char *const quiet[] = {"--log-level", "error", "--served-model-name", "a\"b\\c", NULL};

/* -- A strict reader of Prometheus' text format --------------------------------------------- */

struct reader {
    char family[128], type[16];
    char seen[128][96]; /* families */
    int n_seen, n_samples;
    double below; /* the last bucket of the histogram's series */
    bool has_inf;
};

static size_t name_length(const char *s) {
    size_t n = 0;
    if (!isalpha((unsigned char)*s) && *s != '_' && *s != ':') return 0;
    while (isalnum((unsigned char)s[n]) || s[n] == '_' || s[n] == ':') n++;
    return n;
}

/* Leaves *p behind the closing brace; le gets the value of the label of this name. */
static void read_labels(const char **p, char *le, size_t size) {
    const char *s = *p + 1;
    while (*s != '}') {
        size_t n = name_length(s);
        const char *name = s;
        cr_assert(n && s[n] == '=' && s[n + 1] == '"', "label at %.40s", s);
        s += n + 2;
        const char *value = s;
        for (; *s != '"'; s++) {
            cr_assert(*s && *s != '\n', "open label value");
            if (*s == '\\') cr_assert(strchr("\\\"n", *++s) && *s, "escape in a label value");
        }
        if (n == 2 && !strncmp(name, "le", 2)) snprintf(le, size, "%.*s", (int)(s - value), value);
        s++;
        if (*s == ',') s++;
        cr_assert(*s == '}' || name_length(s), "after a label: %.40s", s);
    }
    *p = s + 1;
}

static void read_head(struct reader *r, const char *line) {
    char name[128] = "", type[16] = "";
    if (!strncmp(line, "# HELP ", 7)) {
        cr_assert(sscanf(line, "# HELP %127s", name) == 1);
        for (int i = 0; i < r->n_seen; i++)
            cr_assert(strcmp(r->seen[i], name) != 0, "family %s twice", name);
        snprintf(r->seen[r->n_seen++], sizeof r->seen[0], "%.95s", name);
        snprintf(r->family, sizeof r->family, "%s", name);
        r->type[0] = 0;
        return;
    }
    cr_assert(sscanf(line, "# TYPE %127s %15s", name, type) == 2, "%.60s", line);
    cr_assert(!strcmp(name, r->family) && !r->type[0], "type of another family: %s", name);
    cr_assert(!strcmp(type, "counter") || !strcmp(type, "gauge") || !strcmp(type, "histogram"));
    size_t n = strlen(name);
    bool total = n > 6 && !strcmp(name + n - 6, "_total");
    cr_assert(total == !strcmp(type, "counter"), "%s is a %s", name, type);
    snprintf(r->type, sizeof r->type, "%s", type);
}

static void read_bucket(struct reader *r, const char *le, const char *suffix, double value) {
    if (!strcmp(suffix, "_bucket")) {
        cr_assert(*le && value >= (*le == '+' || r->below < 0 ? r->below : r->below));
        r->below = value;
        r->has_inf = !strcmp(le, "+Inf");
    } else if (!strcmp(suffix, "_count")) {
        cr_assert(r->has_inf && value == r->below, "count of %s", r->family);
        r->below = 0;
        r->has_inf = false;
    } else {
        cr_assert(!strcmp(suffix, "_sum"), "%s%s", r->family, suffix);
    }
}

static void read_sample(struct reader *r, const char *line) {
    char suffix[32] = "", le[32] = "", *end;
    const char *p = line + name_length(line);
    size_t n = strlen(r->family);
    cr_assert(p > line && r->type[0] && !strncmp(line, r->family, n), "%.80s", line);
    snprintf(suffix, sizeof suffix, "%.*s", (int)(p - line - (ptrdiff_t)n), line + n);
    if (*p == '{') read_labels(&p, le, sizeof le);
    cr_assert(*p == ' ', "%.80s", line);
    double value = strtod(p + 1, &end);
    cr_assert(end > p + 1 && *end == '\n' && value >= 0, "%.80s", line);
    if (!strcmp(r->type, "histogram"))
        read_bucket(r, le, suffix, value);
    else
        cr_assert(!suffix[0], "%.80s", line);
    r->n_samples++;
}

static void read_metrics(struct reader *r, const char *text) {
    memset(r, 0, sizeof *r);
    cr_assert(*text && text[strlen(text) - 1] == '\n');
    for (const char *line = text; *line; line = strchr(line, '\n') + 1) {
        if (*line == '#')
            read_head(r, line);
        else
            read_sample(r, line);
    }
}

/* -- Tests ---------------------------------------------------------------------------------- */

Test(metrics, text_is_strictly_well_formed) {
    struct client_server s = client_start(quiet);
    static const char *const bodies[] = {
        "{\"prompt\":\"abc\"}", "{\"prompt\":\"abc\",\"stream\":true}",
        "{\"prompt\":\"abc\",\"n\":3,\"max_tokens\":2}", "{\"prompt\":\"@fail\"}", "{}"};
    for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++) {
        struct client_reply r = client_call(s, COMPLETIONS, bodies[i]);
        client_reply_free(&r);
    }
    for (int i = 0; i < 2; i++) {
        struct reader reader;
        struct client_reply r = client_call(s, "/metrics", NULL);
        cr_expect(strstr(r.head, "Content-Type: text/plain; version=0.0.4"));
        read_metrics(&reader, r.body);
        cr_expect(reader.n_seen > 50 && reader.n_samples > 400);
        client_reply_free(&r);
    }
    client_stop(s);
}

/* The names, labels and units that routers read. */
Test(metrics, routers_find_what_they_look_for) {
    static const char *const expected[] = {
        "vllm:num_requests_running{model_name=\"m\",engine=\"0\"} 0\n",
        "vllm:num_requests_waiting{model_name=\"m\",engine=\"0\"} 0\n",
        "vllm:kv_cache_usage_perc{model_name=\"m\",engine=\"0\"} 0\n",
        "vllm:gpu_cache_usage_perc{model_name=\"m\",engine=\"0\"} 0\n",
        "vllm:gpu_prefix_cache_hit_rate{model_name=\"m\",engine=\"0\"} ",
        "vllm:gpu_prefix_cache_hits_total{model_name=\"m\",engine=\"0\"} ",
        "vllm:gpu_prefix_cache_queries_total{model_name=\"m\",engine=\"0\"} ",
        "vllm:prefix_cache_hits_total{model_name=\"m\",engine=\"0\"} ",
        "vllm:prefix_cache_queries_total{model_name=\"m\",engine=\"0\"} ",
        "vllm:cache_config_info{model_name=\"m\",engine=\"0\",block_size=\"",
        "num_gpu_blocks=\"8\"} 1\n",
        "vllm:num_preemptions_total{model_name=\"m\",engine=\"0\"} 0\n",
        "vllm:prompt_tokens_total{model_name=\"m\",engine=\"0\"} 9\n",
        "vllm:generation_tokens_total{model_name=\"m\",engine=\"0\"} 8\n",
        "vllm:request_success_total{model_name=\"m\",engine=\"0\",finished_reason=\"stop\"} 2\n",
        "vllm:request_success_total{model_name=\"m\",engine=\"0\",finished_reason=\"length\"} 1\n",
        "vllm:time_to_first_token_seconds_bucket{model_name=\"m\",engine=\"0\",le=\"0.001\"} ",
        "vllm:time_to_first_token_seconds_bucket{model_name=\"m\",engine=\"0\",le=\"2560\"} 3\n",
        "vllm:time_to_first_token_seconds_count{model_name=\"m\",engine=\"0\"} 3\n",
        "vllm:inter_token_latency_seconds_count{model_name=\"m\",engine=\"0\"} 5\n",
        "vllm:time_per_output_token_seconds_count{model_name=\"m\",engine=\"0\"} 5\n",
        "vllm:e2e_request_latency_seconds_count{model_name=\"m\",engine=\"0\"} 3\n",
        "vllm:request_queue_time_seconds_count{model_name=\"m\",engine=\"0\"} 3\n",
        "vllm:request_prefill_time_seconds_count{model_name=\"m\",engine=\"0\"} 3\n",
        "vllm:request_decode_time_seconds_count{model_name=\"m\",engine=\"0\"} 3\n",
        "vllm:request_prompt_tokens_sum{model_name=\"m\",engine=\"0\"} 9\n",
        "vllm:request_generation_tokens_sum{model_name=\"m\",engine=\"0\"} 8\n",
        "vllm:request_params_n_sum{model_name=\"m\",engine=\"0\"} 3\n",
    };
    static const char *const flags[] = {"--log-level", "error", "--served-model-name", "m", NULL};
    struct client_server s = client_start(flags);
    json_decref(client_json(s, COMPLETIONS, "{\"prompt\":\"abc\"}", 200));
    json_decref(client_json(s, COMPLETIONS, "{\"prompt\":\"abc\"}", 200));
    json_decref(client_json(s, COMPLETIONS, "{\"prompt\":\"abc\",\"max_tokens\":2}", 200));
    struct client_reply r = client_call(s, "/metrics", NULL);
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++)
        cr_expect(strstr(r.body, expected[i]), "%s is not in\n%s", expected[i], i ? "" : r.body);
    client_reply_free(&r);
    client_stop(s);
}

Test(metrics, client_that_leaves_is_an_abort) {
    struct client_server s = client_start(quiet);
    struct client c = client_open(s);
    client_post(&c, COMPLETIONS, "{\"prompt\":\"@hold\"}");
    client_until(s, "gptqt_requests_running", 1);
    client_close(&c);
    client_until(s, "gptqt_sequences_cancelled_total", 1);
    struct client_reply r = client_call(s, "/metrics", NULL);
    cr_expect(strstr(r.body, "finished_reason=\"abort\"} 1\n"));
    client_reply_free(&r);
    client_stop(s);
}

Test(metrics, load_is_reported_when_it_is_asked_for) {
    struct client_server s = client_start(quiet);
    static const struct {
        const char *format, *says;
    } cases[] = {{"TEXT", "endpoint-load-metrics: TEXT named_metrics.kv_cache_usage_perc=0, "
                          "named_metrics.num_requests_waiting=0"},
                 {"json", "endpoint-load-metrics: JSON {\"named_metrics\": "
                          "{\"kv_cache_usage_perc\": 0, \"num_requests_waiting\": 0"}};
    for (size_t i = 0; i < 2; i++) {
        char request[256];
        struct client c = client_open(s);
        snprintf(request, sizeof request,
                 "POST " COMPLETIONS " HTTP/1.1\r\nHost: x\r\nendpoint-load-metrics-format: %s\r\n"
                 "Content-Length: 14\r\n\r\n{\"prompt\":\"a\"}",
                 cases[i].format);
        client_send(&c, request);
        struct client_reply r = client_reply(&c);
        cr_expect(r.status == 200 && strstr(r.head, cases[i].says), "%s", r.head);
        client_reply_free(&r);
        client_close(&c);
    }
    client_stop(s);
}

Test(metrics, answers_say_what_they_took) {
    struct client_server s = client_start(quiet);
    struct client_reply r = client_call(s, COMPLETIONS, "{\"prompt\":\"abc\"}");
    const char *timing = strstr(r.head, "Server-Timing: ");
    double queue = -1, first = -1, total = -1;
    cr_assert(timing, "%s", r.head);
    cr_expect(sscanf(timing, "Server-Timing: queue;dur=%lf, ttft;dur=%lf, total;dur=%lf", &queue,
                     &first, &total) == 3);
    cr_expect(queue >= 0 && first >= queue && total >= first, "%.80s", timing);
    cr_expect(strstr(r.head, "openai-processing-ms: "));
    client_reply_free(&r);
    r = client_call(s, COMPLETIONS, "{\"prompt\":\"abc\",\"stream\":true}");
    cr_expect(strstr(r.head, "Server-Timing: queue;dur="), "%s", r.head);
    client_reply_free(&r);
    client_stop(s);
}

Test(metrics, log_is_one_object_a_line) {
    static const char *const flags[] = {"--log-format", "json", NULL};
    char path[] = "/tmp/gptqt-log-XXXXXX", line[4096];
    int fd = mkstemp(path), saved = dup(STDERR_FILENO), n = 0;
    cr_assert(fd >= 0 && dup2(fd, STDERR_FILENO) >= 0);
    struct client_server s = client_start(flags);
    dup2(saved, STDERR_FILENO);
    struct client c = client_open(s);
    client_send(&c, "POST " COMPLETIONS " HTTP/1.1\r\nHost: x\r\nX-Request-Id: abc-1\r\n"
                    "Content-Length: 16\r\n\r\n{\"prompt\":\"abc\"}");
    struct client_reply r = client_reply(&c);
    client_reply_free(&r);
    client_close(&c);
    r = client_call(s, "/no\"pe\\%0a", NULL);
    client_reply_free(&r);
    client_stop(s);
    FILE *log = fopen(path, "r");
    while (fgets(line, sizeof line, log)) {
        json_t *root = json_loads(line, JSON_REJECT_DUPLICATES, NULL);
        cr_assert(root, "%s", line);
        cr_expect(*client_string(root, "time") && *client_string(root, "level"));
        if (!strcmp(client_string(root, "request_id"), "abc-1")) {
            n++;
            cr_expect(!strcmp(client_string(root, "method"), "POST"));
            cr_expect(!strcmp(client_string(root, "path"), COMPLETIONS));
            cr_expect(!strcmp(client_string(root, "client"), "127.0.0.1"));
            cr_expect(!strcmp(client_string(root, "finish"), "stop"));
            cr_expect(json_integer_value(client_at(root, "status")) == 200);
            cr_expect(json_integer_value(client_at(root, "prompt_tokens")) == 3);
            cr_expect(json_integer_value(client_at(root, "generated_tokens")) == 3);
            cr_expect(json_number_value(client_at(root, "ttft_ms")) > 0);
            cr_expect(json_number_value(client_at(root, "total_ms")) > 0);
        }
        n += json_integer_value(client_at(root, "status")) == 404;
        json_decref(root);
    }
    cr_expect(n == 2, "%d", n);
    fclose(log);
    unlink(path);
    close(fd);
    close(saved);
}

Test(metrics, log_that_nobody_reads_does_not_stop_the_server) {
    static const char *const flags[] = {"--log-format", "json", NULL};
    int ends[2], saved = dup(STDERR_FILENO);
    cr_assert(pipe(ends) == 0 && dup2(ends[1], STDERR_FILENO) >= 0);
    struct client_server s = client_start(flags);
    dup2(saved, STDERR_FILENO);
    struct client c = client_open(s);
    for (int i = 0; i < 1000; i++) { /* some 200 KB, and a pipe takes 64 */
        client_get(&c, "/version");
        struct client_reply r = client_reply(&c);
        cr_assert(r.status == 200);
        client_reply_free(&r);
    }
    client_close(&c);
    client_until(s, "gptqt_log_lines_lost_total", 100);
    client_stop(s);
    close(ends[0]);
    close(ends[1]);
    close(saved);
}
