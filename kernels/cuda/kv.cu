#include <errno.h>
#include <stdlib.h>

#include "kernels/cuda/device.h"
#include "kernels/cuda/elementwise.h"

enum {
    PIECES_BYTES = 32 << 20 /* of attention over cut contexts; more only when one token needs it */
};

static bool multiply(size_t *product, size_t factor) {
    if (factor && *product > SIZE_MAX / 2 / factor) return false;
    *product *= factor;
    return true;
}

int gpu_kv_new(struct backend *be, struct kv **ret, const struct kv_spec *s, struct error *err) {
    struct gpu *gpu = gpu_of(be);
    if (s->n_layers < 1 || s->n_kv_heads < 1 || s->head_dim < 1 || s->n_blocks < 1)
        return error_set(err, -EINVAL, "a pool of keys and values has no room");
    if (s->type != DTYPE_F16 && s->type != DTYPE_F32)
        return error_set(err, -EINVAL, "keys and values are kept as f16 or f32");
    size_t padded = ((size_t)s->head_dim + 7) / 8 * 8;
    size_t layer = 2 * KV_TOKENS * dtype_size(s->type);
    bool fits = multiply(&layer, (size_t)s->n_blocks) && multiply(&layer, (size_t)s->n_kv_heads) &&
                multiply(&layer, padded);
    size_t total = layer;
    if (!fits || !multiply(&total, (size_t)s->n_layers))
        return error_set(err, -EINVAL, "a pool of keys and values is too large");
    if (s->head_dim > MAX_HEAD_DIM)
        return error_set(err, -EINVAL, "heads of %d; at most %d on a GPU", s->head_dim,
                         (int)MAX_HEAD_DIM);
    struct kv *kv = static_cast<struct kv *>(calloc(1, sizeof *kv));
    if (!kv) return error_set(err, -ENOMEM, "no memory for a pool of keys and values");
    int rc = gpu_alloc(&kv->pool.data, total, err);
    if (rc) {
        free(kv);
        return error_prefix(err, rc, "keys and values");
    }
    kv->spec = *s;
    kv->layer_bytes = layer;
    kv->pool.is_half = s->type == DTYPE_F16;
    kv->pool.n_kv_heads = s->n_kv_heads;
    kv->pool.head_dim = s->head_dim;
    kv->pool.padded = (int)padded;
    (void)gpu;
    *ret = kv;
    return 0;
}

void gpu_kv_free(struct backend *, struct kv *kv) {
    cudaFree(kv->pool.data);
    free(kv);
}

static struct kv_pool layer_of(const struct kv *kv, int layer) {
    struct kv_pool pool = kv->pool;
    pool.data = static_cast<char *>(pool.data) + (size_t)layer * kv->layer_bytes;
    return pool;
}

void gpu_kv_store(struct backend *be, struct kv *kv, int layer, const struct buffer *k,
                  const struct buffer *v) {
    struct gpu *gpu = gpu_of(be);
    struct kv_pool pool = layer_of(kv, layer);
    if (gpu->rc || gpu->n_tokens <= 0) return;
    gpu_good(gpu, kv_store_run(&pool, &gpu->batch, k->data, v->data, gpu->n_tokens, gpu->stream),
             "storing keys");
}

void gpu_attention(struct backend *be, const struct attention_call *call) {
    struct gpu *gpu = gpu_of(be);
    struct attention_args args = {};
    if (gpu->rc || gpu->n_tokens <= 0) return;
    args.dst = call->dst->data;
    args.q = call->q->data;
    args.kv = layer_of(call->kv, call->layer);
    args.batch = gpu->batch;
    args.n_heads = call->n_heads;
    args.window = call->window;
    args.scale = call->scale;
    args.n_splits = (gpu->longest + SPLIT - 1) / SPLIT;
    if (call->slopes) {
        args.slopes = static_cast<const float *>(
            gpu_constant(gpu, call->slopes, (size_t)call->n_heads * sizeof(float)));
        if (!args.slopes) return;
    }
    size_t each = attention_floats(args.n_heads, args.n_splits, args.kv.padded) * sizeof(float);
    int slice = gpu->n_tokens;
    if (each) {
        if ((size_t)slice * each > PIECES_BYTES) slice = (int)(PIECES_BYTES / each);
        if (slice < 1) slice = 1;
        if (!gpu_grow(gpu, &gpu->pieces, (size_t)slice * each)) return;
        args.pieces = static_cast<float *>(gpu->pieces.data);
    }
    for (int t = 0; t < gpu->n_tokens && !gpu->rc; t += slice) {
        args.first_token = t;
        int n = gpu->n_tokens - t < slice ? gpu->n_tokens - t : slice;
        gpu_good(gpu, attention_run(&args, n, gpu->stream), "attention");
    }
}

/* Computed by the first rope() of a batch, found again by the others. */
static const float *angles_for(struct gpu *gpu, const struct rope_call *call) {
    const void *freq =
        gpu_constant(gpu, call->inv_freq, (size_t)call->n_freq * sizeof *call->inv_freq);
    if (!freq) return NULL;
    for (int i = 0; i < N_ANGLES; i++) {
        struct angles *a = &gpu->angles[i];
        if (a->inv_freq == freq && a->n_freq == call->n_freq && a->scale == call->scale)
            return static_cast<const float *>(a->room.data);
    }
    struct angles *a = &gpu->angles[gpu->next_angles++ % N_ANGLES];
    size_t n = (size_t)gpu->n_tokens * 2 * (size_t)call->n_freq;
    a->inv_freq = NULL;
    if (!gpu_grow(gpu, &a->room, n * sizeof(float))) return NULL;
    float *data = static_cast<float *>(a->room.data);
    if (!gpu_good(gpu,
                  rope_angles(data, gpu->batch.positions, static_cast<const double *>(freq),
                              call->n_freq, call->scale, gpu->n_tokens, gpu->stream),
                  "rotation angles"))
        return NULL;
    a->inv_freq = freq;
    a->n_freq = call->n_freq;
    a->scale = call->scale;
    return data;
}

void gpu_rope(struct backend *be, const struct rope_call *call) {
    struct gpu *gpu = gpu_of(be);
    if (gpu->rc || gpu->n_tokens <= 0 || call->n_freq <= 0) return;
    const float *angles = angles_for(gpu, call);
    if (angles)
        gpu_good(gpu,
                 rope_run(call->x->data, angles, call->n_heads, call->head_dim, call->n_freq,
                          gpu->n_tokens, gpu->stream),
                 "rope");
}
