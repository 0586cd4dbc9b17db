/* backend.h - the operations that a model is made of, on some device.
 *
 * Owns      everything made through it (buffers, weights, KV pools); free them before close.
 * Borrows   weight views until weight_new() returns (it packs a copy), the batch until sync().
 * Thread    one: the thread that opened it (the engine thread, or a tool's main thread).
 * Fails     making things: -ENOMEM, -EINVAL, -ENODEV. Operations are void: a device that fails
 *           keeps the first error, and sync() and read() return it.
 * Cost      operations may be queued; sync() and read() wait.
 *
 * Activations are fp32 tensors of shape (n_tokens, width) in opaque buffers. begin() fixes the
 * batch: n_tokens tokens, each with a position and a sequence, each sequence with a table of KV
 * blocks. Operations on activations cover the batch's tokens, except after gather().
 *
 * Numerics contract (accumulation; tolerance against kernels/ref as ||d||/||y||; whether a
 * token's result is independent of the other tokens, of chunking and of thread count):
 *   embed, gather, add, kv_store     exact (kv rounds to its type);         independent
 *   norm                             fp32;                    1e-5;         independent
 *   linear, dense weights            fp32, fixed k order;     1e-5;         independent
 *   linear, binary-coded weights     integer tables, fp32;    2e-4;         independent
 *   rope                             fp32, angles in fp64;    1e-6;         independent
 *   attention                        fp32 online softmax;     1e-5;         independent
 *   gate, activation                 fp32;                    1e-5;         independent
 * A GPU's products take a token's inputs as fp16 after a power of two of its own: 1e-4 from W x~, 3e-4
 * from W x (kernels/cuda/README.md). Over n devices every product is within the same distance, a
 * token's result is as independent, and a run gives the bits of the last one; other n, other bits. */
#ifndef KERNELS_BACKEND_H
#define KERNELS_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/weights.h"

struct error;
struct backend;
struct buffer; /* n floats on the device */
struct weight; /* a packed matrix, table or vector */
struct kv;     /* a pool of KV blocks for all layers */
struct profile;

enum { BACKEND_KV_BLOCK = KV_BLOCK_TOKENS };

enum weight_use {
    WEIGHT_LINEAR, /* for linear() */
    WEIGHT_TABLE,  /* rows looked up by embed(); dense or BCQ_WHOLE */
    WEIGHT_VECTOR  /* (1, n) dense: norm weights, biases, slopes; kept as fp32 */
};

struct backend_options {
    const char *name; /* "cpu", "cuda", "cuda-emu" (its emulation on the CPU, for tests) or
                          "auto": cuda where there is a device, else cpu; NULL = auto */
    const char
        *level;    /* CPU instruction set: "auto", "ref", "avx2", "avx512", "neon"; NULL = GPTQT_CPU
                          from the environment, else auto */
    int n_threads; /* 0 = every processor this process may use */
    int n_devices; /* that share the model (weight_split); 0 and 1: one. GPUs alone */
};

/* Tokens of one step. Sequences are numbered 0..n_seqs-1 within the batch. */
struct batch {
    int n_tokens, n_seqs;
    const int32_t *tokens;    /* (n_tokens) vocabulary ids */
    const int32_t *positions; /* (n_tokens) from 0 in the sequence */
    const int32_t *seqs;      /* (n_tokens) which sequence */
    const int32_t *blocks;    /* (n_seqs, max_blocks) KV block of each 16 positions */
    int max_blocks;
};

struct kv_spec {
    int n_layers, n_kv_heads, head_dim;
    int n_blocks;    /* of BACKEND_KV_BLOCK tokens, shared by all sequences */
    enum dtype type; /* DTYPE_F16, DTYPE_F32; on the CPU DTYPE_I8 */
};

struct norm_call {
    const struct weight *w, *b; /* b NULL: RMSNorm; both given: LayerNorm */
    int dim;
    float eps;
};

enum activation { ACT_NONE, ACT_RELU, ACT_GELU_TANH };

/* dst = activation(W x + bias), or dst += that. */
struct linear_call {
    struct buffer *dst;            /* (n, w's rows) */
    const struct weight *w, *bias; /* bias may be NULL */
    enum activation act;
    bool accumulate;
};

struct rope_call {
    struct buffer *x; /* (n_tokens, n_heads, head_dim), in place */
    int n_heads, head_dim;
    const double *inv_freq; /* (n_freq) radians per position; pairs (i, i + n_freq) turn */
    int n_freq;             /* head_dim / 2 unless rotation is partial */
    float scale;            /* of cos and sin; 1 unless the scheme says otherwise */
};

struct attention_call {
    struct buffer *dst;     /* (n_tokens, n_heads, head_dim) */
    const struct buffer *q; /* the same shape */
    struct kv *kv;
    int layer, n_heads;
    int window;          /* a query sees this many last positions, itself included; 0 = all */
    float scale;         /* usually 1/sqrt(head_dim) */
    const float *slopes; /* (n_heads) host memory, ALiBi; NULL without */
};

/* Rows of logits in short: as much of them as most draws need. */
enum { BACKEND_TOP = 128, BACKEND_SPAN = 2048, BACKEND_SUM_BITS = 40 };
struct top_call {
    const struct buffer *x; /* (n_rows, width) */
    int n_rows, width;
    const float *temperatures; /* (n_rows) above 0 */
    uint64_t *ranks;           /* (n_rows, BACKEND_TOP) */
    uint64_t *sums;            /* (n_rows, backend_spans(width)) */
};
static inline int backend_spans(int width) { return (width + BACKEND_SPAN - 1) / BACKEND_SPAN; }

/* Of a device with memory of its own, in bytes. */
struct backend_memory {
    size_t total, free;       /* free: what nobody has taken, other programs included */
    size_t weights, kv, work; /* this back end's; work: buffers and working rooms */
};

/* What a back end implements; engine code calls the wrappers below it. */
struct backend_ops {
    void (*close)(struct backend *be);
    int (*buffer_new)(struct backend *be, struct buffer **ret, size_t n, struct error *err);
    void (*buffer_free)(struct backend *be, struct buffer *buffer);
    int (*buffer_read)(struct backend *be, float *dst, const struct buffer *src, size_t offset,
                       size_t n, struct error *err);
    void (*buffer_write)(struct backend *be, struct buffer *dst, size_t offset, const float *src,
                         size_t n);
    int (*weight_new)(struct backend *be, struct weight **ret, enum weight_use use,
                      const struct weight_view *view, struct error *err);
    void (*weight_free)(struct backend *be, struct weight *weight);
    size_t (*weight_bytes)(const struct weight *weight);
    int (*kv_new)(struct backend *be, struct kv **ret, const struct kv_spec *spec,
                  struct error *err);
    void (*kv_free)(struct backend *be, struct kv *kv);

    void (*begin)(struct backend *be, const struct batch *batch);
    void (*embed)(struct backend *be, struct buffer *dst, const struct weight *table, bool by_pos,
                  int offset, float scale, bool accumulate);
    void (*norm)(struct backend *be, struct buffer *dst, const struct buffer *src,
                 const struct norm_call *call);
    void (*linear)(struct backend *be, const struct linear_call *calls, int n_calls,
                   const struct buffer *x);
    void (*rope)(struct backend *be, const struct rope_call *call);
    void (*kv_store)(struct backend *be, struct kv *kv, int layer, const struct buffer *k,
                     const struct buffer *v);
    void (*attention)(struct backend *be, const struct attention_call *call);
    void (*gate)(struct backend *be, struct buffer *gate, const struct buffer *up, int width);
    void (*add)(struct backend *be, struct buffer *dst, const struct buffer *src, int width);
    void (*gather)(struct backend *be, struct buffer *dst, const struct buffer *src,
                   const int32_t *rows, int n_rows, int width);
    int (*sync)(struct backend *be, struct error *err);
    /* NULL where results are the host's anyway: */
    int (*best)(struct backend *be, int32_t *ids, const struct buffer *x, int n_rows, int width,
                struct error *err);
    int (*top)(struct backend *be, const struct top_call *call, struct error *err);
    /* NULL where memory is the host's: */
    void (*memory)(struct backend *be, struct backend_memory *ret);
    void (*rehearse)(struct backend *be, bool on);
};

/* Every back end's struct begins with this. */
struct backend {
    const struct backend_ops *ops;
    const char *name;        /* "cpu" */
    char detail[96];         /* for start-up lines: "avx512, 2 threads" */
    struct profile *profile; /* NULL; or what times the operations, see profile.h */
    char note[256];          /* for start-up lines: why auto took the CPU; "" otherwise */
};

/* -ENODEV names the back ends there are, or says why the device cannot be used; -EINVAL an
 * unknown level, or more devices than there are. */
int backend_open(struct backend **ret, const struct backend_options *options, struct error *err);
void backend_close(struct backend *be); /* NULL is allowed */

static inline int backend_buffer_new(struct backend *be, struct buffer **ret, size_t n,
                                     struct error *err) {
    return be->ops->buffer_new(be, ret, n, err);
}
static inline void backend_buffer_free(struct backend *be, struct buffer *buffer) {
    if (buffer) be->ops->buffer_free(be, buffer);
}
/* Waits for what was queued; dst: (n). */
static inline int backend_buffer_read(struct backend *be, float *dst, const struct buffer *src,
                                      size_t offset, size_t n, struct error *err) {
    return be->ops->buffer_read(be, dst, src, offset, n, err);
}
static inline void backend_buffer_write(struct backend *be, struct buffer *dst, size_t offset,
                                        const float *src, size_t n) {
    be->ops->buffer_write(be, dst, offset, src, n);
}
static inline int backend_weight_new(struct backend *be, struct weight **ret, enum weight_use use,
                                     const struct weight_view *view, struct error *err) {
    return be->ops->weight_new(be, ret, use, view, err);
}
static inline void backend_weight_free(struct backend *be, struct weight *weight) {
    if (weight) be->ops->weight_free(be, weight);
}
/* Device memory of the packed form. */
static inline size_t backend_weight_bytes(struct backend *be, const struct weight *weight) {
    return be->ops->weight_bytes(weight);
}
static inline int backend_kv_new(struct backend *be, struct kv **ret, const struct kv_spec *spec,
                                 struct error *err) {
    return be->ops->kv_new(be, ret, spec, err);
}
static inline void backend_kv_free(struct backend *be, struct kv *kv) {
    if (kv) be->ops->kv_free(be, kv);
}

/* Starts a step: operations up to the next begin() are about these tokens. Ids must lie in the
 * embedding table, blocks in the pool; the caller has checked. */
static inline void backend_begin(struct backend *be, const struct batch *batch) {
    be->ops->begin(be, batch);
}
/* dst (n_tokens, cols) = or += scale * table[token or position + offset]. */
static inline void backend_embed(struct backend *be, struct buffer *dst, const struct weight *table,
                                 bool by_pos, int offset, float scale, bool accumulate) {
    be->ops->embed(be, dst, table, by_pos, offset, scale, accumulate);
}
/* dst may be src. */
static inline void backend_norm(struct backend *be, struct buffer *dst, const struct buffer *src,
                                const struct norm_call *call) {
    be->ops->norm(be, dst, src, call);
}
/* Several matrices that share the input x: tables are built once, the threads forked once. */
static inline void backend_linear(struct backend *be, const struct linear_call *calls, int n_calls,
                                  const struct buffer *x) {
    be->ops->linear(be, calls, n_calls, x);
}
static inline void backend_rope(struct backend *be, const struct rope_call *call) {
    be->ops->rope(be, call);
}
/* k, v: (n_tokens, n_kv_heads, head_dim), written at each token's position. */
static inline void backend_kv_store(struct backend *be, struct kv *kv, int layer,
                                    const struct buffer *k, const struct buffer *v) {
    be->ops->kv_store(be, kv, layer, k, v);
}
/* Each token attends to the positions of its sequence up to its own, which kv_store() filled. */
static inline void backend_attention(struct backend *be, const struct attention_call *call) {
    be->ops->attention(be, call);
}
/* gate = silu(gate) * up, both (n_tokens, width). */
static inline void backend_gate(struct backend *be, struct buffer *gate, const struct buffer *up,
                                int width) {
    be->ops->gate(be, gate, up, width);
}
static inline void backend_add(struct backend *be, struct buffer *dst, const struct buffer *src,
                               int width) {
    be->ops->add(be, dst, src, width);
}
/* dst[i] = src[rows[i]]; norm() and linear() then cover n_rows rows instead of the batch's
 * tokens, until the next begin(). */
static inline void backend_gather(struct backend *be, struct buffer *dst, const struct buffer *src,
                                  const int32_t *rows, int n_rows, int width) {
    be->ops->gather(be, dst, src, rows, n_rows, width);
}
/* Waits until everything queued is done. */
static inline int backend_sync(struct backend *be, struct error *err) {
    return be->ops->sync(be, err);
}
/* ids[i]: the column of the largest of row i of x (n_rows, width), the lowest among equals. NaN counts
 * as minus infinity, plus infinity as the largest float. Waits. Only where ops->best is there. */
static inline int backend_best(struct backend *be, int32_t *ids, const struct buffer *x, int n_rows,
                               int width, struct error *err) {
    return be->ops->best(be, ids, x, n_rows, width, err);
}
/* ranks: the best of each row, best first, as numbers: the upper half has the order of the logits (a float's
 * bits, all turned over where it is negative, else the sign alone; NaN, infinity and equals as in
 * best()), the lower is ~column; zeros where there are no more columns. sums: e^((x - most) / temperature) of each
 * BACKEND_SPAN columns in units of 2^-BACKEND_SUM_BITS, whole numbers, so that every order of addition gives the
 * same; of up to 2^20 columns, any run of spans is off by less than 2^-17 of all together. Waits; x stays. Only where ops->top is there. */
static inline int backend_top(struct backend *be, const struct top_call *call, struct error *err) {
    return be->ops->top(be, call, err);
}
/* False where memory is the host's. */
static inline bool backend_get_memory(struct backend *be, struct backend_memory *ret) {
    if (be->ops->memory) be->ops->memory(be, ret);
    return be->ops->memory != NULL;
}
/* While on, operations take the memory that they need and compute nothing, so that no later step
 * of such a size has to ask the device for any. */
static inline void backend_rehearse(struct backend *be, bool on) {
    if (be->ops->rehearse) be->ops->rehearse(be, on);
}

#endif
