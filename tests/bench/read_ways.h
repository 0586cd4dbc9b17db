/* read_ways.h - sums a piece of memory in one of many ways, so that the fastest can be found.
 *
 * Owns      nothing.
 * Borrows   the piece during the call.
 * Thread    any.
 * Fails     never.
 * Cost      the read; up to read_way.far bytes behind the piece are asked for as well.
 *
 * Which way is fastest depends on the processor: hardware follows a stream no further than its
 * page, so what helps is asking for lines far ahead, and more streams than one. */
#ifndef TESTS_BENCH_READ_WAYS_H
#define TESTS_BENCH_READ_WAYS_H

#include <stddef.h>
#include <stdint.h>

enum read_loads { READ_WORDS, READ_32, READ_64 };

struct read_way {
    enum read_loads loads;
    int streams;   /* the piece is read from so many places at a time */
    int far, near; /* bytes ahead that lines are asked for, into L2 and into L1; 0: not at all */
};

enum { READ_WAYS = 64, READ_PIECE = 1 << 20 };

/* Those that this processor has, some of them twice if its widest loads are words. ways[0] is the
 * plain loop: words, one stream, nothing asked for ahead. */
void read_ways(struct read_way ways[READ_WAYS]);

/* The sum of the READ_PIECE bytes at p, a multiple of 64; the order is the way's. */
uint64_t read_piece(const struct read_way *way, const char *p);

/* Says the way in words. */
void read_way_text(const struct read_way *way, char *text, size_t size);

#endif
