/* loop.h - runs sockets, timers, signals and the engine's wake-ups in one thread.
 *
 * Owns      the libuv loop with its handles, and watches until loop_watch_free().
 * Borrows   the daemon until loop_run() returns, hooks' argument until loop_close().
 * Thread    all calls from the thread that runs it, but loop_wake(), which any thread may call.
 * Fails     opening and attaching with a negative errno; running never.
 * Cost      O(ready sockets) a turn; a turn never blocks in anything but epoll.
 *
 * libmicrohttpd runs in external mode: its epoll descriptor is one poll handle here, its
 * timeout one timer, and MHD_run() follows whatever a hook did. MHD_run() polls with timeout 0;
 * the internal mode of 0.9.75 sleeps with 128 ready connections in hand, so it is never used. */
#ifndef SERVER_LOOP_H
#define SERVER_LOOP_H

#include <stdint.h>

struct MHD_Daemon;
struct error;
struct loop;
struct loop_watch;

struct loop_hooks {
    void (*wake)(void *arg);                        /* somebody called loop_wake() */
    void (*tick)(void *arg);                        /* the clock moved on */
    void (*signal)(void *arg, int number, int nth); /* SIGTERM or SIGINT, nth from 1 */
    void (*hangup)(void *arg);                      /* SIGHUP; NULL: it ends the process */
    void *arg;
};

int loop_open(struct loop **ret, const struct loop_hooks *hooks, struct error *err);
void loop_close(struct loop *l); /* after the daemon is stopped; NULL is allowed */

int loop_attach(struct loop *l, struct MHD_Daemon *daemon, struct error *err);

/* Returns after loop_stop(). */
void loop_run(struct loop *l);
void loop_stop(struct loop *l);

/* Runs the wake hook soon; calls that come close together are one. */
void loop_wake(void *l);

/* Takes the connections that wait in the listen queue, which closing it would reset, and then
 * stops accepting. Those that are open go on. */
void loop_quiesce(struct loop *l);

/* How often the tick hook runs; a second at first. */
void loop_set_tick(struct loop *l, uint64_t ms);

/* Runs work(arg) on a thread of a small pool, then done(arg) in the loop's. Returns 0, or -ENOMEM
 * and runs neither. loop_close() waits for both. */
int loop_work(struct loop *l, void (*work)(void *arg), void (*done)(void *arg), void *arg);

/* Calls left(arg) once when the peer of the socket has gone. A suspended connection is out of
 * libmicrohttpd's sight, so this is how a client that gives up is noticed. Free it before the
 * socket is closed. */
int loop_watch_new(struct loop_watch **ret, struct loop *l, int fd, void (*left)(void *arg),
                   void *arg);
void loop_watch_start(struct loop_watch *w); /* NULL, or started already: nothing */
void loop_watch_stop(struct loop_watch *w);
void loop_watch_free(struct loop_watch *w);

/* CLOCK_MONOTONIC. */
int64_t loop_now_ns(void);

#endif
