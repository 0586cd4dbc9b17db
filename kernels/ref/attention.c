#include "kernels/ref/ref.h"

#include <math.h>
#include <string.h>

#include "kernels/float16.h"
#include "kernels/ops.h"
#include "kernels/rounding.h"

/* K (v = 0) or V (v = 1) of a position. */
struct row {
    void *elements;
    float *scale; /* of DTYPE_I8 */
};

static struct row row_at(const struct kv_layer *kv, int block, int slot, int head, int v) {
    size_t plane = ((size_t)block * (size_t)kv->n_kv_heads + (size_t)head) * 2 + (size_t)v;
    size_t dim = (size_t)kv->head_dim, size = dtype_size(kv->type);
    char *at = (char *)kv->base + plane * kv_plane_bytes(kv->type, kv->head_dim);
    return (struct row){at + (size_t)slot * dim * size,
                        (float *)(void *)(at + KV_BLOCK_TOKENS * dim * size) + slot};
}

static double kv_get(const struct kv_layer *kv, struct row row, int i) {
    if (kv->type == DTYPE_F32) return (double)((const float *)row.elements)[i];
    if (kv->type == DTYPE_F16) return (double)f16_to_f32(((const uint16_t *)row.elements)[i]);
    return (double)*row.scale * ((const int8_t *)row.elements)[i];
}

/* The query's running softmax: sums are over the positions seen so far, scaled by
 * exp(-max). */
static size_t attention_scratch(int n_rep, int head_dim) {
    (void)n_rep;
    return (size_t)head_dim * (sizeof(double) / sizeof(float));
}

static double score(const float *q, const struct attn_call *c, struct row k, int pos, int rep) {
    double dot = 0;
    for (int d = 0; d < c->kv->head_dim; d++) dot += (double)q[d] * kv_get(c->kv, k, d);
    double s = dot * (double)c->scale;
    return c->slopes ? s + (double)c->slopes[rep] * (pos - c->pos) : s;
}

static void attend(float *out, const float *q, const struct attn_call *c, int rep, double *acc) {
    int dim = c->kv->head_dim;
    double top = -INFINITY, total = 0;
    for (int d = 0; d < dim; d++) acc[d] = 0;
    for (int pos = c->first; pos <= c->pos; pos++) {
        int block = c->blocks[pos / KV_BLOCK_TOKENS], slot = pos % KV_BLOCK_TOKENS;
        double s = score(q, c, row_at(c->kv, block, slot, c->kv_head, 0), pos, rep);
        double higher = s > top ? s : top;
        double keep = total > 0 ? exp(top - higher) : 0, p = exp(s - higher);
        struct row v = row_at(c->kv, block, slot, c->kv_head, 1);
        for (int d = 0; d < dim; d++) acc[d] = acc[d] * keep + p * kv_get(c->kv, v, d);
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

static void store_whole(struct row row, const float *src, size_t dim) {
    struct rounding r;
    float largest = 0;
    for (size_t d = 0; d < dim; d++)
        if (!(fabsf(src[d]) <= largest)) largest = isfinite(src[d]) ? fabsf(src[d]) : INFINITY;
    rounding_to(&r, largest, 127);
    for (size_t d = 0; d < dim; d++)
        ((int8_t *)row.elements)[d] = (int8_t)(r.up > 0 ? rintf(src[d] * r.up) : 0);
    *row.scale = r.scale;
}

static void store_row(const struct kv_layer *kv, struct row row, const float *src) {
    size_t dim = (size_t)kv->head_dim;
    if (kv->type == DTYPE_I8) store_whole(row, src, dim);
    if (kv->type == DTYPE_F32) memcpy(row.elements, src, dim * sizeof *src);
    for (size_t d = 0; kv->type == DTYPE_F16 && d < dim; d++)
        ((uint16_t *)row.elements)[d] = f32_to_f16(src[d]);
}

static void kv_store(const struct kv_layer *kv, int block, int slot, const float *k,
                     const float *v) {
    for (int h = 0; h < kv->n_kv_heads; h++) {
        size_t from = (size_t)h * (size_t)kv->head_dim;
        store_row(kv, row_at(kv, block, slot, h, 0), k + from);
        store_row(kv, row_at(kv, block, slot, h, 1), v + from);
    }
}

void ref_attention_init(struct ops *ops) {
    ops->float_kv = (struct attention_ops){
        .attention_scratch = attention_scratch, .attention = attention, .kv_store = kv_store};
    ops->int8_kv = ops->float_kv;
}
