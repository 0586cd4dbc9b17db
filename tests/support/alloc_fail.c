#include "tests/support/alloc_fail.h"

#include <stdatomic.h>
#include <stddef.h>

void *__real_malloc(size_t n);
void *__real_calloc(size_t count, size_t n);
void *__real_realloc(void *p, size_t n);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t count, size_t n);
void *__wrap_realloc(void *p, size_t n);

static atomic_int countdown; /* 0 or less: disarmed; the step from 1 to 0 fails */
static atomic_bool hit;
static _Thread_local bool exempt;

void alloc_fail_at(int n) {
    atomic_store(&hit, false);
    atomic_store(&countdown, n);
}

bool alloc_fail_hit(void) { return atomic_load(&hit); }

void alloc_fail_exempt_thread(void) { exempt = true; }

static bool fails(void) {
    if (exempt || atomic_load(&countdown) <= 0 || atomic_fetch_sub(&countdown, 1) != 1)
        return false;
    atomic_store(&hit, true);
    return true;
}

void *__wrap_malloc(size_t n) { return fails() ? NULL : __real_malloc(n); }

void *__wrap_calloc(size_t count, size_t n) { return fails() ? NULL : __real_calloc(count, n); }

void *__wrap_realloc(void *p, size_t n) { return fails() ? NULL : __real_realloc(p, n); }
