/* parallel.h - spreads independent pieces of work over threads.
 *
 * Owns      its threads, which live for one call.
 * Borrows   the argument until parallel_for() returns.
 * Thread    any; calls may not nest.
 * Fails     never: with no thread to be had the caller does the work alone.
 * Cost      a thread start for each helper; pieces are handed out one by one.
 *
 * Pieces are numbered and their cut does not depend on the number of threads, so neither does
 * any result. */
#ifndef ENGINE_QUANT_PARALLEL_H
#define ENGINE_QUANT_PARALLEL_H

#include <stddef.h>

enum { PARALLEL_MAX_THREADS = 256 };

typedef void parallel_piece(void *arg, size_t index);

/* The number of threads to use: wanted, or every processor of this process when wanted is 0. */
int parallel_threads(int wanted);

/* Calls piece(arg, i) once for each i below n, on at most n_threads threads. */
void parallel_for(int n_threads, size_t n, parallel_piece *piece, void *arg);

#endif
