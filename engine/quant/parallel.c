#define _GNU_SOURCE /* sched_getaffinity(): how many processors this process may use */
#include "engine/quant/parallel.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

struct work {
    parallel_piece *piece;
    void *arg;
    size_t n;
    atomic_size_t next;
};

int parallel_threads(int wanted) {
    if (wanted <= 0) {
        cpu_set_t set;
        wanted = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    }
    return wanted < PARALLEL_MAX_THREADS ? wanted : PARALLEL_MAX_THREADS;
}

static void *run(void *arg) {
    struct work *work = arg;
    for (;;) {
        /* Relaxed: the counter only hands out numbers; results are published by the join. */
        size_t i = atomic_fetch_add_explicit(&work->next, 1, memory_order_relaxed);
        if (i >= work->n) return NULL;
        work->piece(work->arg, i);
    }
}

void parallel_for(int n_threads, size_t n, parallel_piece *piece, void *arg) {
    struct work work = {.piece = piece, .arg = arg, .n = n};
    pthread_t helpers[PARALLEL_MAX_THREADS];
    int n_helpers = 0;
    atomic_init(&work.next, 0);
    while (n_helpers + 1 < n_threads && n_helpers + 1 < PARALLEL_MAX_THREADS &&
           (size_t)n_helpers + 1 < n) {
        if (pthread_create(&helpers[n_helpers], NULL, run, &work) != 0) break;
        n_helpers++;
    }
    run(&work);
    while (n_helpers > 0) pthread_join(helpers[--n_helpers], NULL);
}
