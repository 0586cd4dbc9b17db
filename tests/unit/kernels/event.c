#include "kernels/cpu/event.h"

#include <criterion/criterion.h>
#include <sched.h>

struct waiter {
    struct event event;
    unsigned seen, got;
    int spins;
    pthread_t thread;
};

static void *wait_once(void *arg) {
    struct waiter *w = arg;
    w->got = event_wait(&w->event, w->seen, w->spins);
    return NULL;
}

static void start(struct waiter *w, unsigned seen) {
    w->seen = seen;
    cr_assert_eq(pthread_create(&w->thread, NULL, wait_once, w), 0);
}

static void until_it_sleeps(struct waiter *w) {
    while (!atomic_load(&w->event.sleepers)) sched_yield();
}

Test(event, a_sleeper_sees_the_next_signal) {
    struct waiter w = {.spins = 0};
    cr_assert_eq(event_init(&w.event), 0);
    for (unsigned i = 0; i < 200; i++) {
        start(&w, i);
        if (i % 2) until_it_sleeps(&w);
        event_signal(&w.event);
        pthread_join(w.thread, NULL);
        cr_assert_eq(w.got, i + 1);
        atomic_store(&w.event.sleepers, 0); /* who has left may still be counted */
    }
    event_deinit(&w.event);
}

/* The signaller is interrupted between its steps: a thread that has seen the count already goes to
 * sleep until the next one, and is woken for nothing. The next signal must find it. */
Test(event, a_late_signal_takes_no_sleeper_away) {
    struct waiter w = {.spins = 0};
    cr_assert_eq(event_init(&w.event), 0);
    for (unsigned i = 0; i < 200; i += 2) {
        event_move(&w.event);
        start(&w, i + 1);
        until_it_sleeps(&w);
        event_wake(&w.event);
        until_it_sleeps(&w); /* again */
        event_signal(&w.event);
        pthread_join(w.thread, NULL);
        cr_assert_eq(w.got, i + 2);
        atomic_store(&w.event.sleepers, 0);
    }
    event_deinit(&w.event);
}

Test(event, whoever_spins_needs_no_waking) {
    struct waiter w = {.spins = 1 << 30};
    cr_assert_eq(event_init(&w.event), 0);
    start(&w, 0);
    event_move(&w.event);
    pthread_join(w.thread, NULL);
    cr_expect_eq(w.got, 1);
    cr_expect_eq(atomic_load(&w.event.sleepers), 0);
    event_deinit(&w.event);
}
