#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/best.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/plugin.h"
#include "kernels/cuda/team.h"
#include "kernels/cuda/top.h"

/* Whether this build has code for sm_90a: what a driver makes of older PTX on such a card has none of
 * hopper.h's instructions. */
#if !defined(__CUDACC__)
#define GPTQT_CUDA_HOPPER 1
#elif !defined(GPTQT_CUDA_HOPPER)
#define GPTQT_CUDA_HOPPER 0
#endif

#if defined(__CUDACC__)
bool gpu_mute;
bool gpu_overlap;
#endif

bool gpu_good(struct gpu *gpu, cudaError_t code, const char *what) {
    if (code != cudaSuccess && !gpu->rc) gpu->rc = gpu_error(gpu, code, &gpu->failure, what);
    return !gpu->rc;
}

static void gpu_close(struct backend *be) {
    struct gpu *gpu = gpu_of(be);
    if (gpu->stream) cudaStreamSynchronize(gpu->stream);
    queue_free(&gpu->queue);
    gpu_free_rooms(gpu);
    gpu_free_staging(gpu);
    if (gpu->stream) cudaStreamDestroy(gpu->stream);
    free(gpu);
}

static int buffer_new(struct backend *be, struct buffer **ret, size_t n, struct error *err) {
    struct gpu *gpu = gpu_of(be);
    if (n > SIZE_MAX / 2 / sizeof(float))
        return error_set(err, -EINVAL, "a buffer of %zu numbers is too large", n);
    struct buffer *b = static_cast<struct buffer *>(calloc(1, sizeof *b));
    void *data = NULL;
    int rc = b ? gpu_alloc(gpu, GPU_WORK, &data, n * sizeof(float), err)
               : error_set(err, -ENOMEM, "no memory for a buffer");
    if (rc) {
        free(b);
        return rc;
    }
    b->n = n;
    b->data = static_cast<float *>(data);
    if (n) gpu_good(gpu, cudaMemsetAsync(data, 0, n * sizeof(float), gpu->stream), "a new buffer");
    *ret = b;
    return 0;
}

/* Whatever is freed may be named by what is still to run. */
static void buffer_free(struct backend *be, struct buffer *buffer) {
    struct gpu *gpu = gpu_of(be);
    queue_forget(gpu);
    gpu_release(gpu, GPU_WORK, buffer->data, buffer->n * sizeof(float));
    free(buffer);
}

static void weight_free(struct backend *be, struct weight *weight) {
    queue_forget(gpu_of(be));
    gpu_weight_free(be, weight);
}

static void kv_free(struct backend *be, struct kv *kv) {
    queue_forget(gpu_of(be));
    gpu_kv_free(be, kv);
}

static int gpu_sync(struct backend *be, struct error *err) {
    struct gpu *gpu = gpu_of(be);
    queue_flush(gpu);
    gpu_good(gpu, cudaStreamSynchronize(gpu->stream), "the device");
    return gpu->rc ? error_set(err, gpu->rc, "%s", gpu->failure.text) : 0;
}

static int buffer_read(struct backend *be, float *dst, const struct buffer *src, size_t offset,
                       size_t n, struct error *err) {
    struct gpu *gpu = gpu_of(be);
    if (offset > src->n || n > src->n - offset)
        return error_set(err, -EINVAL, "reading %zu numbers at %zu of %zu", n, offset, src->n);
    queue_flush(gpu);
    if (n && !gpu->rc)
        gpu_good(gpu,
                 cudaMemcpyAsync(dst, src->data + offset, n * sizeof *dst, cudaMemcpyDeviceToHost,
                                 gpu->stream),
                 "reading results");
    return gpu_sync(be, err);
}

static int gpu_best(struct backend *be, int32_t *ids, const struct buffer *x, int n_rows, int width,
                    struct error *err) {
    struct gpu *gpu = gpu_of(be);
    size_t bytes = (size_t)n_rows * sizeof *ids;
    queue_flush(gpu);
    if (n_rows > 0 && gpu_grow(gpu, &gpu->ids, bytes)) {
        int32_t *found = static_cast<int32_t *>(gpu->ids.data);
        if (gpu_good(gpu, best_run(found, x->data, n_rows, width, gpu->stream), "best"))
            gpu_good(gpu, cudaMemcpyAsync(ids, found, bytes, cudaMemcpyDeviceToHost, gpu->stream),
                     "reading ids");
    }
    return gpu_sync(be, err);
}

/* The rooms of a call; false after a failure. */
static bool grow_top(struct gpu *gpu, const struct top_call *call) {
    size_t rows = (size_t)call->n_rows, bytes = top_bytes(call->n_rows, call->width);
    size_t sums = rows * (size_t)backend_spans(call->width) * sizeof *call->sums;
    return gpu_grow(gpu, &gpu->ranks[0], bytes) && gpu_grow(gpu, &gpu->ranks[1], bytes) &&
           gpu_grow(gpu, &gpu->weighed, sums) &&
           gpu_grow(gpu, &gpu->temperatures, rows * sizeof(float));
}

static void run_top(struct gpu *gpu, const struct top_call *call) {
    size_t rows = (size_t)call->n_rows, spans = (size_t)backend_spans(call->width);
    uint64_t *rooms[] = {static_cast<uint64_t *>(gpu->ranks[0].data),
                         static_cast<uint64_t *>(gpu->ranks[1].data)};
    uint64_t *sums = static_cast<uint64_t *>(gpu->weighed.data);
    float *heats = static_cast<float *>(gpu->temperatures.data);
    const uint64_t *ranks = NULL;
    const float *x = call->x->data;
    cudaStream_t stream = gpu->stream;
    bool good =
        gpu_good(gpu,
                 cudaMemcpyAsync(heats, call->temperatures, rows * sizeof *heats,
                                 cudaMemcpyHostToDevice, stream),
                 "temperatures") &&
        gpu_good(gpu, top_ranks(rooms, &ranks, x, call->n_rows, call->width, stream), "ranks") &&
        gpu_good(gpu, top_sums(sums, x, ranks, heats, call->n_rows, call->width, stream), "sums");
    if (!good) return;
    gpu_good(gpu,
             cudaMemcpyAsync(call->ranks, ranks, rows * BACKEND_TOP * sizeof *ranks,
                             cudaMemcpyDeviceToHost, stream),
             "reading ranks");
    gpu_good(gpu,
             cudaMemcpyAsync(call->sums, sums, rows * spans * sizeof *sums, cudaMemcpyDeviceToHost,
                             stream),
             "reading sums");
}

static int gpu_top(struct backend *be, const struct top_call *call, struct error *err) {
    struct gpu *gpu = gpu_of(be);
    queue_flush(gpu);
    if (call->n_rows > 0 && grow_top(gpu, call)) run_top(gpu, call);
    return gpu_sync(be, err);
}

static void buffer_write(struct backend *be, struct buffer *dst, size_t offset, const float *src,
                         size_t n) {
    struct gpu *gpu = gpu_of(be);
    queue_flush(gpu);
    if (n && !gpu->rc)
        gpu_good(gpu,
                 cudaMemcpyAsync(dst->data + offset, src, n * sizeof *src, cudaMemcpyHostToDevice,
                                 gpu->stream),
                 "writing inputs");
}

/* Tiles of up to TILE_TOKENS tokens of one sequence each, in the order of the batch; returns how many.
 * open: (n_seqs) words of scratch: TILE_TOKENS (tile + 1) + places taken of the sequence's last tile, 0 when
 * that is full or there is none. */
static int make_tiles(int32_t *tiles, int32_t *open, const struct batch *batch) {
    int n = 0;
    for (int s = 0; s < batch->n_seqs; s++) open[s] = 0;
    for (int t = 0; t < batch->n_tokens; t++) {
        int32_t *taken = &open[batch->seqs[t]];
        int tile = *taken / TILE_TOKENS, place = *taken % TILE_TOKENS;
        if (!place) {
            tile = n++;
            for (int i = 0; i < TILE_TOKENS; i++) tiles[tile * TILE_TOKENS + i] = -1;
        } else {
            tile--;
        }
        tiles[tile * TILE_TOKENS + place] = t;
        *taken = place + 1 == TILE_TOKENS ? 0 : (tile + 1) * TILE_TOKENS + place + 1;
    }
    return n;
}

/* Rows of a table of blocks, `row` apart on the device. */
static void lay_blocks(int32_t *to, size_t row, const struct batch *batch) {
    size_t have = (size_t)batch->max_blocks;
    for (size_t s = 0; s < (size_t)batch->n_seqs; s++) {
        if (have) memcpy(to + s * row, batch->blocks + s * have, have * sizeof *to);
        memset(to + s * row + have, 0, (row - have) * sizeof *to);
    }
}

/* Tokens, positions, sequences, tiles and block tables travel in one copy. Rows of the table grow as
 * attention's pieces do: a graph has their length among its arguments, and one more block would be
 * another graph every 16 tokens. */
static void gpu_begin(struct backend *be, const struct batch *batch) {
    struct gpu *gpu = gpu_of(be);
    size_t n = (size_t)batch->n_tokens, n_seqs = (size_t)batch->n_seqs;
    size_t row = ((size_t)batch->max_blocks + SPLIT_BLOCKS - 1) / SPLIT_BLOCKS * SPLIT_BLOCKS;
    size_t blocks = n_seqs * row;
    size_t most = (3 + TILE_TOKENS) * n + blocks + n_seqs;
    queue_flush(gpu);
    gpu->n_tokens = gpu->n_rows = batch->n_tokens;
    gpu->longest = 0;
    for (size_t i = 0; i < n; i++)
        if (batch->positions[i] >= gpu->longest) gpu->longest = batch->positions[i] + 1;
    if (!most || !gpu_grow(gpu, &gpu->batch_room, most * sizeof(int32_t))) return;
    int32_t *all = static_cast<int32_t *>(malloc(most * sizeof *all));
    if (!all) {
        gpu->rc = error_set(&gpu->failure, -ENOMEM, "no memory for a batch of %zu tokens", n);
        return;
    }
    memcpy(all, batch->tokens, n * sizeof *all);
    memcpy(all + n, batch->positions, n * sizeof *all);
    memcpy(all + 2 * n, batch->seqs, n * sizeof *all);
    int n_tiles = make_tiles(all + 3 * n, all + most - n_seqs, batch);
    size_t at = 3 * n + (size_t)n_tiles * TILE_TOKENS, words = at + blocks;
    lay_blocks(all + at, row, batch);
    int32_t *to = static_cast<int32_t *>(gpu->batch_room.data);
    /* From pageable memory: the bytes have been taken when this returns. */
    gpu_good(gpu,
             cudaMemcpyAsync(to, all, words * sizeof *all, cudaMemcpyHostToDevice, gpu->stream),
             "a batch's tables");
    free(all);
    gpu->tokens = to;
    gpu->batch = batch_tables{to + n, to + 2 * n, to + at, to + 3 * n, (int)row, n_tiles};
}

static struct backend_ops make_ops() {
    struct backend_ops ops = {};
    ops.close = gpu_close;
    ops.buffer_new = buffer_new;
    ops.buffer_free = buffer_free;
    ops.buffer_read = buffer_read;
    ops.buffer_write = buffer_write;
    ops.weight_new = gpu_weight_new;
    ops.weight_free = weight_free;
    ops.weight_bytes = gpu_weight_bytes;
    ops.kv_new = gpu_kv_new;
    ops.kv_free = kv_free;
    ops.begin = gpu_begin;
    ops.embed = queue_embed;
    ops.norm = queue_norm;
    ops.linear = queue_linear;
    ops.rope = queue_rope;
    ops.kv_store = queue_kv_store;
    ops.attention = queue_attention;
    ops.gate = queue_gate;
    ops.add = queue_add;
    ops.gather = queue_gather;
    ops.sync = gpu_sync;
    ops.best = gpu_best;
    ops.top = gpu_top;
    ops.memory = gpu_memory;
    ops.rehearse = gpu_rehearse;
    return ops;
}

static int open_device(struct gpu *gpu, struct error *err) {
    int n = 0;
    cudaError_t code = cudaGetDeviceCount(&n); /* leaves n alone when it fails */
    if (code != cudaSuccess || n < 1)
        return error_set(err, -ENODEV, "no GPU: %s",
                         code != cudaSuccess ? cudaGetErrorString(code) : "none is there");
    cudaDeviceProp prop;
    code = cudaSetDevice(gpu->device);
    if (code == cudaSuccess) code = cudaGetDeviceProperties(&prop, gpu->device);
    if (code == cudaSuccess) code = cudaStreamCreate(&gpu->stream);
    if (code != cudaSuccess)
        return error_set(err, -ENODEV, "the GPU does not start: %s", cudaGetErrorString(code));
    gpu->processors = prop.multiProcessorCount;
    gpu->wide = GPTQT_CUDA_HOPPER && prop.major == 9 && prop.minor == 0;
    gpu->shared = prop.sharedMemPerBlockOptin;
    gpu->room = prop.sharedMemPerMultiprocessor;
    gpu->queue.plain = getenv("GPTQT_GPU_NO_GRAPHS") != NULL;
#if defined(__CUDACC__)
    gpu_overlap = prop.major >= 9 && !getenv("GPTQT_GPU_NO_OVERLAP");
#endif
    snprintf(gpu->base.detail, sizeof gpu->base.detail, "%.48s, sm_%d%d, %zu MiB", prop.name,
             prop.major, prop.minor, prop.totalGlobalMem >> 20);
    return 0;
}

int gpu_open_device(struct backend **ret, int device, struct error *err) {
    static const struct backend_ops ops = make_ops();
    struct gpu *gpu = static_cast<struct gpu *>(calloc(1, sizeof *gpu));
    if (!gpu) return error_set(err, -ENOMEM, "no memory for the GPU back end");
    gpu->base.ops = &ops;
    gpu->device = device;
#if defined(__CUDACC__)
    gpu->base.name = "cuda";
#else
    gpu->base.name = "cuda-emu";
#endif
    int rc = open_device(gpu, err);
    if (rc) {
        gpu_close(&gpu->base);
        return rc;
    }
    *ret = &gpu->base;
    return 0;
}

static int gpu_open(struct backend **ret, int n_devices, struct error *err) {
    return n_devices > 1 ? team_open(ret, n_devices, err) : gpu_open_device(ret, 0, err);
}

extern "C" __attribute__((visibility("default"))) const struct gpu_plugin *gptqt_gpu_plugin(void) {
    static const struct gpu_plugin plugin = {GPU_PLUGIN_VERSION, sizeof(struct backend_ops),
                                             gpu_open};
    return &plugin;
}
