/* RUSAGE_THREAD and madvise() are not in POSIX. */
#define _GNU_SOURCE
#include "tests/bench/limits.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels/cpu/pool.h"
#include "kernels/error.h"

enum { READ_BYTES = 512 << 20, READ_CHUNK = 128 << 10, TRIES = 8, FMA_ROUNDS = 40000, CHAINS = 12 };

/* Long samples are interrupted on every machine that is not idle. */
static const double AGAIN_SECONDS = 0.05;

struct limits {
    struct pool *pools[2]; /* of one and of two threads */
    uint64_t *memory;      /* (READ_BYTES / 8) */
    size_t cursor;         /* words */
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

struct read_job {
    struct limits *limits;
    struct pool *pool;
    const uint64_t *from;
    int n_chunks;
    volatile uint64_t sink;
};

static void read_chunk(void *arg, int thread, int chunk) {
    struct read_job *job = arg;
    const uint64_t *p = job->from + (size_t)chunk * READ_CHUNK / 8;
    uint64_t sum = 0;
    (void)thread;
    for (size_t i = 0; i < READ_CHUNK / 8; i += 8)
        sum += p[i] ^ p[i + 1] ^ p[i + 2] ^ p[i + 3] ^ p[i + 4] ^ p[i + 5] ^ p[i + 6] ^ p[i + 7];
    if (sum == 1) job->sink = sum; /* never, but the compiler cannot know */
}

/* Each try reads elsewhere: the bytes of the last one may be in a cache. */
static void read_some(void *arg) {
    struct read_job *job = arg;
    struct limits *l = job->limits;
    size_t words = (size_t)job->n_chunks * READ_CHUNK / 8;
    if (l->cursor + words > READ_BYTES / 8) l->cursor = 0;
    job->from = l->memory + l->cursor;
    l->cursor += words;
    pool_run(job->pool, read_chunk, job, job->n_chunks);
}

double limits_read(struct limits *limits, double bytes, int n_threads) {
    int chunks = (int)(bytes / READ_CHUNK) + 1, most = READ_BYTES / READ_CHUNK;
    if (chunks > most) chunks = most;
    struct read_job job = {
        .limits = limits, .pool = limits->pools[n_threads - 1], .n_chunks = chunks};
    return limits_time(read_some, &job, n_threads, true) * bytes / ((double)chunks * READ_CHUNK);
}

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

int limits_open(struct limits **ret, struct error *err) {
    struct limits *l = calloc(1, sizeof *l);
    void *memory = NULL;
    if (!l || posix_memalign(&memory, 2 << 20, READ_BYTES)) {
        free(l);
        return error_set(err, -ENOMEM, "no memory to read");
    }
    madvise(memory, READ_BYTES, MADV_HUGEPAGE);
    memset(memory, 2, READ_BYTES);
    l->memory = memory;
    int rc = pool_open(&l->pools[0], 1, err);
    if (!rc) rc = pool_open(&l->pools[1], 2, err);
    if (rc) {
        limits_close(l);
        return rc;
    }
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
