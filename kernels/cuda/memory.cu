#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/device.h"

static double mib(size_t bytes) { return (double)bytes / 1048576; }

void gpu_memory(struct backend *be, struct backend_memory *ret) {
    struct gpu *gpu = gpu_of(be);
    *ret = backend_memory{};
    cudaMemGetInfo(&ret->free, &ret->total);
    ret->weights = gpu->used[GPU_WEIGHTS];
    ret->kv = gpu->used[GPU_KV];
    ret->work = gpu->used[GPU_WORK];
}

/* The table of who uses what. */
static int no_memory(struct gpu *gpu, struct error *err, double asked) {
    struct backend_memory m;
    gpu_memory(&gpu->base, &m);
    size_t ours = m.weights + m.kv + m.work, taken = m.total - m.free;
    return error_set(err, -ENOMEM,
                     "no %.1f MiB on the device; in MiB: weights %.1f, keys and values %.1f, "
                     "working rooms %.1f, others %.1f, free %.1f of %.1f",
                     asked, mib(m.weights), mib(m.kv), mib(m.work),
                     mib(taken > ours ? taken - ours : 0), mib(m.free), mib(m.total));
}

int gpu_error(struct gpu *gpu, cudaError_t code, struct error *err, const char *what) {
    if (code != cudaErrorMemoryAllocation)
        return error_set(err, -EIO, "%s: %s", what, cudaGetErrorString(code));
    cudaGetLastError();
    return error_prefix(err, no_memory(gpu, err, 0), "%s", what);
}

int gpu_alloc(struct gpu *gpu, enum gpu_use use, void **ret, size_t bytes, struct error *err) {
    *ret = NULL;
    if (!bytes) return 0;
    cudaError_t code = cudaMalloc(ret, bytes);
    if (code == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        *ret = NULL;
        return no_memory(gpu, err, mib(bytes));
    }
    if (code != cudaSuccess) return gpu_error(gpu, code, err, "device memory");
    gpu->used[use] += bytes;
    return 0;
}

void gpu_release(struct gpu *gpu, enum gpu_use use, void *data, size_t bytes) {
    cudaFree(data);
    gpu->used[use] -= bytes;
}

bool gpu_grow(struct gpu *gpu, struct room *room, size_t bytes) {
    if (gpu->rc) return false;
    if (bytes <= room->bytes) return true;
    queue_drop_graphs(&gpu->queue);
    gpu_release(gpu, GPU_WORK, room->data, room->bytes);
    *room = (struct room){};
    int rc = gpu_alloc(gpu, GPU_WORK, &room->data, bytes, &gpu->failure);
    if (rc)
        gpu->rc = error_prefix(&gpu->failure, rc, "working rooms of a step");
    else
        room->bytes = bytes;
    return !rc;
}

const void *gpu_constant(struct gpu *gpu, const void *host, size_t bytes) {
    for (int i = 0; i < N_CONSTANTS; i++) {
        struct constant *c = &gpu->constants[i];
        if (c->data && c->bytes == bytes && !memcmp(c->host, host, bytes)) return c->data;
    }
    struct constant *c = &gpu->constants[gpu->next_constant++ % N_CONSTANTS];
    if (c->data) queue_forget(gpu);
    gpu_release(gpu, GPU_WORK, c->data, c->data ? c->bytes : 0);
    free(c->host);
    *c = constant{malloc(bytes), NULL, bytes};
    struct error err;
    int rc = c->host ? gpu_alloc(gpu, GPU_WORK, &c->data, bytes, &err)
                     : error_set(&err, -ENOMEM, "no memory for constants");
    if (rc) {
        if (!gpu->rc) gpu->rc = error_set(&gpu->failure, rc, "constants: %s", err.text);
        return NULL;
    }
    memcpy(c->host, host, bytes);
    gpu_good(gpu, cudaMemcpyAsync(c->data, c->host, bytes, cudaMemcpyHostToDevice, gpu->stream),
             "constants");
    return gpu->rc ? NULL : c->data;
}

/* What a rehearsal left behind was never computed. */
void gpu_rehearse(struct backend *be, bool on) {
    queue_flush(gpu_of(be));
    gpu_mute = on;
}

void gpu_free_rooms(struct gpu *gpu) {
    struct room *rooms[] = {
        &gpu->ids,        &gpu->batch_room,   &gpu->rows_room,  &gpu->pieces,
        &gpu->groups,     &gpu->sums,         &gpu->columns[0], &gpu->columns[1],
        &gpu->unscale[0], &gpu->unscale[1],   &gpu->ranks[0],   &gpu->ranks[1],
        &gpu->weighed,    &gpu->temperatures, &gpu->turned,     &gpu->aside};
    for (size_t i = 0; i < sizeof rooms / sizeof *rooms; i++) cudaFree(rooms[i]->data);
    for (int i = 0; i < N_ANGLES; i++) cudaFree(gpu->angles[i].room.data);
    for (int i = 0; i < N_CONSTANTS; i++) {
        cudaFree(gpu->constants[i].data);
        free(gpu->constants[i].host);
    }
}
