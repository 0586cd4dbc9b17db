/* madvise() and MAP_ANONYMOUS are not in POSIX.1-2008. */
#define _GNU_SOURCE
#include "kernels/cpu/memory.h"

#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#define HUGE_PAGE    ((size_t)2 << 20)
#define REGION_BYTES ((size_t)32 << 20)
#define ALIGN        ((size_t)64)

struct memory_region {
    struct memory_region *next;
    char *base;
    size_t size, used;
    size_t live; /* pieces that are not freed */
};

static size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

/* Maps size bytes (a multiple of HUGE_PAGE) at a multiple of HUGE_PAGE. */
static char *map_aligned(size_t size) {
    size_t whole = size + HUGE_PAGE;
    char *p = mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return NULL;
    size_t before = round_up((uintptr_t)p, HUGE_PAGE) - (uintptr_t)p;
    if (before) munmap(p, before);
    munmap(p + before + size, HUGE_PAGE - before);
#ifdef MADV_HUGEPAGE
    madvise(p + before, size, MADV_HUGEPAGE); /* a wish; small pages serve as well */
#endif
    return p + before;
}

static struct memory_region *region_new(struct memory *m, size_t bytes) {
    struct memory_region *r = calloc(1, sizeof *r);
    if (!r) return NULL;
    r->size = round_up(bytes > REGION_BYTES ? bytes : REGION_BYTES, HUGE_PAGE);
    r->base = map_aligned(r->size);
    if (!r->base) {
        free(r);
        return NULL;
    }
    r->next = m->regions;
    m->regions = r;
    return r;
}

static void region_free(struct memory_region *r) {
    munmap(r->base, r->size);
    free(r);
}

void memory_deinit(struct memory *m) {
    while (m->regions) {
        struct memory_region *r = m->regions;
        m->regions = r->next;
        region_free(r);
    }
}

void *memory_new(struct memory *m, size_t bytes) {
    if (bytes > SIZE_MAX / 2) return NULL;
    bytes = round_up(bytes ? bytes : 1, ALIGN);
    struct memory_region *r = m->regions;
    while (r && r->size - r->used < bytes) r = r->next;
    if (!r) r = region_new(m, bytes);
    if (!r) return NULL;
    void *p = r->base + r->used;
    r->used += bytes;
    r->live++;
    return p;
}

void memory_free(struct memory *m, void *p) {
    struct memory_region **at = &m->regions;
    while (*at && ((char *)p < (*at)->base || (char *)p >= (*at)->base + (*at)->size))
        at = &(*at)->next;
    struct memory_region *r = *at;
    if (!p || !r || --r->live) return;
    *at = r->next;
    region_free(r);
}
