#include "kernels/neon/attention.h"

#include <math.h>

#include "kernels/float16.h"
#include "kernels/neon/neon.h"

/* One query. Each load of K and V serves up to four heads. */

/* One block as seen by the query. */
struct block {
    const char *k, *v;
    struct neon_seen seen;
    struct neon_scales scales;
};

static size_t padded(int head_dim) {
    return ((size_t)head_dim + NEON_LANES - 1) / NEON_LANES * NEON_LANES;
}

static size_t attention_scratch(int n_rep, int head_dim) {
    return (size_t)n_rep * padded(head_dim);
}

/* score[h][slot] = q_h . k_slot */
NEON_INLINE void dot(float score[][KV_BLOCK_TOKENS], enum dtype type, const struct block *b,
                     const float *q, int dim, int n_heads) {
    size_t row_bytes = (size_t)dim * dtype_size(type);
    for (int j = b->seen.low; j < b->seen.high; j++) {
        const char *row = b->k + (size_t)j * row_bytes;
        float32x4_t sum[NEON_ROWS];
        for (int h = 0; h < n_heads; h++) sum[h] = vdupq_n_f32(0);
        for (int i = 0; i < dim; i += NEON_LANES) {
            float32x4_t k = neon_kv_load(type, row, i, dim);
            for (int h = 0; h < n_heads; h++)
                sum[h] = vfmaq_f32(sum[h], k, neon_load(q + h * dim + i, (size_t)(dim - i)));
        }
        for (int h = 0; h < n_heads; h++) score[h][j] = vaddvq_f32(sum[h]);
    }
}

/* sum[h] = keep[h] * sum[h] + the block's values weighted by p[h]. */
NEON_INLINE void gather(float *sum, size_t ld, enum dtype type, const struct block *b,
                        float p[][KV_BLOCK_TOKENS], const float *keep, int dim, int n_heads) {
    size_t row_bytes = (size_t)dim * dtype_size(type);
    for (int i = 0; i < dim; i += NEON_LANES) {
        float32x4_t acc[NEON_ROWS];
        for (int h = 0; h < n_heads; h++)
            acc[h] = vmulq_n_f32(vld1q_f32(sum + (size_t)h * ld + i), keep[h]);
        for (int j = b->seen.low; j < b->seen.high; j++) {
            float32x4_t v = neon_kv_load(type, b->v + (size_t)j * row_bytes, i, dim);
            for (int h = 0; h < n_heads; h++) acc[h] = vfmaq_n_f32(acc[h], v, p[h][j]);
        }
        for (int h = 0; h < n_heads; h++) vst1q_f32(sum + (size_t)h * ld + i, acc[h]);
    }
}

NEON_INLINE void attend_heads(float *sum, struct neon_softmax *s, enum dtype type,
                              const struct block *b, const float *q, const float *slopes, int dim,
                              int n_heads) {
    const struct neon_seen seen[NEON_ROWS] = {b->seen, b->seen, b->seen, b->seen};
    struct neon_scales scales = b->scales;
    float p[NEON_ROWS][KV_BLOCK_TOKENS] = {{0}}, keep[NEON_ROWS];
    scales.slopes = slopes;
    dot(p, type, b, q, dim, n_heads);
    neon_softmax(n_heads, p, keep, s, seen, &scales);
    gather(sum, padded(dim), type, b, p, keep, dim, n_heads);
}

NEON_INLINE void attend_block(float *sum, struct neon_softmax *s, enum dtype type,
                              const struct block *b, const float *q, const struct attn_call *c) {
    const int dim = c->kv->head_dim;
    for (int h = 0; h < c->n_rep; h += NEON_ROWS) {
        float *to = sum + (size_t)h * padded(dim);
        const float *from = q + h * dim, *slopes = c->slopes ? c->slopes + h : NULL;
        switch (c->n_rep - h) {
        case 1:
            attend_heads(to, s + h, type, b, from, slopes, dim, 1);
            break;
        case 2:
            attend_heads(to, s + h, type, b, from, slopes, dim, 2);
            break;
        case 3:
            attend_heads(to, s + h, type, b, from, slopes, dim, 3);
            break;
        default:
            attend_heads(to, s + h, type, b, from, slopes, dim, 4);
            break;
        }
    }
}

/* Block i of the table. */
static void look_at(struct block *b, const struct attn_call *c, int i, size_t plane) {
    int p0 = i * KV_BLOCK_TOKENS, past = c->pos + 1 - p0, from = c->first - p0;
    b->k = neon_keys(c, i, plane);
    b->v = b->k + plane;
    b->seen = (struct neon_seen){from > 0 ? from : 0,
                                 past < KV_BLOCK_TOKENS ? past : KV_BLOCK_TOKENS, p0 - c->pos};
    b->scales = (struct neon_scales){neon_kv_scales(c->kv, b->k), neon_kv_scales(c->kv, b->v),
                                     c->scale, NULL};
}

static void attend(float *out, const float *q, const struct attn_call *c, float *sum) {
    size_t dim = (size_t)c->kv->head_dim, ld = padded(c->kv->head_dim);
    size_t plane = kv_plane_bytes(c->kv->type, c->kv->head_dim);
    struct neon_softmax s[NEON_MAX_REP];
    struct block b;
    for (int h = 0; h < c->n_rep; h++) s[h] = (struct neon_softmax){vdupq_n_f32(0), -INFINITY};
    memset(sum, 0, (size_t)c->n_rep * ld * sizeof *sum);
    for (int i = c->first / KV_BLOCK_TOKENS; i <= c->pos / KV_BLOCK_TOKENS; i++) {
        look_at(&b, c, i, plane);
        if (c->kv->type == DTYPE_F16)
            attend_block(sum, s, DTYPE_F16, &b, q, c);
        else if (c->kv->type == DTYPE_I8)
            attend_block(sum, s, DTYPE_I8, &b, q, c);
        else
            attend_block(sum, s, DTYPE_F32, &b, q, c);
    }
    for (int h = 0; h < c->n_rep; h++)
        neon_attention_end(out + (size_t)h * dim, sum + (size_t)h * ld, &s[h], (int)dim);
}

static void attention(float *out, const float *q, const struct attn_call *call, float *scratch) {
    size_t dim = (size_t)call->kv->head_dim;
    for (int h = 0; h < call->n_rep; h += NEON_MAX_REP) {
        struct attn_call some = *call;
        some.n_rep = call->n_rep - h < NEON_MAX_REP ? call->n_rep - h : NEON_MAX_REP;
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
    for (; d + NEON_LANES <= dim; d += NEON_LANES)
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

/* Storing int8 stays with kernels/ref. */
void neon_attention_init(struct ops *ops) {
    struct attention_ops *kinds[] = {&ops->float_kv, &ops->int8_kv};
    for (int i = 0; i < 2; i++) {
        kinds[i]->attention_scratch = attention_scratch;
        kinds[i]->attention = attention;
        kinds[i]->many_scratch = neon_attention_many_scratch;
        kinds[i]->attention_many = neon_attention_many;
    }
    ops->float_kv.kv_store = kv_store;
}
