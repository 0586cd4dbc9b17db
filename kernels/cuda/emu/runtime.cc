#include "kernels/cuda/emu/runtime.h"

#include <stdlib.h>

#include <deque>
#include <map>
#include <set>
#include <string>

bool gpu_mute;

struct emu_stream {
    std::deque<std::function<void()>> work, captured;
    bool captures;
};
struct emu_graph {
    std::deque<std::function<void()>> work;
};

struct emu_event {
    cudaStream_t stream;
    int to_come; /* records that the stream has not got to */
};

namespace {

enum { MAX_THREADS = 1024, MAX_SHARED = 227 * 1024, MAX_GRID_YZ = 65535 };

std::map<const char *, size_t> pinned; /* start and size */
std::map<void *, size_t> memory;       /* all of it, size */
std::set<cudaStream_t> streams;
size_t device_used; /* bytes of device memory, without what is pinned */
long n_allocations, n_launches;
cudaError_t last;

cudaError_t note(cudaError_t code) {
    if (code != cudaSuccess) last = code;
    return code;
}

/* Whether this is the occasion that the environment asks to fail. */
bool fails(const char *variable, long occasion) {
    const char *text = getenv(variable);
    return text && atol(text) == occasion;
}

size_t device_total() {
    const char *text = getenv("GPTQT_EMU_MEMORY");
    return text ? (size_t)strtoull(text, nullptr, 10) : (size_t)1 << 34;
}

bool is_pinned(const void *p) {
    const char *at = static_cast<const char *>(p);
    auto next = pinned.upper_bound(at);
    if (next == pinned.begin()) return false;
    --next;
    return at < next->first + next->second;
}

cudaError_t allocate(void **p, size_t bytes) {
    if (fails("GPTQT_EMU_FAIL_ALLOC", ++n_allocations)) return note(cudaErrorMemoryAllocation);
    size_t rounded = (bytes + emu::FENCE + 255) / 256 * 256;
    void *got = bytes < (size_t)1 << 40 ? aligned_alloc(256, rounded) : nullptr;
    if (!got) return note(cudaErrorMemoryAllocation);
    memset(got, 0xff, bytes);
    memset(static_cast<char *>(got) + bytes, emu::FENCE_BYTE, rounded - bytes);
    memory[got] = bytes;
    *p = got;
    return cudaSuccess;
}

void release(void *p) {
    auto it = memory.find(p);
    if (p && it == memory.end()) emu::fault(EMU_HERE, "%p is freed and was not allocated", p);
    if (p && !emu::fence_is_whole(static_cast<char *>(p) + it->second, emu::FENCE))
        emu::fault(EMU_HERE, "something wrote past the end of %zu bytes of device memory",
                   it->second);
    if (p) memory.erase(it);
    free(p);
}

} // namespace

namespace emu {

void enqueue(cudaStream_t stream, std::function<void()> work) {
    (stream->captures ? stream->captured : stream->work).push_back(std::move(work));
}

cudaError_t check_launch(dim3 grid, int threads, size_t shared) {
    if (fails("GPTQT_EMU_FAIL_LAUNCH", ++n_launches)) return note(cudaErrorLaunchFailure);
    bool fits = grid.x && grid.y && grid.z && grid.x < 1u << 31 && grid.y <= MAX_GRID_YZ &&
                grid.z <= MAX_GRID_YZ && threads > 0 && threads <= MAX_THREADS &&
                threads % 32 == 0 && shared <= MAX_SHARED;
    return fits ? cudaSuccess : note(cudaErrorInvalidConfiguration);
}

} // namespace emu

const char *cudaGetErrorString(cudaError_t code) {
    switch (code) {
    case cudaSuccess:
        return "no error";
    case cudaErrorMemoryAllocation:
        return "out of memory";
    case cudaErrorInvalidConfiguration:
        return "invalid configuration argument";
    case cudaErrorNoDevice:
        return "no CUDA-capable device is detected";
    case cudaErrorLaunchFailure:
        return "unspecified launch failure";
    default:
        return "invalid argument";
    }
}

cudaError_t cudaGetLastError() {
    cudaError_t code = last;
    last = cudaSuccess;
    return code;
}

cudaError_t cudaGetDeviceCount(int *n) {
    const char *text = getenv("GPTQT_EMU_DEVICES");
    int have = text ? atoi(text) : 1;
    if (have < 1) return note(cudaErrorNoDevice); /* leaves the count alone, as the runtime does */
    *n = have;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
    return device == 0 ? cudaSuccess : note(cudaErrorInvalidValue);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *prop, int) {
    *prop = cudaDeviceProp{};
    strcpy(prop->name, "emulated");
    prop->major = 9;
    prop->multiProcessorCount = 4;
    prop->totalGlobalMem = device_total();
    prop->sharedMemPerBlockOptin = MAX_SHARED;
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    *total = device_total();
    *free_bytes = *total > device_used ? *total - device_used : 0;
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **p, size_t bytes) {
    if (device_used > device_total() || bytes > device_total() - device_used)
        return note(cudaErrorMemoryAllocation);
    cudaError_t rc = allocate(p, bytes);
    if (rc == cudaSuccess) device_used += bytes;
    return rc;
}

/* Waits for everything queued, as the runtime does. */
cudaError_t cudaFree(void *p) {
    for (cudaStream_t stream : streams) cudaStreamSynchronize(stream);
    auto it = memory.find(p);
    if (p && it != memory.end()) device_used -= it->second;
    release(p);
    return cudaSuccess;
}

cudaError_t cudaMallocHost(void **p, size_t bytes) {
    cudaError_t rc = allocate(p, bytes);
    if (rc == cudaSuccess) pinned[static_cast<char *>(*p)] = bytes;
    return rc;
}

cudaError_t cudaFreeHost(void *p) {
    for (cudaStream_t stream : streams) cudaStreamSynchronize(stream);
    pinned.erase(static_cast<char *>(p));
    release(p);
    return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t *stream) {
    *stream = new emu_stream{};
    streams.insert(*stream);
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    cudaStreamSynchronize(stream);
    streams.erase(stream);
    delete stream;
    return cudaSuccess;
}

static void run_next(cudaStream_t stream) {
    std::function<void()> work = std::move(stream->work.front());
    stream->work.pop_front();
    work();
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    while (!stream->work.empty()) run_next(stream);
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) {
    *event = new emu_event{};
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    cudaEventSynchronize(event);
    delete event;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    event->stream = stream;
    event->to_come++;
    emu::enqueue(stream, [=]() { event->to_come--; });
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    while (event->to_come) run_next(event->stream);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
    if (kind == cudaMemcpyHostToDevice && !is_pinned(src)) {
        if (stream->captures) return note(cudaErrorInvalidValue);
        const char *from = static_cast<const char *>(src);
        std::string copy(from, bytes);
        emu::enqueue(stream, [=]() { memcpy(dst, copy.data(), bytes); });
        return cudaSuccess;
    }
    if (stream->captures) return note(cudaErrorInvalidValue); /* of what memory, at a replay? */
    emu::enqueue(stream, [=]() { memmove(dst, src, bytes); });
    bool waits = kind == cudaMemcpyDeviceToHost && !is_pinned(dst);
    return waits ? cudaStreamSynchronize(stream) : cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *dst, int value, size_t bytes, cudaStream_t stream) {
    emu::enqueue(stream, [=]() { memset(dst, value, bytes); });
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    if (stream->captures) return note(cudaErrorInvalidValue);
    stream->captures = true;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    if (!stream->captures) return note(cudaErrorInvalidValue);
    stream->captures = false;
    *graph = new emu_graph{std::move(stream->captured)};
    stream->captured.clear();
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long) {
    *exec = new emu_graph{*graph};
    return cudaSuccess;
}

/* Its launches count as if they were made one by one. */
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    for (const std::function<void()> &work : exec->work) {
        if (fails("GPTQT_EMU_FAIL_LAUNCH", ++n_launches)) return note(cudaErrorLaunchFailure);
        emu::enqueue(stream, work);
    }
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    delete exec;
    return cudaSuccess;
}
