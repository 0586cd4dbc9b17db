#include <arm_neon.h>
#include <math.h>
#include <string.h>

#include "kernels/float16.h"
#include "kernels/neon/math.h"
#include "kernels/neon/neon.h"
#include "kernels/ops.h"

/* A block of 16 positions at a time: scores of all its positions for every query head; their
 * softmax terms; then the weighted sum of values. Each load of K and V serves up to four heads. A
 * head's arithmetic does not depend on the heads beside it. */
enum { LANES = 4, HEADS = 4, MAX_REP = 8 };

#define INLINE static inline __attribute__((always_inline))

/* One block as seen by a query: positions [low, high) of its 16 count. */
struct block {
    const char *k, *v;
    int low, high, offset; /* offset: position of slot 0 less the query's */
};

struct state {
    float top, total; /* the largest score so far; sum of exp(score - top) */
};

static size_t padded(int head_dim) { return ((size_t)head_dim + LANES - 1) / LANES * LANES; }

static size_t attention_scratch(int n_rep, int head_dim) {
    return (size_t)n_rep * padded(head_dim);
}

/* Elements i.. of a row, as many as there are of four; the other lanes 0. */
INLINE float32x4_t load(enum dtype type, const char *row, int i, int dim) {
    if (type == DTYPE_F32)
        return neon_load((const float *)(const void *)row + i, (size_t)(dim - i));
    const uint16_t *h = (const uint16_t *)(const void *)row + i;
    uint16_t some[LANES] = {0};
    if (dim - i < LANES) h = memcpy(some, h, (size_t)(dim - i) * sizeof *h);
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(h)));
}

/* score[h][slot] = q_h . k_slot */
INLINE void dot(float score[][KV_BLOCK_TOKENS], enum dtype type, const struct block *b,
                const float *q, int dim, int n_heads) {
    size_t row_bytes = (size_t)dim * dtype_size(type);
    for (int j = b->low; j < b->high; j++) {
        const char *row = b->k + (size_t)j * row_bytes;
        float32x4_t sum[HEADS];
        for (int h = 0; h < n_heads; h++) sum[h] = vdupq_n_f32(0);
        for (int i = 0; i < dim; i += LANES) {
            float32x4_t k = load(type, row, i, dim);
            for (int h = 0; h < n_heads; h++)
                sum[h] = vfmaq_f32(sum[h], k, neon_load(q + h * dim + i, (size_t)(dim - i)));
        }
        for (int h = 0; h < n_heads; h++) score[h][j] = vaddvq_f32(sum[h]);
    }
}

/* Turns a head's scores into softmax terms, 0 where nothing is seen; returns what older sums
 * shrink by. */
static float softmax(float *p, struct state *s, const struct block *b, float scale, float slope) {
    float top = s->top, total = 0;
    for (int j = b->low; j < b->high; j++) {
        p[j] = p[j] * scale + slope * (float)(j + b->offset);
        if (p[j] > top) top = p[j];
    }
    for (int j = 0; j < KV_BLOCK_TOKENS; j++)
        if (j < b->low || j >= b->high) p[j] = -INFINITY;
    for (int j = 0; j < KV_BLOCK_TOKENS; j += LANES) {
        float32x4_t e = neon_exp(vsubq_f32(vld1q_f32(p + j), vdupq_n_f32(top)));
        vst1q_f32(p + j, e);
    }
    /* A slot that is not seen counts nothing even if a score was NaN or infinite. */
    for (int j = b->low; j < b->high; j++) total += p[j];
    float keep = vgetq_lane_f32(neon_exp(vdupq_n_f32(s->top - top)), 0);
    s->total = s->total * keep + total;
    s->top = top;
    return keep;
}

/* sum[h] = keep[h] * sum[h] + the block's values weighted by p[h]. */
INLINE void gather(float *sum, size_t ld, enum dtype type, const struct block *b,
                   float p[][KV_BLOCK_TOKENS], const float *keep, int dim, int n_heads) {
    size_t row_bytes = (size_t)dim * dtype_size(type);
    for (int i = 0; i < dim; i += LANES) {
        float32x4_t acc[HEADS];
        for (int h = 0; h < n_heads; h++)
            acc[h] = vmulq_n_f32(vld1q_f32(sum + (size_t)h * ld + i), keep[h]);
        for (int j = b->low; j < b->high; j++) {
            float32x4_t v = load(type, b->v + (size_t)j * row_bytes, i, dim);
            for (int h = 0; h < n_heads; h++) acc[h] = vfmaq_n_f32(acc[h], v, p[h][j]);
        }
        for (int h = 0; h < n_heads; h++) vst1q_f32(sum + (size_t)h * ld + i, acc[h]);
    }
}

INLINE void attend_heads(float *sum, struct state *s, enum dtype type, const struct block *b,
                         const float *q, const float *slopes, const struct attn_call *c,
                         int n_heads) {
    int dim = c->kv->head_dim;
    float p[HEADS][KV_BLOCK_TOKENS], keep[HEADS];
    dot(p, type, b, q, dim, n_heads);
    for (int h = 0; h < n_heads; h++)
        keep[h] = softmax(p[h], &s[h], b, c->scale, slopes ? slopes[h] : 0);
    gather(sum, padded(dim), type, b, p, keep, dim, n_heads);
}

INLINE void attend_block(float *sum, struct state *s, enum dtype type, const struct block *b,
                         const float *q, const struct attn_call *c) {
    size_t dim = (size_t)c->kv->head_dim;
    for (int h = 0; h < c->n_rep; h += HEADS) {
        float *to = sum + (size_t)h * padded(c->kv->head_dim);
        const float *from = q + (size_t)h * dim, *slopes = c->slopes ? c->slopes + h : NULL;
        switch (c->n_rep - h) {
        case 1:
            attend_heads(to, s + h, type, b, from, slopes, c, 1);
            break;
        case 2:
            attend_heads(to, s + h, type, b, from, slopes, c, 2);
            break;
        case 3:
            attend_heads(to, s + h, type, b, from, slopes, c, 3);
            break;
        default:
            attend_heads(to, s + h, type, b, from, slopes, c, 4);
            break;
        }
    }
}

static void attend(float *out, const float *q, const struct attn_call *c, float *sum) {
    size_t dim = (size_t)c->kv->head_dim, ld = padded(c->kv->head_dim);
    size_t plane = KV_BLOCK_TOKENS * dim * dtype_size(c->kv->type);
    struct state s[MAX_REP];
    for (int h = 0; h < c->n_rep; h++) s[h] = (struct state){-INFINITY, 0};
    memset(sum, 0, (size_t)c->n_rep * ld * sizeof *sum);
    for (int i = c->first / KV_BLOCK_TOKENS; i <= c->pos / KV_BLOCK_TOKENS; i++) {
        int p0 = i * KV_BLOCK_TOKENS, past = c->pos + 1 - p0;
        size_t at = (size_t)c->blocks[i] * (size_t)c->kv->n_kv_heads + (size_t)c->kv_head;
        struct block b = {.k = (const char *)c->kv->base + 2 * at * plane};
        b.v = b.k + plane;
        b.low = c->first > p0 ? c->first - p0 : 0;
        b.high = past < KV_BLOCK_TOKENS ? past : KV_BLOCK_TOKENS;
        b.offset = p0 - c->pos;
        if (c->kv->type == DTYPE_F16)
            attend_block(sum, s, DTYPE_F16, &b, q, c);
        else
            attend_block(sum, s, DTYPE_F32, &b, q, c);
    }
    for (int h = 0; h < c->n_rep; h++)
        for (size_t d = 0; d < dim; d++)
            out[(size_t)h * dim + d] = sum[(size_t)h * ld + d] / s[h].total;
}

static void attention(float *out, const float *q, const struct attn_call *call, float *scratch) {
    size_t dim = (size_t)call->kv->head_dim;
    for (int h = 0; h < call->n_rep; h += MAX_REP) {
        struct attn_call some = *call;
        some.n_rep = call->n_rep - h < MAX_REP ? call->n_rep - h : MAX_REP;
        if (call->slopes) some.slopes += h;
        attend(out + (size_t)h * dim, q + (size_t)h * dim, &some, scratch);
    }
}

static void store_row(const struct kv_layer *kv, size_t at, const float *src) {
    size_t dim = (size_t)kv->head_dim, d = 0;
    if (kv->type == DTYPE_F32) {
        memcpy((float *)kv->base + at, src, dim * sizeof *src);
        return;
    }
    uint16_t *dst = (uint16_t *)kv->base + at;
    for (; d + LANES <= dim; d += LANES)
        vst1_u16(dst + d, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(src + d))));
    for (; d < dim; d++) dst[d] = f32_to_f16(src[d]);
}

static void kv_store(const struct kv_layer *kv, int block, int slot, const float *k,
                     const float *v) {
    size_t dim = (size_t)kv->head_dim, plane = KV_BLOCK_TOKENS * dim;
    for (int h = 0; h < kv->n_kv_heads; h++) {
        size_t at = ((size_t)block * (size_t)kv->n_kv_heads + (size_t)h) * 2 * plane;
        at += (size_t)slot * dim;
        store_row(kv, at, k + (size_t)h * dim);
        store_row(kv, at + plane, v + (size_t)h * dim);
    }
}

void neon_attention_init(struct ops *ops) {
    ops->float_kv.attention_scratch = attention_scratch;
    ops->float_kv.attention = attention;
    ops->float_kv.kv_store = kv_store;
}
