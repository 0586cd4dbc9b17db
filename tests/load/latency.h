/* latency.h - counts durations in buckets whose width is 1/64 of their value.
 *
 * Owns      nothing; a struct latency of zeroes is empty.
 * Borrows   its arguments during the call.
 * Thread    one.
 * Fails     never; what is longer than an hour counts as the last bucket.
 * Cost      17 KiB each; adding is a few instructions, asking O(buckets).
 *
 * Memory does not grow with the run, which a list of samples would; a percentile is the upper
 * edge of its bucket, so it is never flattered and at most 1.6 % above the truth. */
#ifndef TESTS_LOAD_LATENCY_H
#define TESTS_LOAD_LATENCY_H

#include <stdint.h>

enum { LATENCY_FINE = 64, LATENCY_BUCKETS = 36 * LATENCY_FINE };

struct latency {
    uint64_t n;
    int64_t max_ns;
    double sum_ns;
    uint64_t counts[LATENCY_BUCKETS];
};

void latency_add(struct latency *l, int64_t ns);
int64_t latency_at(const struct latency *l, double fraction); /* 0.99 is p99; 0 when empty */

#endif
