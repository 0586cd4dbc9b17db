#include "kernels/cuda/exchange.h"

extern "C" {
#include "kernels/cut.h"
}

enum { THREADS = 256, MOST_BLOCKS = 1024 };

struct sum_args {
    float *dst;
    const float *part[MOST_DEVICES];
    size_t count;
    int n, accumulate;
};

static __global__ void __launch_bounds__(THREADS) total_kernel(struct sum_args args) {
    kernel_begin();
    for (size_t i = blockIdx.x * (size_t)THREADS + threadIdx.x; i < args.count;
         i += (size_t)gridDim.x * THREADS) {
        float sum = args.part[0][i];
#pragma unroll
        for (int d = 1; d < MOST_DEVICES; d++)
            if (d < args.n) sum += args.part[d][i];
        args.dst[i] = args.accumulate ? args.dst[i] + sum : sum;
    }
}

static __global__ void __launch_bounds__(THREADS)
    columns_kernel(float *dst, const float *src, int width, int cols) {
    kernel_begin();
    dst += (size_t)blockIdx.x * (size_t)width;
    src += (size_t)blockIdx.x * (size_t)cols;
    for (int i = (int)threadIdx.x; i < cols; i += THREADS) dst[i] = src[i];
}

void exchange_use(const struct exchange *x, int d) {
    struct gpu *gpu = x->gpu[d];
    gpu_good(gpu, cudaSetDevice(gpu->device), "choosing a device");
}

bool exchange_good(const struct exchange *x) {
    for (int d = 0; d < x->n; d++)
        if (x->gpu[d]->rc) return false;
    return true;
}

/* Direct ways between devices are faster; where there is none, copies go through the host. */
static void connect(const struct exchange *x, int d) {
    for (int e = 0; e < x->n; e++) {
        int can = 0;
        if (e == d) continue;
        if (cudaDeviceCanAccessPeer(&can, x->gpu[d]->device, x->gpu[e]->device) == cudaSuccess &&
            can)
            cudaDeviceEnablePeerAccess(x->gpu[e]->device, 0);
        cudaGetLastError();
    }
}

int exchange_open(struct exchange *x, struct gpu *const *gpu, int n, struct error *err) {
    x->n = n;
    for (int d = 0; d < n; d++) x->gpu[d] = gpu[d];
    for (int d = 0; d < n; d++) {
        exchange_use(x, d);
        connect(x, d);
        cudaError_t code = cudaEventCreateWithFlags(&x->event[d], cudaEventDisableTiming);
        if (code != cudaSuccess) return gpu_error(gpu[d], code, err, "an event");
    }
    return 0;
}

void exchange_close(struct exchange *x) {
    for (int d = 0; d < x->n; d++) {
        exchange_use(x, d);
        if (x->event[d]) cudaEventDestroy(x->event[d]);
        gpu_release(x->gpu[d], GPU_WORK, x->part[d].data, x->part[d].bytes);
        gpu_release(x->gpu[d], GPU_WORK, x->got[d].data, x->got[d].bytes);
    }
}

bool exchange_room(struct exchange *x, size_t count) {
    size_t bytes = count * sizeof(float);
    for (int d = 0; d < x->n; d++) {
        exchange_use(x, d);
        if (!gpu_grow(x->gpu[d], &x->part[d], bytes) ||
            !gpu_grow(x->gpu[d], &x->got[d], bytes * (size_t)(x->n - 1)))
            return false;
    }
    return true;
}

/* Every stream goes on when all have come this far. */
static void meet(struct exchange *x) {
    for (int d = 0; d < x->n; d++) {
        exchange_use(x, d);
        gpu_good(x->gpu[d], cudaEventRecord(x->event[d], x->gpu[d]->stream), "an event");
    }
    for (int d = 0; d < x->n; d++)
        for (int e = 0; e < x->n; e++)
            if (e != d)
                gpu_good(x->gpu[d], cudaStreamWaitEvent(x->gpu[d]->stream, x->event[e], 0),
                         "waiting for a device");
}

static void take(struct exchange *x, int d, void *to, int e, const void *from, size_t bytes) {
    struct gpu *gpu = x->gpu[d];
    gpu_good(gpu, cudaMemcpyPeerAsync(to, gpu->device, from, x->gpu[e]->device, bytes, gpu->stream),
             "copying from a device");
}

/* Where the others' parts lie once device d has them: its own stays in place. */
static void take_parts(struct exchange *x, int d, struct sum_args *args) {
    float *slot = static_cast<float *>(x->got[d].data);
    exchange_use(x, d);
    for (int e = 0; e < x->n; e++) {
        args->part[e] = e == d ? static_cast<const float *>(x->part[d].data) : slot;
        if (e == d) continue;
        take(x, d, slot, e, x->part[e].data, args->count * sizeof *slot);
        slot += args->count;
    }
}

void exchange_sum(struct exchange *x, float *const *dst, size_t count, bool accumulate) {
    struct sum_args args[MOST_DEVICES] = {};
    size_t blocks = (count + THREADS - 1) / THREADS;
    if (!count || gpu_mute || !exchange_good(x)) return;
    meet(x);
    for (int d = 0; d < x->n; d++) {
        args[d].dst = dst[d];
        args[d].count = count;
        args[d].n = x->n;
        args[d].accumulate = accumulate;
        take_parts(x, d, &args[d]);
    }
    meet(x); /* parts have been read: the next product may overwrite them */
    for (int d = 0; d < x->n; d++) {
        exchange_use(x, d);
        gpu_good(x->gpu[d],
                 gpu_launch(total_kernel,
                            dim3((unsigned)(blocks < MOST_BLOCKS ? blocks : (size_t)MOST_BLOCKS)),
                            THREADS, 0, x->gpu[d]->stream, args[d]),
                 "a sum over devices");
    }
}

void exchange_columns(struct exchange *x, float *dst, const float *const *src, int rows,
                      int width) {
    struct gpu *first = x->gpu[0];
    const float *at[MOST_DEVICES] = {src[0]};
    exchange_use(x, 0);
    if (rows < 1 || !exchange_good(x) ||
        !gpu_grow(first, &x->got[0], (size_t)rows * (size_t)width * sizeof *dst) || gpu_mute)
        return;
    meet(x);
    float *slot = static_cast<float *>(x->got[0].data);
    exchange_use(x, 0);
    for (int e = 1; e < x->n; e++) {
        size_t cols = (size_t)(cut_begin(width, e + 1, x->n) - cut_begin(width, e, x->n));
        take(x, 0, slot, e, src[e], (size_t)rows * cols * sizeof *slot);
        at[e] = slot;
        slot += (size_t)rows * cols;
    }
    meet(x);
    exchange_use(x, 0);
    for (int e = 0; e < x->n; e++) {
        int begin = cut_begin(width, e, x->n), cols = cut_begin(width, e + 1, x->n) - begin;
        gpu_good(first,
                 gpu_launch(columns_kernel, dim3((unsigned)rows), THREADS, 0, first->stream,
                            dst + begin, at[e], width, cols),
                 "joining columns");
    }
}
