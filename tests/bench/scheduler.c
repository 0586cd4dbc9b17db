/* What the scheduler costs a step, without a model: next + ran + grow of all that runs.
 *
 * usage: bench_scheduler [RUNNING [WAITING [TENANTS [STEPS]]]]
 *
 * Each row is a load that is kept up: whatever ends is replaced. Prints the mean, the 99th
 * percentile and the worst step in microseconds, and the cost of adding and cancelling. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine/kv.h"
#include "engine/scheduler.h"
#include "kernels/backend.h"
#include "kernels/error.h"
#include "tests/support/random.h"

enum { CONTEXT = 4096, STEP_TOKENS = 2048 };

struct load {
    const char *name;
    int prompt, answer; /* tokens, at most */
    int common;         /* of a prompt with all of its tenant */
    bool scarce;        /* half of the blocks that all would want */
};

struct bench {
    struct scheduler *s;
    struct kv_pool *kv;
    int32_t ***ids; /* by slot; the scheduler reads through the outer pointer */
    int *left;      /* tokens until it ends; 0 = unused */
    int n, n_tenants;
    uint64_t seed;
};

/* Of this thread: what else runs on the machine does not count. */
static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void add(struct bench *b, const struct load *load) {
    struct engine_claim claim = {.tenant = random_range(&b->seed, 0, b->n_tenants - 1)};
    int n = random_range(&b->seed, load->common + 1, load->prompt), slot;
    int answer = random_range(&b->seed, 1, load->answer);
    int32_t *ids = malloc((size_t)(n + answer) * sizeof *ids);
    for (int i = 0; i < n + answer; i++)
        ids[i] = i < load->common ? claim.tenant + i : random_range(&b->seed, 0, 99999);
    int32_t **place = malloc(sizeof *place);
    *place = ids;
    struct scheduler_sequence seq = {
        .ids = place, .n_tokens = n, .n_max = n + answer, .claim = claim};
    if (scheduler_add(b->s, &slot, &seq, NULL) < 0) exit(1);
    b->ids[slot] = place;
    b->left[slot] = answer;
}

static void free_ids(struct bench *b, int slot) {
    if (b->ids[slot]) free(*b->ids[slot]);
    free(b->ids[slot]);
    b->ids[slot] = NULL;
    b->left[slot] = 0;
}

static void drop(struct bench *b, int slot) {
    scheduler_remove(b->s, slot);
    free_ids(b, slot);
}

/* The scheduler's own time; what ends is replaced outside of it. */
static int64_t step(struct bench *b, const struct load *load, struct scheduler_share *shares) {
    int64_t start = now_ns();
    int n = scheduler_next(b->s, shares);
    scheduler_ran(b->s, shares, n);
    for (int i = 0; i < n; i++)
        if (shares[i].samples && b->left[shares[i].slot] > 1)
            scheduler_grow(b->s, shares[i].slot, 1);
    int64_t ns = now_ns() - start;
    for (int i = 0; i < n; i++) {
        if (!shares[i].samples || --b->left[shares[i].slot] > 0) continue;
        start = now_ns();
        drop(b, shares[i].slot);
        ns += now_ns() - start;
        add(b, load);
    }
    return ns;
}

static int compare(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static void open_bench(struct bench *b, const struct load *load, int running, int waiting,
                       int tenants) {
    int blocks = running * kv_blocks_for(load->prompt + load->answer);
    struct scheduler_options options = {.max_running = running,
                                        .max_waiting = waiting,
                                        .step_tokens = STEP_TOKENS,
                                        .max_context = CONTEXT};
    *b = (struct bench){.n = running + waiting, .n_tenants = tenants, .seed = 1};
    b->ids = calloc((size_t)b->n, sizeof *b->ids);
    b->left = calloc((size_t)b->n, sizeof *b->left);
    if (load->scarce) blocks /= 4;
    if (blocks < CONTEXT / BACKEND_KV_BLOCK) blocks = CONTEXT / BACKEND_KV_BLOCK;
    if (kv_new(&b->kv, blocks) < 0 || scheduler_new(&b->s, &options, b->kv, NULL) < 0) exit(1);
}

static void close_bench(struct bench *b) {
    scheduler_free(b->s);
    kv_free(b->kv);
    for (int i = 0; i < b->n; i++) free_ids(b, i);
    free(b->ids);
    free(b->left);
}

static void run(const struct load *load, int running, int waiting, int tenants, int n_steps) {
    struct bench b;
    struct scheduler_stats stats;
    struct scheduler_share *shares = calloc((size_t)running, sizeof *shares);
    int64_t *ns = calloc((size_t)n_steps, sizeof *ns), sum = 0;
    open_bench(&b, load, running, waiting, tenants);
    int64_t start = now_ns();
    for (int i = 0; i < b.n; i++) add(&b, load);
    double add_us = (double)(now_ns() - start) * 1e-3 / b.n;
    for (int i = 0; i < 200; i++) step(&b, load, shares);
    for (int i = 0; i < n_steps; i++) sum += ns[i] = step(&b, load, shares);
    scheduler_get_stats(b.s, &stats);
    start = now_ns();
    for (int i = 0; i < b.n; i++)
        if (b.left[i] > 0) drop(&b, i);
    double drop_us = (double)(now_ns() - start) * 1e-3 / b.n;
    qsort(ns, (size_t)n_steps, sizeof *ns, compare);
    printf("%-26s %7.1f %7.1f %7.1f   %5d %8lld %7.2f %7.2f\n", load->name,
           (double)sum * 1e-3 / n_steps, (double)ns[n_steps - 1 - n_steps / 100] * 1e-3,
           (double)ns[n_steps - 1] * 1e-3, stats.running, (long long)stats.preemptions, add_us,
           drop_us);
    close_bench(&b);
    free(shares);
    free(ns);
}

int main(int argc, char **argv) {
    static const struct load loads[] = {
        {"decode, long answers", 64, 2000, 0, false},
        {"chat", 400, 200, 0, false},
        {"chat, a system prompt", 900, 200, 600, false},
        {"chat, blocks are scarce", 400, 200, 0, true},
        {"prompts, short answers", 1500, 4, 0, false},
    };
    int running = argc > 1 ? atoi(argv[1]) : 256, waiting = argc > 2 ? atoi(argv[2]) : 10000;
    int tenants = argc > 3 ? atoi(argv[3]) : 10, steps = argc > 4 ? atoi(argv[4]) : 5000;
    if (running < 1 || waiting < 0 || tenants < 1 || tenants > ENGINE_MAX_TENANTS || steps < 100) {
        fprintf(stderr, "usage: %s [RUNNING [WAITING [TENANTS [STEPS]]]]\n", argv[0]);
        return 2;
    }
    printf("%d running, %d waiting, %d tenants, %d steps of %d tokens; us\n", running, waiting,
           tenants, steps, STEP_TOKENS);
    printf("%-26s %7s %7s %7s   %5s %8s %7s %7s\n", "load", "mean", "p99", "worst", "run",
           "preempt", "add", "remove");
    for (size_t i = 0; i < sizeof loads / sizeof *loads; i++)
        run(&loads[i], running, waiting, tenants, steps);
    return 0;
}
