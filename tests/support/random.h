/* random.h - a seeded generator for property tests.
 *
 * Owns      nothing; the state is the caller's uint64_t, and any value is a good seed.
 * Borrows   nothing.
 * Thread    any.
 * Fails     never.
 * Cost      a few integer operations.
 *
 * Equal seeds give equal sequences everywhere (splitmix64), so a failure names its seed. */
#ifndef TESTS_SUPPORT_RANDOM_H
#define TESTS_SUPPORT_RANDOM_H

#include <stdint.h>

static inline uint64_t random_next(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* In [low, high]. */
static inline int random_range(uint64_t *state, int low, int high) {
    return low + (int)(random_next(state) % (uint64_t)(high - low + 1));
}

#endif
