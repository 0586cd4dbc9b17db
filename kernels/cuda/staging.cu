#include <string.h>

#include "kernels/cuda/device.h"

static const size_t HALF_BYTES = 4 << 20;
static const size_t LEAST_BYTES = 64 << 10; /* below, a copy of its own costs less */

static void drop(struct staging_half *half) {
    if (half->data) cudaFreeHost(half->data);
    if (half->sent) cudaEventDestroy(half->sent);
    *half = staging_half{};
}

void gpu_free_staging(struct gpu *gpu) {
    for (struct staging_half &half : gpu->staging.halves) drop(&half);
}

/* Asks once: a machine without pinned memory to spare copies as if there was no such thing. */
static bool is_ready(struct gpu *gpu) {
    struct staging *s = &gpu->staging;
    bool good = true;
    if (s->asked) return s->halves[0].data != NULL;
    s->asked = true;
    for (struct staging_half &half : s->halves)
        good = good && cudaMallocHost(&half.data, HALF_BYTES) == cudaSuccess &&
               cudaEventCreateWithFlags(&half.sent, cudaEventDisableTiming) == cudaSuccess;
    if (good) return true;
    cudaGetLastError();
    gpu_free_staging(gpu);
    return false;
}

cudaError_t gpu_send(struct gpu *gpu, void *dst, const void *host, size_t bytes) {
    char *to = static_cast<char *>(dst);
    const char *from = static_cast<const char *>(host);
    cudaError_t code = cudaSuccess;
    if (bytes < LEAST_BYTES || !is_ready(gpu))
        return cudaMemcpyAsync(dst, host, bytes, cudaMemcpyHostToDevice, gpu->stream);
    for (size_t at = 0; at < bytes && code == cudaSuccess; at += HALF_BYTES) {
        struct staging_half *half = &gpu->staging.halves[gpu->staging.turn ^= 1];
        size_t n = bytes - at < HALF_BYTES ? bytes - at : HALF_BYTES;
        code = cudaEventSynchronize(half->sent);
        if (code != cudaSuccess) break;
        memcpy(half->data, from + at, n);
        code = cudaMemcpyAsync(to + at, half->data, n, cudaMemcpyHostToDevice, gpu->stream);
        if (code == cudaSuccess) code = cudaEventRecord(half->sent, gpu->stream);
    }
    return code;
}
