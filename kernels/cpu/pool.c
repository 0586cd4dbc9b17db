/* sched_getaffinity() and CPU_COUNT are not in POSIX. */
#define _GNU_SOURCE
#include "kernels/cpu/pool.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "kernels/cpu/event.h"
#include "kernels/error.h"

/* Each thread has a word: the job's number, where its chunks end and which of them comes next. Its
 * chunks lie side by side, so that what it prefetches beyond the end of one is its own next one. It
 * takes them from the front, and then others' from their back: a thread that is alone with its word
 * waits for no cache line. When the word moves on, the job cannot end before this chunk is counted as
 * done, so what was written before the words stays as it is. A thread counts all that
 * it took once it finds no more. */
enum {
    MAX_THREADS = 256,
    FIELD = 20, /* bits of the two chunk numbers in a word */
    /* About 50 us: longer than the pauses between the operations of a step, shorter than a time
     * slice. */
    SPINS = 1500,
    /* A wait for the last chunk that is longer than this and two chunks of the caller's was an
     * interruption, not unevenness. */
    STALL_NS = 50 * 1000,
    /* After a stall the caller works alone for this many times as long: stalls then take at most
     * a ninth of the time. Twice as long each time that help lasted no longer than that before
     * the next stall, up to the second number: a thirty-third. */
    SOLO_FACTOR = 8,
    SOLO_MOST = 32,
    /* What a helper that found no processor of its own counts for. */
    CROWDED_NS = 250 * 1000
};

/* What a thread learns of a job, in a line of its own. */
struct range {
    _Alignas(64) atomic_uint_least64_t word; /* job << 40 | end << 20 | next */
    pool_job *job;
    void *arg;
    int n_chunks;          /* of all threads */
    atomic_int caller_cpu; /* where the job was posted */
};

struct pool {
    struct event posted, ended;
    _Alignas(64) atomic_int done; /* chunks of the job */
    _Alignas(64) uint64_t n_jobs; /* from here on the caller's own */
    int64_t solo_until;           /* CLOCK_MONOTONIC, ns: the caller works alone before */
    int solo_factor;              /* SOLO_FACTOR..SOLO_MOST */
    int64_t chunk_ns;             /* of the caller's in the last shared job */
    _Alignas(64) atomic_bool stop;
    atomic_bool crowded; /* a helper woke up where the job was posted */
    int n_threads, spins;
    int n_started; /* workers to join */
    pthread_t threads[MAX_THREADS];
    struct range ranges[MAX_THREADS];
};

struct worker {
    struct pool *pool;
    int thread;
};

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* The next chunk of a thread, or the last one; -1 when all are taken. */
static int take(struct range *range, bool last) {
    const uint64_t mask = (UINT64_C(1) << FIELD) - 1;
    uint64_t word = atomic_load_explicit(&range->word, memory_order_relaxed);
    for (;;) {
        uint64_t next = word & mask, end = word >> FIELD & mask;
        if (next >= end) return -1;
        uint64_t moved = last ? word - (mask + 1) : word + 1;
        if (atomic_compare_exchange_weak_explicit(&range->word, &word, moved, memory_order_acquire,
                                                  memory_order_relaxed))
            return (int)(last ? end - 1 : next);
    }
}

static int take_any(struct pool *pool, int thread) {
    int chunk = take(&pool->ranges[thread], false), other = thread;
    for (int i = 1; i < pool->n_threads && chunk < 0; i++) {
        if (++other == pool->n_threads) other = 0;
        chunk = take(&pool->ranges[other], true);
    }
    return chunk;
}

/* How many it took. */
static int take_all(struct pool *pool, int thread) {
    const struct range *mine = &pool->ranges[thread];
    int chunk, n = 0;
    for (; (chunk = take_any(pool, thread)) >= 0; n++) mine->job(mine->arg, thread, chunk);
    if (!n) return 0;
    int n_chunks = mine->n_chunks; /* of this job until what was taken counts */
    if (atomic_fetch_add_explicit(&pool->done, n, memory_order_acq_rel) + n == n_chunks)
        event_signal(&pool->ended);
    return n;
}

/* On the caller's processor a helper takes the time that the caller would have; it spins there while
 * the caller waits for its turn. */
static bool in_the_way(struct pool *pool, int thread) {
    struct range *mine = &pool->ranges[thread];
    return sched_getcpu() == atomic_load_explicit(&mine->caller_cpu, memory_order_relaxed);
}

static void *work(void *arg) {
    struct worker me = *(struct worker *)arg;
    struct pool *pool = me.pool;
    free(arg);
    unsigned seen = 0;
    for (int spins = 0;;) {
        seen = event_wait(&pool->posted, seen, spins);
        if (atomic_load_explicit(&pool->stop, memory_order_relaxed)) return NULL;
        spins = 0;
        if (in_the_way(pool, me.thread)) {
            atomic_store_explicit(&pool->crowded, true, memory_order_relaxed);
            sched_yield();
        }
        take_all(pool, me.thread);
        if (!in_the_way(pool, me.thread)) spins = pool->spins;
    }
}

static int processors(void) {
    cpu_set_t set;
    if (!sched_getaffinity(0, sizeof set, &set)) return CPU_COUNT(&set);
    long n = sysconf(_SC_NPROCESSORS_ONLN); /* more processors than a cpu_set_t holds */
    return n < 1 ? 1 : n > MAX_THREADS ? MAX_THREADS : (int)n;
}

static int start_worker(struct pool *pool, int thread, struct error *err) {
    struct worker *w = malloc(sizeof *w);
    if (!w) return error_set(err, -ENOMEM, "no memory for thread %d", thread);
    *w = (struct worker){pool, thread};
    if (pthread_create(&pool->threads[pool->n_started], NULL, work, w)) {
        free(w);
        return error_set(err, -EAGAIN, "cannot start thread %d of %d", thread, pool->n_threads);
    }
    pool->n_started++;
    return 0;
}

/* Workers block every signal, so that one sent to the process reaches a thread that expects it. */
static int start_workers(struct pool *pool, struct error *err) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = 0;
    for (int i = 1; i < pool->n_threads && !rc; i++) rc = start_worker(pool, i, err);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return rc;
}

int pool_open(struct pool **ret, int n_threads, struct error *err) {
    struct pool *pool = aligned_alloc(_Alignof(struct pool), sizeof *pool);
    if (!pool) return error_set(err, -ENOMEM, "no memory for the thread pool");
    int have = processors();
    if (n_threads <= 0) n_threads = have;
    if (n_threads > MAX_THREADS) n_threads = MAX_THREADS;
    pool->n_threads = n_threads;
    /* With fewer processors than threads, who is awaited may need the waiter's processor. */
    pool->spins = n_threads > have ? 0 : SPINS;
    pool->n_started = 0;
    pool->n_jobs = 0;
    pool->solo_until = 0;
    pool->solo_factor = SOLO_FACTOR;
    pool->chunk_ns = 0;
    atomic_init(&pool->stop, false);
    for (int i = 0; i < n_threads; i++) {
        atomic_init(&pool->ranges[i].word, 0);
        atomic_init(&pool->ranges[i].caller_cpu, -1);
    }
    atomic_init(&pool->done, 0);
    atomic_init(&pool->crowded, false);
    int rc = event_init(&pool->posted);
    if (!rc && (rc = event_init(&pool->ended))) event_deinit(&pool->posted);
    if (rc) {
        free(pool);
        return error_set(err, rc, "no memory for the thread pool");
    }
    rc = start_workers(pool, err);
    if (rc) {
        pool_close(pool);
        return rc;
    }
    *ret = pool;
    return 0;
}

void pool_close(struct pool *pool) {
    if (!pool) return;
    atomic_store_explicit(&pool->stop, true, memory_order_relaxed); /* published by the signal */
    event_signal(&pool->posted);
    for (int i = 0; i < pool->n_started; i++) pthread_join(pool->threads[i], NULL);
    event_deinit(&pool->posted);
    event_deinit(&pool->ended);
    free(pool);
}

int pool_threads(const struct pool *pool) { return pool->n_threads; }

/* A wait of that many ns for a helper has ended. */
static void note_stall(struct pool *pool, int64_t now, int64_t stall) {
    bool soon = now - pool->solo_until < SOLO_FACTOR * stall;
    int twice = pool->solo_factor * 2;
    pool->solo_factor = !soon ? SOLO_FACTOR : twice < SOLO_MOST ? twice : SOLO_MOST;
    pool->solo_until = now + pool->solo_factor * stall;
}

/* Others hold the last chunks; how long they take tells whether somebody interrupts them. */
static void await_helpers(struct pool *pool, int n_chunks, int64_t since) {
    for (int i = 0; i < pool->spins / 16; i++) {
        if (atomic_load_explicit(&pool->done, memory_order_acquire) == n_chunks) return;
        event_relax();
    }
    for (;;) {
        /* Read before the chunks are: the count moves when the last one is done. */
        unsigned seen = atomic_load_explicit(&pool->ended.count, memory_order_acquire);
        if (atomic_load_explicit(&pool->done, memory_order_acquire) == n_chunks) break;
        event_wait(&pool->ended, seen, pool->spins);
    }
    int64_t now = now_ns();
    if (now - since > STALL_NS + 2 * pool->chunk_ns) note_stall(pool, now, now - since);
}

static bool alone(struct pool *pool, int n_chunks) {
    if (pool->n_threads == 1 || n_chunks < 2) return true;
    if (atomic_load_explicit(&pool->crowded, memory_order_relaxed)) {
        atomic_store_explicit(&pool->crowded, false, memory_order_relaxed);
        /* Beside long chunks, waking up in vain is nothing. */
        if (pool->chunk_ns < STALL_NS) note_stall(pool, now_ns(), CROWDED_NS);
    }
    return pool->solo_until && now_ns() < pool->solo_until;
}

/* The caller's chunks are the first, and it has one where there are fewer than threads. */
static void post(struct pool *pool, pool_job *job, void *arg, int n_chunks) {
    const uint64_t number = ++pool->n_jobs << 2 * FIELD;
    const int cpu = sched_getcpu();
    uint64_t next = 0;
    atomic_store_explicit(&pool->done, 0, memory_order_relaxed);
    for (int i = 0; i < pool->n_threads; i++) {
        struct range *r = &pool->ranges[i];
        r->job = job;
        r->arg = arg;
        r->n_chunks = n_chunks;
        atomic_store_explicit(&r->caller_cpu, cpu, memory_order_relaxed);
    }
    /* Only now, for who finds its own range empty takes from any other. */
    for (int i = 0; i < pool->n_threads; i++) {
        int64_t of_all = (int64_t)n_chunks * (i + 1) + pool->n_threads - 1;
        uint64_t end = (uint64_t)(of_all / pool->n_threads);
        atomic_store_explicit(&pool->ranges[i].word, number | end << FIELD | next,
                              memory_order_release);
        next = end;
    }
    event_signal(&pool->posted);
}

void pool_run(struct pool *pool, pool_job *job, void *arg, int n_chunks) {
    if (alone(pool, n_chunks)) {
        for (int i = 0; i < n_chunks; i++) job(arg, 0, i);
        return;
    }
    post(pool, job, arg, n_chunks);
    int64_t start = now_ns();
    int n = take_all(pool, 0);
    int64_t end = now_ns();
    pool->chunk_ns = n ? (end - start) / n : 0;
    await_helpers(pool, n_chunks, end);
}
