/* event.h - a counter that threads watch until somebody moves it.
 *
 * Owns      its mutex and condition until event_deinit().
 * Borrows   nothing.
 * Thread    any number wait, any number signal.
 * Fails     event_init() with -ENOMEM; the rest never.
 * Cost      a signal that nobody sleeps on: an addition and a load; a wait that ends while it
 *           spins: loads.
 *
 * A waiter that gives up spinning counts itself as a sleeper and then looks once more; the
 * signaller moves the counter and then takes the sleepers off the count, and whoever took some
 * wakes all. They are woken once, however long they need to come: a system call with every signal
 * would take as long as a small job does. A sleeper that is woken and finds nothing new counts
 * itself again: an earlier signal, late between its two steps, had taken it. All of these are
 * sequentially consistent, so a sleeper is seen by every signal that it has not seen. */
#ifndef KERNELS_CPU_EVENT_H
#define KERNELS_CPU_EVENT_H

#include <pthread.h>
#include <stdatomic.h>

struct event {
    _Alignas(64) atomic_uint count;
    atomic_int sleepers; /* at least as many as nobody has set out to wake */
    pthread_mutex_t mutex;
    pthread_cond_t moved;
};

int event_init(struct event *e);
void event_deinit(struct event *e);

/* Until the count is not `seen`, after that many tries without a system call; returns it. */
unsigned event_wait(struct event *e, unsigned seen, int spins);

void event_signal(struct event *e);
/* The two steps of a signal. */
void event_move(struct event *e);
void event_wake(struct event *e);

/* Tells the processor that a loop waits. */
static inline void event_relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

#endif
