#include "server/lifecycle.h"

#include <errno.h>
#include <signal.h>

#include "engine/engine.h"
#include "server/http.h"
#include "server/log.h"
#include "server/loop.h"
#include "server/request.h"
#include "server/server.h"
#include "server/settings.h"

static const int64_t SECOND_NS = 1000000000;

enum {
    TICK_MS = 50,    /* while leaving: the end of the last request is noticed within it */
    LAST_CALL_S = 1, /* for requests that are under way when the port closes */
    ABORT_S = 1      /* to write the errors out */
};

static void set_state(struct server *s, enum server_state state, int64_t seconds) {
    s->state = state;
    s->deadline_ns = loop_now_ns() + seconds * SECOND_NS;
}

static void abort_requests(struct server *s) {
    set_state(s, SERVER_ABORTING, ABORT_S);
    request_abort_all(s, API_ERROR_DRAINING, "the server is shutting down");
}

static void drain(struct server *s) {
    engine_drain(s->engine);
    set_state(s, SERVER_DRAINING, s->settings->shutdown_timeout);
}

static void close_port(struct server *s) {
    loop_quiesce(s->loop);
    log_line(LOG_INFO, "the port is closed: %d requests have %lld s to finish",
             http_active(s->http), (long long)s->settings->shutdown_timeout);
}

/* Running requests keep all of their time: it counts from the refusal of new ones. */
static void last_call(struct server *s) {
    close_port(s);
    set_state(s, SERVER_LAST_CALL, LAST_CALL_S);
}

void lifecycle_engine(struct server *s) {
    if (s->state != SERVER_LOADING) return;
    switch (engine_get_state(s->engine, &s->failure)) {
    case ENGINE_LOADING:
        return;
    case ENGINE_BROKEN:
        s->status = -EIO;
        loop_stop(s->loop);
        return;
    case ENGINE_READY:
        s->info = engine_get_info(s->engine);
        set_state(s, SERVER_SERVING, 0);
        if (s->ready) s->ready(s);
        return;
    }
}

/* Whatever a device computed is lost, and often the device for this process: a new process is the
 * cure. Until it ends those who ask hear why, and watchers see that it is unhealthy. */
static void fail(struct server *s) {
    engine_get_state(s->engine, &s->failure);
    log_line(LOG_ERROR, "the engine has failed, this process ends in %lld s: %s",
             (long long)s->settings->failure_delay, s->failure.text);
    s->status = -ENODEV;
    loop_set_tick(s->loop, TICK_MS);
    set_state(s, SERVER_FAILED, s->settings->failure_delay);
}

static void on_deadline(struct server *s) {
    switch (s->state) {
    case SERVER_LEAVING:
        last_call(s);
        return;
    case SERVER_LAST_CALL:
        drain(s);
        return;
    case SERVER_DRAINING:
        abort_requests(s);
        return;
    default:
        loop_stop(s->loop);
        return;
    }
}

void lifecycle_tick(struct server *s, int64_t now_ns) {
    struct engine_stats stats;
    engine_get_stats(s->engine, &stats);
    health_watch(&s->health, &stats, now_ns);
    if (s->state == SERVER_SERVING && stats.failed) fail(s);
    if (s->state <= SERVER_SERVING) return;
    /* An open connection may bring a request at last call, and no more afterwards. */
    bool idle = http_active(s->http) == 0;
    if (s->state == SERVER_LAST_CALL) idle = idle && http_connections(s->http) == 0;
    if (idle && s->state != SERVER_LEAVING && s->state != SERVER_FAILED)
        loop_stop(s->loop);
    else if (now_ns >= s->deadline_ns)
        on_deadline(s);
}

static void leave(struct server *s, int number) {
    loop_set_tick(s->loop, TICK_MS);
    if (s->state == SERVER_LOADING) {
        log_line(LOG_INFO, "shutting down while the model loads");
        loop_stop(s->loop);
    } else if (number == SIGINT) {
        close_port(s);
        drain(s);
    } else if (s->settings->drain_delay) {
        log_line(LOG_INFO, "leaving: not ready any more, serving for %lld s",
                 (long long)s->settings->drain_delay);
        set_state(s, SERVER_LEAVING, s->settings->drain_delay);
    } else {
        last_call(s);
    }
}

void lifecycle_signal(struct server *s, int number, int nth) {
    if (nth == 1) {
        leave(s, number);
    } else if (nth == 2 && s->state != SERVER_LOADING) {
        log_line(LOG_WARN, "second signal: requests are aborted");
        s->status = -EINTR;
        if (s->state == SERVER_LEAVING) loop_quiesce(s->loop);
        abort_requests(s);
    } else {
        loop_stop(s->loop);
    }
}
