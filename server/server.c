#include "server/server.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

#include "engine/source.h"
#include "kernels/error.h"
#include "server/access_log.h"
#include "server/api/api.h"
#include "server/gate.h"
#include "server/http.h"
#include "server/http_socket.h"
#include "server/lifecycle.h"
#include "server/log.h"
#include "server/loop.h"
#include "server/model_names.h"
#include "server/model_source.h"
#include "server/reload.h"
#include "server/request.h"
#include "server/router.h"
#include "server/settings.h"
#include "server/tenants.h"

enum { SPARE_DESCRIPTORS = 64 /* for everything that is not a connection */ };

/* -- Exchanges ----------------------------------------------------------------------------- */

static void reply_error(struct http_exchange *x, enum api_error_kind kind, const char *message) {
    struct api_error e;
    api_error_set(&e, kind, NULL, "%s", message);
    http_reply_error(x, &e);
}

static void reply_preflight(struct http_exchange *x) {
    http_header(x, "Access-Control-Allow-Methods", "GET, HEAD, POST, DELETE, OPTIONS");
    /* Clients send many headers of their own; the star does not cover Authorization. */
    http_header(x, "Access-Control-Allow-Headers",
                "*, Authorization, Content-Type, X-Api-Key, X-Request-Id");
    http_header(x, "Access-Control-Max-Age", "600");
    http_reply_static(x, 204, NULL, "", 0);
}

static void reply_no_route(struct http_exchange *x, int found, const char *allow) {
    struct api_error e;
    if (found == ROUTER_NO_METHOD) {
        http_header(x, "Allow", allow);
        if (!strcmp(x->method, "OPTIONS")) {
            http_reply_static(x, 204, NULL, "", 0);
            return;
        }
        api_error_set(&e, API_ERROR_METHOD, NULL, "%s does not take %s", x->path, x->method);
    } else {
        api_error_set(&e, API_ERROR_NOT_FOUND, NULL, "there is no '%.128s' here", x->path);
    }
    http_reply_error(x, &e);
}

/* Who may not come in is told so before his body is read. */
static void pass_gate(struct server *s, struct http_exchange *x, const struct router_row *row) {
    struct api_error e;
    int r = gate_identify(s, x, row->flags & ROUTER_OPEN, &e);
    if (r == 0 && row->flags & ROUTER_WORK) r = gate_look(s, x, &e);
    if (r < 0) http_reply_error(x, &e);
}

static void on_admit(void *arg, struct http_exchange *x) {
    struct server *s = arg;
    char allow[ROUTER_ALLOW];
    int found = router_find(x->method, x->path, allow, sizeof allow);
    x->close = s->state > SERVER_SERVING;
    if (s->settings->cors && !strcmp(x->method, "OPTIONS") && found != ROUTER_NO_PATH) {
        reply_preflight(x);
        return;
    }
    if (found < 0) {
        reply_no_route(x, found, allow);
        return;
    }
    x->route = found;
    bool crowded = http_connections(s->http) > s->settings->max_connections;
    if (crowded && !router_get(found)->always) {
        x->close = true;
        reply_error(x, API_ERROR_CONNECTIONS, "too many connections");
    } else {
        pass_gate(s, x, router_get(found));
    }
}

static bool needs_model(const struct router_row *row) {
    return !row->always && row->handle != api_version && row->handle != api_site;
}

/* Envoy's load report, in the form that was asked for; the names are vLLM's. */
static void add_load(struct server *s, struct http_exchange *x) {
    const char *format = http_get(x, "endpoint-load-metrics-format");
    char value[160];
    struct engine_stats e;
    if (!format) return;
    engine_get_stats(s->engine, &e);
    double used = e.kv_blocks ? 1 - (double)e.kv_blocks_free / (double)e.kv_blocks : 0;
    bool json = !strcasecmp(format, "json");
    if (!json && strcasecmp(format, "text") != 0) return;
    snprintf(value, sizeof value,
             json ? "JSON {\"named_metrics\": {\"kv_cache_usage_perc\": %.6g, "
                    "\"num_requests_waiting\": %d, \"num_requests_running\": %d}}"
                  : "TEXT named_metrics.kv_cache_usage_perc=%.6g, "
                    "named_metrics.num_requests_waiting=%d, named_metrics.num_requests_running=%d",
             used, e.waiting, e.running);
    http_header(x, "endpoint-load-metrics", value);
}

static void on_handle(void *arg, struct http_exchange *x) {
    struct server *s = arg;
    add_load(s, x);
    const struct router_row *row = router_get(x->route);
    if (!s->info && needs_model(row))
        reply_error(x, API_ERROR_LOADING, "the model is being loaded; see /health/startup");
    else
        row->handle(s, x);
}

static void log_exchange(const struct http_exchange *x, bool left) {
    char client[64];
    http_client(x, client, sizeof client);
    const struct access_record record = {.request_id = x->request_id,
                                         .key = x->key,
                                         .client = client,
                                         .method = x->method,
                                         .path = x->path,
                                         .finish = x->finish,
                                         .status = x->status,
                                         .left = left,
                                         .queue_ns = x->queue_ns,
                                         .first_ns = x->first_ns,
                                         .total_ns = loop_now_ns() - x->start_ns,
                                         .n_prompt = x->n_prompt,
                                         .n_cached = x->n_cached,
                                         .n_generated = x->n_generated};
    log_access(&record);
}

static void on_done(void *arg, const struct http_exchange *x) {
    struct server *s = arg;
    bool left = x->gone && !x->ended;
    metrics_reply(&s->metrics, x->route, left ? 0 : x->status);
    if (x->gone && x->status == 200 && (x->ended || !x->streaming) &&
        router_get(x->route)->flags & ROUTER_WORK)
        metrics_cancelled(&s->metrics, METRICS_UNREAD);
    if (log_wants(LOG_INFO)) log_exchange(x, left);
}

/* -- The loop's hooks ---------------------------------------------------------------------- */

static void on_wake(void *arg) {
    struct server *s = arg;
    if (!s->engine) return; /* it wakes us while it opens */
    lifecycle_engine(s);
    struct engine_event *next;
    for (struct engine_event *event = engine_poll(s->engine); event; event = next) {
        next = event->next;
        request_event(event);
    }
}

static void on_tick(void *arg) {
    struct server *s = arg;
    int64_t now = loop_now_ns();
    http_tick(s->http, now);
    request_tick(s, now);
    lifecycle_tick(s, now);
}

static void on_signal(void *arg, int number, int nth) { lifecycle_signal(arg, number, nth); }

static void on_hangup(void *arg) { reload(arg); }

/* -- Opening ------------------------------------------------------------------------------- */

/* The last part of a path is what people call their model. */
static void set_model_name(struct server *s) {
    const char *names = s->settings->served_model_name, *first = names;
    size_t n = 0;
    if (names && (first = model_names_next(&names, &n))) {
        s->names = s->settings->served_model_name;
    } else {
        first = s->settings->model;
        n = strlen(first);
        while (n > 1 && first[n - 1] == '/') n--;
        size_t start = n;
        while (start > 0 && first[start - 1] != '/') start--;
        first += start;
        n -= start;
    }
    snprintf(s->model, sizeof s->model, "%.*s", (int)n, first);
    if (!s->names) s->names = s->model;
}

static void seed_random(struct server *s) {
    int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        ssize_t n = read(fd, &s->random, sizeof s->random);
        (void)n;
        close(fd);
    }
    s->random ^= (uint64_t)loop_now_ns() ^ (uint64_t)getpid() << 32;
}

/* libuv's threads parse large bodies; under a limit one of them has to do. */
static int plan_memory(struct server *s, struct error *err) {
    const struct settings *c = s->settings;
    const struct budget_facts facts = {.limit = c->memory_limit,
                                       .connections = c->max_connections,
                                       .uploads = c->max_uploads,
                                       .body = c->max_body,
                                       .running = c->max_running,
                                       .parsers = c->memory_limit ? 2 : 5};
    if (c->memory_limit) setenv("UV_THREADPOOL_SIZE", "1", 1);
    return budget_plan(&s->budget, &facts, err);
}

static enum engine_kv kv_of(const char *name) {
    if (!strcmp(name, "int8")) return ENGINE_KV_INT8;
    return strcmp(name, "f32") ? ENGINE_KV_F16 : ENGINE_KV_F32;
}

/* Takes the source. */
static int open_engine(struct server *s, struct source *source, struct error *err) {
    const struct settings *c = s->settings;
    struct engine_options options = {.backend = c->backend,
                                     .level = c->cpu_level,
                                     .act_bits = atoi(c->act_bits), /* "auto": 0 */
                                     .n_threads = (int)c->threads,
                                     .n_devices = (int)c->tensor_parallel,
                                     .max_context = (int)c->max_context,
                                     .max_running = (int)c->max_running,
                                     .max_waiting = (int)c->max_waiting,
                                     .step_tokens = (int)c->step_tokens,
                                     .kv_tokens = c->kv_tokens,
                                     .gpu_fraction = strtod(c->gpu_memory_fraction, NULL),
                                     .kv = kv_of(c->kv),
                                     .null = !strcmp(c->engine, "null"),
                                     .null_token = -1,
                                     .draft_tokens = (int)c->speculate,
                                     .null_rate = (double)c->null_rate,
                                     .memory_limit = s->budget.engine,
                                     .async = true,
                                     .wake = loop_wake,
                                     .wake_arg = s->loop};
    int r = engine_open(&s->engine, source, &options, err);
    if (r < 0) source_close(source);
    return r;
}

static void raise_descriptors(const struct server *s) {
    unsigned long wanted = (unsigned long)s->settings->max_connections + SPARE_DESCRIPTORS;
    unsigned long limit = http_socket_raise_limit(wanted);
    if (limit < wanted)
        log_line(LOG_WARN, "%lu open files are allowed, %lu are needed for max-connections", limit,
                 wanted);
}

static int open_http(struct server *s, struct error *err) {
    const struct http_hooks hooks = {on_admit, on_handle, on_done, s};
    const struct http_options options = {.host = s->settings->host,
                                         .port = (int)s->settings->port,
                                         .unix_socket = s->settings->unix_socket,
                                         .unix_mode =
                                             (int)strtol(s->settings->unix_socket_mode, NULL, 8),
                                         .tls_certificate = s->settings->tls_cert,
                                         .tls_key = s->settings->tls_key,
                                         .max_connections = (unsigned)s->settings->max_connections,
                                         .max_body = (size_t)s->settings->max_body,
                                         .max_uploads = (size_t)s->budget.parts[BUDGET_UPLOADS],
                                         .max_streams = (size_t)s->budget.parts[BUDGET_STREAMS],
                                         .cors = s->settings->cors,
                                         .head_ns = s->settings->header_timeout * 1000000000,
                                         .body_ns = s->settings->body_timeout * 1000000000};
    raise_descriptors(s);
    return http_open(&s->http, s->loop, &options, &hooks, err);
}

int server_open(struct server **ret, const struct settings *settings, struct error *err) {
    struct server *s = calloc(1, sizeof *s);
    if (!s) return error_set(err, -ENOMEM, "server: out of memory");
    const struct loop_hooks hooks = {on_wake, on_tick, on_signal, on_hangup, s};
    s->settings = settings;
    s->created = (int64_t)time(NULL);
    set_model_name(s);
    seed_random(s);
    int r = plan_memory(s, err);
    if (r == 0) r = tenants_new(&s->tenants, server_random(s), err);
    if (r == 0) r = gate_load(s, err);
    if (r == 0) r = reload_log_level(s, err);
    /* A client that leaves while it is written to is an error of that write, no more. */
    signal(SIGPIPE, SIG_IGN);
    struct source *source = NULL;
    if (r == 0) r = loop_open(&s->loop, &hooks, err);
    /* Files that are not there are found first, then the port opens, then the loading begins. */
    if (r == 0) r = model_source_open(&source, settings->model, err);
    if (r == 0 && (r = open_http(s, err)) < 0) source_close(source);
    if (r == 0) r = open_engine(s, source, err);
    if (r < 0) {
        server_close(s);
        return r;
    }
    *ret = s;
    return 0;
}

void server_close(struct server *s) {
    if (!s) return;
    http_close(s->http);
    engine_close(s->engine);
    request_free_all(s);
    loop_close(s->loop);
    tenants_free(s->tenants);
    text_deinit(&s->health_page.body);
    free(s);
}

int server_run(struct server *s, void (*ready)(struct server *s), struct error *err) {
    s->ready = ready;
    lifecycle_engine(s);
    if (s->state == SERVER_LOADING)
        log_line(LOG_INFO, "%s port %d is open, loading %s",
                 s->settings->unix_socket ? s->settings->unix_socket : s->settings->host,
                 server_port(s), s->settings->model);
    loop_run(s->loop);
    if ((s->status == -EIO || s->status == -ENODEV) && err) *err = s->failure;
    return s->status;
}

int server_port(const struct server *s) { return http_port(s->http); }

/* splitmix64 */
uint64_t server_random(struct server *s) {
    uint64_t z = s->random += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}
