#include "engine/fair.h"

#include <assert.h>

/* After "Fairness in Serving Large Language Models" (Sheng et al., 2024), virtual token counters:
 * unlike shares reserved in advance they leave no token unused while anybody wants it. */

static double lowest(const struct fair *f) {
    if (f->n == 0) return f->floor;
    double low = fair_counter(f, f->active[0]);
    for (int i = 1; i < f->n; i++)
        if (fair_counter(f, f->active[i]) < low) low = fair_counter(f, f->active[i]);
    return low;
}

void fair_join(struct fair *f, int tenant, float weight) {
    struct fair_tenant *t = &f->tenants[tenant];
    t->weight = weight > 0 ? (double)weight : 1;
    if (t->n_active++ > 0) return;
    double low = lowest(f);
    if (t->counter < low) t->counter = low;
    t->place = f->n;
    f->active[f->n++] = tenant;
}

void fair_leave(struct fair *f, int tenant) {
    struct fair_tenant *t = &f->tenants[tenant];
    assert(t->n_active > 0);
    if (--t->n_active > 0) return;
    int last = f->active[--f->n];
    f->active[t->place] = last;
    f->tenants[last].place = t->place;
    if (f->n == 0) f->floor = t->counter;
}

void fair_charge(struct fair *f, int tenant, double n) {
    struct fair_tenant *t = &f->tenants[tenant];
    t->counter += n / t->weight;
}
