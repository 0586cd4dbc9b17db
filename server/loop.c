#include "server/loop.h"

#include <errno.h>
#include <microhttpd.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <unistd.h>
#include <uv.h>

#include "kernels/error.h"

/* DESIGN. Whatever happens (a socket is ready, the library's timeout ends, the engine has
 * events, a peer leaves, a signal comes) is a callback below. Each does its work and then
 * calls run_daemon(), because the work may have resumed connections, which only MHD_run()
 * takes up. libmicrohttpd registers sockets edge-triggered and keeps a list of ready ones, so
 * after each run it is asked for its timeout: 0 means more is ready, and a timer of 0 ms lets
 * the other handles have their turn first. */

enum { QUEUE_ROUNDS = 512 /* each accepts some ten connections */ };

struct loop {
    uv_loop_t uv;
    uv_poll_t poll;
    uv_timer_t timeout, tick;
    uv_async_t async;
    uv_signal_t term, interrupt, hangup;
    struct MHD_Daemon *daemon;
    struct loop_hooks hooks;
    uint64_t tick_ms;
    int n_signals;
    bool uv_ready, attached;
};

struct loop_watch {
    uv_poll_t poll;
    struct loop *loop;
    void (*left)(void *arg);
    void *arg;
};

static void on_timeout(uv_timer_t *timer);

static void run_daemon(struct loop *l) {
    if (!l->attached) return;
    MHD_run(l->daemon);
    MHD_UNSIGNED_LONG_LONG ms;
    if (MHD_get_timeout(l->daemon, &ms) == MHD_YES)
        uv_timer_start(&l->timeout, on_timeout, ms, 0);
    else
        uv_timer_stop(&l->timeout);
}

static void on_timeout(uv_timer_t *timer) { run_daemon(timer->data); }

static void on_ready(uv_poll_t *poll, int status, int events) {
    (void)status;
    (void)events;
    run_daemon(poll->data);
}

static void on_async(uv_async_t *async) {
    struct loop *l = async->data;
    l->hooks.wake(l->hooks.arg);
    run_daemon(l);
}

static void on_tick(uv_timer_t *timer) {
    struct loop *l = timer->data;
    l->hooks.tick(l->hooks.arg);
    run_daemon(l);
}

static void on_signal(uv_signal_t *handle, int number) {
    struct loop *l = handle->data;
    l->hooks.signal(l->hooks.arg, number, ++l->n_signals);
    run_daemon(l);
}

static void on_hangup(uv_signal_t *handle, int number) {
    struct loop *l = handle->data;
    (void)number;
    l->hooks.hangup(l->hooks.arg);
    run_daemon(l);
}

static int init_handles(struct loop *l) {
    int r = uv_loop_init(&l->uv);
    if (r < 0) return r;
    l->uv_ready = true;
    l->timeout.data = l->tick.data = l->async.data = l->term.data = l->interrupt.data = l;
    l->hangup.data = l;
    l->poll.data = l;
    if ((r = uv_timer_init(&l->uv, &l->timeout)) < 0) return r;
    if ((r = uv_timer_init(&l->uv, &l->tick)) < 0) return r;
    if ((r = uv_async_init(&l->uv, &l->async, on_async)) < 0) return r;
    if ((r = uv_signal_init(&l->uv, &l->term)) < 0) return r;
    if ((r = uv_signal_init(&l->uv, &l->interrupt)) < 0) return r;
    return uv_signal_init(&l->uv, &l->hangup);
}

int loop_open(struct loop **ret, const struct loop_hooks *hooks, struct error *err) {
    struct loop *l = calloc(1, sizeof *l);
    if (!l) return error_set(err, -ENOMEM, "event loop: out of memory");
    l->hooks = *hooks;
    l->tick_ms = 1000;
    int r = init_handles(l);
    /* A signal that comes before loop_run() waits for it. */
    if (r == 0) r = uv_signal_start(&l->term, on_signal, SIGTERM);
    if (r == 0) r = uv_signal_start(&l->interrupt, on_signal, SIGINT);
    if (r == 0 && hooks->hangup) r = uv_signal_start(&l->hangup, on_hangup, SIGHUP);
    if (r < 0) {
        loop_close(l);
        return error_set(err, r, "event loop: %s", uv_strerror(r));
    }
    *ret = l;
    return 0;
}

static void close_handle(uv_handle_t *handle, void *arg) {
    (void)arg;
    if (!uv_is_closing(handle)) uv_close(handle, NULL);
}

void loop_close(struct loop *l) {
    if (!l) return;
    if (l->uv_ready) {
        uv_walk(&l->uv, close_handle, NULL);
        uv_run(&l->uv, UV_RUN_DEFAULT);
        uv_loop_close(&l->uv);
    }
    free(l);
}

int loop_attach(struct loop *l, struct MHD_Daemon *daemon, struct error *err) {
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(daemon, MHD_DAEMON_INFO_EPOLL_FD);
    if (!info) return error_set(err, -ENOTSUP, "libmicrohttpd has no epoll");
    int r = uv_poll_init(&l->uv, &l->poll, info->epoll_fd);
    if (r == 0) r = uv_poll_start(&l->poll, UV_READABLE, on_ready);
    if (r < 0) return error_set(err, r, "event loop: %s", uv_strerror(r));
    l->daemon = daemon;
    l->attached = true;
    return 0;
}

void loop_run(struct loop *l) {
    uv_timer_start(&l->tick, on_tick, l->tick_ms, l->tick_ms);
    run_daemon(l);
    uv_run(&l->uv, UV_RUN_DEFAULT);
    /* The daemon closes its descriptor when it is stopped. */
    uv_poll_stop(&l->poll);
    l->attached = false;
}

void loop_stop(struct loop *l) { uv_stop(&l->uv); }

void loop_wake(void *l) { uv_async_send(&((struct loop *)l)->async); }

static void accept_queued(struct loop *l) {
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(l->daemon, MHD_DAEMON_INFO_LISTEN_FD);
    if (!info || info->listen_fd == MHD_INVALID_SOCKET) return;
    struct pollfd queue = {.fd = info->listen_fd, .events = POLLIN};
    /* Bounded, as at the connection limit nothing is accepted. */
    for (int i = 0; i < QUEUE_ROUNDS && poll(&queue, 1, 0) > 0; i++) MHD_run(l->daemon);
}

void loop_quiesce(struct loop *l) {
    accept_queued(l);
    MHD_socket fd = MHD_quiesce_daemon(l->daemon);
    if (fd != MHD_INVALID_SOCKET) close(fd);
}

void loop_set_tick(struct loop *l, uint64_t ms) {
    l->tick_ms = ms;
    uv_timer_start(&l->tick, on_tick, ms, ms);
}

struct work {
    uv_work_t uv;
    struct loop *loop;
    void (*work)(void *arg), (*done)(void *arg);
    void *arg;
};

static void on_work(uv_work_t *uv) {
    struct work *w = uv->data;
    w->work(w->arg);
}

static void on_worked(uv_work_t *uv, int status) {
    struct work *w = uv->data;
    struct loop *l = w->loop;
    (void)status; /* nothing here cancels work */
    w->done(w->arg);
    free(w);
    run_daemon(l);
}

int loop_work(struct loop *l, void (*work)(void *arg), void (*done)(void *arg), void *arg) {
    struct work *w = calloc(1, sizeof *w);
    if (!w) return -ENOMEM;
    *w = (struct work){.loop = l, .work = work, .done = done, .arg = arg};
    w->uv.data = w;
    int r = uv_queue_work(&l->uv, &w->uv, on_work, on_worked);
    if (r < 0) free(w);
    return r;
}

static void on_disconnect(uv_poll_t *poll, int status, int events) {
    struct loop_watch *w = poll->data;
    if (status == 0 && !(events & UV_DISCONNECT)) return;
    uv_poll_stop(poll);
    w->left(w->arg);
    run_daemon(w->loop);
}

int loop_watch_new(struct loop_watch **ret, struct loop *l, int fd, void (*left)(void *arg),
                   void *arg) {
    struct loop_watch *w = calloc(1, sizeof *w);
    if (!w) return -ENOMEM;
    int r = uv_poll_init(&l->uv, &w->poll, fd);
    if (r < 0) {
        free(w);
        return r;
    }
    w->poll.data = w;
    w->loop = l;
    w->left = left;
    w->arg = arg;
    *ret = w;
    return 0;
}

void loop_watch_start(struct loop_watch *w) {
    if (w && !uv_is_active((uv_handle_t *)&w->poll))
        uv_poll_start(&w->poll, UV_DISCONNECT, on_disconnect);
}

void loop_watch_stop(struct loop_watch *w) {
    /* libuv asks the kernel to forget the socket even when it was not watched. */
    if (w && uv_is_active((uv_handle_t *)&w->poll)) uv_poll_stop(&w->poll);
}

static void free_watch(uv_handle_t *handle) { free(handle->data); }

void loop_watch_free(struct loop_watch *w) {
    if (w) uv_close((uv_handle_t *)&w->poll, free_watch);
}

int64_t loop_now_ns(void) { return (int64_t)uv_hrtime(); }
