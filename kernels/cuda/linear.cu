#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/device.h"

cudaError_t compact_run(const struct product_kind *kind, struct product_set *set,
                        cudaStream_t stream);
cudaError_t planes_run(const struct product_kind *kind, struct product_set *set,
                       cudaStream_t stream);
cudaError_t halves_run(struct product_set *set, cudaStream_t stream);

static cudaError_t product_run(const struct product_kind *kind, struct product_set *set,
                               cudaStream_t stream) {
    if (kind->form == FORM_COMPACT) return compact_run(kind, set, stream);
    if (kind->form == FORM_PLANES) return planes_run(kind, set, stream);
    return halves_run(set, stream);
}

/* GPTQT_GPU_WAY=few, many, wide, wide32, wide64 or wide128 overrules the choice, for tests and
 * measurements. */
static enum product_way way_of(int *width) {
    const char *way = getenv("GPTQT_GPU_WAY");
    *width = 0;
    if (!way) return WAY_BEST;
    if (!strncmp(way, "wide", 4)) {
        *width = atoi(way + 4);
        return WAY_WIDE;
    }
    return !strcmp(way, "few") ? WAY_FEW : !strcmp(way, "many") ? WAY_MANY : WAY_BEST;
}

/* Microseconds of an H200 for n tokens in slices of FEW_TOKENS, and in blocks of warp groups of the best
 * width; measured (SPEED.md). Wide blocks need fewer expansions of weights, narrow ones fill the card. */
static double few_time(int tiles, int cols, int n, int processors) {
    int slices = (n + FEW_TOKENS - 1) / FEW_TOKENS;
    return 6 + slices * 0.0365 * tiles * cols / 4096 * 132 / processors;
}

static double wide_time(int rows, int cols, int n, int processors, int *width) {
    static const struct {
        int width;
        double unit; /* for 256 inputs of a wave of blocks */
    } ways[] = {{32, 2.2}, {64, 2.5}, {128, 3.2}};
    double least = 0;
    int blocks = (rows + WIDE_BLOCK_ROWS - 1) / WIDE_BLOCK_ROWS;
    for (const auto &way : ways) {
        long all = (long)blocks * ((n + way.width - 1) / way.width);
        long waves = (all + processors - 1) / processors;
        double time = 4 + (double)waves * way.unit * pairs_of(cols);
        if (least > 0 && time >= least) continue;
        least = time;
        *width = way.width;
    }
    return least;
}

/* Tokens of a block when inputs of these calls are packed for warp groups, 0 when they are not. */
static int width_for(const struct gpu *gpu, enum pack_order order, const struct linear_call *calls,
                     int n_calls) {
    int forced, best = 0, rows = 0, n = gpu->n_rows, cols = calls[0].w->cols;
    enum product_way way = way_of(&forced);
    if (!gpu->wide || order != PACK_OWNED || (way != WAY_BEST && way != WAY_WIDE)) return 0;
    for (int i = 0; i < n_calls; i++) rows += calls[i].w->rows;
    double wide = wide_time(rows, cols, n, gpu->processors, &best);
    if (way == WAY_WIDE) return forced ? forced : best;
    if (n <= FEW_TOKENS || wide > few_time(tiles_of(rows), cols, n, gpu->processors)) return 0;
    return best;
}

static bool same_kind(const struct product_kind *a, const struct product_kind *b) {
    return a->form == b->form && a->bits == b->bits && a->steps == b->steps &&
           a->shapes == b->shapes;
}

/* Products that are not at their end when the launch is: rotations want whole rows, and an activation
 * wants what outliers add. */
static bool goes_aside(const struct linear_call *c) {
    return c->w->out.n || (c->w->outliers.starts && c->act != ACT_NONE);
}

/* aside: where it goes then, NULL: to its end. */
static struct product product_of(const struct linear_call *c, float *aside) {
    struct product p = {};
    p.data = static_cast<const uint32_t *>(c->w->data);
    p.params = static_cast<const uint32_t *>(c->w->params);
    p.levels = static_cast<const uint32_t *>(c->w->levels);
    p.scales = static_cast<const float *>(c->w->scales);
    p.rows = c->w->rows;
    p.dst = aside;
    if (aside) return p;
    p.dst = c->dst->data;
    p.bias = c->bias ? static_cast<const float *>(c->bias->data) : NULL;
    p.act = c->act;
    p.accumulate = c->accumulate;
    return p;
}

/* What is left after the launch of a product of x. */
static void end_product(struct gpu *gpu, const struct linear_call *c, float *aside,
                        const float *x) {
    const struct weight *w = c->w;
    struct product_end end = {
        c->dst->data, aside ? aside : c->dst->data, NULL, w->rows, ACT_NONE, 0};
    if (aside) {
        end.bias = c->bias ? static_cast<const float *>(c->bias->data) : NULL;
        end.act = c->act;
        end.accumulate = c->accumulate;
    }
    if (w->outliers.starts)
        gpu_good(gpu, outliers_run(&w->outliers, &end, x, w->cols, gpu->n_rows, gpu->stream),
                 "outliers");
    if (!w->out.n) return;
    end.from = NULL;
    gpu_good(gpu, rotate_run(&w->out, true, &end, aside, gpu->n_rows, gpu->stream), "a rotation");
}

static enum pack_order order_of(const struct weight *w) {
    return w->kind.form == FORM_PLANES ? PACK_SPREAD : PACK_OWNED;
}

/* Room for n inputs in an order. */
static bool room_for(struct gpu *gpu, struct input_room *room, enum pack_order order, int cols,
                     int width) {
    bool wide = width > 0;
    int n = gpu->n_rows, n_cols = pack_columns(n, wide);
    size_t chunks = pack_chunks(cols), each = (size_t)n_cols * 4;
    if (!gpu_grow(gpu, &gpu->columns[order], chunks * 4 * each * sizeof(uint4)) ||
        !gpu_grow(gpu, &gpu->unscale[order], (size_t)n * sizeof(float)) ||
        !gpu_grow(gpu, &gpu->groups, chunks / 2 * each * sizeof(uint4)) ||
        !gpu_grow(gpu, &gpu->sums, chunks * 15 * (size_t)n * sizeof(float)))
        return false;
    *room = input_room{static_cast<uint4 *>(gpu->columns[order].data),
                       static_cast<uint4 *>(gpu->groups.data),
                       static_cast<float *>(gpu->sums.data),
                       static_cast<float *>(gpu->unscale[order].data),
                       n_cols,
                       wide};
    struct ready_input *ready = &gpu->ready;
    if (order == PACK_OWNED) ready->width = width;
    ready->packed[order] =
        packed_input{room->columns, room->group_cols, room->sums, room->unscale, n_cols, n, wide};
    return true;
}

bool linear_input(struct gpu *gpu, struct input_args *args, const struct linear_call *calls,
                  int n_calls) {
    for (int i = 0; i < n_calls; i++)
        if (calls[i].w->kind.form == FORM_PLAIN || order_of(calls[i].w) != order_of(calls[0].w) ||
            calls[i].w->cols != args->cols || calls[i].w->in.n)
            return false;
    if (n_calls < 1) return false;
    args->order = order_of(calls[0].w);
    int width = width_for(gpu, args->order, calls, n_calls);
    if (!room_for(gpu, &args->to, args->order, args->cols, width)) return false;
    gpu->ready.done[args->order] = true;
    gpu->ready.done[args->order == PACK_OWNED ? PACK_SPREAD : PACK_OWNED] = false;
    return true;
}

/* x in the order that w takes, once for each order of a call. */
static bool pack(struct gpu *gpu, enum pack_order order, const float *x, int cols, int width) {
    struct input_args args = {};
    if (gpu->ready.done[order]) return true;
    if (!room_for(gpu, &args.to, order, cols, width)) return false;
    args.made = INPUT_AS_IS;
    args.order = order;
    args.x = x;
    args.cols = cols;
    args.n = gpu->n_rows;
    gpu->ready.done[order] = true;
    return gpu_good(gpu, input_run(&args, gpu->shared, gpu->stream), "packing an input");
}

static bool turned_alike(const struct weight *a, const struct weight *b) {
    return a->in.n == b->in.n && (!a->in.n || rotation_same(&a->turns, &b->turns));
}

/* V x for a matrix that is stored between rotations; NULL after a failure. */
static const float *turn(struct gpu *gpu, const struct weight *w, const float *x) {
    size_t bytes = (size_t)gpu->n_rows * (size_t)w->cols * sizeof(float);
    if (!gpu_grow(gpu, &gpu->turned, bytes)) return NULL;
    float *to = static_cast<float *>(gpu->turned.data);
    struct product_end end = {to, NULL, NULL, w->cols, ACT_NONE, 0};
    return gpu_good(gpu, rotate_run(&w->in, false, &end, x, gpu->n_rows, gpu->stream), "a rotation")
               ? to
               : NULL;
}

/* Room for those of n calls that go aside, each after the other; ret: where, NULL for the others. */
static bool room_aside(struct gpu *gpu, const struct linear_call *calls, int n, float **ret) {
    size_t tokens = (size_t)gpu->n_rows, numbers = 0, at = 0;
    for (int i = 0; i < n; i++)
        if (goes_aside(&calls[i])) numbers += tokens * (size_t)calls[i].w->rows;
    if (!gpu_grow(gpu, &gpu->aside, numbers * sizeof(float))) return false;
    for (int i = 0; i < n; i++) {
        ret[i] = goes_aside(&calls[i]) ? static_cast<float *>(gpu->aside.data) + at : NULL;
        if (ret[i]) at += tokens * (size_t)calls[i].w->rows;
    }
    return true;
}

static void run_plain(struct gpu *gpu, const struct linear_call *c, float *aside, const float *x) {
    struct product p = product_of(c, aside);
    gpu_good(gpu, plain_run(&c->w->plain, &p, x, gpu->n_rows, gpu->stream), "a product");
}

static void run_set(struct gpu *gpu, const struct linear_call *calls, int n, float *const *aside,
                    enum pack_order order) {
    struct product_set set = {};
    int forced;
    set.x = gpu->ready.packed[order];
    set.cols = calls[0].w->cols;
    set.processors = gpu->processors;
    set.shared = gpu->shared;
    set.room = gpu->room;
    set.way = way_of(&forced);
    set.width = gpu->ready.width;
    for (int i = 0; i < n; i++) set.each[set.n++] = product_of(&calls[i], aside[i]);
    gpu_good(gpu, product_run(&calls[0].w->kind, &set, gpu->stream), "a product");
}

/* How many of the calls run as one launch. */
static int together(const struct linear_call *calls, int n_calls) {
    const struct weight *first = calls[0].w;
    int n = 1;
    while (n < n_calls && n < MAX_SET && first->kind.form != FORM_PLAIN &&
           same_kind(&calls[n].w->kind, &first->kind) && turned_alike(calls[n].w, first))
        n++;
    return n;
}

void gpu_linear(struct gpu *gpu, const struct linear_call *calls, int n_calls, const float *x) {
    struct ready_input *ready = &gpu->ready;
    const struct weight *last = NULL; /* that the input was turned for; NULL: it is x itself */
    const float *in = x;
    if (ready->x != x) ready->done[PACK_SPREAD] = ready->done[PACK_OWNED] = false;
    ready->x = NULL; /* a later product may have overwritten it */
    for (int i = 0, n; i < n_calls && !gpu->rc && gpu->n_rows > 0; i += n) {
        const struct weight *w = calls[i].w;
        float *aside[MAX_SET];
        n = together(calls + i, n_calls - i);
        if (last ? !turned_alike(last, w) : w->in.n > 0) {
            last = w->in.n ? w : NULL;
            in = last ? turn(gpu, w, x) : x;
            ready->done[PACK_SPREAD] = ready->done[PACK_OWNED] = false;
        }
        if (gpu->rc || !room_aside(gpu, calls + i, n, aside)) return;
        enum pack_order order = order_of(w);
        if (w->kind.form == FORM_PLAIN)
            run_plain(gpu, &calls[i], aside[0], in);
        else if (pack(gpu, order, in, w->cols, width_for(gpu, order, calls, n_calls)))
            run_set(gpu, calls + i, n, aside, order);
        for (int j = 0; j < n && !gpu->rc; j++) end_product(gpu, &calls[i + j], aside[j], x);
    }
}
