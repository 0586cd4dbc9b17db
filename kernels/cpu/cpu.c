#include "kernels/cpu/cpu.h"

#include <assert.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/features.h"
#include "kernels/cpu/pool.h"

/* A fork costs a few microseconds, which is what this many floats take on one thread. */
enum { SMALL = 1 << 13 };

/* Floats that a thread copies at a time. */
enum { COPY = 1 << 13 };

struct rows_job {
    struct cpu *cpu;
    cpu_rows *fn;
    const void *arg;
    int n, chunk;
};

static void run_rows(void *arg, int thread, int chunk) {
    const struct rows_job *job = arg;
    int row = chunk * job->chunk;
    int end = job->n - row > job->chunk ? row + job->chunk : job->n;
    job->fn(job->cpu, job->arg, thread, row, end);
}

static void share_rows(struct cpu *cpu, int n, size_t cost, cpu_rows *fn, const void *arg) {
    int n_threads = pool_threads(cpu->pool);
    if (n <= 0) return;
    if (n == 1 || n_threads == 1 || (size_t)n * cost < SMALL) {
        fn(cpu, arg, 0, 0, n);
        return;
    }
    int chunks = n_threads * CPU_CHUNKS;
    struct rows_job job = {cpu, fn, arg, n, (n + chunks - 1) / chunks};
    pool_run(cpu->pool, run_rows, &job, (n + job.chunk - 1) / job.chunk);
}

void cpu_for_rows(struct cpu *cpu, int n, size_t cost, cpu_rows *fn, const void *arg) {
    cpu_flush(cpu);
    share_rows(cpu, n, cost, fn, arg);
}

void cpu_run_later(struct cpu *cpu, int thread, int row0, int row1) {
    for (int i = 0; i < cpu->n_later; i++)
        cpu->later[i].fn(cpu, cpu->later[i].arg, thread, row0, row1);
}

static void run_later(struct cpu *cpu, const void *arg, int thread, int row0, int row1) {
    (void)arg;
    cpu_run_later(cpu, thread, row0, row1);
}

void cpu_flush(struct cpu *cpu) {
    size_t cost = 0;
    for (int i = 0; i < cpu->n_later; i++) cost += cpu->later[i].cost;
    if (cpu->n_later) share_rows(cpu, cpu->later_rows, cost, run_later, NULL);
    cpu->n_later = 0;
}

void cpu_rows_later(struct cpu *cpu, int n, size_t cost, cpu_rows *fn, const void *arg,
                    size_t arg_bytes) {
    assert(arg_bytes <= CPU_LATER_BYTES);
    if (cpu->later_rows != n || cpu->n_later == CPU_LATER) cpu_flush(cpu);
    struct cpu_later *later = &cpu->later[cpu->n_later++];
    *later = (struct cpu_later){.fn = fn, .cost = cost};
    memcpy(later->arg, arg, arg_bytes);
    cpu->later_rows = n;
    if (cpu->base.profile) cpu_flush(cpu); /* which times each apart */
}

struct cpu_turn cpu_turn(const struct cpu *cpu, int turn, int whole, int rest, int cut) {
    int threads = pool_threads(cpu->pool), parts = rest * cut / threads;
    int turns = whole / threads + parts, thread = turn / turns;
    int part = thread * parts + turn % turns - whole / threads;
    if (turn % turns < whole / threads) return (struct cpu_turn){turn - thread * parts, 0, 1};
    return (struct cpu_turn){whole + part / cut, part % cut, cut};
}

int cpu_grow(struct cpu *cpu, void **p, size_t *have, size_t want) {
    if (want <= *have) return 0;
    void *more = memory_new(&cpu->memory, want);
    if (!more) return -ENOMEM;
    memory_free(&cpu->memory, *p);
    *p = more;
    *have = want;
    return 0;
}

static void cpu_close(struct backend *be) {
    struct cpu *cpu = (struct cpu *)be;
    pool_close(cpu->pool);
    memory_deinit(&cpu->memory);
    free(cpu);
}

static int buffer_new(struct backend *be, struct buffer **ret, size_t n, struct error *err) {
    struct cpu *cpu = (struct cpu *)be;
    if (n > SIZE_MAX / 2 / sizeof(float))
        return error_set(err, -EINVAL, "a buffer of %zu numbers is too large", n);
    struct buffer *b = malloc(sizeof *b);
    float *data = b ? memory_new(&cpu->memory, n * sizeof *data) : NULL;
    if (!data) {
        free(b);
        return error_set(err, -ENOMEM, "no memory for a buffer of %zu numbers", n);
    }
    *b = (struct buffer){n, data};
    *ret = b;
    return 0;
}

static void buffer_free(struct backend *be, struct buffer *buffer) {
    cpu_flush((struct cpu *)be);
    memory_free(&((struct cpu *)be)->memory, buffer->data);
    free(buffer);
}

static int cpu_sync(struct backend *be, struct error *err) {
    struct cpu *cpu = (struct cpu *)be;
    cpu_flush(cpu);
    return cpu->rc ? error_set(err, cpu->rc, "%s", cpu->failure.text) : 0;
}

struct copy_job {
    float *dst;
    const float *src;
    size_t n;
};

/* Rows of COPY floats. */
static void copy_rows(struct cpu *cpu, const void *arg, int thread, int row0, int row1) {
    const struct copy_job *job = arg;
    size_t from = (size_t)row0 * COPY, to = (size_t)row1 * COPY;
    (void)cpu;
    (void)thread;
    if (to > job->n) to = job->n;
    memcpy(job->dst + from, job->src + from, (to - from) * sizeof *job->dst);
}

static int buffer_read(struct backend *be, float *dst, const struct buffer *src, size_t offset,
                       size_t n, struct error *err) {
    if (offset > src->n || n > src->n - offset)
        return error_set(err, -EINVAL, "reading %zu numbers at %zu of %zu", n, offset, src->n);
    int rc = cpu_sync(be, err);
    if (rc || !n) return rc;
    struct copy_job job = {dst, src->data + offset, n};
    cpu_for_rows((struct cpu *)be, (int)((n - 1) / COPY + 1), COPY, copy_rows, &job);
    return 0;
}

static void buffer_write(struct backend *be, struct buffer *dst, size_t offset, const float *src,
                         size_t n) {
    cpu_flush((struct cpu *)be);
    if (n) memcpy(dst->data + offset, src, n * sizeof *src);
}

static void cpu_begin(struct backend *be, const struct batch *batch) {
    struct cpu *cpu = (struct cpu *)be;
    cpu_flush(cpu);
    cpu->batch = *batch;
    cpu->n_rows = batch->n_tokens;
    cpu->next_angles = 0;
    for (int i = 0; i < CPU_ANGLES; i++) cpu->angles[i].inv_freq = NULL;
}

struct norm_job {
    float *dst;
    const float *src;
    struct norm_call call;
};

static void norm_rows(struct cpu *cpu, const void *arg, int thread, int row0, int row1) {
    const struct norm_job *job = arg;
    const struct norm_call *c = &job->call;
    (void)thread;
    for (int i = row0; i < row1; i++) {
        float *dst = job->dst + (size_t)i * (size_t)c->dim;
        const float *src = job->src + (size_t)i * (size_t)c->dim;
        if (c->b)
            cpu->ops.layernorm(dst, src, c->w->data, c->b->data, c->dim, c->eps);
        else
            cpu->ops.rmsnorm(dst, src, c->w->data, c->dim, c->eps);
    }
}

static void cpu_norm(struct backend *be, struct buffer *dst, const struct buffer *src,
                     const struct norm_call *call) {
    struct cpu *cpu = (struct cpu *)be;
    struct norm_job job = {dst->data, src->data, *call};
    cpu_rows_later(cpu, cpu->n_rows, (size_t)call->dim, norm_rows, &job, sizeof job);
}

struct pair_job {
    float *dst;
    const float *src;
    const int32_t *rows;
    size_t width;
};

static void gate_rows(struct cpu *cpu, const void *arg, int thread, int row0, int row1) {
    const struct pair_job *job = arg;
    size_t at = (size_t)row0 * job->width;
    (void)thread;
    cpu->ops.silu_mul(job->dst + at, job->src + at, (size_t)(row1 - row0) * job->width);
}

static void cpu_gate(struct backend *be, struct buffer *gate, const struct buffer *up, int width) {
    struct cpu *cpu = (struct cpu *)be;
    struct pair_job job = {.dst = gate->data, .src = up->data, .width = (size_t)width};
    /* An exponential each. */
    cpu_rows_later(cpu, cpu->n_rows, 4 * job.width, gate_rows, &job, sizeof job);
}

static void add_rows(struct cpu *cpu, const void *arg, int thread, int row0, int row1) {
    const struct pair_job *job = arg;
    size_t at = (size_t)row0 * job->width;
    (void)thread;
    cpu->ops.add(job->dst + at, job->src + at, (size_t)(row1 - row0) * job->width);
}

static void cpu_add(struct backend *be, struct buffer *dst, const struct buffer *src, int width) {
    struct cpu *cpu = (struct cpu *)be;
    struct pair_job job = {.dst = dst->data, .src = src->data, .width = (size_t)width};
    cpu_rows_later(cpu, cpu->n_rows, job.width, add_rows, &job, sizeof job);
}

static void cpu_gather(struct backend *be, struct buffer *dst, const struct buffer *src,
                       const int32_t *rows, int n_rows, int width) {
    size_t w = (size_t)width;
    cpu_flush((struct cpu *)be);
    for (int i = 0; i < n_rows; i++)
        memcpy(dst->data + (size_t)i * w, src->data + (size_t)rows[i] * w, w * sizeof(float));
    ((struct cpu *)be)->n_rows = n_rows;
}

static const struct backend_ops cpu_ops = {
    .close = cpu_close,
    .buffer_new = buffer_new,
    .buffer_free = buffer_free,
    .buffer_read = buffer_read,
    .buffer_write = buffer_write,
    .weight_new = cpu_weight_new,
    .weight_free = cpu_weight_free,
    .weight_bytes = cpu_weight_bytes,
    .kv_new = cpu_kv_new,
    .kv_free = cpu_kv_free,
    .begin = cpu_begin,
    .embed = cpu_embed,
    .norm = cpu_norm,
    .linear = cpu_linear,
    .rope = cpu_rope,
    .kv_store = cpu_kv_store,
    .attention = cpu_attention,
    .gate = cpu_gate,
    .add = cpu_add,
    .gather = cpu_gather,
    .sync = cpu_sync,
};

int cpu_open(struct backend **ret, const char *level, int n_threads, struct error *err) {
    unsigned features;
    int rc = features_parse(&features, level, err);
    if (rc) return rc;
    struct cpu *cpu = calloc(1, sizeof *cpu);
    if (!cpu) return error_set(err, -ENOMEM, "no memory for the CPU back end");
    cpu->base = (struct backend){.ops = &cpu_ops, .name = "cpu"};
    ops_init(&cpu->ops, features);
    rc = pool_open(&cpu->pool, n_threads, err);
    if (rc) goto fail;
    n_threads = pool_threads(cpu->pool);
    cpu->tmp = memory_new(&cpu->memory, (size_t)n_threads * CPU_TMP * sizeof(float));
    cpu->packed = memory_new(&cpu->memory, (size_t)n_threads * sizeof *cpu->packed);
    if (!cpu->tmp || !cpu->packed) {
        rc = error_set(err, -ENOMEM, "no memory for the scratch of %d threads", n_threads);
        goto fail;
    }
    snprintf(cpu->base.detail, sizeof cpu->base.detail, "%s, %d thread%s", cpu->ops.level,
             n_threads, n_threads == 1 ? "" : "s");
    *ret = &cpu->base;
    return 0;
fail:
    cpu_close(&cpu->base);
    return rc;
}
