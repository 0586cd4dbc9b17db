/* ops.h - one function type per CPU operation, and the table of them that a processor gets.
 *
 * Owns      nothing; every buffer is the caller's.
 * Borrows   arguments during the call.
 * Thread    any; functions keep no state, disjoint parts may run at once.
 * Fails     never; sizes were vetted when weights and buffers were made.
 * Cost      stated per operation in kernels/README.md.
 *
 * ops_init() fills the table with kernels/ref and lets each instruction set override it, weak to
 * strong. Numerics, for every entry of every level: results depend on neither the number of
 * tokens in a call, nor how rows, tokens or parts are split between calls. Between levels they
 * differ within the tolerance stated here. NaN or Inf in an input gives NaN, Inf or a finite
 * number, never a fault. Activations are fp32, row-major, (n_tokens, ld). */
#ifndef KERNELS_OPS_H
#define KERNELS_OPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/weights.h"

/* Where part begins of what act_pack() below does for n tokens, and of their spans one token after the
 * other. */
static inline int bcq_first_token(int n, int part, int n_parts) {
    return (int)((int64_t)n * part / n_parts);
}
static inline int64_t bcq_first_span(int n, int spans, int part, int n_parts) {
    if (n_parts <= n) return (int64_t)spans * bcq_first_token(n, part, n_parts);
    return (int64_t)spans * n * part / n_parts;
}

/* Binary-coded matrix times activations. mul() follows act_pack() of the same x; a call to
 * pack(), act_pack() or mul() covers a part, so that threads can share the work.
 * Tolerance: ||y - y64|| <= 2e-4 ||y64|| against fp64 on the stored parameters for x without
 * extreme outliers, and |error| <= 2e-4 * sum |x| * largest |alpha_1| + .. + |beta| of the row;
 * with act_bits below 16, of the rounded x. Inputs that are all just below half a step of rounding
 * beside an outlier, and of one sign, can lose (2e-3 + 1e-6 * cols) in place of 2e-4. An input or a
 * sum of 16 that is at most 1e-30 may count as zero. */
struct bcq_ops {
    int row_block; /* rows handled as a unit; ranges below count such blocks */

    /* Bytes of the packed form, 64-byte aligned memory; and the repacking of blocks [b0, b1).
     * dst is zeroed memory. */
    size_t (*pack_bytes)(const struct bcq_spec *w);
    void (*pack)(void *dst, const struct bcq_view *w, int b0, int b1);

    /* What mul() needs of x: tables or quantized activations for n tokens, plus group sums. w: of
     * any matrix that is then multiplied by them; all have its kind, cols, group, widths of q and p
     * and act_form(), which is one for all bits where it is NULL. act is 64-byte aligned. Parts
     * 0..n_parts-1 together cover everything; where n_parts <= n, part i has the tokens from
     * bcq_first_token(n, i, n_parts) to the next part's first and reads no others. act_bits: 16 for
     * x as it is; 8 or 4 rounds x to whole numbers as kernels/rounding.h says, the same ones at every
     * level, whose sums over a plane are exact. */
    size_t (*act_bytes)(int act_bits, int cols, int n);
    int (*act_form)(const struct bcq_spec *w, int act_bits, int n);
    void (*act_pack)(void *act, int act_bits, const struct bcq_spec *w, const float *x, size_t ldx,
                     int n, int part, int n_parts);

    /* y[t*ldy + r] = (W x_t)[r] for the rows of blocks [b0, b1); rows past w->rows are not
     * written. packed is pack()'s whole result, act was packed with the same act_bits. */
    void (*mul)(float *y, size_t ldy, const void *packed, const struct bcq_spec *w, const void *act,
                int act_bits, int n, int b0, int b1);

    /* Into how many equal parts, 1, 2 or 4, a block can be cut for n tokens; and mul() of one of n_parts
     * parts of block b. NULL: 1, and there is no mul_part(). */
    int (*block_parts)(const struct bcq_spec *w, int act_bits, int n);
    void (*mul_part)(float *y, size_t ldy, const void *packed, const struct bcq_spec *w,
                     const void *act, int act_bits, int n, int b, int part, int n_parts);
};

/* Dense matrix times activations, fp32 accumulation over k in one fixed order per element.
 * Tolerance: |y - y64| <= 2e-6 * sqrt(cols) * max|w| * max|x| * sqrt(cols). */
struct dense_ops {
    int row_block;
    size_t (*pack_bytes)(enum dtype type, int rows, int cols);
    void (*pack)(void *dst, enum dtype type, const void *src, int rows, int cols, int b0, int b1);
    void (*mul)(float *y, size_t ldy, const void *packed, enum dtype type, int rows, int cols,
                const float *x, size_t ldx, int n, int b0, int b1);
};

/* One layer's keys and values. Block b, KV head h, K (v = 0) or V (v = 1) are at
 * base + ((b*n_kv_heads + h)*2 + v) * kv_plane_bytes(). An element of DTYPE_I8 is its whole number
 * times the scale of its head and position: the largest magnitude there / 127, NaN where something
 * is not finite. */
struct kv_layer {
    void *base;
    enum dtype type; /* F32, F16 or I8 */
    int n_kv_heads, head_dim;
};

/* One query token against the context of its sequence, for one KV head. */
struct attn_call {
    const struct kv_layer *kv;
    const int32_t *blocks; /* the sequence's block table: position p is in blocks[p/16] */
    int kv_head;
    int n_rep;           /* query heads that share the KV head */
    int pos;             /* the query's position; it sees positions first..pos */
    int first;           /* 0, or the start of a sliding window */
    float scale;         /* of q.k */
    const float *slopes; /* (n_rep) ALiBi slopes, added as slope * (j - pos); NULL without */
};

/* Attention over one kind of stored keys and values. */
struct attention_ops {
    /* Scratch floats that attention() wants for n_rep heads of head_dim. */
    size_t (*attention_scratch)(int n_rep, int head_dim);
    /* out, q: (n_rep, head_dim). Online softmax over blocks in order: the result depends on
     * first, pos and the stored values alone. Tolerance 2e-6 of max|v|. */
    void (*attention)(float *out, const float *q, const struct attn_call *call, float *scratch);
    /* The same of n tokens at positions call->pos.., bit for bit as attention() of each; rows of q
     * and out are ld floats apart. A token sees the last `window` positions, all if that is 0;
     * call->first is not used. NULL: not faster. */
    size_t (*many_scratch)(int n_rep, int head_dim);
    void (*attention_many)(float *out, const float *q, size_t ld, int n,
                           const struct attn_call *call, int window, float *scratch);
    /* Puts one token's k or v row (n_kv_heads, head_dim) at position slot of its block. */
    void (*kv_store)(const struct kv_layer *kv, int block, int slot, const float *k,
                     const float *v);
};

/* A rotation of kernels/rotation.h, made ready: B and its transpose are (order, order). */
struct rotate_plan {
    int n, order, length; /* n = order * length */
    float scale;          /* 1 / sqrt(length) */
    const float *basis, *transposed;
    const uint32_t *signs; /* (ceil(n / 32)) */
};

struct ops {
    /* "ref", "avx2", "avx512", "amx", "neon": the strongest set that filled anything. */
    const char *level;
    struct bcq_ops bcq;
    struct bcq_ops shift; /* for blocks that pow2_ready() approves and act_bits below 16, without
                             products by weights; zeroed where bcq is faster with them */
    struct bcq_ops whole; /* for BCQ_WHOLE; act_bits is 16. x counts in steps of 1/32639 of the
                             largest of each 32 inputs or less, where the level is not ref */
    struct dense_ops dense;

    /* y[t*ldy + r] += (S x_t)[r] for rows r0..r1-1 of outliers S in the form of kernels/sell.h; r0
     * is a multiple of SELL_ROWS. Sums of a row in fp32 in the order of its entries, then added:
     * |y - y64| <= 2e-7 * (entries of the row + 2) * (|y| before + sum of |value x|). */
    void (*outliers_add)(float *y, size_t ldy, const void *packed, const float *x, size_t ldx,
                         int n, int r0, int r1);

    /* x = V x or, back, V^T x; tmp: (n). ||x - x64|| <= 1e-6 * ||x||. */
    void (*rotate)(float *x, float *tmp, const struct rotate_plan *plan, bool back);

    struct attention_ops float_kv; /* over F32 and F16 */
    struct attention_ops int8_kv;  /* over I8 */

    /* dst may be src. w, b: (dim). RMSNorm: x * w / sqrt(mean(x^2) + eps). */
    void (*rmsnorm)(float *dst, const float *src, const float *w, int dim, float eps);
    void (*layernorm)(float *dst, const float *src, const float *w, const float *b, int dim,
                      float eps);
    /* Rotates pairs (i, i + half) of each head in place; cos, sin: (half). Pairs past
     * 2*half stay. x: (n_heads, head_dim). */
    void (*rope)(float *x, int n_heads, int head_dim, int half, const float *cos, const float *sin);
    void (*silu_mul)(float *gate, const float *up, size_t n); /* gate = silu(gate) * up */
    void (*relu)(float *x, size_t n);
    void (*gelu_tanh)(float *x, size_t n);
    void (*add)(float *dst, const float *src, size_t n);
    /* dst: (cols) fp32 of one row of a dense table. */
    void (*widen)(float *dst, enum dtype type, const void *src, size_t n);
};

/* features: bits of kernels/cpu/features.h. */
void ops_init(struct ops *ops, unsigned features);

/* Each level's overrides; call only on a processor that has it (see features.h). */
void ops_init_ref(struct ops *ops);
void ops_init_avx2(struct ops *ops);
void ops_init_avx512(struct ops *ops);
void ops_init_amx(struct ops *ops); /* on top of AVX-512 */
void ops_init_neon(struct ops *ops);

#endif
