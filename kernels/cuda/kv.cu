#include <errno.h>
#include <stdlib.h>

#include "kernels/cuda/device.h"
#include "kernels/cuda/elementwise.h"

enum {
    PIECES_BYTES = 64 << 20 /* of attention over cut contexts; more only when one token needs it */
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
    if (s->type == DTYPE_I8)
        return error_set(err, -ENOTSUP,
                         "keys and values of int8 have no GPU kernel: use f16, or the CPU");
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
    int rc = gpu_alloc(gpu, GPU_KV, &kv->pool.data, total, err);
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
    *ret = kv;
    return 0;
}

void gpu_kv_free(struct backend *be, struct kv *kv) {
    gpu_release(gpu_of(be), GPU_KV, kv->pool.data, kv->layer_bytes * (size_t)kv->spec.n_layers);
    free(kv);
}

static struct kv_pool layer_of(const struct kv *kv, int layer) {
    struct kv_pool pool = kv->pool;
    pool.data = static_cast<char *>(pool.data) + (size_t)layer * kv->layer_bytes;
    return pool;
}

void gpu_kv_store(struct gpu *gpu, const struct store_step *s) {
    struct kv_pool pool = layer_of(s->kv, (int)s->layer);
    if (gpu->n_tokens <= 0) return;
    gpu_good(gpu,
             kv_store_run(&pool, &gpu->batch, s->k->data, s->v->data, gpu->n_tokens, gpu->stream),
             "storing keys");
}

/* On tensor cores. A warp walks a context where tiles are full, as a prompt's are; else pieces go to
 * blocks of their own, unless there is no room for what they leave. */
static void attend_in_tiles(struct gpu *gpu, struct attention_args *args, size_t each) {
    size_t bytes = (size_t)gpu->n_tokens * each;
    bool walk = gpu->n_tokens > 4 * gpu->batch.n_tiles || bytes > PIECES_BYTES;
    if (!walk && bytes) {
        if (!gpu_grow(gpu, &gpu->pieces, bytes)) return;
        args->pieces = static_cast<float *>(gpu->pieces.data);
    }
    if (gpu_good(gpu, attention_tiles_run(args, walk, gpu->stream), "attention") && !walk &&
        args->n_splits > 1)
        gpu_good(gpu, attention_merge_run(args, gpu->n_tokens, gpu->stream), "attention");
}

/* On ordinary instructions, in slices of tokens whose pieces have room. */
static void attend_by_token(struct gpu *gpu, struct attention_args *args, size_t each) {
    int slice = gpu->n_tokens;
    if (each) {
        if ((size_t)slice * each > PIECES_BYTES) slice = (int)(PIECES_BYTES / each);
        if (slice < 1) slice = 1;
        if (!gpu_grow(gpu, &gpu->pieces, (size_t)slice * each)) return;
        args->pieces = static_cast<float *>(gpu->pieces.data);
    }
    for (int t = 0; t < gpu->n_tokens && !gpu->rc; t += slice) {
        args->first_token = t;
        int n = gpu->n_tokens - t < slice ? gpu->n_tokens - t : slice;
        gpu_good(gpu, attention_run(args, n, gpu->stream), "attention");
    }
}

void gpu_attention(struct gpu *gpu, const struct attention_step *s) {
    struct attention_args args = {};
    if (gpu->n_tokens <= 0) return;
    args.dst = s->dst->data;
    args.q = s->q->data;
    args.kv = layer_of(s->kv, s->layer);
    args.batch = gpu->batch;
    args.n_heads = s->n_heads;
    args.window = s->window;
    args.scale = s->scale;
    args.slopes = s->slopes;
    args.n_splits = splits_of(gpu->longest);
    size_t each = attention_floats(args.n_heads, args.n_splits, args.kv.padded) * sizeof(float);
    if (attention_in_tiles(&args.kv))
        attend_in_tiles(gpu, &args, each);
    else
        attend_by_token(gpu, &args, each);
}

/* Computed by the first rope() of a list, found again by the others. */
static const float *angles_for(struct gpu *gpu, const struct rope_step *s) {
    for (int i = 0; i < N_ANGLES; i++) {
        struct angles *a = &gpu->angles[i];
        if (a->inv_freq == s->inv_freq && a->n_freq == s->n_freq && a->scale == s->scale)
            return static_cast<const float *>(a->room.data);
    }
    struct angles *a = &gpu->angles[gpu->next_angles++ % N_ANGLES];
    size_t n = (size_t)gpu->n_tokens * 2 * (size_t)s->n_freq;
    a->inv_freq = NULL;
    if (!gpu_grow(gpu, &a->room, n * sizeof(float))) return NULL;
    float *data = static_cast<float *>(a->room.data);
    if (!gpu_good(gpu,
                  rope_angles(data, gpu->batch.positions, s->inv_freq, s->n_freq, s->scale,
                              gpu->n_tokens, gpu->stream),
                  "rotation angles"))
        return NULL;
    a->inv_freq = s->inv_freq;
    a->n_freq = s->n_freq;
    a->scale = s->scale;
    return data;
}

void gpu_rope(struct gpu *gpu, const struct rope_step *s) {
    if (gpu->n_tokens <= 0) return;
    const float *angles = angles_for(gpu, s);
    if (angles)
        gpu_good(gpu,
                 rope_run(s->x->data, angles, s->n_heads, s->head_dim, s->n_freq, gpu->n_tokens,
                          gpu->stream),
                 "rope");
}

void gpu_rope_store(struct gpu *gpu, const struct rope_step *q, const struct rope_step *k,
                    const struct store_step *store) {
    struct rope_store_args args = {};
    args.angles = angles_for(gpu, q);
    if (!args.angles) return;
    args.kv = layer_of(store->kv, (int)store->layer);
    args.batch = gpu->batch;
    args.q = q->x->data;
    args.k = k->x->data;
    args.v = store->v->data;
    args.n_heads = q->n_heads;
    args.n_freq = q->n_freq;
    gpu_good(gpu, rope_store_run(&args, gpu->n_tokens, gpu->stream), "rope");
}
