/* pool.h - runs one function on a fixed set of threads.
 *
 * Owns      its threads.
 * Borrows   the job's argument until pool_run() returns.
 * Thread    the thread that made it calls pool_run(); jobs call pool_barrier(), pool_next().
 * Fails     pool_open() with -ENOMEM, -EAGAIN.
 * Cost      a fork and join of a few microseconds; sleeping threads cost nothing.
 *
 * The calling thread takes part as thread 0. Waiting spins briefly, then sleeps, so that a busy
 * neighbour on a shared core costs a wake-up and not a time slice. Work is handed out in small
 * chunks from a shared counter: a thread that lost its core delays its chunk only. */
#ifndef KERNELS_CPU_POOL_H
#define KERNELS_CPU_POOL_H

struct error;
struct pool;

typedef void pool_job(void *arg, int thread, int n_threads);

/* n_threads counts the caller; 0 = the processors this process may run on. */
int pool_open(struct pool **ret, int n_threads, struct error *err);
void pool_close(struct pool *pool); /* NULL is allowed */
int pool_threads(const struct pool *pool);

/* Runs job on every thread and waits for all. */
void pool_run(struct pool *pool, pool_job *job, void *arg);

/* Inside a job: waits until every thread of the job has come here. Resets the chunk counter. */
void pool_barrier(struct pool *pool);

/* Inside a job: the next chunk 0, 1, 2, ... that no other thread has; the counter starts at 0
 * when the job starts and after each barrier. */
int pool_next(struct pool *pool);

#endif
