#include "kernels/cuda/steps.h"

#include "kernels/cuda/device.h"
#include "kernels/cuda/elementwise.h"

template <class T> static const T *step_at(const char *at) {
    return reinterpret_cast<const T *>(at);
}

/* The step after this one if it is of that kind, else NULL. */
template <class T> static const T *next_of(const char *at, const char *end, enum step_kind kind) {
    at += step_at<struct step>(at)->bytes;
    return at < end && step_at<struct step>(at)->kind == kind ? step_at<T>(at) : NULL;
}

static void run_embed(struct gpu *gpu, const struct embed_step *s) {
    struct embed_args args = {};
    if (gpu->n_tokens <= 0) return;
    args.dst = s->dst->data;
    args.table = s->table->data;
    args.ids = s->by_pos ? gpu->batch.positions : gpu->tokens;
    args.type = s->table->plain.type;
    args.cols = s->table->cols;
    args.offset = s->offset;
    args.accumulate = s->accumulate;
    args.scale = s->scale;
    gpu_good(gpu, embed_run(&args, gpu->n_tokens, gpu->stream), "embed");
}

/* A norm or a gate, and the packing for the product that follows, where there is one. */
static void run_made(struct gpu *gpu, const char *at, const char *end, struct input_args *args,
                     const char *what) {
    const struct linear_step *linear = next_of<struct linear_step>(at, end, STEP_LINEAR);
    args->n = gpu->n_rows;
    if (args->n <= 0) return;
    if (linear && linear->x->data == args->dst &&
        linear_input(gpu, args, linear_calls(linear), (int)linear->n_calls))
        gpu->ready.x = args->dst;
    gpu_good(gpu, input_run(args, gpu->shared, gpu->stream), what);
}

static void run_norm(struct gpu *gpu, const char *at, const char *end) {
    const struct norm_step *s = step_at<struct norm_step>(at);
    struct input_args args = {};
    args.made = INPUT_NORM;
    args.dst = s->dst->data;
    args.x = s->src->data;
    args.w = static_cast<const float *>(s->w->data);
    args.b = s->b ? static_cast<const float *>(s->b->data) : NULL;
    args.cols = s->dim;
    args.eps = s->eps;
    run_made(gpu, at, end, &args, "norm");
}

static void run_gate(struct gpu *gpu, const char *at, const char *end) {
    const struct pair_step *s = step_at<struct pair_step>(at);
    struct input_args args = {};
    args.made = INPUT_GATE;
    args.dst = s->dst->data;
    args.x = s->dst->data;
    args.up = s->src->data;
    args.cols = (int)s->width;
    run_made(gpu, at, end, &args, "gate");
}

static void run_add(struct gpu *gpu, const struct pair_step *s) {
    size_t n = (size_t)(gpu->n_rows > 0 ? gpu->n_rows : 0) * (size_t)s->width;
    if (n) gpu_good(gpu, add_run(s->dst->data, s->src->data, n, gpu->stream), "add");
}

static void run_gather(struct gpu *gpu, const struct gather_step *s) {
    gpu->n_rows = s->n_rows;
    if (s->n_rows > 0)
        gpu_good(gpu,
                 gather_run(s->dst->data, s->src->data,
                            static_cast<const int32_t *>(gpu->rows_room.data), s->n_rows, s->width,
                            gpu->stream),
                 "gather");
}

/* rope(q), rope(k), kv_store(k, v) in one launch; NULL when what follows is not that. */
static const char *run_rope_store(struct gpu *gpu, const char *at, const char *end) {
    const struct rope_step *q = step_at<struct rope_step>(at);
    const struct rope_step *k = next_of<struct rope_step>(at, end, STEP_ROPE);
    if (!k) return NULL;
    const struct store_step *store =
        next_of<struct store_step>(reinterpret_cast<const char *>(k), end, STEP_STORE);
    if (!store || store->k != k->x || q->x == k->x || q->inv_freq != k->inv_freq ||
        q->n_freq != k->n_freq || q->scale != k->scale || q->head_dim != k->head_dim ||
        k->head_dim != store->kv->spec.head_dim || k->n_heads != store->kv->spec.n_kv_heads)
        return NULL;
    if (gpu->n_tokens > 0) gpu_rope_store(gpu, q, k, store);
    return reinterpret_cast<const char *>(store) + store->head.bytes;
}

const char *step_run(struct gpu *gpu, const char *at, const char *end) {
    const struct step *step = step_at<struct step>(at);
    if (step->kind != STEP_LINEAR) gpu->ready.x = NULL; /* it may be overwritten */
    switch (step->kind) {
    case STEP_EMBED:
        run_embed(gpu, step_at<struct embed_step>(at));
        break;
    case STEP_NORM:
        run_norm(gpu, at, end);
        break;
    case STEP_LINEAR: {
        const struct linear_step *s = step_at<struct linear_step>(at);
        gpu_linear(gpu, linear_calls(s), (int)s->n_calls, s->x->data);
        break;
    }
    case STEP_ROPE: {
        const char *next = run_rope_store(gpu, at, end);
        if (next) return next;
        gpu_rope(gpu, step_at<struct rope_step>(at));
        break;
    }
    case STEP_STORE:
        gpu_kv_store(gpu, step_at<struct store_step>(at));
        break;
    case STEP_ATTENTION:
        gpu_attention(gpu, step_at<struct attention_step>(at));
        break;
    case STEP_GATE:
        run_gate(gpu, at, end);
        break;
    case STEP_ADD:
        run_add(gpu, step_at<struct pair_step>(at));
        break;
    default:
        run_gather(gpu, step_at<struct gather_step>(at));
    }
    return at + step->bytes;
}
