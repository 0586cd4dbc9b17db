#include "kernels/ref/ref.h"

#include <math.h>
#include <string.h>

#include "kernels/float16.h"
#include "kernels/ops.h"

/* Index of element 0 of K (v = 0) or V (v = 1) of a position in its layer. */
static size_t element_at(const struct kv_layer *kv, int block, int slot, int head, int v) {
    size_t plane = ((size_t)block * (size_t)kv->n_kv_heads + (size_t)head) * 2 + (size_t)v;
    return (plane * KV_BLOCK_TOKENS + (size_t)slot) * (size_t)kv->head_dim;
}

static double kv_get(const struct kv_layer *kv, size_t i) {
    if (kv->type == DTYPE_F32) return (double)((const float *)kv->base)[i];
    return (double)f16_to_f32(((const uint16_t *)kv->base)[i]);
}

/* The query's running softmax: sums are over the positions seen so far, scaled by
 * exp(-max). */
static size_t attention_scratch(int n_rep, int head_dim) {
    (void)n_rep;
    return (size_t)head_dim * (sizeof(double) / sizeof(float));
}

static double score(const float *q, const struct attn_call *c, size_t k, int pos, int rep) {
    double dot = 0;
    for (int d = 0; d < c->kv->head_dim; d++) dot += (double)q[d] * kv_get(c->kv, k + (size_t)d);
    double s = dot * (double)c->scale;
    return c->slopes ? s + (double)c->slopes[rep] * (pos - c->pos) : s;
}

static void attend(float *out, const float *q, const struct attn_call *c, int rep, double *acc) {
    int dim = c->kv->head_dim;
    double top = -INFINITY, total = 0;
    for (int d = 0; d < dim; d++) acc[d] = 0;
    for (int pos = c->first; pos <= c->pos; pos++) {
        int block = c->blocks[pos / KV_BLOCK_TOKENS], slot = pos % KV_BLOCK_TOKENS;
        double s = score(q, c, element_at(c->kv, block, slot, c->kv_head, 0), pos, rep);
        double higher = s > top ? s : top;
        double keep = total > 0 ? exp(top - higher) : 0, p = exp(s - higher);
        size_t v = element_at(c->kv, block, slot, c->kv_head, 1);
        for (int d = 0; d < dim; d++) acc[d] = acc[d] * keep + p * kv_get(c->kv, v + (size_t)d);
        total = total * keep + p;
        top = higher;
    }
    for (int d = 0; d < dim; d++) out[d] = (float)(acc[d] / total);
}

static void attention(float *out, const float *q, const struct attn_call *call, float *scratch) {
    size_t dim = (size_t)call->kv->head_dim;
    for (int rep = 0; rep < call->n_rep; rep++)
        attend(out + (size_t)rep * dim, q + (size_t)rep * dim, call, rep, (double *)scratch);
}

static void store_row(const struct kv_layer *kv, size_t at, const float *src) {
    size_t dim = (size_t)kv->head_dim;
    if (kv->type == DTYPE_F32) {
        memcpy((float *)kv->base + at, src, dim * sizeof *src);
        return;
    }
    for (size_t d = 0; d < dim; d++) ((uint16_t *)kv->base)[at + d] = f32_to_f16(src[d]);
}

static void kv_store(const struct kv_layer *kv, int block, int slot, const float *k,
                     const float *v) {
    for (int h = 0; h < kv->n_kv_heads; h++) {
        size_t from = (size_t)h * (size_t)kv->head_dim;
        store_row(kv, element_at(kv, block, slot, h, 0), k + from);
        store_row(kv, element_at(kv, block, slot, h, 1), v + from);
    }
}

void ref_attention_init(struct ops *ops) {
    ops->attention_scratch = attention_scratch;
    ops->attention = attention;
    ops->kv_store = kv_store;
}
