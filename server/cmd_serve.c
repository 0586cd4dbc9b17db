#include "server/commands.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/error.h"
#include "server/cli.h"
#include "server/json_quota.h"
#include "server/log.h"
#include "server/server.h"
#include "server/settings.h"
#include "server/text.h"

static void log_settings(const struct settings *settings) {
    char *line = NULL;
    size_t n = 0;
    FILE *out = open_memstream(&line, &n);
    if (!out) return;
    settings_print(settings, out);
    if (fclose(out) == 0) log_line(LOG_INFO, "settings:%s", line);
    free(line);
}

/* Where it listens, and a first request. */
static void print_hint(const struct server *s) {
    const struct settings *c = s->settings;
    const char *scheme = c->tls_cert ? "https" : "http";
    bool v6 = strchr(c->host, ':') != NULL, chat = s->info->has_chat_template;
    char address[300], option[200] = "";
    if (c->unix_socket) {
        snprintf(address, sizeof address, "%s://localhost", scheme);
        snprintf(option, sizeof option, " --unix-socket %s", c->unix_socket);
        printf("listening on unix:%s\nTry:\n", c->unix_socket);
    } else {
        snprintf(address, sizeof address, "%s://%s%s%s:%d", scheme, v6 ? "[" : "", c->host,
                 v6 ? "]" : "", server_port(s));
        printf("listening on %s\nOpen it in a browser, or try:\n", address);
    }
    printf("  curl -N%s %s%s -H 'Content-Type: application/json' -d '%s'\n", option, address,
           chat ? "/v1/chat/completions" : "/v1/completions",
           chat ? "{\"messages\":[{\"role\":\"user\",\"content\":\"Tell me a story about a brave "
                  "cat.\"}],\"stream\":true}"
                : "{\"prompt\":\"Once upon a time\",\"max_tokens\":64,\"stream\":true}");
}

static void log_memory(const struct server *s) {
    const struct engine_info *info = s->info;
    const struct budget *b = &s->budget;
    struct text line = {0};
    size_t model = info->weight_bytes + info->kv_bytes + info->work_bytes;
    text_addf(&line, "memory in MiB, at most: weights %.1f, KV cache %.1f, work %.1f",
              (double)info->weight_bytes / 1048576, (double)info->kv_bytes / 1048576,
              (double)info->work_bytes / 1048576);
    for (int i = 0; i < BUDGET_PARTS; i++)
        text_addf(&line, ", %s %.1f", budget_part_name((enum budget_part)i),
                  (double)b->parts[i] / 1048576);
    text_addf(&line, "; together %.1f", (double)((int64_t)model + b->server) / 1048576);
    if (b->engine) text_addf(&line, " of %.1f", (double)s->settings->memory_limit / 1048576);
    if (!line.failed) log_line(LOG_INFO, "%s", line.data);
    text_deinit(&line);
}

/* Beside what the host's memory holds. */
static void log_device(const struct engine_info *info) {
    size_t ours = info->weight_bytes + info->kv_bytes + info->device_work;
    size_t taken = info->device_total - info->device_free;
    if (info->device_total)
        log_line(LOG_INFO,
                 "device memory in MiB: weights %.1f, KV cache %.1f, working rooms %.1f, others "
                 "%.1f, free %.1f of %.1f",
                 (double)info->weight_bytes / 1048576, (double)info->kv_bytes / 1048576,
                 (double)info->device_work / 1048576,
                 (double)(taken > ours ? taken - ours : 0) / 1048576,
                 (double)info->device_free / 1048576, (double)info->device_total / 1048576);
}

static void print_start(struct server *s) {
    const struct engine_info *info = s->info;
    log_settings(s->settings);
    log_line(LOG_INFO,
             "model %s: %s, %d layers of %d, %d bits, context %d, %.1f MiB weights, %.1f MiB KV "
             "cache, %s",
             s->model, info->architecture, info->n_layers, info->hidden, info->bits, info->context,
             (double)info->weight_bytes / 1048576, (double)info->kv_bytes / 1048576, info->backend);
    log_memory(s);
    log_device(info);
    if (info->backend_note && *info->backend_note) log_line(LOG_INFO, "%s", info->backend_note);
    print_hint(s);
    fflush(stdout);
}

int cmd_serve(int argc, char **argv) {
    struct settings settings;
    struct server *s = NULL;
    struct error err;
    enum log_level level;
    if (settings_parse(&settings, argc, argv, &err) < 0) return cli_end(CLI_USAGE, argv[0], &err);
    if (settings.help) return 0;
    json_quota_install();
    if (log_level_find(&level, settings.log_level) == 0) log_set_level(level);
    log_set_format(!strcmp(settings.log_format, "json"));
    if (server_open(&s, &settings, &err) < 0) return cli_end(CLI_FAILED, argv[0], &err);
    int r = server_run(s, print_start, &err);
    server_close(s);
    if (r == -ENODEV) return cli_end(CLI_LOST, argv[0], &err);
    if (r == -EIO) return cli_end(CLI_FAILED, argv[0], &err);
    return r < 0 ? CLI_FAILED : 0;
}
