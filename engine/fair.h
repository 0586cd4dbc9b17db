/* fair.h - counts what each tenant has got, so that the one with least can be next.
 *
 * Owns      nothing; the counters live in the struct.
 * Borrows   nothing.
 * Thread    one.
 * Fails     never.
 * Cost      O(1); O(active tenants) when one becomes active.
 *
 * A counter grows by the tokens computed for the tenant, divided by its weight. It stands still
 * while a tenant is away, and who comes back starts no lower than the lowest of those present:
 * time away earns no credit. */
#ifndef ENGINE_FAIR_H
#define ENGINE_FAIR_H

#include "engine/engine.h"

struct fair_tenant {
    double counter, weight;
    int n_active; /* sequences that want something */
    int place;    /* in active, while there are any */
};

struct fair {
    struct fair_tenant tenants[ENGINE_MAX_TENANTS];
    int active[ENGINE_MAX_TENANTS]; /* (n) tenants */
    int n;
    double floor; /* counter of the last one when all had left */
};

/* One more sequence, or one less, of the tenant wants something. weight as in engine_claim; the
 * last one given counts. */
void fair_join(struct fair *f, int tenant, float weight);
void fair_leave(struct fair *f, int tenant);

/* n tokens have been computed for it; less than 0: they have not after all. */
void fair_charge(struct fair *f, int tenant, double n);

static inline double fair_counter(const struct fair *f, int tenant) {
    return f->tenants[tenant].counter;
}

#endif
