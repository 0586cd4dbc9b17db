#include "kernels/cpu/event.h"

#include <errno.h>

int event_init(struct event *e) {
    atomic_init(&e->count, 0);
    atomic_init(&e->sleepers, 0);
    if (pthread_mutex_init(&e->mutex, NULL)) return -ENOMEM;
    if (pthread_cond_init(&e->moved, NULL)) {
        pthread_mutex_destroy(&e->mutex);
        return -ENOMEM;
    }
    return 0;
}

void event_deinit(struct event *e) {
    pthread_cond_destroy(&e->moved);
    pthread_mutex_destroy(&e->mutex);
}

unsigned event_wait(struct event *e, unsigned seen, int spins) {
    unsigned count;
    for (int i = 0; i < spins; i++) {
        count = atomic_load_explicit(&e->count, memory_order_acquire);
        if (count != seen) return count;
        event_relax();
    }
    pthread_mutex_lock(&e->mutex);
    atomic_fetch_add(&e->sleepers, 1);
    while ((count = atomic_load(&e->count)) == seen) {
        pthread_cond_wait(&e->moved, &e->mutex);
        atomic_fetch_add(&e->sleepers, 1);
    }
    pthread_mutex_unlock(&e->mutex);
    return count;
}

void event_move(struct event *e) { atomic_fetch_add(&e->count, 1); }

void event_wake(struct event *e) {
    if (!atomic_load(&e->sleepers) || !atomic_exchange(&e->sleepers, 0)) return;
    pthread_mutex_lock(&e->mutex);
    pthread_cond_broadcast(&e->moved);
    pthread_mutex_unlock(&e->mutex);
}

void event_signal(struct event *e) {
    event_move(e);
    event_wake(e);
}
