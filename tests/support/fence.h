/* fence.h - memory that ends at an unmapped page, so that one byte too far is seen.
 *
 * Owns      its mapping.
 * Borrows   nothing.
 * Thread    one.
 * Fails     fence_new() aborts the test program when memory is short.
 * Cost      an mmap each.
 *
 * Reading or writing past the end faults at once, in every build. The bytes before the start and
 * those that alignment leaves at the end hold a pattern that fence_intact() looks for. */
#ifndef TESTS_SUPPORT_FENCE_H
#define TESTS_SUPPORT_FENCE_H

#include <stdbool.h>
#include <stddef.h>

struct fence {
    void *p; /* bytes of them, zeroed */
    size_t bytes;
    char *map;
    size_t map_bytes; /* without the page behind */
};

/* align: a power of two up to 64. */
struct fence fence_new(size_t bytes, size_t align);
bool fence_intact(const struct fence *f);
void fence_free(struct fence *f);

#endif
