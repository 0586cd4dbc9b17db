/* splitmix.h - draws numbers from a counter: SplitMix64 (Steele, Lea, Flood 2014).
 *
 * Owns      nothing.
 * Borrows   the state during the call.
 * Thread    any.
 * Fails     never.
 * Cost      a few instructions.
 *
 * Every state is good, and states a step apart give a sequence, so that draw i of a seed can be had
 * on its own: of state seed + i * SPLITMIX_STEP. */
#ifndef ENGINE_SPLITMIX_H
#define ENGINE_SPLITMIX_H

#include <stdint.h>

#define SPLITMIX_STEP UINT64_C(0x9e3779b97f4a7c15)

static inline uint64_t splitmix_next(uint64_t *state) {
    uint64_t z = *state += SPLITMIX_STEP;
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

#endif
