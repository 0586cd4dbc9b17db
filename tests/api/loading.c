#include <criterion/criterion.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/support/client.h"

#define COMPLETIONS "/v1/completions"

/* A server whose model loads until tell(). */
struct loading {
    char folder[64], fifo[80], model[96];
    struct client_server server;
};

static void start(struct loading *l) {
    strcpy(l->folder, "/tmp/gptqt-loading-XXXXXX");
    cr_assert(mkdtemp(l->folder));
    snprintf(l->fifo, sizeof l->fifo, "%s/fifo", l->folder);
    snprintf(l->model, sizeof l->model, "load:%s", l->fifo);
    cr_assert(mkfifo(l->fifo, 0600) == 0);
    const char *const flags[] = {"--log-level", "error", "--model", l->model, NULL};
    l->server = client_start_early(flags);
}

static void tell(const struct loading *l, const char *line) {
    int fd = open(l->fifo, O_WRONLY);
    cr_assert(write(fd, line, strlen(line)) == (ssize_t)strlen(line));
    close(fd);
}

static void clean(const struct loading *l) {
    unlink(l->fifo);
    rmdir(l->folder);
}

static void expect_status(struct client_server s, const char *path, int status) {
    json_decref(client_json(s, path, NULL, status));
}

Test(loading, port_answers_before_the_model_is_there) {
    struct loading l;
    start(&l);
    struct client_reply r = client_call(l.server, COMPLETIONS, "{\"prompt\":\"a\"}");
    cr_expect(r.status == 503 && strstr(r.body, "\"code\":\"model_loading\""), "%s", r.body);
    cr_expect(strstr(r.head, "Retry-After: "));
    client_reply_free(&r);
    expect_status(l.server, "/v1/models", 503);
    expect_status(l.server, "/version", 200);
    expect_status(l.server, "/health", 503);
    expect_status(l.server, "/health/live", 200);
    expect_status(l.server, "/health/ready", 503);
    json_t *root = client_json(l.server, "/health/startup", NULL, 503);
    cr_expect(!strcmp(client_string(root, "status"), "starting"));
    cr_expect(json_integer_value(client_at(root, "loaded_bytes")) == 250);
    cr_expect(json_integer_value(client_at(root, "total_bytes")) == 1000);
    cr_expect(json_number_value(client_at(root, "loaded_percent")) == 25.0);
    json_decref(root);
    r = client_call(l.server, "/metrics", NULL);
    cr_expect(r.status == 200 && strstr(r.body, "\ngptqt_ready 0\n"));
    client_reply_free(&r);

    tell(&l, "ready");
    client_until(l.server, "gptqt_ready", 1);
    expect_status(l.server, "/health/startup", 200);
    expect_status(l.server, "/health/ready", 200);
    json_decref(client_json(l.server, COMPLETIONS, "{\"prompt\":\"a\"}", 200));
    client_stop(l.server);
    clean(&l);
}

Test(loading, term_ends_it_cleanly) {
    struct loading l;
    start(&l);
    struct client open = client_open(l.server);
    client_get(&open, "/health/live");
    struct client_reply r = client_reply(&open);
    client_reply_free(&r);
    client_stop(l.server);
    client_close(&open);
    clean(&l);
}

Test(loading, failure_ends_it_with_status_1) {
    struct loading l;
    start(&l);
    tell(&l, "a tensor is missing");
    cr_expect(client_wait(l.server) == 1);
    clean(&l);
}
