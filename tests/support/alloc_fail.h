/* alloc_fail.h - makes one allocation of the program under test fail.
 *
 * Owns      one counter for the process.
 * Borrows   nothing.
 * Thread    any; the counter is atomic.
 * Fails     never.
 * Cost      one atomic subtraction for each allocation while armed.
 *
 * Works where the executable is linked with ALLOC_FAIL's --wrap arguments (tests/meson.build):
 * calls from the project's own objects are counted, those inside shared libraries are not. */
#ifndef TESTS_SUPPORT_ALLOC_FAIL_H
#define TESTS_SUPPORT_ALLOC_FAIL_H

#include <stdbool.h>

/* The n-th allocation from now on fails, once; n = 0 disarms. */
void alloc_fail_at(int n);

/* Whether it came to that. */
bool alloc_fail_hit(void);

/* Allocations of the calling thread do not count. */
void alloc_fail_exempt_thread(void);

#endif
