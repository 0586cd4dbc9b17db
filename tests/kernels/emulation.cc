/* Bugs planted in kernels and their launches: the emulation must catch each, and none in the same
 * code without the bug. Caught is a process that ends with the emulation's status, or a result
 * that is wrong under one schedule of nine at least. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernels/cuda/gpu.h"
#include "kernels/cuda/ptx.h"

namespace {

enum { N = 64, SEEDS = 9, FAULT = 99, WRONG = 1 };

cudaStream_t stream, other;
float *device;

/* Each thread publishes its number, then takes its neighbour's. */
__global__ void neighbours(float *out, bool with_barrier) {
    SHARED_ARRAY(float, cell, N);
    int i = (int)threadIdx.x;
    cell[i] = (float)i;
    if (with_barrier) block_sync();
    out[i] = cell[(i + 1) % N];
}

/* The last word on a cell is one thread's, or whoever's comes last. */
__global__ void one_writer(float *out, bool ordered) {
    SHARED_ARRAY(float, cell, 1);
    int i = (int)threadIdx.x;
    block_sync();
    if (!ordered || i == 7) cell[0] = (float)(ordered ? 1 : i);
    block_sync();
    out[i] = cell[0];
}

__global__ void fills_shared(float *out, int n) {
    SHARED_ARRAY(float, cell, N);
    int i = (int)threadIdx.x;
    if (i == 0)
        for (int k = 0; k < n; k++) cell[k] = 1;
    block_sync();
    out[i] = cell[i];
}

__global__ void fills_device(float *out, int n) {
    int i = (int)threadIdx.x;
    if (i < n) out[i] = 1;
    if (i == 0 && n > N) out[n - 1] = 1;
}

__global__ void reads_what_nobody_wrote(float *out, bool written) {
    SHARED_ARRAY(float, cell, N);
    int i = (int)threadIdx.x;
    if (written || i != 3) cell[i] = 1;
    block_sync();
    out[i] = cell[i];
}

__global__ void shuffles(float *out, uint32_t mask) {
    int i = (int)threadIdx.x;
    out[i] = emu::shuffle(EMU_HERE, mask, 1.0f, 0);
}

__global__ void meets_in_part(float *out, int lanes) {
    int i = (int)threadIdx.x;
    if (i % 32 < lanes) warp_sync();
    out[i] = 1;
}

__global__ void two_barriers(float *out, int first) {
    int i = (int)threadIdx.x;
    if (i < first)
        block_sync();
    else
        block_sync();
    out[i] = 1;
}

__global__ void leaves_early(float *out, int stay) {
    int i = (int)threadIdx.x;
    out[i] = 1;
    if (i >= stay) return;
    block_sync();
}

/* Shared memory filled by copies that go on behind the thread's back. */
__global__ void reads_a_copy(float *out, int waits) {
    SHARED_ARRAY(uint2, cell, N);
    int i = (int)threadIdx.x;
    uint2 *from = reinterpret_cast<uint2 *>(out);
    if (i < N / 2) copy_async(cell + i, from + i, true);
    copy_commit();
    if (waits > 0) copy_wait(0);
    block_sync();
    out[i] = reinterpret_cast<float *>(cell)[i] + 1;
    if (waits == 0) copy_wait(0);
}

__global__ void doubles(float *out) { out[threadIdx.x] *= 2; }

float got[N];

/* False when the results are not 1 everywhere. */
bool run(void (*kernel)(float *, bool), bool value) {
    if (gpu_launch(kernel, dim3(1), N, 0, stream, device, value) != cudaSuccess) return false;
    return cudaMemcpyAsync(got, device, sizeof got, cudaMemcpyDeviceToHost, stream) == cudaSuccess;
}

template <class T> bool ones(void (*kernel)(float *, T), T value) {
    if (gpu_launch(kernel, dim3(1), N, 0, stream, device, value) != cudaSuccess) return false;
    cudaMemcpyAsync(got, device, sizeof got, cudaMemcpyDeviceToHost, stream);
    for (float v : got)
        if (!(v == 1)) return false;
    return true;
}

bool missing_barrier(bool bug) {
    if (!run(neighbours, !bug)) return false;
    for (int i = 0; i < N; i++)
        if (!(got[i] == (float)((i + 1) % N))) return false;
    return true;
}
bool race(bool bug) { return ones(one_writer, !bug); }
bool shared_overrun(bool bug) { return ones(fills_shared, N + bug); }
bool device_overrun(bool bug) {
    bool good = ones(fills_device, N + bug);
    cudaFree(device);
    return good;
}
bool uninitialised_read(bool bug) { return ones(reads_what_nobody_wrote, !bug); }
bool bad_mask(bool bug) { return ones(shuffles, bug ? 0x0000ffffu : 0xffffffffu); }
bool part_of_a_warp(bool bug) { return ones(meets_in_part, bug ? 16 : 32); }
bool barriers_apart(bool bug) { return ones(two_barriers, bug ? 32 : N); }
bool early_end(bool bug) { return ones(leaves_early, bug ? 40 : N); }

/* device is zero, its copy plus one is one. */
bool copied(int waits) {
    cudaMemsetAsync(device, 0, N * sizeof(float), stream);
    return ones(reads_a_copy, waits);
}
bool copy_read_early(bool bug) { return copied(bug ? 0 : 1); }
bool copy_left_behind(bool bug) { return copied(bug ? -1 : 1); }

/* A graph replays what was captured, no more: not what its list would be today. */
bool stale_graph(bool bug) {
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed);
    gpu_launch(fills_device, dim3(1), N, 0, stream, device, bug ? 9 : (int)N);
    cudaStreamEndCapture(stream, &graph);
    cudaGraphInstantiate(&exec, graph, 0);
    cudaGraphDestroy(graph);
    bool good = cudaGraphLaunch(exec, stream) == cudaSuccess;
    cudaMemcpyAsync(got, device, sizeof got, cudaMemcpyDeviceToHost, stream);
    cudaGraphExecDestroy(exec);
    return good && got[N - 1] == 1;
}

/* One stream fills, another takes, with or without waiting. */
bool wrong_stream(bool bug) {
    gpu_launch(fills_device, dim3(1), N, 0, stream, device, (int)N);
    if (!bug) cudaStreamSynchronize(stream);
    gpu_launch(doubles, dim3(1), N, 0, other, device);
    cudaMemcpyAsync(got, device, sizeof got, cudaMemcpyDeviceToHost, other);
    return got[5] == 2;
}

/* Results in pinned memory are there after waiting only. */
bool no_wait(bool bug) {
    float *pinned = nullptr;
    cudaMallocHost(reinterpret_cast<void **>(&pinned), sizeof got);
    gpu_launch(fills_device, dim3(1), N, 0, stream, device, (int)N);
    cudaMemcpyAsync(pinned, device, sizeof got, cudaMemcpyDeviceToHost, stream);
    if (!bug) cudaStreamSynchronize(stream);
    bool good = pinned[9] == 1;
    cudaStreamSynchronize(stream);
    cudaFreeHost(pinned);
    return good;
}

/* Pinned memory that is filled anew while its copy is still queued. */
bool reused_staging(bool bug) {
    float *pinned = nullptr;
    cudaMallocHost(reinterpret_cast<void **>(&pinned), sizeof got);
    for (int i = 0; i < N; i++) pinned[i] = 1;
    cudaMemcpyAsync(device, pinned, sizeof got, cudaMemcpyHostToDevice, stream);
    if (!bug) cudaStreamSynchronize(stream);
    pinned[0] = 2;
    cudaMemcpyAsync(got, device, sizeof got, cudaMemcpyDeviceToHost, stream);
    cudaFreeHost(pinned);
    return got[0] == 1;
}

bool too_many_threads(bool bug) {
    return gpu_launch(doubles, dim3(1), bug ? 2048 : N, 0, stream, device) == cudaSuccess;
}
bool too_much_shared(bool bug) {
    return gpu_launch(doubles, dim3(1), N, bug ? 1 << 20 : 1024, stream, device) == cudaSuccess;
}

const struct {
    const char *name;
    bool (*run)(bool bug);
} bugs[] = {{"missing barrier", missing_barrier},
            {"race", race},
            {"overrun of shared memory", shared_overrun},
            {"overrun of device memory", device_overrun},
            {"uninitialised read", uninitialised_read},
            {"bad mask", bad_mask},
            {"warp operation of half a warp", part_of_a_warp},
            {"barriers apart", barriers_apart},
            {"end before a barrier", early_end},
            {"copy read before it is waited for", copy_read_early},
            {"copy that nobody waits for", copy_left_behind},
            {"graph of other work", stale_graph},
            {"wrong stream", wrong_stream},
            {"result read too early", no_wait},
            {"staging reused too early", reused_staging},
            {"too many threads", too_many_threads},
            {"too much shared memory", too_much_shared}};
enum { N_BUGS = sizeof bugs / sizeof *bugs };

/* The status of a process that runs it under this schedule. */
int status_of(int i, bool bug, int seed) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        char text[16];
        snprintf(text, sizeof text, "%d", seed);
        setenv("GPTQT_EMU_SEED", text, 1);
        if (bug) fclose(stderr); /* its complaint is expected */
        cudaStreamCreate(&stream);
        cudaStreamCreate(&other);
        cudaMalloc(reinterpret_cast<void **>(&device), N * sizeof(float));
        _exit(bugs[i].run(bug) ? 0 : WRONG);
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) < 0) return -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

} // namespace

int main() {
    int bad = 0;
    printf("1..%d\n", 2 * (int)N_BUGS);
    for (int i = 0; i < N_BUGS; i++) {
        int wrong = 0, caught = 0, odd = 0;
        for (int seed = 0; seed < SEEDS; seed++) {
            if (status_of(i, false, seed) != 0) wrong++;
            int status = status_of(i, true, seed);
            if (status == FAULT || status == WRONG)
                caught++;
            else if (status != 0)
                odd++; /* a sanitizer's, or a crash */
        }
        bad += wrong > 0 || caught + odd == 0;
        printf("%sok %d - %s: correct code passes\n", wrong ? "not " : "", 2 * i + 1, bugs[i].name);
        printf("%sok %d - %s: is caught\n# under %d of %d schedules\n", caught + odd ? "" : "not ",
               2 * i + 2, bugs[i].name, caught + odd, (int)SEEDS);
    }
    return bad != 0;
}
