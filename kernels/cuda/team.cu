#include "kernels/cuda/team.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern "C" {
#include "kernels/cut.h"
}

/* -- Things -------------------------------------------------------------------------------- */

static void team_close(struct backend *be) {
    struct team *team = team_of(be);
    for (int d = 0; d < team->exchange.n; d++) backend_sync(team_at(team, d), NULL);
    exchange_close(&team->exchange);
    for (int d = 0; d < team->n; d++) {
        if (!team->each[d]) continue;
        cudaSetDevice(gpu_of(team->each[d])->device);
        team->each[d]->ops->close(team->each[d]);
    }
    cudaSetDevice(0);
    free(team);
}

static void buffer_free(struct backend *be, struct buffer *buffer) {
    struct team *team = team_of(be);
    struct team_buffer *b = buffer_of(buffer);
    for (int d = 0; d < team->n; d++) backend_buffer_free(team_at(team, d), b->part[d]);
    backend_buffer_free(team_at(team, 0), b->whole);
    free(b);
}

static int buffer_new(struct backend *be, struct buffer **ret, size_t n, struct error *err) {
    struct team *team = team_of(be);
    struct team_buffer *b = static_cast<struct team_buffer *>(calloc(1, sizeof *b));
    int rc = b ? 0 : error_set(err, -ENOMEM, "no memory for a buffer");
    for (int d = 0; !rc && d < team->n; d++) {
        rc = backend_buffer_new(team_at(team, d), &b->part[d], n, err);
        if (rc) error_prefix(err, rc, "device %d", d);
    }
    if (rc) {
        if (b) buffer_free(be, reinterpret_cast<struct buffer *>(b));
        return rc;
    }
    b->n = n;
    *ret = reinterpret_cast<struct buffer *>(b);
    return 0;
}

static void buffer_write(struct backend *be, struct buffer *dst, size_t offset, const float *src,
                         size_t n) {
    struct team *team = team_of(be);
    struct team_buffer *b = buffer_of(dst);
    for (int d = 0; d < team->n; d++)
        backend_buffer_write(team_at(team, d), b->part[d], offset, src, n);
    b->split = false;
}

/* A vector's numbers are its matrix's rows. */
static int new_part(struct team *team, struct team_weight *w, int d, enum weight_use use,
                    const struct weight_view *view, struct error *err) {
    struct cut cut = {};
    int rc;
    if (view->split == SPLIT_NONE || (use == WEIGHT_VECTOR && view->split == SPLIT_INPUTS))
        return backend_weight_new(team_at(team, d), &w->part[d], use, view, err);
    if (view->outliers || view->rotation)
        return error_set(err, -ENOTSUP, "%s are not split over devices: use one, or the CPU",
                         view->outliers ? "outliers" : "rotations");
    if (view->split == SPLIT_ROWS && use != WEIGHT_VECTOR)
        rc = cut_rows(&cut, view, d, team->n, err);
    else
        rc = cut_inputs(&cut, view, d, team->n, err);
    if (!rc) rc = backend_weight_new(team_at(team, d), &w->part[d], use, &cut.view, err);
    cut_free(&cut);
    return rc;
}

static void weight_free(struct backend *be, struct weight *weight) {
    struct team *team = team_of(be);
    struct team_weight *w = reinterpret_cast<struct team_weight *>(weight);
    for (int d = 0; d < team->n; d++) backend_weight_free(team_at(team, d), w->part[d]);
    free(w);
}

static int weight_new(struct backend *be, struct weight **ret, enum weight_use use,
                      const struct weight_view *view, struct error *err) {
    struct team *team = team_of(be);
    struct team_weight *w = static_cast<struct team_weight *>(calloc(1, sizeof *w));
    if (!w) return error_set(err, -ENOMEM, "no memory for a weight");
    int rc = 0;
    w->split = view->split;
    w->rows = view->rows;
    w->cols = view->cols;
    for (int d = 0; !rc && d < team->n; d++) {
        rc = new_part(team, w, d, use, view, err);
        if (rc)
            error_prefix(err, rc, "device %d", d);
        else
            w->bytes += backend_weight_bytes(team->each[d], w->part[d]);
    }
    if (rc) {
        weight_free(be, reinterpret_cast<struct weight *>(w));
        return rc;
    }
    *ret = reinterpret_cast<struct weight *>(w);
    return 0;
}

static size_t weight_bytes(const struct weight *w) { return weight_of(w)->bytes; }

static void kv_free(struct backend *be, struct kv *kv) {
    struct team *team = team_of(be);
    for (int d = 0; d < team->n; d++) backend_kv_free(team_at(team, d), kv_of(kv)->part[d]);
    free(kv_of(kv));
}

static int kv_new(struct backend *be, struct kv **ret, const struct kv_spec *spec,
                  struct error *err) {
    struct team *team = team_of(be);
    struct kv_spec part = *spec;
    if (spec->n_kv_heads % team->n)
        return error_set(err, -EINVAL, "%d heads of keys and values do not divide by %d devices",
                         spec->n_kv_heads, team->n);
    struct team_kv *kv = static_cast<struct team_kv *>(calloc(1, sizeof *kv));
    int rc = kv ? 0 : error_set(err, -ENOMEM, "no memory for a pool of keys and values");
    part.n_kv_heads = spec->n_kv_heads / team->n;
    for (int d = 0; !rc && d < team->n; d++) {
        rc = backend_kv_new(team_at(team, d), &kv->part[d], &part, err);
        if (rc) error_prefix(err, rc, "device %d", d);
    }
    if (rc) {
        if (kv) kv_free(be, reinterpret_cast<struct kv *>(kv));
        return rc;
    }
    kv->head_dim = spec->head_dim;
    *ret = reinterpret_cast<struct kv *>(kv);
    return 0;
}

/* -- Results ------------------------------------------------------------------------------- */

/* The first device's failure first, as if it were alone. */
static int team_sync(struct backend *be, struct error *err) {
    struct team *team = team_of(be);
    int rc = team->rc ? error_set(err, team->rc, "%s", team->failure.text) : 0;
    for (int d = 0; d < team->n; d++) {
        int r = backend_sync(team_at(team, d), rc ? NULL : err);
        if (r && !rc) rc = error_prefix(err, r, "device %d", d);
    }
    return rc;
}

/* All of a buffer on the first device; NULL after a failure, which is kept. */
static const struct buffer *whole_of(struct team *team, struct team_buffer *b) {
    const float *src[MOST_DEVICES];
    struct gpu *first = gpu_of(team->each[0]);
    if (!b->split) return b->part[0];
    if (b->joined) return b->whole;
    if (team->rc || !exchange_good(&team->exchange)) return NULL;
    for (int d = 0; d < team->n; d++) {
        queue_flush(gpu_of(team_at(team, d)));
        src[d] = b->part[d]->data;
    }
    if (!b->whole) {
        int rc = backend_buffer_new(team_at(team, 0), &b->whole, b->n, &first->failure);
        first->rc = rc;
        if (rc) return NULL;
    }
    exchange_columns(&team->exchange, b->whole->data, src, b->rows, b->width);
    b->joined = true;
    return b->whole;
}

static int buffer_read(struct backend *be, float *dst, const struct buffer *src, size_t offset,
                       size_t n, struct error *err) {
    struct team *team = team_of(be);
    const struct buffer *whole = whole_of(team, buffer_of(src));
    if (whole && exchange_good(&team->exchange)) {
        int rc = backend_buffer_read(team_at(team, 0), dst, whole, offset, n, err);
        if (rc) return error_prefix(err, rc, "device 0");
    }
    return team_sync(be, err);
}

static int team_best(struct backend *be, int32_t *ids, const struct buffer *x, int n_rows,
                     int width, struct error *err) {
    struct team *team = team_of(be);
    const struct buffer *whole = whole_of(team, buffer_of(x));
    if (whole && exchange_good(&team->exchange)) {
        int rc = backend_best(team_at(team, 0), ids, whole, n_rows, width, err);
        if (rc) return error_prefix(err, rc, "device 0");
    }
    return team_sync(be, err);
}

static int team_top(struct backend *be, const struct top_call *call, struct error *err) {
    struct team *team = team_of(be);
    struct top_call own = *call;
    own.x = whole_of(team, buffer_of(call->x));
    if (own.x && exchange_good(&team->exchange)) {
        int rc = backend_top(team_at(team, 0), &own, err);
        if (rc) return error_prefix(err, rc, "device 0");
    }
    return team_sync(be, err);
}

/* As if every device had what the fullest has. */
static void team_memory(struct backend *be, struct backend_memory *ret) {
    struct team *team = team_of(be);
    struct backend_memory m;
    *ret = backend_memory{};
    for (int d = 0; d < team->n; d++) {
        backend_get_memory(team_at(team, d), &m);
        if (!d || m.free < ret->free) ret->free = m.free;
        if (!d || m.total < ret->total) ret->total = m.total;
        ret->weights += m.weights;
        ret->kv += m.kv;
        ret->work += m.work;
    }
    ret->free *= (size_t)team->n;
    ret->total *= (size_t)team->n;
}

static void team_rehearse(struct backend *be, bool on) {
    struct team *team = team_of(be);
    for (int d = 0; d < team->n; d++) queue_flush(gpu_of(team_at(team, d)));
    for (int d = 0; d < team->n; d++) backend_rehearse(team_at(team, d), on);
}

/* -- Opening ------------------------------------------------------------------------------- */

static struct backend_ops make_ops() {
    struct backend_ops ops = {};
    ops.close = team_close;
    ops.buffer_new = buffer_new;
    ops.buffer_free = buffer_free;
    ops.buffer_read = buffer_read;
    ops.buffer_write = buffer_write;
    ops.weight_new = weight_new;
    ops.weight_free = weight_free;
    ops.weight_bytes = weight_bytes;
    ops.kv_new = kv_new;
    ops.kv_free = kv_free;
    ops.begin = team_begin;
    ops.embed = team_embed;
    ops.norm = team_norm;
    ops.linear = team_linear;
    ops.rope = team_rope;
    ops.kv_store = team_kv_store;
    ops.attention = team_attention;
    ops.gate = team_gate;
    ops.add = team_add;
    ops.gather = team_gather;
    ops.sync = team_sync;
    ops.best = team_best;
    ops.top = team_top;
    ops.memory = team_memory;
    ops.rehearse = team_rehearse;
    return ops;
}

static int open_each(struct team *team, int n, struct error *err) {
    struct gpu *gpu[MOST_DEVICES];
    int have = 0;
    if (cudaGetDeviceCount(&have) == cudaSuccess && have > 0 && n > have)
        return error_set(err, -EINVAL, "tensor-parallel: %d devices are asked for, %d %s there", n,
                         have, have == 1 ? "is" : "are");
    for (int d = 0; d < n; d++) {
        int rc = gpu_open_device(&team->each[d], d, err);
        if (rc) return rc;
        team->n = d + 1;
        gpu[d] = gpu_of(team->each[d]);
        /* Lists end at every exchange: there are too many for the graphs that are kept. */
        gpu[d]->queue.plain = true;
    }
    return exchange_open(&team->exchange, gpu, n, err);
}

int team_open(struct backend **ret, int n_devices, struct error *err) {
    static const struct backend_ops ops = make_ops();
    if (n_devices > MOST_DEVICES)
        return error_set(err, -EINVAL, "tensor-parallel: %d devices; at most %d", n_devices,
                         (int)MOST_DEVICES);
    struct team *team = static_cast<struct team *>(calloc(1, sizeof *team));
    if (!team) return error_set(err, -ENOMEM, "no memory for the GPU back end");
    team->base.ops = &ops;
    int rc = open_each(team, n_devices, err);
    if (rc) {
        team_close(&team->base);
        return rc;
    }
    team->base.name = team->each[0]->name;
    snprintf(team->base.detail, sizeof team->base.detail, "%d of %.80s", n_devices,
             team->each[0]->detail);
    *ret = &team->base;
    return 0;
}
