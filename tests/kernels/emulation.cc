/* Bugs planted in kernels and their launches: the emulation must catch each, and none in the same
 * code without the bug. Caught is a process that ends with the emulation's status, or a result
 * that is wrong under one schedule of nine at least. Built with the thread sanitizer, those that
 * are races must be reported as races. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernels/cuda/emu/races.h"
#include "kernels/cuda/gpu.h"
#include "kernels/cuda/ptx.h"
#if EMU_TSAN
#include <sanitizer/common_interface_defs.h>
#endif

namespace {

#if EMU_TSAN
enum { SEES_RACES = 1 };
#else
enum { SEES_RACES = 0 };
#endif
enum { N = 64, SEEDS = 9, FAULT = 99, WRONG = 1, RACE = 98 };

bool raced;

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

/* The same among the lanes of a warp, who need less to agree. */
__global__ void lanes_exchange(float *out, bool with_sync) {
    SHARED_ARRAY(float, cell, N);
    int i = (int)threadIdx.x;
    cell[i] = 1;
    if (with_sync) warp_sync();
    out[i] = cell[i ^ 1];
}

/* A shuffle brings its value and no more: what lies in memory is not ordered by it. */
__global__ void lanes_shuffle(float *out, bool with_sync) {
    SHARED_ARRAY(float, cell, N);
    int i = (int)threadIdx.x;
    cell[i] = 1;
    float one = warp_xor(1.0f, 1);
    if (with_sync) warp_sync();
    out[i] = one * cell[i ^ 1];
}

/* A buffer filled again by copies while others may still read it: the barrier before is missing. */
__global__ void refills(float *out, bool with_barrier) {
    SHARED_ARRAY(uint2, cell, N / 2);
    int i = (int)threadIdx.x;
    if (i < N / 2) cell[i] = uint2{0, 0};
    block_sync();
    float old = reinterpret_cast<float *>(cell)[N - 1 - i];
    if (with_barrier) block_sync();
    if (i < N / 2) copy_async(cell + i, reinterpret_cast<uint2 *>(out) + i, true);
    copy_commit();
    copy_wait(0);
    block_sync();
    float now = reinterpret_cast<float *>(cell)[i];
    block_sync();
    out[i] = now + old + 1;
}

/* Blocks add to one cell, or each to its own. */
__global__ void blocks_add(float *out, bool apart) {
    if (threadIdx.x == 0) out[apart ? blockIdx.x : 0] += 1;
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
bool missing_warp_sync(bool bug) { return ones(lanes_exchange, !bug); }
bool shuffle_for_sync(bool bug) { return ones(lanes_shuffle, !bug); }

/* Right whatever comes first, here: blocks run one after another. */
bool add_between_blocks(bool bug) {
    cudaMemsetAsync(device, 0, N * sizeof(float), stream);
    if (gpu_launch(blocks_add, dim3(8), N, 0, stream, device, !bug) != cudaSuccess) return false;
    cudaMemcpyAsync(got, device, sizeof got, cudaMemcpyDeviceToHost, stream);
    return got[0] == (bug ? 8 : 1) && got[7] == (bug ? 0 : 1);
}
bool refill_too_early(bool bug) {
    cudaMemsetAsync(device, 0, N * sizeof(float), stream);
    return ones(refills, !bug);
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

/* The same with an event, which a copy does not wait for unless it was recorded behind it. */
bool early_event(bool bug) {
    float *pinned = nullptr;
    cudaEvent_t sent;
    cudaEventCreateWithFlags(&sent, cudaEventDisableTiming);
    cudaMallocHost(reinterpret_cast<void **>(&pinned), sizeof got);
    for (int i = 0; i < N; i++) pinned[i] = 1;
    if (bug) cudaEventRecord(sent, stream);
    cudaMemcpyAsync(device, pinned, sizeof got, cudaMemcpyHostToDevice, stream);
    if (!bug) cudaEventRecord(sent, stream);
    cudaEventSynchronize(sent);
    pinned[0] = 2;
    cudaMemcpyAsync(got, device, sizeof got, cudaMemcpyDeviceToHost, stream);
    cudaEventDestroy(sent);
    cudaFreeHost(pinned);
    return got[0] == 1;
}

bool too_many_threads(bool bug) {
    return gpu_launch(doubles, dim3(1), bug ? 2048 : N, 0, stream, device) == cudaSuccess;
}
bool too_much_shared(bool bug) {
    return gpu_launch(doubles, dim3(1), N, bug ? 1 << 20 : 1024, stream, device) == cudaSuccess;
}

/* The second device's stream takes what the first one's fills, waiting for its event or not. */
bool unordered_devices(bool bug) {
    cudaStream_t second = nullptr;
    cudaEvent_t filled = nullptr;
    void *theirs = nullptr;
    cudaEventCreateWithFlags(&filled, cudaEventDisableTiming);
    gpu_launch(fills_device, dim3(1), N, 0, stream, device, (int)N);
    cudaEventRecord(filled, stream);
    cudaSetDevice(1);
    cudaStreamCreate(&second);
    cudaMalloc(&theirs, sizeof got);
    if (!bug) cudaStreamWaitEvent(second, filled, 0);
    cudaMemcpyPeerAsync(theirs, 1, device, 0, sizeof got, second);
    cudaMemcpyAsync(got, theirs, sizeof got, cudaMemcpyDeviceToHost, second);
    return got[5] == 1;
}

/* A kernel on one device that is given memory of another. */
bool foreign_memory(bool bug) {
    cudaStream_t second = nullptr;
    void *theirs = nullptr;
    cudaSetDevice(1);
    cudaStreamCreate(&second);
    cudaMalloc(&theirs, sizeof got);
    float *to = bug ? device : static_cast<float *>(theirs);
    gpu_launch(fills_device, dim3(1), N, 0, second, to, (int)N);
    return cudaStreamSynchronize(second) == cudaSuccess;
}

/* A launch into a stream of a device that is not the current one. */
bool foreign_stream(bool bug) {
    if (bug) cudaSetDevice(1);
    return gpu_launch(fills_device, dim3(1), N, 0, stream, device, (int)N) == cudaSuccess;
}

/* RACE_SEEN: the emulation alone catches it, too. */
enum kind { NO_RACE, RACE_SEEN, RACE_UNSEEN };

const struct {
    const char *name;
    bool (*run)(bool bug);
    kind race;
} bugs[] = {{"missing barrier", missing_barrier, RACE_SEEN},
            {"missing warp sync", missing_warp_sync, RACE_SEEN},
            {"shuffle in place of a warp sync", shuffle_for_sync, RACE_UNSEEN},
            {"plain add between blocks", add_between_blocks, RACE_UNSEEN},
            {"buffer refilled too early", refill_too_early, RACE_UNSEEN},
            {"race", race, RACE_SEEN},
            {"overrun of shared memory", shared_overrun, NO_RACE},
            {"overrun of device memory", device_overrun, NO_RACE},
            {"uninitialised read", uninitialised_read, NO_RACE},
            {"bad mask", bad_mask, NO_RACE},
            {"warp operation of half a warp", part_of_a_warp, NO_RACE},
            {"barriers apart", barriers_apart, NO_RACE},
            {"end before a barrier", early_end, NO_RACE},
            {"copy read before it is waited for", copy_read_early, NO_RACE},
            {"copy that nobody waits for", copy_left_behind, NO_RACE},
            {"graph of other work", stale_graph, NO_RACE},
            {"wrong stream", wrong_stream, NO_RACE},
            {"result read too early", no_wait, NO_RACE},
            {"staging reused too early", reused_staging, NO_RACE},
            {"an event recorded too early", early_event, NO_RACE},
            {"devices in no order", unordered_devices, NO_RACE},
            {"memory of another device", foreign_memory, NO_RACE},
            {"stream of another device", foreign_stream, NO_RACE},
            {"too many threads", too_many_threads, NO_RACE},
            {"too much shared memory", too_much_shared, NO_RACE}};
enum { N_BUGS = sizeof bugs / sizeof *bugs };

/* What is said of a planted bug is expected, and no news to anyone. */
void hide_complaints() {
    freopen("/dev/null", "w", stderr);
#if EMU_TSAN
    __sanitizer_set_report_path("stderr");
#endif
}

/* The status of a process that runs it under this schedule. */
int status_of(int i, bool bug, int seed) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        char text[16];
        snprintf(text, sizeof text, "%d", seed);
        setenv("GPTQT_EMU_SEED", text, 1);
        setenv("GPTQT_EMU_DEVICES", "2", 1);
        if (bug) hide_complaints();
        cudaStreamCreate(&stream);
        cudaStreamCreate(&other);
        cudaMalloc(reinterpret_cast<void **>(&device), N * sizeof(float));
        bool good = bugs[i].run(bug);
        _exit(raced ? RACE : good ? 0 : WRONG);
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) < 0) return -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

} // namespace

#if EMU_TSAN
/* The sanitizer calls it for each report, and waits: what it does must not be a race itself. */
extern "C" __attribute__((no_sanitize("thread"))) void __tsan_on_report(void *) { raced = true; }
/* By default a process waits a second at its end for other threads' reports. */
extern "C" const char *__tsan_default_options() { return "atexit_sleep_ms=0"; }
#endif

int main() {
    int bad = 0, number = 0;
    printf("1..%d\n", 2 * (int)N_BUGS);
    for (int i = 0; i < N_BUGS; i++) {
        int wrong = 0, caught = 0, reported = 0;
        for (int seed = 0; seed < SEEDS; seed++) {
            if (status_of(i, false, seed) != 0) wrong++;
            int status = status_of(i, true, seed);
            caught += status != 0; /* also with a sanitizer's status, or a crash */
            reported += status == RACE;
        }
        bool as_race = SEES_RACES && bugs[i].race != NO_RACE;
        bool good = as_race ? reported > 0 : caught > 0;
        const char *skip = !SEES_RACES && bugs[i].race == RACE_UNSEEN
                               ? " # SKIP the thread sanitizer alone sees it"
                               : "";
        bad += wrong > 0 || (!good && !*skip);
        printf("%sok %d - %s: correct code passes\n", wrong ? "not " : "", ++number, bugs[i].name);
        printf("%sok %d - %s: is %s%s\n# under %d of %d schedules\n", good || *skip ? "" : "not ",
               ++number, bugs[i].name, as_race ? "reported as a race" : "caught", skip,
               as_race ? reported : caught, (int)SEEDS);
    }
    return bad != 0;
}
