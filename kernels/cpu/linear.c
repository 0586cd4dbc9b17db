#include "kernels/cpu/cpu.h"

#include <stdint.h>
#include <string.h>

#include "kernels/cpu/pool.h"

/* All matrices of a call share their tables. For each slice of tokens: the activations are packed,
 * then chunks of rows are handed out. A thread that finishes its rows adds bias, activation and
 * residual while they are in its cache. */
enum {
    MAX_CALLS = 8,
    SMALL_WORK = 1 << 18, /* weights times tokens: a few microseconds, one thread does it alone */
    /* Numbers to pack: a microsecond or two. Every thread makes tables of its own then, because waiting
     * for another's and fetching them takes as long. */
    SMALL_PACK = 1 << 12
};

struct linear_job {
    struct cpu *cpu;
    const struct linear_call *calls;
    int n_calls;
    const float *x; /* (n, cols) */
    int cols, n;
    const struct bcq_ops *bcq;   /* of all that are binary-coded; NULL: none is */
    int act_bits;                /* likewise */
    const struct bcq_spec *spec; /* of one of them */
    int t0, n_slice;             /* the slice of tokens in work */
    const float *slice;          /* (n_slice, cols) its inputs, rotated where the matrices are */
    int n_parts;                 /* of packing */
    size_t own_act;              /* bytes of a thread's tables in cpu->act, 0: they are shared */
    int chunk_blocks[MAX_CALLS]; /* row blocks in a chunk of each call */
    int first_chunk[MAX_CALLS + 1];
    int n_cut, cut; /* how many of the last chunks are cut, each into how many parts */
};

static int row_block(const struct cpu *cpu, const struct weight *w) {
    return w->is_bcq ? w->bcq->row_block : cpu->ops.dense.row_block;
}

static int n_blocks(const struct cpu *cpu, const struct weight *w) {
    int unit = row_block(cpu, w);
    return (w->rows + unit - 1) / unit;
}

/* Chunks of about equal numbers of rows over all matrices. A chunk that is accumulated goes
 * through the thread's scratch and has to fit there. */
static void plan(struct linear_job *job) {
    const struct cpu *cpu = job->cpu;
    int64_t rows = 0, chunks = (int64_t)pool_threads(cpu->pool) * CPU_CHUNKS;
    int tokens = job->n < CPU_SLICE ? job->n : CPU_SLICE;
    for (int i = 0; i < job->n_calls; i++) rows += job->calls[i].w->rows;
    int64_t target = (rows + chunks - 1) / chunks;
    for (int i = 0; i < job->n_calls; i++) {
        const struct linear_call *c = &job->calls[i];
        int unit = row_block(cpu, c->w), blocks = n_blocks(cpu, c->w);
        int64_t each = (target + unit - 1) / unit, most = CPU_TMP / tokens / unit;
        if (c->accumulate && each > most) each = most;
        job->chunk_blocks[i] = each < blocks ? (int)each : blocks;
        job->first_chunk[i + 1] =
            job->first_chunk[i] + (blocks + job->chunk_blocks[i] - 1) / job->chunk_blocks[i];
    }
}

/* mul() places row r at y[r]: this y puts row r0 at p. Through an integer, because the address may
 * lie before the array, where a pointer may not be computed. */
static float *row_zero(float *p, int r0) {
    return (float *)((uintptr_t)p - (uintptr_t)r0 * sizeof *p);
}

/* Rows [r0, r1) of W x for n tokens from t0; y as for mul(). */
static void finish(const struct linear_job *job, const struct linear_call *c, float *y, size_t ldy,
                   int r0, int r1, int t0, int n) {
    const struct ops *ops = &job->cpu->ops;
    size_t rows = (size_t)(r1 - r0), width = (size_t)c->w->rows;
    for (int t = 0; t < n; t++) {
        float *row = y + (size_t)t * ldy + r0;
        if (c->bias) ops->add(row, (const float *)c->bias->data + r0, rows);
        if (c->act == ACT_RELU) ops->relu(row, rows);
        if (c->act == ACT_GELU_TANH) ops->gelu_tanh(row, rows);
        if (c->accumulate) ops->add(c->dst->data + (size_t)(t0 + t) * width + r0, row, rows);
    }
}

static bool turns_back(const struct linear_call *c) {
    return c->w->rotation && c->w->rotation->out.n;
}

/* Where a slice of W' V x waits for its last rotation, which needs whole rows. */
static float *unturned(const struct linear_job *job, const struct linear_call *c, size_t *ldy) {
    *ldy = (size_t)c->w->rows;
    return c->accumulate ? job->cpu->unturned : c->dst->data + (size_t)job->t0 * *ldy;
}

static void turn_back(struct cpu *cpu, const void *arg, int thread, int t0, int t1) {
    const struct linear_job *job = ((const void *const *)arg)[0];
    const struct linear_call *c = ((const void *const *)arg)[1];
    size_t ldy;
    float *y = unturned(job, c, &ldy);
    for (int t = t0; t < t1; t++) {
        float *row = y + (size_t)t * ldy;
        cpu->ops.rotate(row, cpu->tmp + (size_t)thread * CPU_TMP, &c->w->rotation->out, true);
        finish(job, c, row, ldy, 0, c->w->rows, job->t0 + t, 1);
    }
}

static void turn_all_back(const struct linear_job *job) {
    for (int i = 0; i < job->n_calls; i++) {
        const struct linear_call *c = &job->calls[i];
        const void *arg[] = {job, c};
        if (turns_back(c))
            cpu_for_rows(job->cpu, job->n_slice, (size_t)c->w->rows * 8, turn_back, arg);
    }
}

static void pack(const struct linear_job *job, void *act, int part, int n_parts) {
    job->bcq->act_pack(act, job->act_bits, job->spec, job->slice, (size_t)job->cols, job->n_slice,
                       part, n_parts);
}

static void pack_part(void *arg, int thread, int part) {
    const struct linear_job *job = arg;
    if (job->cpu->n_later)
        cpu_run_later(job->cpu, thread, job->t0 + bcq_first_token(job->n_slice, part, job->n_parts),
                      job->t0 + bcq_first_token(job->n_slice, part + 1, job->n_parts));
    pack(job, job->cpu->act, part, job->n_parts);
}

/* The packed inputs for a thread. */
static const void *act_of(const struct linear_job *job, int thread) {
    struct cpu *cpu = job->cpu;
    if (!job->own_act) return cpu->act;
    void *act = (char *)cpu->act + (size_t)thread * job->own_act;
    if (cpu->packed[thread].job != cpu->n_jobs) {
        pack(job, act, 0, 1);
        cpu->packed[thread].job = cpu->n_jobs;
    }
    return act;
}

/* A chunk, or a part of a block that is one. */
struct piece {
    const struct linear_call *call;
    int b0, b1, part, n_parts; /* blocks */
    int r0, r1;                /* rows */
};

static struct piece piece_of_turn(const struct linear_job *job, int turn) {
    struct cpu_turn t = {turn, 0, 1};
    int i = 0, whole = job->first_chunk[job->n_calls] - job->n_cut;
    if (job->n_cut) t = cpu_turn(job->cpu, turn, whole, job->n_cut, job->cut);
    while (t.chunk >= job->first_chunk[i + 1]) i++;
    struct piece p = {.part = t.part, .n_parts = t.n_parts};
    p.call = &job->calls[i];
    const struct weight *w = p.call->w;
    int unit = row_block(job->cpu, w), blocks = n_blocks(job->cpu, w);
    p.b0 = (t.chunk - job->first_chunk[i]) * job->chunk_blocks[i];
    p.b1 = p.b0 + job->chunk_blocks[i] < blocks ? p.b0 + job->chunk_blocks[i] : blocks;
    p.r0 = p.b0 * unit + unit / p.n_parts * p.part;
    p.r1 = p.n_parts > 1 ? p.r0 + unit / p.n_parts : p.b1 * unit;
    if (p.r1 > w->rows) p.r1 = w->rows;
    return p;
}

static void multiply(const struct linear_job *job, const struct piece *p, float *y, size_t ldy,
                     int thread) {
    const struct weight *w = p->call->w;
    const int n = job->n_slice;
    const size_t ldx = (size_t)job->cols;
    if (!w->is_bcq)
        job->cpu->ops.dense.mul(y, ldy, w->data, w->type, w->rows, w->cols, job->slice, ldx, n,
                                p->b0, p->b1);
    else if (p->n_parts > 1)
        w->bcq->mul_part(y, ldy, w->data, &w->spec, act_of(job, thread), w->act_bits, n, p->b0,
                         p->part, p->n_parts);
    else
        w->bcq->mul(y, ldy, w->data, &w->spec, act_of(job, thread), w->act_bits, n, p->b0, p->b1);
    if (w->outliers)
        job->cpu->ops.outliers_add(y, ldy, w->outliers, job->slice, ldx, n, p->r0, p->r1);
}

static void run_chunk(void *arg, int thread, int turn) {
    const struct linear_job *job = arg;
    const struct piece p = piece_of_turn(job, turn);
    const struct linear_call *c = p.call;
    if (p.r0 >= p.r1) return; /* a part of a block that is not full */
    size_t ldy = c->accumulate ? (size_t)(p.r1 - p.r0) : (size_t)c->w->rows;
    float *y = c->accumulate ? row_zero(job->cpu->tmp + (size_t)thread * CPU_TMP, p.r0)
                             : c->dst->data + (size_t)job->t0 * ldy;
    if (turns_back(c)) y = unturned(job, c, &ldy);
    multiply(job, &p, y, ldy, thread);
    if (!turns_back(c)) finish(job, c, y, ldy, p.r0, p.r1, job->t0, job->n_slice);
}

/* Where threads would have unequal numbers of chunks, the last ones are cut into parts if they are blocks
 * that can be. Returns the number of turns. */
static int cut_last(struct linear_job *job) {
    const int n = job->first_chunk[job->n_calls], threads = pool_threads(job->cpu->pool);
    const int rest = n % threads, last = job->n_calls - 1;
    const struct weight *w = job->calls[last].w;
    job->n_cut = 0;
    if (!rest || n < threads || rest > n - job->first_chunk[last] || job->chunk_blocks[last] > 1 ||
        !w->is_bcq || !w->bcq->block_parts)
        return n;
    int most = w->bcq->block_parts(&w->spec, w->act_bits, job->n_slice);
    for (job->cut = 1; job->cut < most && rest * job->cut % threads;) job->cut *= 2;
    if (rest * job->cut % threads == 0) job->n_cut = rest;
    return n + job->n_cut * (job->cut - 1);
}

static size_t own_act(const struct linear_job *job) {
    size_t numbers = (size_t)job->n_slice * (size_t)job->cols;
    size_t bytes = job->bcq->act_bytes(job->act_bits, job->cols, job->n_slice);
    bytes = (bytes + 63) / 64 * 64;
    bool fits = bytes <= job->cpu->act_bytes / (size_t)pool_threads(job->cpu->pool);
    return numbers <= SMALL_PACK && fits ? bytes : 0;
}

static void run_slice(struct linear_job *job, bool share) {
    struct pool *pool = job->cpu->pool;
    int n_chunks = cut_last(job);
    job->n_parts = share ? pool_threads(pool) * (job->n_slice < 16 ? 1 : 4) : 1;
    if (job->cpu->n_later && job->n_parts > job->n_slice) job->n_parts = job->n_slice;
    job->own_act = job->bcq ? own_act(job) : 0;
    if (job->own_act) cpu_run_later(job->cpu, 0, job->t0, job->t0 + job->n_slice);
    job->cpu->n_jobs++;
    if (job->bcq && !job->own_act) pool_run(pool, pack_part, job, job->n_parts);
    if (share) {
        pool_run(pool, run_chunk, job, n_chunks);
        return;
    }
    for (int c = 0; c < n_chunks; c++) run_chunk(job, 0, c);
}

static void linear_some(struct cpu *cpu, const struct linear_call *calls, int n_calls,
                        const float *x) {
    struct linear_job job = {
        .cpu = cpu, .calls = calls, .n_calls = n_calls, .x = x, .n = cpu->n_rows};
    size_t work = 0;
    job.cols = calls[0].w->cols;
    for (int i = 0; i < n_calls; i++) {
        if (calls[i].w->is_bcq) {
            job.bcq = calls[i].w->bcq;
            job.act_bits = calls[i].w->act_bits;
            job.spec = &calls[i].w->spec;
        }
        work += (size_t)calls[i].w->rows * (size_t)job.cols * (size_t)job.n;
    }
    plan(&job);
    const struct cpu_rotation *rotation = calls[0].w->rotation;
    job.n_slice = job.n < CPU_SLICE ? job.n : CPU_SLICE;
    /* What waits is done with the packing if there is one, a slice at a time. */
    if (!job.bcq || rotation || own_act(&job) || cpu->later_rows != job.n) cpu_flush(cpu);
    for (job.t0 = 0; job.t0 < job.n; job.t0 += CPU_SLICE) {
        job.n_slice = job.n - job.t0 < CPU_SLICE ? job.n - job.t0 : CPU_SLICE;
        job.slice = job.x + (size_t)job.t0 * (size_t)job.cols;
        if (rotation) job.slice = cpu_rotate_inputs(cpu, rotation, job.slice, job.n_slice);
        run_slice(&job, work >= SMALL_WORK);
        turn_all_back(&job);
    }
    cpu->n_later = 0;
}

/* Whether calls a and b take the same form of the input; and there is one buffer for products that
 * are turned back and added. */
static bool go_together(const struct linear_call *a, const struct linear_call *b) {
    if (turns_back(b) && b->accumulate) return false;
    return cpu_rotation_shared(a->w->rotation, b->w->rotation);
}

static bool same_form(const struct weight *a, const struct weight *b, int n) {
    int (*form)(const struct bcq_spec *, int, int) = a->bcq->act_form;
    return !form || form(&a->spec, a->act_bits, n) == form(&b->spec, b->act_bits, n);
}

/* n: tokens, which go in slices. */
static bool same_inputs(const struct weight *a, const struct weight *b, int n) {
    const struct bcq_spec *s = &a->spec, *t = &b->spec;
    if (a->act_bits != b->act_bits || a->bcq != b->bcq || s->kind != t->kind ||
        s->group != t->group || s->scale_bits != t->scale_bits || s->bias_bits != t->bias_bits)
        return false;
    int last = n % CPU_SLICE;
    return s->bits == t->bits ||
           ((n < CPU_SLICE || same_form(a, b, CPU_SLICE)) && (!last || same_form(a, b, last)));
}

/* How many of the calls can share their packed inputs. */
static int alike(const struct linear_call *calls, int n_calls, int n_tokens) {
    const struct weight *first = NULL;
    int n = 0, most = n_calls < MAX_CALLS ? n_calls : MAX_CALLS;
    for (; n < most; n++) {
        const struct weight *w = calls[n].w;
        if (n > 0 && !go_together(&calls[0], &calls[n])) break;
        if (!w->is_bcq) continue;
        if (first && !same_inputs(first, w, n_tokens)) break;
        first = w;
    }
    return n;
}

void cpu_linear(struct backend *be, const struct linear_call *calls, int n_calls,
                const struct buffer *x) {
    struct cpu *cpu = (struct cpu *)be;
    if (cpu->n_rows <= 0) return;
    for (int i = 0, n; i < n_calls; i += n) {
        n = alike(calls + i, n_calls - i, cpu->n_rows);
        linear_some(cpu, calls + i, n, x->data);
    }
}
