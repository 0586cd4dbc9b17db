/* cpu.h - the back end that computes on the processor's own threads.
 *
 * Owns      its thread pool, the table of operations, scratch memory, all that is made through it.
 * Borrows   the batch between begin() and sync().
 * Thread    one, as kernels/backend.h says; it forks to its pool inside an operation.
 * Fails     cpu_open() with -EINVAL, -ENOTSUP, -ENOMEM, -EAGAIN.
 * Cost      an operation is done when it returns, but for those that treat each row alone: they wait
 *           for the next one of another kind.
 *
 * The structs are shared by the files of kernels/cpu alone. Scratch grows when weights and pools
 * are made; within a step only the first rope() of a batch may need memory, and keeps -ENOMEM
 * for sync(). Work is cut by rows, tokens and heads, never inside a sum, so results do not depend
 * on the number of threads. */
#ifndef KERNELS_CPU_CPU_H
#define KERNELS_CPU_CPU_H

#include "kernels/backend.h"
#include "kernels/cpu/memory.h"
#include "kernels/error.h"
#include "kernels/ops.h"

struct cpu;
struct cpu_basis;
struct pool;
struct rotation_view;

enum {
    CPU_SLICE = 128,         /* tokens of linear() at a time: their tables stay in the caches */
    CPU_TMP = 1 << 16,       /* floats of a thread's scratch; >= CPU_SLICE * any row_block */
    CPU_MAX_REP = 8,         /* query heads in one call of ops.attention */
    CPU_ATTENTION_ROWS = 96, /* query heads times tokens of one ops.attention_many() */
    CPU_CHUNKS = 8,          /* chunks of work for each thread */
    CPU_ANGLES = 4,          /* rotation schemes that a batch keeps angles for */
    CPU_LATER = 8,           /* operations on rows that wait */
    CPU_LATER_BYTES = 64     /* of an argument of theirs */
};

struct buffer {
    size_t n;
    float *data;
};

/* The rotations between which a matrix is stored. */
struct cpu_rotation {
    struct rotate_plan in, out; /* V, U; out.n 0: there is no U */
    uint32_t signs[];
};

struct weight {
    bool is_bcq;
    enum dtype type;           /* when dense */
    struct bcq_spec spec;      /* when binary-coded */
    struct bcq_view block;     /* of a TABLE, likewise: data */
    int act_bits;              /* of its inputs when binary-coded: 16, 8 or 4 */
    const struct bcq_ops *bcq; /* the operations that it is packed for, likewise */
    int rows, cols;
    size_t bytes;
    void *data;     /* packed (LINEAR), row-major or a block (TABLE), fp32 (VECTOR) */
    void *outliers; /* packed by kernels/sell.h; NULL without */
    struct cpu_rotation *rotation; /* NULL without */
};

struct kv {
    struct kv_spec spec;
    size_t layer_bytes;
    char *data;
};

/* cos and sin of a batch's positions under one scheme: (n_tokens, 2, n_freq). */
struct cpu_angles {
    const double *inv_freq; /* NULL: empty */
    int n_freq;
    float scale;
    size_t n; /* floats allocated */
    float *data;
};

/* The last job whose inputs a thread has packed for itself, alone in its cache line. */
struct cpu_packed {
    _Alignas(64) uint64_t job;
};

/* Covers rows [row0, row1) of an operation that treats each row alone. */
typedef void cpu_rows(struct cpu *cpu, const void *arg, int thread, int row0, int row1);

struct cpu_later {
    cpu_rows *fn;
    size_t cost; /* as for cpu_for_rows() */
    _Alignas(16) char arg[CPU_LATER_BYTES];
};

struct cpu {
    struct backend base;
    struct ops ops;
    struct pool *pool;
    struct memory memory;
    int rc; /* the first error of a step, and its text */
    struct error failure;

    struct batch batch;
    int n_rows; /* rows that activations have: n_tokens, or what gather() left */
    struct cpu_angles angles[CPU_ANGLES];
    int next_angles;
    struct cpu_later later[CPU_LATER];
    int n_later, later_rows; /* rows: of all of them */

    float *tmp; /* (threads, CPU_TMP) */
    void *act;  /* of a slice, for the widest weight */
    size_t act_bytes;
    uint64_t n_jobs;           /* slices that linear() has begun */
    struct cpu_packed *packed; /* (threads) */
    struct cpu_basis *bases;   /* of rotations, see rotate.c */
    void *turned;              /* a slice of rotated inputs, for the widest weight */
    size_t turned_bytes;
    void *unturned; /* a slice of products that are to be rotated back and added */
    size_t unturned_bytes;
    float *attention; /* (threads, attention_floats) */
    size_t attention_floats;
};

int cpu_open(struct backend **ret, const char *level, int n_threads, struct error *err);

/* Covers rows [0, n) by calls of fn, on all threads if n * cost is worth it, after all that waits.
 * cost: floats touched for a row, or what takes as long. */
void cpu_for_rows(struct cpu *cpu, int n, size_t cost, cpu_rows *fn, const void *arg);

/* The same of an operation that may wait, with a copy of arg. What comes next does them together: one
 * fork for all, and the thread that packs a row's inputs has just made them. */
void cpu_rows_later(struct cpu *cpu, int n, size_t cost, cpu_rows *fn, const void *arg,
                    size_t arg_bytes);
/* Rows [row0, row1) of what waits; who has done all rows sets n_later to 0. */
void cpu_run_later(struct cpu *cpu, int thread, int row0, int row1);
/* All that waits, now. */
void cpu_flush(struct cpu *cpu);

/* Freed by memory_free(). -ENOMEM. */
int cpu_rotation_new(struct cpu *cpu, struct cpu_rotation **ret, const struct rotation_view *v);
/* Whether two (NULL: none) turn inputs alike. */
bool cpu_rotation_shared(const struct cpu_rotation *a, const struct cpu_rotation *b);
/* V x of n rows of at most a slice, until the next call. */
const float *cpu_rotate_inputs(struct cpu *cpu, const struct cpu_rotation *r, const float *x,
                               int n);

/* What a turn does in a job of `whole` chunks and of `rest` more that are cut into parts, where the number
 * of threads divides whole and rest * cut: each thread has as many of both, kernels/cpu/pool.h tells
 * which turns are its own. */
struct cpu_turn {
    int chunk, part, n_parts;
};
struct cpu_turn cpu_turn(const struct cpu *cpu, int turn, int whole, int rest, int cut);

/* Replaces *p by at least want bytes of zeros; -ENOMEM leaves it as it was. */
int cpu_grow(struct cpu *cpu, void **p, size_t *have, size_t want);

/* The operations of the files beside this one, as in struct backend_ops. */
int cpu_weight_new(struct backend *be, struct weight **ret, enum weight_use use,
                   const struct weight_view *view, struct error *err);
void cpu_weight_free(struct backend *be, struct weight *weight);
size_t cpu_weight_bytes(const struct weight *weight);
void cpu_embed(struct backend *be, struct buffer *dst, const struct weight *table, bool by_pos,
               int offset, float scale, bool accumulate);
void cpu_linear(struct backend *be, const struct linear_call *calls, int n_calls,
                const struct buffer *x);
int cpu_kv_new(struct backend *be, struct kv **ret, const struct kv_spec *spec, struct error *err);
void cpu_kv_free(struct backend *be, struct kv *kv);
void cpu_kv_store(struct backend *be, struct kv *kv, int layer, const struct buffer *k,
                  const struct buffer *v);
void cpu_attention(struct backend *be, const struct attention_call *call);
void cpu_rope(struct backend *be, const struct rope_call *call);

#endif
