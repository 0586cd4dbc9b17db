/* fork_cost.h - what sharing a job among two threads costs beyond its work.
 *
 * Owns      nothing.
 * Borrows   the pool during the call.
 * Thread    the one that made the pool.
 * Fails     never.
 * Cost      some milliseconds.
 */
#ifndef TESTS_BENCH_FORK_COST_H
#define TESTS_BENCH_FORK_COST_H

struct pool;

/* Seconds a job of two equal chunks, some microseconds each, takes longer with the pool's two threads than
 * one chunk alone: the median of many. Half a chunk and more: nobody helped. */
double fork_cost(struct pool *pool);

#endif
