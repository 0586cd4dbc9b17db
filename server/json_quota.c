#include "server/json_quota.h"

#include <jansson.h>
#include <malloc.h>
#include <stdlib.h>

static _Thread_local struct {
    bool on, exceeded;
    size_t left;
} quota;

static void *take(size_t n) {
    if (!quota.on) return malloc(n);
    if (n > quota.left) {
        quota.exceeded = true;
        return NULL;
    }
    void *p = malloc(n);
    size_t taken = p ? malloc_usable_size(p) : 0;
    quota.left -= taken < quota.left ? taken : quota.left;
    return p;
}

/* What jansson gives back while it parses (an array that has grown) counts no longer. */
static void give(void *p) {
    if (quota.on && p) quota.left += malloc_usable_size(p);
    free(p);
}

void json_quota_install(void) {
    json_set_alloc_funcs(take, give);
    json_object_seed(0); /* at its first use otherwise, perhaps on two threads */
}

void json_quota_begin(size_t bytes) {
    quota.on = true;
    quota.exceeded = false;
    quota.left = bytes;
}

bool json_quota_end(void) {
    quota.on = false;
    return quota.exceeded;
}
