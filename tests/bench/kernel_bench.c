/* fork() beside threads, kill() and prctl(). */
#define _GNU_SOURCE
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernels/backend.h"
#include "kernels/cpu/features.h"
#include "kernels/cpu/pool.h"
#include "kernels/error.h"
#include "tests/bench/fork_cost.h"
#include "tests/bench/limits.h"
#include "tests/support/matrix.h"

/* The figures that kernels/SPEED.md has targets for, each beside its target. Products go through
 * the back end, because that is what a model sees: packing of activations, fork and join are in
 * the time. Of one matrix, samples with 1 and 2 threads, of precise and of rounded inputs, and of
 * the limit they are compared with are taken in turn; a figure is the median over such rounds. */
enum {
    MAX_COPIES = 256,
    MAX_TOKENS = 512,
    MAX_WIDTH = 11008,
    MAX_ROUNDS = 64,
    MIN_ROUNDS = 5,
    N_CELLS = 4 /* precise and fast on one thread, then on two */
};

static const double SAMPLE_SECONDS = 0.004;

enum section { DRAM, CACHE, BATCH, PREFILL, PACK, NEIGHBOUR, N_SECTIONS };
static const char *const section_names[N_SECTIONS] = {"dram",    "cache", "batch",
                                                      "prefill", "pack",  "neighbour"};
static const char *const units[N_SECTIONS] = {"of read pass", "Gw/s", "x FMA peak",
                                              "x FMA peak",   "GB/s", "x 1 thread"};

/* R16: compact, groups of 16, q of 4 bits, p of 5. G128: free parameters in groups of 128, ROW: a
 * group for each row. */
enum kind { R16, G128, ROW };
static const char *const kind_names[] = {"r16", "g128", "row"};

struct subject {
    enum section section;
    enum kind kind;
    int rows, cols, bits;
};

static const struct subject subjects[] = {
    {DRAM, R16, 4096, 4096, 3},     {DRAM, R16, 11008, 4096, 3},    {DRAM, R16, 4096, 11008, 3},
    {DRAM, G128, 4096, 4096, 3},    {DRAM, G128, 11008, 4096, 3},   {DRAM, G128, 4096, 11008, 3},
    {DRAM, R16, 4096, 4096, 2},     {DRAM, R16, 4096, 4096, 4},     {DRAM, G128, 4096, 4096, 2},
    {DRAM, G128, 4096, 4096, 4},    {DRAM, ROW, 4096, 4096, 3},     {CACHE, R16, 576, 1536, 3},
    {CACHE, R16, 1536, 576, 3},     {CACHE, G128, 576, 1536, 3},    {CACHE, G128, 1536, 576, 3},
    {CACHE, R16, 576, 1536, 2},     {CACHE, R16, 576, 1536, 4},     {BATCH, R16, 4096, 4096, 3},
    {BATCH, R16, 4096, 4096, 2},    {BATCH, R16, 4096, 4096, 4},    {BATCH, G128, 4096, 4096, 3},
    {PREFILL, R16, 1024, 4096, 3},  {PREFILL, R16, 1024, 4096, 2},  {PREFILL, R16, 1024, 4096, 4},
    {PREFILL, G128, 1024, 4096, 3}, {PACK, R16, 4096, 4096, 3},     {PACK, R16, 4096, 4096, 2},
    {PACK, G128, 4096, 4096, 3},    {NEIGHBOUR, R16, 576, 1536, 3}, {NEIGHBOUR, R16, 4096, 4096, 3},
};
enum { N_SUBJECTS = sizeof subjects / sizeof *subjects };

struct options {
    const char *level, *only;
    bool only_limits;
    size_t ring; /* bytes; 0: more than a cache holds */
    bool wide;   /* the level has vectors of 64 bytes */
    double seconds;
};

struct cell {
    struct backend *be;
    struct buffer *x, *y;
    int n_threads, act_bits;
    struct weight *copies[MAX_COPIES];
    int n_copies, next, count; /* calls in a sample */
    double seconds[MAX_ROUNDS], figures[MAX_ROUNDS];
};

struct rig {
    const struct options *options;
    struct limits *limits;
    struct backend *backends[2];
    struct buffer *x[2], *y[2];
    struct cell cells[N_CELLS];
};

/* Targets by level (AVX2, AVX-512); 0: none is set. */
static double target_of(const struct subject *s, bool wide, bool fast, int n_threads, int n) {
    static const double by_bits[2][2][5] = {{{0, 0, .80, .90, .85}, {0, 0, .92, .95, .97}},
                                            {{0, 0, .92, .92, .92}, {0, 0, 0, 0, 0}}};
    if (s->section == DRAM && s->kind == ROW) return 0;
    if (s->section == DRAM && s->kind == R16) return wide ? n_threads == 1 ? .92 : .90 : .80;
    if (s->section == DRAM) {
        double one = by_bits[wide][fast][s->bits];
        return n_threads == 1 || !one || (!wide && !fast) ? one : one - .02;
    }
    if (s->section == CACHE && s->bits == 3 && n_threads == 1)
        return fast ? wide ? 120 : 75 : wide ? 80 : 55;
    if (s->section == BATCH && n_threads == 1 && n >= 4)
        return fast ? wide ? 2.7 : 1.7 : wide ? 1.6 : 1.05;
    if (s->section == PREFILL && n_threads == 1) return fast ? wide ? 2.9 : 0 : wide ? 1.6 : 1.45;
    if (s->section == PACK) return n_threads == 1 ? 3 : 0;
    return 0;
}

/* What two threads have to be faster than one. */
static double scaling_target(enum section section) {
    return section == CACHE ? 1.6 : section == PREFILL ? 1.9 : 0;
}

static struct bcq_spec spec_of(const struct subject *s) {
    if (s->kind == R16)
        return (struct bcq_spec){BCQ_COMPACT, s->rows, s->cols, s->bits, 16, 4, 5, 0};
    /* 64 where 128 does not divide the inputs, as in the study that the targets come from. */
    int group = s->kind == ROW ? s->cols : s->cols % 128 ? 64 : 128;
    return (struct bcq_spec){BCQ_FREE, s->rows, s->cols, s->bits, group, 0, 0, 0};
}

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(const double *v, int n) {
    double sorted[MAX_ROUNDS];
    memcpy(sorted, v, (size_t)n * sizeof *v);
    qsort(sorted, (size_t)n, sizeof *sorted, compare_doubles);
    return sorted[n / 2];
}

static void print_row(const struct subject *s, int n, int act_bits, int n_threads, double figure,
                      const char *unit, double target) {
    char text[16] = "", name[48];
    if (target > 0) snprintf(text, sizeof text, "%.2f", target);
    snprintf(name, sizeof name, "%s %d-bit %dx%d", kind_names[s->kind], s->bits, s->rows, s->cols);
    printf("%-9s %-21s %4d %-8s %d  %7.2f %-12s %6s %s\n", section_names[s->section], name, n,
           act_bits == 16 ? "precise" : "fast", n_threads, figure, unit, text,
           target <= 0        ? ""
           : figure >= target ? "met"
                              : "missed");
    fflush(stdout);
}

static void begin(struct backend *be, int n) {
    static int32_t zeros[MAX_TOKENS];
    backend_begin(be, &(struct batch){n, 1, zeros, zeros, zeros, zeros, 1});
}

static void run(void *arg) {
    struct cell *c = arg;
    for (int i = 0; i < c->count; i++) {
        const struct linear_call call = {.dst = c->y, .w = c->copies[c->next]};
        c->next = (c->next + 1) % c->n_copies;
        backend_linear(c->be, &call, 1, c->x);
    }
}

/* Warms up, and finds how many calls a sample has. */
static void calibrate(struct cell *c, double sample) {
    c->count = c->n_copies < 4 ? c->n_copies : 4;
    run(c);
    double each = limits_time(run, c, 1, false) / c->count;
    c->count = each < sample ? (int)(sample / each) + 1 : 1;
}

/* rotate: bytes of copies, at least one. */
static int load_cell(struct cell *c, const struct weight_view *view, size_t rotate,
                     struct error *err) {
    struct weight_view own = *view;
    size_t bytes = 0;
    int rc = 0;
    own.act_bits = c->act_bits;
    while (!rc && c->n_copies < MAX_COPIES && (!c->n_copies || bytes < rotate)) {
        rc = backend_weight_new(c->be, &c->copies[c->n_copies], WEIGHT_LINEAR, &own, err);
        if (!rc) bytes += backend_weight_bytes(c->be, c->copies[c->n_copies++]);
    }
    return rc;
}

static void unload(struct rig *rig) {
    for (int i = 0; i < N_CELLS; i++) {
        struct cell *c = &rig->cells[i];
        while (c->n_copies > 0) backend_weight_free(c->be, c->copies[--c->n_copies]);
        c->next = 0;
    }
}

/* Every step-th cell. They take turns, so that it is the copies of all together which must be more
 * than a cache holds; the read passes between them come on top. */
static int load(struct rig *rig, const struct subject *s, bool rotate, int step,
                struct error *err) {
    size_t each = rotate ? limits_ring(rig->limits) / (size_t)(N_CELLS / step) : 0;
    struct weight_view view = {.is_bcq = 1, .rows = s->rows, .cols = s->cols};
    struct bcq_spec spec = spec_of(s);
    void *block = matrix_bcq(&view.bcq, &spec, 1);
    int rc = block ? 0 : error_set(err, -ENOMEM, "no memory for a matrix");
    for (int i = 0; !rc && i < N_CELLS; i += step) rc = load_cell(&rig->cells[i], &view, each, err);
    free(block);
    return rc;
}

/* One sample of a cell in the section's unit. fma: a second, of one thread. */
static void take_sample(struct rig *rig, const struct subject *s, struct cell *c, int n, double fma,
                        int round) {
    double weights = (double)s->rows * s->cols;
    double seconds = limits_time(run, c, c->n_threads, true) / c->count;
    c->seconds[round] = seconds;
    if (s->section == DRAM) {
        double bytes = (double)backend_weight_bytes(c->be, c->copies[0]);
        c->figures[round] =
            limits_read(rig->limits, bytes * c->count, c->n_threads) / c->count / seconds;
    } else if (s->section == CACHE) {
        c->figures[round] = weights / seconds * 1e-9;
    } else {
        c->figures[round] = 2 * weights * n / seconds / fma;
    }
}

static void print_cells(const struct rig *rig, const struct subject *s, int n, int n_rounds) {
    for (int i = 0; i < N_CELLS; i++) {
        const struct cell *c = &rig->cells[i];
        print_row(s, n, c->act_bits, c->n_threads, median(c->figures, n_rounds), units[s->section],
                  target_of(s, rig->options->wide, c->act_bits < 16, c->n_threads, n));
        if (c->n_threads == 1) continue;
        double ratios[MAX_ROUNDS];
        for (int r = 0; r < n_rounds; r++)
            ratios[r] = rig->cells[i - N_CELLS / 2].seconds[r] / c->seconds[r];
        print_row(s, n, c->act_bits, 2, median(ratios, n_rounds), "x 1 thread",
                  scaling_target(s->section));
    }
}

static void time_products(struct rig *rig, const struct subject *s, int n, double seconds) {
    int n_rounds = 0;
    for (int t = 0; t < 2; t++) begin(rig->backends[t], n);
    for (int i = 0; i < N_CELLS; i++) calibrate(&rig->cells[i], SAMPLE_SECONDS);
    for (double end = limits_now() + seconds;
         n_rounds < MAX_ROUNDS && (n_rounds < MIN_ROUNDS || limits_now() < end); n_rounds++) {
        double fma =
            s->section == BATCH || s->section == PREFILL ? limits_fma(rig->options->wide) : 0;
        for (int i = 0; i < N_CELLS; i++) take_sample(rig, s, &rig->cells[i], n, fma, n_rounds);
    }
    print_cells(rig, s, n, n_rounds);
}

static int bench_products(struct rig *rig, const struct subject *s, double seconds,
                          struct error *err) {
    static const int one[] = {1, 0}, batches[] = {1, 2, 4, 8, 16, 0}, prompts[] = {128, 512, 0};
    const int *counts = s->section == BATCH ? batches : s->section == PREFILL ? prompts : one;
    int rc = load(rig, s, s->section == DRAM || s->section == BATCH, 1, err), n_counts = 0;
    while (counts[n_counts]) n_counts++;
    for (int i = 0; !rc && i < n_counts; i++) time_products(rig, s, counts[i], seconds / n_counts);
    unload(rig);
    return rc;
}

/* Making a weight from the portable form: its memory, and packing. */
struct packing {
    struct backend *be;
    struct weight_view views[16]; /* copies, so that they come from memory */
    int next, rc;
    struct error *err;
};

static void pack_one(void *arg) {
    struct packing *p = arg;
    struct weight *w = NULL;
    int rc = backend_weight_new(p->be, &w, WEIGHT_LINEAR, &p->views[p->next++ % 16], p->err);
    if (rc) p->rc = rc;
    if (!rc) backend_weight_free(p->be, w);
}

static int bench_packing(struct rig *rig, const struct subject *s, double seconds,
                         struct error *err) {
    struct packing p = {.err = err};
    struct bcq_spec spec = spec_of(s);
    double figures[2][MAX_ROUNDS], end = limits_now() + seconds, bytes = 0;
    int n = 0;
    for (uint64_t i = 0; i < 16; i++) {
        p.views[i] = (struct weight_view){.is_bcq = 1, .rows = s->rows, .cols = s->cols};
        if (!matrix_bcq(&p.views[i].bcq, &spec, i)) p.rc = error_set(err, -ENOMEM, "no memory");
        bytes = (double)p.views[i].bcq.layout.total;
    }
    for (; !p.rc && n < MAX_ROUNDS && (n < MIN_ROUNDS || limits_now() < end); n++)
        for (int t = 0; t < 2; t++) {
            p.be = rig->backends[t];
            figures[t][n] = bytes / limits_time(pack_one, &p, t + 1, true) * 1e-9;
        }
    for (int t = 0; !p.rc && t < 2; t++)
        print_row(s, 1, 16, t + 1, median(figures[t], n), units[PACK],
                  target_of(s, rig->options->wide, false, t + 1, 1));
    /* The header is where the block begins. */
    for (int i = 0; i < 16; i++)
        free((char *)(uintptr_t)p.views[i].bcq.planes - p.views[i].bcq.layout.planes);
    return p.rc;
}

/* A process that always wants a processor. */
static pid_t start_neighbour(void) {
    pid_t pid = fork();
    if (pid) return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (volatile unsigned i = 0;; i++) continue;
}

/* Long samples on the wall's clock: waiting for a processor is what is measured. */
static int bench_neighbour(struct rig *rig, const struct subject *s, double seconds,
                           struct error *err) {
    int rc = load(rig, s, s->rows > 1024, N_CELLS / 2, err), n = 0;
    pid_t pid = rc ? 0 : start_neighbour();
    if (pid < 0) rc = error_set(err, -errno, "no process to compete with");
    for (int t = 0; !rc && t < 2; t++) {
        begin(rig->backends[t], 1);
        calibrate(&rig->cells[t * N_CELLS / 2], 0.05);
    }
    /* Sums, not medians: a wait for somebody else's turn to end is rare and long. */
    double total[2] = {0}, end = limits_now() + seconds;
    for (; !rc && (n < MIN_ROUNDS || limits_now() < end); n++)
        for (int t = 0; t < 2; t++) {
            struct cell *c = &rig->cells[t * N_CELLS / 2];
            total[t] += limits_time(run, c, t + 1, false) / c->count;
        }
    if (pid > 0) {
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
    }
    if (!rc) print_row(s, 1, 16, 2, total[0] / total[1], units[NEIGHBOUR], 1.0);
    unload(rig);
    return rc;
}

static bool wanted(const struct options *o, const struct subject *s) {
    return !o->only || !strcmp(o->only, section_names[s->section]) ||
           !strcmp(o->only, kind_names[s->kind]);
}

static int bench_all(struct rig *rig, struct error *err) {
    int rc = 0, n[N_SECTIONS] = {0};
    for (int i = 0; i < N_SUBJECTS; i++)
        n[subjects[i].section] += wanted(rig->options, &subjects[i]);
    printf("%-9s %-21s %4s %-8s %s %8s %-12s %6s\n", "section", "matrix", "n", "inputs", "threads",
           "figure", "unit", "target");
    for (int i = 0; !rc && i < N_SUBJECTS; i++) {
        const struct subject *s = &subjects[i];
        if (!wanted(rig->options, s)) continue;
        double seconds = rig->options->seconds / n[s->section];
        rc = s->section == PACK        ? bench_packing(rig, s, seconds, err)
             : s->section == NEIGHBOUR ? bench_neighbour(rig, s, seconds, err)
                                       : bench_products(rig, s, seconds, err);
    }
    return rc;
}

static int open_backend(struct rig *rig, int t, struct error *err) {
    const struct backend_options options = {
        .name = "cpu", .level = rig->options->level, .n_threads = t + 1};
    size_t size = (size_t)MAX_TOKENS * MAX_WIDTH;
    uint64_t seed = 1;
    int rc = backend_open(&rig->backends[t], &options, err);
    if (!rc) rc = backend_buffer_new(rig->backends[t], &rig->x[t], size, err);
    if (!rc) rc = backend_buffer_new(rig->backends[t], &rig->y[t], size, err);
    float *x = rc ? NULL : malloc(size * sizeof *x);
    if (!rc && !x) rc = error_set(err, -ENOMEM, "no memory for inputs");
    for (size_t i = 0; !rc && i < size; i++) x[i] = matrix_normal(&seed);
    if (!rc) backend_buffer_write(rig->backends[t], rig->x[t], 0, x, size);
    free(x);
    for (int i = 0; i < 2; i++)
        rig->cells[2 * t + i] = (struct cell){.be = rig->backends[t],
                                              .x = rig->x[t],
                                              .y = rig->y[t],
                                              .n_threads = t + 1,
                                              .act_bits = i ? 8 : 16};
    return rc;
}

static int bench_fork(struct error *err) {
    static const double target = 0.5;
    struct pool *pool;
    int rc = pool_open(&pool, 2, err);
    if (rc < 0) return rc;
    double us = fork_cost(pool) * 1e6;
    printf("fork and join of two threads: %.2f us, target %.1f %s\n", us, target,
           us <= target ? "met" : "missed");
    pool_close(pool);
    return 0;
}

static int bench(const struct options *options, struct error *err) {
    struct rig *rig = calloc(1, sizeof *rig);
    if (!rig) return error_set(err, -ENOMEM, "no memory");
    rig->options = options;
    int rc = limits_open(&rig->limits, options->ring, err);
    for (int t = 0; !rc && t < 2; t++) rc = open_backend(rig, t, err);
    if (!rc) {
        printf("level %s, FMA peak %.0f GFLOP/s\n", options->level,
               limits_fma(options->wide) * 1e-9);
        limits_print(rig->limits);
        rc = bench_fork(err);
        if (!rc && !options->only_limits) rc = bench_all(rig, err);
    }
    for (int t = 0; t < 2; t++) {
        if (!rig->backends[t]) continue;
        backend_buffer_free(rig->backends[t], rig->x[t]);
        backend_buffer_free(rig->backends[t], rig->y[t]);
        backend_close(rig->backends[t]);
    }
    limits_close(rig->limits);
    free(rig);
    return rc;
}

static int usage(const char *wrong) {
    fprintf(
        stderr,
        "kernel_bench: %s\nusage: kernels [--limits [--ring MIB] | --only SECTION|KIND] [--level "
        "avx2|avx512|amx] "
        "[--seconds N]\nsections:",
        wrong);
    for (int i = 0; i < N_SECTIONS; i++) fprintf(stderr, " %s", section_names[i]);
    fprintf(stderr, "; kinds: r16 g128 row; N: 1 to 600 for each section; MIB: 1 to "
                    "8192\n");
    return 2;
}

static bool known(const char *word) {
    for (int i = 0; i < N_SUBJECTS; i++)
        if (wanted(&(struct options){.only = word}, &subjects[i])) return true;
    return false;
}

int main(int argc, char **argv) {
    struct options o = {.level = NULL, .seconds = 30};
    struct error err;
    unsigned features;
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        if (!strcmp(argv[i], "--only") && known(value))
            o.only = argv[++i];
        else if (!strcmp(argv[i], "--ring") && atoi(value) >= 1 && atoi(value) <= 8192)
            o.ring = (size_t)atoi(argv[++i]) << 20;
        else if (!strcmp(argv[i], "--limits"))
            o.only_limits = true;
        else if (!strcmp(argv[i], "--level") &&
                 (!strcmp(value, "avx2") || !strcmp(value, "avx512") || !strcmp(value, "amx")))
            o.level = argv[++i];
        else if (!strcmp(argv[i], "--seconds") && atof(value) >= 1 && atof(value) <= 600)
            o.seconds = atof(argv[++i]);
        else
            return usage(argv[i]);
    }
    if (!o.level)
        o.level = !features_parse(&features, "amx", &err)      ? "amx"
                  : !features_parse(&features, "avx512", &err) ? "avx512"
                                                               : "avx2";
    o.wide = strcmp(o.level, "avx2") != 0;
    int rc = features_parse(&features, o.level, &err);
    if (!rc) rc = bench(&o, &err);
    if (rc) fprintf(stderr, "kernel_bench: %s\n", err.text);
    return rc ? 1 : 0;
}
