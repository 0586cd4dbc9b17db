/* memory.h - hands out zeroed memory that lies in huge pages where the system has them.
 *
 * Owns      every region it mapped.
 * Borrows   nothing.
 * Thread    one.
 * Fails     memory_new() with NULL.
 * Cost      a pointer bump, or one mmap for every 32 MiB; pages are touched when written.
 *
 * Weights are read from end to end for every token, so that misses in the address translation
 * cost more than the few hundred kilobytes which a region may waste. A region is given back when
 * its last piece is freed; pieces are not reused before. */
#ifndef KERNELS_CPU_MEMORY_H
#define KERNELS_CPU_MEMORY_H

#include <stddef.h>

struct memory_region;

struct memory {
    struct memory_region *regions; /* newest first; zero-initialise */
};

/* Unmaps everything that is left. */
void memory_deinit(struct memory *m);

/* Zeroed, aligned to 64 bytes at least. bytes may be 0. */
void *memory_new(struct memory *m, size_t bytes);
void memory_free(struct memory *m, void *p); /* NULL is allowed */

#endif
