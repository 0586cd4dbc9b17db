#include "kernels/cpu/cpu.h"

#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include "kernels/cpu/pool.h"

static bool multiply(size_t *product, size_t factor) {
    if (factor && *product > SIZE_MAX / 2 / factor) return false;
    *product *= factor;
    return true;
}

static int check(const struct kv_spec *s, size_t *layer_bytes, size_t *total, struct error *err) {
    if (s->n_layers < 1 || s->n_kv_heads < 1 || s->head_dim < 1 || s->n_blocks < 1)
        return error_set(err, -EINVAL, "a pool of keys and values has no room");
    if (s->type != DTYPE_F16 && s->type != DTYPE_F32 && s->type != DTYPE_I8)
        return error_set(err, -EINVAL, "keys and values are kept as f16, f32 or int8");
    size_t n = 2 * kv_plane_bytes(s->type, s->head_dim);
    bool fits = multiply(&n, (size_t)s->n_blocks) && multiply(&n, (size_t)s->n_kv_heads);
    *layer_bytes = n;
    if (!fits || !multiply(&n, (size_t)s->n_layers))
        return error_set(err, -EINVAL, "a pool of keys and values is too large");
    *total = n;
    return 0;
}

static const struct attention_ops *ops_of(const struct cpu *cpu, enum dtype type) {
    return type == DTYPE_I8 ? &cpu->ops.int8_kv : &cpu->ops.float_kv;
}

int cpu_kv_new(struct backend *be, struct kv **ret, const struct kv_spec *spec, struct error *err) {
    struct cpu *cpu = (struct cpu *)be;
    size_t layer_bytes = 0, total = 0, threads = (size_t)pool_threads(cpu->pool);
    int rc = check(spec, &layer_bytes, &total, err);
    if (rc) return rc;
    const struct attention_ops *ops = ops_of(cpu, spec->type);
    size_t floats = ops->attention_scratch(CPU_MAX_REP, spec->head_dim);
    size_t many = ops->attention_many ? ops->many_scratch(CPU_MAX_REP, spec->head_dim) : 0;
    if (many > floats) floats = many;
    floats = (floats + 15) / 16 * 16; /* each thread's part aligned */
    size_t have = cpu->attention_floats * threads * sizeof(float);
    void *scratch = cpu->attention;
    struct kv *kv = malloc(sizeof *kv);
    if (!kv || cpu_grow(cpu, &scratch, &have, floats * threads * sizeof(float))) goto no_memory;
    cpu->attention = scratch;
    cpu->attention_floats = have / threads / sizeof(float);
    *kv = (struct kv){*spec, layer_bytes, memory_new(&cpu->memory, total)};
    if (!kv->data) goto no_memory;
    *ret = kv;
    return 0;
no_memory:
    free(kv);
    return error_set(err, -ENOMEM, "no memory for %zu MiB of keys and values", total >> 20);
}

void cpu_kv_free(struct backend *be, struct kv *kv) {
    cpu_flush((struct cpu *)be);
    memory_free(&((struct cpu *)be)->memory, kv->data);
    free(kv);
}

static struct kv_layer layer_of(const struct kv *kv, int layer) {
    return (struct kv_layer){kv->data + (size_t)layer * kv->layer_bytes, kv->spec.type,
                             kv->spec.n_kv_heads, kv->spec.head_dim};
}

static const int32_t *blocks_of(const struct batch *batch, int token) {
    return batch->blocks + (size_t)batch->seqs[token] * (size_t)batch->max_blocks;
}

struct store_job {
    struct kv_layer layer;
    const float *k, *v;
};

static void store_rows(struct cpu *cpu, const void *arg, int thread, int row0, int row1) {
    const struct store_job *job = arg;
    const struct attention_ops *ops = ops_of(cpu, job->layer.type);
    size_t width = (size_t)job->layer.n_kv_heads * (size_t)job->layer.head_dim;
    (void)thread;
    for (int t = row0; t < row1; t++) {
        int pos = cpu->batch.positions[t];
        int block = blocks_of(&cpu->batch, t)[pos / KV_BLOCK_TOKENS];
        ops->kv_store(&job->layer, block, pos % KV_BLOCK_TOKENS, job->k + (size_t)t * width,
                      job->v + (size_t)t * width);
    }
}

void cpu_kv_store(struct backend *be, struct kv *kv, int layer, const struct buffer *k,
                  const struct buffer *v) {
    struct cpu *cpu = (struct cpu *)be;
    struct store_job job = {layer_of(kv, layer), k->data, v->data};
    size_t width = (size_t)kv->spec.n_kv_heads * (size_t)kv->spec.head_dim;
    cpu_rows_later(cpu, cpu->batch.n_tokens, 2 * width, store_rows, &job, sizeof job);
}

struct attention_job {
    struct kv_layer layer;
    const struct attention_call *call;
    int n_rep;    /* query heads of one ops.attention() */
    int n_parts;  /* such groups for a token */
    int n_tokens; /* neighbours in the batch that are one row of work */
    int n_whole;  /* where heads of keys are cut: those that are not, of all tokens together */
    int cut;      /* into how many parts of query heads the others are; 0: none is */
};

/* Tokens from `token` on, before end, that follow each other in one sequence. */
static int run_length(const struct batch *b, int token, int end) {
    int n = 1;
    while (token + n < end && b->seqs[token + n] == b->seqs[token] &&
           b->positions[token + n] == b->positions[token] + n)
        n++;
    return n;
}

/* Query heads [from, to) of those of a KV head. */
struct heads {
    int kv_head, from, to;
};

/* n tokens in a run. */
static void attend(struct cpu *cpu, const struct attention_job *job, int token, int n,
                   struct heads heads, float *scratch) {
    const struct attention_call *c = job->call;
    const struct attention_ops *ops = ops_of(cpu, job->layer.type);
    int per_kv = c->n_heads / job->layer.n_kv_heads;
    int head = heads.kv_head * per_kv + heads.from, pos = cpu->batch.positions[token];
    size_t ld = (size_t)c->n_heads * (size_t)job->layer.head_dim;
    size_t at = (size_t)token * ld + (size_t)head * (size_t)job->layer.head_dim;
    struct attn_call one = {
        .kv = &job->layer,
        .blocks = blocks_of(&cpu->batch, token),
        .kv_head = heads.kv_head,
        .n_rep = heads.to - heads.from,
        .pos = pos,
        .first = c->window > 0 && pos >= c->window ? pos - c->window + 1 : 0,
        .scale = c->scale,
        .slopes = c->slopes ? c->slopes + head : NULL,
    };
    if (n == 1)
        ops->attention(c->dst->data + at, c->q->data + at, &one, scratch);
    else
        ops->attention_many(c->dst->data + at, c->q->data + at, ld, n, &one, c->window, scratch);
}

static struct heads heads_of(const struct attention_job *job, int part) {
    int per_kv = job->call->n_heads / job->layer.n_kv_heads;
    int parts = (per_kv + job->n_rep - 1) / job->n_rep, from = part % parts * job->n_rep;
    int to = from + job->n_rep < per_kv ? from + job->n_rep : per_kv;
    return (struct heads){part / parts, from, to};
}

/* Late tokens see the longest contexts and go first, which leaves the short ones to even out
 * the threads. */
static void attend_rows(struct cpu *cpu, const void *arg, int thread, int row0, int row1) {
    const struct attention_job *job = arg;
    float *scratch = cpu->attention + (size_t)thread * cpu->attention_floats;
    for (int i = row0; i < row1; i++) {
        int end = cpu->batch.n_tokens - i / job->n_parts * job->n_tokens;
        int token = end > job->n_tokens ? end - job->n_tokens : 0;
        for (int n; token < end; token += n) {
            n = job->n_tokens > 1 ? run_length(&cpu->batch, token, end) : 1;
            attend(cpu, job, token, n, heads_of(job, i % job->n_parts), scratch);
        }
    }
}

/* The same where KV heads are cut; kernels/cpu/pool.h tells which turns are a thread's. */
static void attend_turns(struct cpu *cpu, const void *arg, int thread, int turn0, int turn1) {
    const struct attention_job *job = arg;
    float *scratch = cpu->attention + (size_t)thread * cpu->attention_floats;
    int kv_heads = job->layer.n_kv_heads, per_kv = job->call->n_heads / kv_heads;
    int tokens = cpu->batch.n_tokens;
    for (int turn = turn0; turn < turn1; turn++) {
        struct cpu_turn t =
            cpu_turn(cpu, turn, job->n_whole, tokens * kv_heads - job->n_whole, job->cut);
        struct heads heads = {t.chunk % kv_heads, (per_kv * t.part + t.n_parts - 1) / t.n_parts,
                              (per_kv * (t.part + 1) + t.n_parts - 1) / t.n_parts};
        attend(cpu, job, tokens - 1 - t.chunk / kv_heads, 1, heads, scratch);
    }
}

/* As many tokens as fill attention_many(), but chunks of work enough to even out the threads. */
static int tokens_together(const struct cpu *cpu, const struct attention_job *job) {
    const struct batch *b = &cpu->batch;
    int most = CPU_ATTENTION_ROWS / job->n_rep, runs = 0;
    if (!ops_of(cpu, job->layer.type)->attention_many) return 1;
    for (int t = 0; t < b->n_tokens; t += run_length(b, t, b->n_tokens)) runs++;
    if (runs == b->n_tokens) return 1;
    int64_t each = (int64_t)b->n_tokens * job->n_parts / (4 * (int64_t)pool_threads(cpu->pool));
    return each < 1 ? 1 : each < most ? (int)each : most;
}

/* Few KV heads, and one more for some threads than for others: those are cut, the others' keys and values
 * need not be read twice. Returns whether they can be. */
static bool cut_heads(struct attention_job *job, int tokens, int threads) {
    int heads = tokens * job->layer.n_kv_heads, rest = heads % threads;
    int per_kv = job->call->n_heads / job->layer.n_kv_heads;
    if (heads < threads || heads >= 2 * threads || !rest || per_kv > CPU_MAX_REP) return false;
    job->n_whole = heads - rest;
    for (job->cut = 2; job->cut <= per_kv; job->cut++)
        if (rest * job->cut % threads == 0) return true;
    return false;
}

void cpu_attention(struct backend *be, const struct attention_call *call) {
    struct cpu *cpu = (struct cpu *)be;
    cpu_flush(cpu);
    struct attention_job job = {.layer = layer_of(call->kv, call->layer), .call = call};
    int kv_heads = job.layer.n_kv_heads, per_kv = call->n_heads / kv_heads;
    int n = cpu->batch.n_tokens, threads = pool_threads(cpu->pool);
    size_t longest = 0;
    for (int t = 0; t < n; t++)
        if ((size_t)cpu->batch.positions[t] > longest) longest = (size_t)cpu->batch.positions[t];
    size_t cost = (longest + 1) * (size_t)job.layer.head_dim;
    if (cut_heads(&job, n, threads)) {
        int turns = job.n_whole + (n * kv_heads - job.n_whole) * job.cut;
        cpu_for_rows(cpu, turns, cost * (size_t)per_kv, attend_turns, &job);
        return;
    }
    job.n_rep = per_kv < CPU_MAX_REP ? per_kv : CPU_MAX_REP;
    /* Few tokens and heads: reading keys and values twice is cheaper than an idle thread. */
    while (job.n_rep > 1 &&
           (int64_t)n * kv_heads * ((per_kv + job.n_rep - 1) / job.n_rep) < 2 * threads)
        job.n_rep = (job.n_rep + 1) / 2;
    job.n_parts = kv_heads * ((per_kv + job.n_rep - 1) / job.n_rep);
    job.n_tokens = tokens_together(cpu, &job);
    cost *= (size_t)(job.n_rep * job.n_tokens);
    cpu_for_rows(cpu, (n + job.n_tokens - 1) / job.n_tokens * job.n_parts, cost, attend_rows, &job);
}

struct angles_job {
    const struct cpu_angles *angles;
    float *x;
    int n_heads, head_dim;
};

static void angle_rows(struct cpu *cpu, const void *arg, int thread, int row0, int row1) {
    const struct cpu_angles *a = arg;
    (void)thread;
    for (int t = row0; t < row1; t++) {
        float *row = a->data + (size_t)t * 2 * (size_t)a->n_freq;
        for (int i = 0; i < a->n_freq; i++) {
            double angle = cpu->batch.positions[t] * a->inv_freq[i];
            row[i] = (float)(cos(angle) * (double)a->scale);
            row[i + a->n_freq] = (float)(sin(angle) * (double)a->scale);
        }
    }
}

static struct cpu_angles *find_angles(struct cpu *cpu, const struct rope_call *call) {
    for (int i = 0; i < CPU_ANGLES; i++) {
        struct cpu_angles *a = &cpu->angles[i];
        if (a->inv_freq == call->inv_freq && a->n_freq == call->n_freq && a->scale == call->scale)
            return a;
    }
    return NULL;
}

/* Computed by the first rope() of a batch, found again by the others. */
static const struct cpu_angles *angles_for(struct cpu *cpu, const struct rope_call *call) {
    struct cpu_angles *a = find_angles(cpu, call);
    if (a) return a;
    cpu_flush(cpu); /* which may read the angles that make room */
    a = &cpu->angles[cpu->next_angles++ % CPU_ANGLES];
    a->inv_freq = NULL;
    size_t bytes = a->n * sizeof(float);
    void *data = a->data;
    if (cpu_grow(cpu, &data, &bytes,
                 (size_t)cpu->batch.n_tokens * 2 * (size_t)call->n_freq * sizeof(float))) {
        if (!cpu->rc) cpu->rc = error_set(&cpu->failure, -ENOMEM, "no memory for rotation angles");
        return NULL;
    }
    *a =
        (struct cpu_angles){call->inv_freq, call->n_freq, call->scale, bytes / sizeof(float), data};
    cpu_for_rows(cpu, cpu->batch.n_tokens, 64 * (size_t)call->n_freq, angle_rows, a);
    return a;
}

static void rope_rows(struct cpu *cpu, const void *arg, int thread, int row0, int row1) {
    const struct angles_job *job = arg;
    size_t half = (size_t)job->angles->n_freq, width = (size_t)job->n_heads * (size_t)job->head_dim;
    (void)thread;
    for (int t = row0; t < row1; t++) {
        const float *cos_row = job->angles->data + (size_t)t * 2 * half;
        cpu->ops.rope(job->x + (size_t)t * width, job->n_heads, job->head_dim, (int)half, cos_row,
                      cos_row + half);
    }
}

void cpu_rope(struct backend *be, const struct rope_call *call) {
    struct cpu *cpu = (struct cpu *)be;
    if (call->n_freq <= 0) return;
    const struct cpu_angles *angles = angles_for(cpu, call);
    if (!angles) return;
    struct angles_job job = {angles, call->x->data, call->n_heads, call->head_dim};
    cpu_rows_later(cpu, cpu->batch.n_tokens, (size_t)call->n_heads * (size_t)call->head_dim,
                   rope_rows, &job, sizeof job);
}
