/* driver.h - what every fuzz driver defines, under the name that fuzzing engines call.
 *
 * Owns      nothing.
 * Borrows   the bytes during the call.
 * Thread    one at a time.
 * Fails     by a crash, a sanitizer's report or a trap; always returns 0.
 * Cost      bounded by the input's size. */
#ifndef TESTS_FUZZ_DRIVER_H
#define TESTS_FUZZ_DRIVER_H

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
