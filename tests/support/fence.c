/* MAP_ANONYMOUS is not in POSIX.1-2008. */
#define _GNU_SOURCE
#include "tests/support/fence.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { PAGE = 4096, PATTERN = 0xa5 };

struct fence fence_new(size_t bytes, size_t align) {
    struct fence f = {.bytes = bytes};
    f.map_bytes = (bytes + 2 * PAGE - 1) / PAGE * PAGE; /* one byte before the start at least */
    f.map =
        mmap(NULL, f.map_bytes + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (f.map == MAP_FAILED || mprotect(f.map + f.map_bytes, PAGE, PROT_NONE)) {
        fprintf(stderr, "no memory for the test\n");
        abort();
    }
    char *start = f.map + f.map_bytes - bytes;
    f.p = start - (uintptr_t)start % align;
    memset(f.map, PATTERN, f.map_bytes);
    memset(f.p, 0, bytes);
    return f;
}

bool fence_intact(const struct fence *f) {
    const char *p = f->p;
    for (const char *c = f->map; c < f->map + f->map_bytes; c++)
        if ((c < p || c >= p + f->bytes) && (unsigned char)*c != PATTERN) return false;
    return true;
}

void fence_free(struct fence *f) {
    munmap(f->map, f->map_bytes + PAGE);
    f->p = NULL;
}
