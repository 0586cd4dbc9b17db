/* madvise() is not in POSIX. */
#define _DEFAULT_SOURCE
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "kernels/backend.h"
#include "kernels/cpu/features.h"
#include "kernels/cpu/pool.h"
#include "kernels/error.h"
#include "tests/kernels/check.h"
#include "tests/support/matrix.h"

/* Through the back end, because that is what a model sees: packing of activations, fork and join
 * are in the time. Matrices are rotated so that weights come from memory, not from a cache. */
enum {
    ROTATE_MIB = 128, /* for each set */
    MAX_COPIES = 64,
    MAX_TOKENS = 128,
    READ_BYTES = 256 << 20,
    READ_CHUNK = 128 << 10
};

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* What a matrix is, and how it is called in the table. */
struct subject {
    const char *name;
    bool is_bcq;
    struct bcq_spec spec; /* rows and cols count for dense as well */
    enum dtype type;
};

/* Plain loads over memory that no cache holds, on as many threads as the kernel has. */
struct reader {
    struct pool *pool;
    uint64_t *memory; /* (READ_BYTES / 8) */
    size_t cursor;    /* words */
};

struct read_job {
    const uint64_t *from;
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

static int reader_open(struct reader *r, int n_threads, struct error *err) {
    void *memory = NULL;
    if (posix_memalign(&memory, 2 << 20, READ_BYTES)) return error_set(err, -ENOMEM, "no memory");
    madvise(memory, READ_BYTES, MADV_HUGEPAGE);
    memset(memory, 2, READ_BYTES);
    *r = (struct reader){.memory = memory};
    return pool_open(&r->pool, n_threads, err);
}

static void reader_close(struct reader *r) {
    pool_close(r->pool);
    free(r->memory);
}

/* Seconds to read that many bytes, rounded to chunks. */
static double read_pass(struct reader *r, double bytes) {
    int chunks = (int)(bytes / READ_CHUNK) + 1, most = READ_BYTES / READ_CHUNK;
    if (chunks > most) chunks = most;
    if (r->cursor + (size_t)chunks * READ_CHUNK / 8 > READ_BYTES / 8) r->cursor = 0;
    struct read_job job = {.from = r->memory + r->cursor};
    r->cursor += (size_t)chunks * READ_CHUNK / 8;
    double start = now();
    pool_run(r->pool, read_chunk, &job, chunks);
    return (now() - start) * bytes / ((double)chunks * READ_CHUNK);
}

/* Packed copies of one subject. */
struct set {
    struct weight *copies[MAX_COPIES];
    int n_copies, next;
};

/* Bits of the inputs of binary-coded matrices: timed sample by sample in turn, so that what
 * disturbs one disturbs the other. */
static const int act_bits[] = {16, 8};
enum { N_ACTS = sizeof act_bits / sizeof *act_bits };

struct rig {
    struct backend *be;
    const char *level;
    int n_threads;
    struct set sets[N_ACTS];
    struct buffer *x, *y;
    struct reader reader;
};

static void begin(struct rig *rig, int n) {
    static int32_t zeros[MAX_TOKENS];
    backend_begin(rig->be, &(struct batch){n, 1, zeros, zeros, zeros, zeros, 1});
}

static void run_once(struct rig *rig, struct set *set) {
    const struct linear_call call = {.dst = rig->y, .w = set->copies[set->next]};
    set->next = (set->next + 1) % set->n_copies;
    backend_linear(rig->be, &call, 1, rig->x);
}

struct timing {
    double median, best; /* seconds of a call */
    double fraction;     /* median of read time over call time, sample by sample */
    double ratio;        /* median of the first set's time over this one's, likewise */
};

enum { SAMPLES = 64 };

struct samples {
    double seconds[N_ACTS][SAMPLES], fractions[N_ACTS][SAMPLES], ratios[N_ACTS][SAMPLES];
};

static double median(double *v, int n) {
    qsort(v, (size_t)n, sizeof *v, compare_doubles);
    return v[n / 2];
}

static void take_sample(struct rig *rig, int act, int at, struct samples *s) {
    struct set *set = &rig->sets[act];
    double bytes = (double)backend_weight_bytes(rig->be, set->copies[0]);
    int count = 0;
    double start = now();
    do {
        run_once(rig, set);
        count++;
    } while (now() - start < 0.005);
    s->seconds[act][at] = (now() - start) / count;
    s->fractions[act][at] = read_pass(&rig->reader, bytes * count) / count / s->seconds[act][at];
    s->ratios[act][at] = s->seconds[0][at] / s->seconds[act][at];
}

/* Samples of 5 ms at least, for about 0.8 s a set; a read pass over as many bytes follows each, so
 * that what disturbs one disturbs the other. */
static void time_linear(struct rig *rig, int n, int n_sets, struct timing ret[N_ACTS]) {
    struct samples s;
    int n_samples = 0;
    begin(rig, n);
    for (int act = 0; act < n_sets; act++)
        for (int i = 0; i < 4; i++) run_once(rig, &rig->sets[act]);
    for (double end = now() + 0.8 * n_sets; n_samples < SAMPLES && (now() < end || n_samples < 3);
         n_samples++)
        for (int act = 0; act < n_sets; act++) take_sample(rig, act, n_samples, &s);
    for (int act = 0; act < n_sets; act++) {
        ret[act].median = median(s.seconds[act], n_samples);
        ret[act].best = s.seconds[act][0];
        ret[act].fraction = median(s.fractions[act], n_samples);
        ret[act].ratio = median(s.ratios[act], n_samples);
    }
}

static int load(struct rig *rig, const struct subject *s, int act, struct error *err) {
    struct weight_view view = {.is_bcq = s->is_bcq, .act_bits = act_bits[act]};
    struct set *set = &rig->sets[act];
    void *block = s->is_bcq ? matrix_bcq(&view.bcq, &s->spec, 1)
                            : matrix_dense(&view, s->type, s->spec.rows, s->spec.cols, 1);
    view.rows = s->spec.rows;
    view.cols = s->spec.cols;
    int rc = 0;
    size_t bytes = 0;
    *set = (struct set){0};
    while (!rc && set->n_copies < MAX_COPIES && bytes < (size_t)ROTATE_MIB << 20) {
        rc = backend_weight_new(rig->be, &set->copies[set->n_copies], WEIGHT_LINEAR, &view, err);
        if (rc) break;
        bytes += backend_weight_bytes(rig->be, set->copies[set->n_copies++]);
    }
    free(block);
    return rc;
}

static void unload(struct rig *rig) {
    for (int act = 0; act < N_ACTS; act++) {
        struct set *set = &rig->sets[act];
        for (int i = 0; i < set->n_copies; i++) backend_weight_free(rig->be, set->copies[i]);
        set->n_copies = 0;
    }
}

static const struct subject subjects[] = {
    {"r16 2-bit", true, {BCQ_COMPACT, 4096, 4096, 2, 16, 4, 5, 0}, DTYPE_F32},
    {"r16 3-bit", true, {BCQ_COMPACT, 4096, 4096, 3, 16, 4, 5, 0}, DTYPE_F32},
    {"r16 4-bit", true, {BCQ_COMPACT, 4096, 4096, 4, 16, 4, 5, 0}, DTYPE_F32},
    {"free 3-bit", true, {BCQ_FREE, 4096, 4096, 3, 128, 0, 0, 0}, DTYPE_F32},
    {"r16 3-bit", true, {BCQ_COMPACT, 1536, 576, 3, 16, 4, 5, 0}, DTYPE_F32},
    {"whole 8-bit", true, {BCQ_WHOLE, 4096, 4096, 8, BCQ_WHOLE_GROUP, 0, 0, 0}, DTYPE_F32},
    {"whole 6-bit", true, {BCQ_WHOLE, 4096, 4096, 6, BCQ_WHOLE_GROUP, 0, 0, 0}, DTYPE_F32},
    {"whole 4-bit", true, {BCQ_WHOLE, 4096, 4096, 4, BCQ_WHOLE_GROUP, 0, 0, 0}, DTYPE_F32},
    {"f32", false, {BCQ_FREE, 4096, 4096, 1, 1, 0, 0, 0}, DTYPE_F32},
    {"f16", false, {BCQ_FREE, 4096, 4096, 1, 1, 0, 0, 0}, DTYPE_F16},
    {"bf16", false, {BCQ_FREE, 4096, 4096, 1, 1, 0, 0, 0}, DTYPE_BF16},
};

static void print_row(const struct rig *rig, const struct subject *s, int act, int n,
                      const struct timing *t) {
    double bytes = (double)backend_weight_bytes(rig->be, rig->sets[act].copies[0]);
    double flops = 2.0 * s->spec.rows * s->spec.cols * n;
    printf("%s,%d,%s%s,%dx%d,%d,%.1f,%.1f,%.2f,%.2f,%.1f,%.2f\n", rig->level, rig->n_threads,
           s->name, act ? " act 8" : "", s->spec.rows, s->spec.cols, n, t->median * 1e6,
           t->best * 1e6, bytes / t->median / 1e9, t->fraction, flops / t->median / 1e9, t->ratio);
}

static int bench_subject(struct rig *rig, const struct subject *s, struct error *err) {
    static const int counts[] = {1, 4, 16, MAX_TOKENS};
    int rc = 0, n_sets = s->is_bcq && s->spec.kind != BCQ_WHOLE ? N_ACTS : 1;
    for (int act = 0; !rc && act < n_sets; act++) rc = load(rig, s, act, err);
    for (size_t i = 0; !rc && i < sizeof counts / sizeof *counts; i++) {
        struct timing times[N_ACTS];
        time_linear(rig, counts[i], n_sets, times);
        for (int act = 0; act < n_sets; act++) print_row(rig, s, act, counts[i], &times[act]);
        fflush(stdout);
    }
    unload(rig);
    return rc;
}

static const struct context {
    int heads, kv_heads, dim, positions;
} contexts[] = {{32, 8, 128, 4096}, {9, 3, 64, 512}, {9, 3, 64, 4096}};

/* One layer's attention of a decode step or of a prefill slice. */
static void time_attention(struct rig *rig, const struct context *x, struct kv *kv, enum dtype type,
                           int n) {
    static int32_t blocks[4096 / BACKEND_KV_BLOCK], positions[MAX_TOKENS], zeros[MAX_TOKENS];
    int n_blocks = x->positions / BACKEND_KV_BLOCK;
    for (int i = 0; i < n_blocks; i++) blocks[i] = i;
    for (int i = 0; i < n; i++) positions[i] = x->positions - n + i;
    const struct attention_call call = {rig->y, rig->x, kv, 0, x->heads, 0, 0.088f, NULL};
    backend_begin(rig->be, &(struct batch){n, 1, zeros, positions, zeros, blocks, n_blocks});
    backend_attention(rig->be, &call);
    double best = INFINITY, start = now(), last = start, t;
    int count = 0;
    do {
        backend_attention(rig->be, &call);
        t = now();
        if (t - last < best) best = t - last;
        last = t;
        count++;
    } while (t - start < 0.3);
    t = (t - start) / count;
    double bytes = 2.0 * x->kv_heads * x->dim * (double)dtype_size(type) * x->positions;
    printf("%s,%d,attention %s,%d/%dx%d at %d,%d,%.1f,%.1f,%.2f,,%.1f\n", rig->level,
           rig->n_threads, type == DTYPE_F16 ? "f16" : "i8", x->heads, x->kv_heads, x->dim,
           x->positions, n, t * 1e6, best * 1e6, bytes / t / 1e9,
           4.0 * x->heads * x->dim * x->positions * n / t / 1e9);
}

static int bench_attention(struct rig *rig, struct error *err) {
    static const enum dtype types[] = {DTYPE_F16, DTYPE_I8};
    int n_contexts = (int)(sizeof contexts / sizeof *contexts), rc = 0;
    for (int i = 0; !rc && i < 2 * n_contexts; i++) {
        const struct context *x = &contexts[i / 2];
        const struct kv_spec spec = {1, x->kv_heads, x->dim, x->positions / BACKEND_KV_BLOCK,
                                     types[i % 2]};
        struct kv *kv = NULL;
        rc = backend_kv_new(rig->be, &kv, &spec, err);
        if (rc) break;
        for (int n = 1; n <= MAX_TOKENS; n *= MAX_TOKENS)
            time_attention(rig, x, kv, types[i % 2], n);
        backend_kv_free(rig->be, kv);
    }
    return rc;
}

static int bench_level(const char *level, const char *only, int n_threads, struct error *err) {
    struct rig rig = {.level = level, .n_threads = n_threads};
    const struct backend_options options = {.name = "cpu", .level = level, .n_threads = n_threads};
    int rc = reader_open(&rig.reader, n_threads, err);
    if (!rc) rc = backend_open(&rig.be, &options, err);
    if (!rc) rc = backend_buffer_new(rig.be, &rig.x, (size_t)MAX_TOKENS * 4096, err);
    if (!rc) rc = backend_buffer_new(rig.be, &rig.y, (size_t)MAX_TOKENS * 4096, err);
    if (!rc) {
        struct fence x = check_floats((size_t)MAX_TOKENS * 4096, INPUT_NORMAL, 1);
        backend_buffer_write(rig.be, rig.x, 0, x.p, (size_t)MAX_TOKENS * 4096);
        fence_free(&x);
    }
    for (size_t i = 0; !rc && i < sizeof subjects / sizeof *subjects; i++)
        if (!only || strstr(subjects[i].name, only)) rc = bench_subject(&rig, &subjects[i], err);
    if (!rc && (!only || strstr("attention", only))) rc = bench_attention(&rig, err);
    if (rig.be) backend_buffer_free(rig.be, rig.x);
    if (rig.be) backend_buffer_free(rig.be, rig.y);
    backend_close(rig.be);
    reader_close(&rig.reader);
    return rc;
}

int check_bench(const char *level, const char *only) {
    static const char *const all[] = {"amx", "avx512", "avx2"};
    struct error err;
    unsigned features;
    printf("level,threads,matrix,shape,tokens,us,best us,GB/s,of read pass,GFLOP/s,speed-up\n");
    for (int i = 0; i < (level ? 1 : 3); i++) {
        const char *name = level ? level : all[i];
        if (features_parse(&features, name, &err)) continue;
        for (int n_threads = 1; n_threads <= 2; n_threads++) {
            if (!bench_level(name, only, n_threads, &err)) continue;
            printf("# %s: %s\n", name, err.text);
            return 1;
        }
    }
    return 0;
}
