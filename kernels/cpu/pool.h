/* pool.h - shares the chunks of a job among a fixed set of threads.
 *
 * Owns      its threads.
 * Borrows   the job's argument until pool_run() returns.
 * Thread    the thread that made it calls pool_run().
 * Fails     pool_open() with -ENOMEM, -EAGAIN.
 * Cost      a job that other threads help with: a store, and a fraction of a microsecond until they
 *           see it; sleeping threads cost nothing.
 *
 * Thread i of T begins with chunks n i / T (rounded up) and what follows, in order; who has no more
 * takes others' last ones. The caller works as thread 0 and waits for nobody who has not taken a
 * chunk: helpers join when they come, and a job ends with its last chunk. So a neighbour that holds
 * a processor costs the help it takes away and, when it interrupts a chunk, a wait; after such a
 * wait, or when a helper finds no processor but the caller's, the caller works alone for several
 * times as long. Two threads on a busy machine are about as fast as one, never many times slower.
 */
#ifndef KERNELS_CPU_POOL_H
#define KERNELS_CPU_POOL_H

struct error;
struct pool;

/* thread: 0..pool_threads()-1, at most one chunk at a time on each. */
typedef void pool_job(void *arg, int thread, int chunk);

enum { POOL_MAX_CHUNKS = (1 << 20) - 1 };

/* n_threads counts the caller; 0 = the processors this process may run on. */
int pool_open(struct pool **ret, int n_threads, struct error *err);
void pool_close(struct pool *pool); /* NULL is allowed */
int pool_threads(const struct pool *pool);

/* Runs job for chunks 0..n_chunks-1, each once, on any thread, in any order; returns when all
 * are done, and sees what they wrote. */
void pool_run(struct pool *pool, pool_job *job, void *arg, int n_chunks);

#endif
