#include "tests/bench/fork_cost.h"

#include <stdint.h>
#include <stdlib.h>

#include "kernels/cpu/pool.h"
#include "tests/bench/limits.h"

enum { SAMPLES = 101, JOBS = 200, STEPS = 2000 };

/* A chain that nothing shortens. */
static void work(void *arg, int thread, int chunk) {
    volatile uint32_t *out = (volatile uint32_t *)arg + 64 * (size_t)chunk;
    uint32_t x = *out + 1;
    (void)thread;
    for (int i = 0; i < STEPS; i++) {
        x = x * 1664525u + 1013904223u;
        __asm__ volatile("" : "+r"(x));
    }
    *out = x;
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double fork_cost(struct pool *pool) {
    static uint32_t out[128];
    double cost[SAMPLES];
    for (int s = 0; s < SAMPLES; s++) {
        double start = limits_now();
        for (int i = 0; i < JOBS; i++) work(out, 0, 0);
        double alone = limits_now();
        for (int i = 0; i < JOBS; i++) pool_run(pool, work, out, 2);
        cost[s] = ((limits_now() - alone) - (alone - start)) / JOBS;
    }
    qsort(cost, SAMPLES, sizeof *cost, compare);
    return cost[SAMPLES / 2];
}
