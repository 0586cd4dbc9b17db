/* limits.h - measures what a processor can do at most: reading memory, multiplying and adding.
 *
 * Owns      its memory and its threads.
 * Borrows   arguments during the call.
 * Thread    one; a limit forks to threads of its own.
 * Fails     limits_open() with -ENOMEM, -EAGAIN, a line of text in err.
 * Cost      the ring while open; a second or two to open; a
 *           measurement lasts as long as what it measures.
 *
 * Time is the thread's own when one thread works, so that a neighbour's turn on the processor does
 * not count, and the wall's otherwise. A sample during which the kernel counted an involuntary
 * context switch is taken again, a few times at most; the fastest of the tries is kept.
 *
 * Memory is read in the way that was fastest of those in read_ways.h when the limits were opened,
 * so that no kernel is faster only because it asks for its bytes earlier. */
#ifndef TESTS_BENCH_LIMITS_H
#define TESTS_BENCH_LIMITS_H

#include <stdbool.h>
#include <stddef.h>

struct error;
struct limits;

/* ring: bytes that reading goes round over, 1 MiB at least; 0: three times the largest cache, at
 * most 1 GiB, at least a quarter of one. */
int limits_open(struct limits **ret, size_t ring, struct error *err);
void limits_close(struct limits *limits); /* NULL is allowed */

/* Seconds of fn(arg), on n_threads threads. again false: one try, on the wall's clock. */
double limits_time(void (*fn)(void *arg), void *arg, int n_threads, bool again);

/* Seconds to read that many bytes of the ring, with 1 or 2 threads. */
double limits_read(struct limits *limits, double bytes, int n_threads);

/* Its bytes. Of as many that are used in turn none is in a cache when its turn comes. */
size_t limits_ring(const struct limits *limits);

/* Prints the speed of reading, the way that was chosen, and the speed of a plain loop. */
void limits_print(struct limits *limits);

/* fp32 multiplications and additions a second of one thread; wide: vectors of 64 bytes. 0 where
 * the compiler knows no such instructions. */
double limits_fma(bool wide);

/* Wall clock, seconds. */
double limits_now(void);

#endif
