#include "kernels/cpu/pool.h"

#include <criterion/criterion.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_THREADS = 16, MAX_CHUNKS = 500 };

static const int sizes[] = {1, 2, 3, 7, MAX_THREADS};

struct state {
    struct pool *pool;
    int n_threads;
    atomic_int visits[MAX_CHUNKS];
    atomic_int busy[MAX_THREADS];
    atomic_int bad;
    long plain[MAX_CHUNKS]; /* not atomic: the end of a job has to order these */
};

static void count_visits(void *arg, int thread, int chunk) {
    struct state *s = arg;
    if (thread < 0 || thread >= s->n_threads || atomic_exchange(&s->busy[thread], 1))
        atomic_fetch_add(&s->bad, 1);
    atomic_fetch_add(&s->visits[chunk], 1);
    s->plain[chunk]++;
    atomic_store(&s->busy[thread], 0);
}

static struct state *new_state(int n_threads) {
    struct state *s = calloc(1, sizeof *s);
    cr_assert_not_null(s);
    s->n_threads = n_threads;
    cr_assert_eq(pool_open(&s->pool, n_threads, NULL), 0);
    cr_assert_eq(pool_threads(s->pool), n_threads);
    return s;
}

static void free_state(struct state *s) {
    pool_close(s->pool);
    free(s);
}

Test(pool, every_chunk_is_done_once_before_the_job_ends) {
    static const int counts[] = {1, 2, 3, 16, 37, MAX_CHUNKS};
    for (int i = 0; i < 5; i++)
        for (int k = 0; k < 6; k++) {
            struct state *s = new_state(sizes[i]);
            for (int job = 1; job <= 100; job++) {
                pool_run(s->pool, count_visits, s, counts[k]);
                for (int c = 0; c < MAX_CHUNKS; c++) {
                    int want = c < counts[k] ? job : 0;
                    cr_assert_eq(atomic_load(&s->visits[c]), want);
                    cr_assert_eq(s->plain[c], want);
                }
            }
            cr_expect_eq(atomic_load(&s->bad), 0, "a thread ran two chunks at a time");
            free_state(s);
        }
}

/* Jobs of other sizes follow at once, as the operations of a step do. */
Test(pool, jobs_do_not_mix) {
    for (int i = 0; i < 5; i++) {
        struct state *s = new_state(sizes[i]);
        long total = 0;
        for (int job = 0; job < 5000; job++) {
            int n = 1 + job * 7 % 23;
            pool_run(s->pool, count_visits, s, n);
            total += n;
        }
        long sum = 0;
        for (int c = 0; c < MAX_CHUNKS; c++) sum += s->plain[c];
        cr_expect_eq(sum, total);
        cr_expect_eq(atomic_load(&s->bad), 0);
        free_state(s);
    }
}

struct meeting {
    pthread_mutex_t lock;
    pthread_cond_t come;
    int n;
};

/* Nobody passes before all are there: this can only end when every thread takes a chunk. */
static void meet(void *arg, int thread, int chunk) {
    struct meeting *m = arg;
    (void)thread;
    (void)chunk;
    pthread_mutex_lock(&m->lock);
    m->n++;
    pthread_cond_broadcast(&m->come);
    while (m->n < 5) pthread_cond_wait(&m->come, &m->lock);
    pthread_mutex_unlock(&m->lock);
}

Test(pool, sleeping_threads_are_woken_and_help) {
    struct meeting m = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0};
    struct pool *pool;
    cr_assert_eq(pool_open(&pool, 5, NULL), 0);
    pool_run(pool, meet, &m, 5);
    cr_expect_eq(m.n, 5);
    pool_close(pool);
}

Test(pool, opens_and_closes_without_work) {
    for (int i = 0; i < 20; i++) {
        struct pool *pool = NULL;
        cr_assert_eq(pool_open(&pool, i % 6, NULL), 0);
        cr_expect(pool_threads(pool) >= 1);
        pool_close(pool);
    }
    pool_close(NULL);
}
