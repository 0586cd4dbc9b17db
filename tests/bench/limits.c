/* RUSAGE_THREAD and madvise() are not in POSIX. */
#define _GNU_SOURCE
#include "tests/bench/limits.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels/cpu/pool.h"
#include "kernels/error.h"
#include "tests/bench/read_ways.h"

enum {
    LEAST_RING = 256 << 20,
    MOST_RING = 1 << 30,
    RING_FACTOR = 3, /* at twice a cache that evicts at random a fifth would hit, here 6 % */
    CHOICE_BYTES = 16 << 20,
    CHOICE_ROUNDS = 5,
    FINALISTS = 6,
    FINAL_ROUNDS = 15,
    WARM_ROUNDS = 32,
    TRIES = 8,
    FMA_ROUNDS = 40000,
    CHAINS = 12
};

/* Long samples are interrupted on every machine that is not idle. */
static const double AGAIN_SECONDS = 0.05;
static const double WARM_SECONDS = 0.5;

struct limits {
    struct pool *pools[2];       /* of one and of two threads */
    struct read_way ways[2];     /* the fastest, likewise */
    char *memory;                /* (ring) */
    size_t ring, cursor, caches; /* bytes */
    size_t huge;                 /* of the ring, in huge pages */
};

static double clock_of(clockid_t id) {
    struct timespec t;
    clock_gettime(id, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

double limits_now(void) { return clock_of(CLOCK_MONOTONIC); }

static long interruptions(int n_threads) {
    struct rusage u;
    getrusage(n_threads == 1 ? RUSAGE_THREAD : RUSAGE_SELF, &u);
    return u.ru_nivcsw;
}

double limits_time(void (*fn)(void *arg), void *arg, int n_threads, bool again) {
    clockid_t id = n_threads == 1 && again ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC;
    double best = 0, end = limits_now() + AGAIN_SECONDS;
    for (int i = 0; !i || (again && i < TRIES && limits_now() < end); i++) {
        long before = interruptions(n_threads);
        double start = clock_of(id);
        fn(arg);
        double seconds = clock_of(id) - start;
        if (interruptions(n_threads) == before) return seconds;
        if (!i || seconds < best) best = seconds;
    }
    return best;
}

/* Of the largest cache that the kernel or the C library, which asks the processor, knows. */
static size_t largest_cache(void) {
    size_t most = 0;
    for (int i = 0; i < 8; i++) {
        char path[80];
        size_t kib = 0;
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/size", i);
        FILE *file = fopen(path, "r");
        if (file && fscanf(file, "%zuK", &kib) == 1 && kib << 10 > most) most = kib << 10;
        if (file) fclose(file);
    }
#ifdef _SC_LEVEL4_CACHE_SIZE
    static const int names[] = {_SC_LEVEL2_CACHE_SIZE, _SC_LEVEL3_CACHE_SIZE,
                                _SC_LEVEL4_CACHE_SIZE};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        long bytes = sysconf(names[i]);
        if (bytes > 0 && (size_t)bytes > most) most = (size_t)bytes;
    }
#endif
    return most;
}

static size_t ring_bytes(size_t caches) {
    size_t bytes = RING_FACTOR * caches;
    if (bytes < LEAST_RING) bytes = LEAST_RING;
    if (bytes > MOST_RING) bytes = MOST_RING;
    return bytes / (2 << 20) * (2 << 20);
}

/* Of all memory of this process that is in huge pages. */
static size_t huge_bytes(void) {
    char line[128];
    size_t kib = 0;
    FILE *file = fopen("/proc/self/smaps_rollup", "r");
    while (file && !kib && fgets(line, sizeof line, file))
        if (sscanf(line, "AnonHugePages: %zu kB", &kib) != 1) kib = 0;
    if (file) fclose(file);
    return kib << 10;
}

struct read_job {
    struct limits *limits;
    struct pool *pool;
    const struct read_way *way;
    const char *from;
    int n_pieces;
    volatile uint64_t sink;
};

static void read_one(void *arg, int thread, int piece) {
    struct read_job *job = arg;
    uint64_t sum = read_piece(job->way, job->from + (size_t)piece * READ_PIECE);
    (void)thread;
    if (sum == 1) job->sink = sum; /* never, but the compiler cannot know */
}

/* Each try reads elsewhere: the bytes of the last one may be in a cache. */
static void read_some(void *arg) {
    struct read_job *job = arg;
    struct limits *l = job->limits;
    size_t bytes = (size_t)job->n_pieces * READ_PIECE;
    if (l->cursor + bytes > l->ring) l->cursor = 0;
    job->from = l->memory + l->cursor;
    l->cursor += bytes;
    pool_run(job->pool, read_one, job, job->n_pieces);
}

static double read_by(struct limits *limits, const struct read_way *way, double bytes,
                      int n_threads) {
    int pieces = (int)(bytes / READ_PIECE) + 1, most = (int)(limits->ring / READ_PIECE);
    if (pieces > most) pieces = most;
    struct read_job job = {
        .limits = limits, .pool = limits->pools[n_threads - 1], .way = way, .n_pieces = pieces};
    return limits_time(read_some, &job, n_threads, true) * bytes / ((double)pieces * READ_PIECE);
}

double limits_read(struct limits *limits, double bytes, int n_threads) {
    return read_by(limits, &limits->ways[n_threads - 1], bytes, n_threads);
}

struct candidate {
    struct read_way way;
    double seconds[FINAL_ROUNDS], median;
};

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int compare_candidates(const void *a, const void *b) {
    return compare_doubles(&((const struct candidate *)a)->median,
                           &((const struct candidate *)b)->median);
}

/* In rounds, so that what disturbs the machine disturbs all. Puts the fastest first. */
static void rank(struct limits *limits, struct candidate *c, int n, int rounds, int n_threads) {
    for (int r = 0; r < rounds; r++)
        for (int i = 0; i < n; i++)
            c[i].seconds[r] = read_by(limits, &c[i].way, CHOICE_BYTES, n_threads);
    for (int i = 0; i < n; i++) {
        qsort(c[i].seconds, (size_t)rounds, sizeof *c[i].seconds, compare_doubles);
        c[i].median = c[i].seconds[rounds / 2];
    }
    qsort(c, (size_t)n, sizeof *c, compare_candidates);
}

static void choose(struct limits *limits, int n_threads) {
    struct read_way ways[READ_WAYS];
    struct candidate c[READ_WAYS];
    read_ways(ways);
    for (int i = 0; i < READ_WAYS; i++) c[i].way = ways[i];
    rank(limits, c, READ_WAYS, CHOICE_ROUNDS, n_threads);
    rank(limits, c, FINALISTS, FINAL_ROUNDS, n_threads);
    limits->ways[n_threads - 1] = c[0].way;
}

/* A cache that adapts takes a dozen rounds until it holds what it can of a ring not much larger. */
static void warm_up(struct limits *limits, const struct read_way *way, int n_threads) {
    double end = limits_now() + WARM_SECONDS;
    for (size_t done = 0; done < WARM_ROUNDS * limits->ring && limits_now() < end;
         done += CHOICE_BYTES)
        read_by(limits, way, CHOICE_BYTES, n_threads);
}

static double gb_per_second(const struct candidate *c) { return CHOICE_BYTES / c->median * 1e-9; }

void limits_print(struct limits *limits) {
    struct read_way ways[READ_WAYS];
    char text[80];
    read_ways(ways);
    for (int n = 1; n <= 2; n++) {
        struct candidate plain = {.way = ways[0]}, best = {.way = limits->ways[n - 1]};
        rank(limits, &plain, 1, FINAL_ROUNDS, n);
        warm_up(limits, &best.way, n);
        rank(limits, &best, 1, FINAL_ROUNDS, n);
        read_way_text(&best.way, text, sizeof text);
        printf("read pass, %d thread%s: %.1f GB/s (%s), plain loop %.1f\n", n, n > 1 ? "s" : "",
               gb_per_second(&best), text, gb_per_second(&plain));
    }
    printf("read from a ring of %zu MiB, caches of %zu MiB, %zu MiB in huge pages\n",
           limits->ring >> 20, limits->caches >> 20, limits->huge >> 20);
}

size_t limits_ring(const struct limits *limits) { return limits->ring; }

#if defined(__x86_64__)
/* Enough chains to hide an addition's latency on two units. */
#define FMA_LOOP(type, set1, fmadd)                                                                \
    type sums[CHAINS];                                                                             \
    const type a = set1(*(const volatile float *)arg);                                             \
    for (int i = 0; i < CHAINS; i++) sums[i] = set1((float)i);                                     \
    for (int r = 0; r < FMA_ROUNDS; r++)                                                           \
        _Pragma("GCC unroll 12") for (int i = 0; i < CHAINS; i++) {                                \
            sums[i] = fmadd(sums[i], a, a);                                                        \
        }                                                                                          \
    for (int i = 1; i < CHAINS; i++) sums[0] = fmadd(sums[0], a, sums[i]);

__attribute__((target("avx2,fma"))) static void fma_32(void *arg) {
    FMA_LOOP(__m256, _mm256_set1_ps, _mm256_fmadd_ps)
    *(volatile float *)arg = _mm_cvtss_f32(_mm256_castps256_ps128(sums[0])) > 9 ? 0.5f : 0.25f;
}

__attribute__((target("avx512f,avx2,fma"))) static void fma_64(void *arg) {
    FMA_LOOP(__m512, _mm512_set1_ps, _mm512_fmadd_ps)
    *(volatile float *)arg = _mm_cvtss_f32(_mm512_castps512_ps128(sums[0])) > 9 ? 0.5f : 0.25f;
}

double limits_fma(bool wide) {
    float a = 0.5f;
    double seconds = limits_time(wide ? fma_64 : fma_32, &a, 1, true);
    return 2.0 * (wide ? 16 : 8) * CHAINS * FMA_ROUNDS / seconds;
}
#else
double limits_fma(bool wide) {
    (void)wide;
    return 0;
}
#endif

int limits_open(struct limits **ret, size_t ring, struct error *err) {
    struct limits *l = calloc(1, sizeof *l);
    void *memory = NULL;
    if (!l) return error_set(err, -ENOMEM, "no memory to read");
    l->caches = largest_cache();
    l->ring = ring ? ring : ring_bytes(l->caches);
    size_t huge = huge_bytes();
    if (posix_memalign(&memory, 2 << 20, l->ring)) {
        free(l);
        return error_set(err, -ENOMEM, "no memory to read");
    }
    madvise(memory, l->ring, MADV_HUGEPAGE);
    memset(memory, 2, l->ring);
    l->huge = huge_bytes() - huge;
    l->memory = memory;
    int rc = pool_open(&l->pools[0], 1, err);
    if (!rc) rc = pool_open(&l->pools[1], 2, err);
    if (rc) {
        limits_close(l);
        return rc;
    }
    choose(l, 1);
    choose(l, 2);
    *ret = l;
    return 0;
}

void limits_close(struct limits *limits) {
    if (!limits) return;
    for (int i = 0; i < 2; i++)
        if (limits->pools[i]) pool_close(limits->pools[i]);
    free(limits->memory);
    free(limits);
}
