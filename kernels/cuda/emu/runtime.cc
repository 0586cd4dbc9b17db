#include "kernels/cuda/emu/runtime.h"

#include <stdlib.h>

#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>

bool gpu_mute;

struct emu_stream {
    std::deque<std::function<void()>> work, captured;
    bool captures;
    int device;
};
/* Records are numbered: a wait is for the last one before it. */
struct event_state {
    unsigned long recorded, done;
    cudaStream_t stream; /* of the last record */
};
struct emu_event {
    std::shared_ptr<event_state> state; /* queued work may outlive the event */
    int device;
};
struct emu_graph {
    std::deque<std::function<void()>> work;
};

namespace {

enum { MAX_THREADS = 1024, MAX_GRID_YZ = 65535, MAX_DEVICES = 8 };

/* What the choices of the host depend on. */
const struct card {
    int capability;
    size_t shared; /* KiB that a block may ask for */
    size_t room;   /* KiB of a multiprocessor */
} cards[] = {{75, 64, 64},   {80, 163, 164},  {86, 99, 100}, {89, 99, 100},
             {90, 227, 228}, {100, 227, 228}, {120, 99, 100}};

const card &find_card() {
    const char *text = getenv("GPTQT_EMU_CARD");
    int capability = text ? atoi(text) : 90;
    for (const card &c : cards)
        if (c.capability == capability) return c;
    emu::fault(EMU_HERE, "GPTQT_EMU_CARD=%s is none of those known", text);
}

const card &this_card() {
    static const card &found = find_card(); /* asked for by every access to shared memory */
    return found;
}

enum { NO_DEVICE = -1 };
struct allocation {
    size_t bytes;
    int device; /* NO_DEVICE: pinned */
};

std::map<const char *, size_t> pinned; /* start and size */
std::map<const char *, allocation> memory;
std::set<cudaStream_t> streams;
size_t device_used[MAX_DEVICES]; /* bytes of device memory, without what is pinned */
long n_allocations, n_launches, n_copies, n_syncs;
bool lost[MAX_DEVICES];
long n_captures, n_replays;
int current;  /* the device */
bool several; /* a device but the first has been chosen */
cudaError_t last;

cudaError_t note(cudaError_t code) {
    if (code != cudaSuccess) last = code;
    return code;
}

/* Whether this is the occasion that the environment asks to fail, counted since it does and where it
 * says. */
bool fails(const char *variable, long *occasion) {
    const char *text = getenv(variable), *only = getenv("GPTQT_EMU_FAIL_DEVICE");
    if (!text) *occasion = 0;
    if (!text || (only && atoi(only) != current)) return false;
    return ++*occasion == atol(text);
}

/* A device that is lost fails every call from then on, and what was queued for it never runs; for as
 * long as the environment asks for it, so that a test may begin anew. */
bool is_lost(int device) {
    if (!getenv("GPTQT_EMU_FAIL_COPY") && !getenv("GPTQT_EMU_FAIL_SYNC")) lost[device] = false;
    return lost[device];
}

cudaError_t state_of(int device) {
    return is_lost(device) ? note(cudaErrorECCUncorrectable) : cudaSuccess;
}

void lose_if(bool now, int device) {
    if (!now) return;
    lost[device] = true;
    for (cudaStream_t stream : streams)
        if (stream->device == device) stream->work.clear();
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

/* Whose memory this is; NO_DEVICE: the host's. */
int owner_of(const void *p) {
    const char *at = static_cast<const char *>(p);
    auto next = memory.upper_bound(at);
    if (next == memory.begin()) return NO_DEVICE;
    --next;
    return at < next->first + next->second.bytes ? next->second.device : NO_DEVICE;
}

cudaError_t allocate(void **p, size_t bytes, int device) {
    if (fails("GPTQT_EMU_FAIL_ALLOC", &n_allocations)) return note(cudaErrorMemoryAllocation);
    size_t rounded = (bytes + emu::FENCE + 255) / 256 * 256;
    void *got = bytes < (size_t)1 << 40 ? aligned_alloc(256, rounded) : nullptr;
    if (!got) return note(cudaErrorMemoryAllocation);
    memset(got, 0xff, bytes);
    memset(static_cast<char *>(got) + bytes, emu::FENCE_BYTE, rounded - bytes);
    memory[static_cast<char *>(got)] = allocation{bytes, device};
    *p = got;
    return cudaSuccess;
}

void release(void *p) {
    auto it = memory.find(static_cast<char *>(p));
    if (p && it == memory.end()) emu::fault(EMU_HERE, "%p is freed and was not allocated", p);
    if (p && !emu::fence_is_whole(static_cast<char *>(p) + it->second.bytes, emu::FENCE))
        emu::fault(EMU_HERE, "something wrote past the end of %zu bytes of device memory",
                   it->second.bytes);
    if (p) memory.erase(it);
    free(p);
}

void run_next(cudaStream_t stream) {
    std::function<void()> work = std::move(stream->work.front());
    stream->work.pop_front();
    work();
}

/* A stream that waits has its event's stream run up to the record, which lies before the wait. */
void run_until(cudaStream_t stream, const event_state *state, unsigned long record) {
    while (state->done < record) {
        if (stream->work.empty() && is_lost(stream->device)) return;
        if (stream->work.empty()) emu::fault(EMU_HERE, "an event is waited for and never comes");
        run_next(stream);
    }
}

void drain(cudaStream_t stream) {
    while (!stream->work.empty()) run_next(stream);
}

void wait_for_device(int device) {
    for (cudaStream_t stream : streams)
        if (device == NO_DEVICE || stream->device == device) drain(stream);
}

} // namespace

namespace emu {

size_t most_shared() { return this_card().shared << 10; }

void enqueue(cudaStream_t stream, std::function<void()> work) {
    if (is_lost(stream->device)) return;
    (stream->captures ? stream->captured : stream->work).push_back(std::move(work));
}

cudaError_t check_launch(dim3 grid, int threads, size_t shared, cudaStream_t stream) {
    if (is_lost(stream->device)) return state_of(stream->device);
    if (fails("GPTQT_EMU_FAIL_LAUNCH", &n_launches)) return note(cudaErrorLaunchFailure);
    if (stream->device != current) return note(cudaErrorInvalidResourceHandle);
    bool fits = grid.x && grid.y && grid.z && grid.x < 1u << 31 && grid.y <= MAX_GRID_YZ &&
                grid.z <= MAX_GRID_YZ && threads > 0 && threads <= MAX_THREADS &&
                threads % 32 == 0 && shared <= most_shared();
    return fits ? cudaSuccess : note(cudaErrorInvalidConfiguration);
}

/* Structs are not looked into: what pads them may hold old addresses. */
void check_argument(cudaStream_t stream, const void *argument, size_t bytes) {
    void *word;
    if (!several || bytes != sizeof word) return;
    memcpy(&word, argument, sizeof word);
    int owner = owner_of(word);
    if (owner != NO_DEVICE && owner != stream->device)
        fault(EMU_HERE, "a kernel on device %d is given memory of device %d", stream->device,
              owner);
}

} // namespace emu

extern "C" __attribute__((visibility("default"))) void gptqt_emu_graphs(long *captures,
                                                                        long *replays) {
    *captures = n_captures;
    *replays = n_replays;
}

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
    case cudaErrorInvalidDevice:
        return "invalid device ordinal";
    case cudaErrorECCUncorrectable:
        return "uncorrectable ECC error encountered";
    case cudaErrorInvalidResourceHandle:
        return "invalid resource handle";
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
    *n = have < MAX_DEVICES ? have : (int)MAX_DEVICES;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
    int n = 0;
    if (cudaGetDeviceCount(&n) != cudaSuccess || device < 0 || device >= n)
        return note(cudaErrorInvalidDevice);
    current = device;
    several = several || device > 0;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *prop, int) {
    *prop = cudaDeviceProp{};
    strcpy(prop->name, "emulated");
    prop->major = this_card().capability / 10;
    prop->minor = this_card().capability % 10;
    prop->multiProcessorCount = 4;
    prop->totalGlobalMem = device_total();
    prop->sharedMemPerBlockOptin = emu::most_shared();
    prop->sharedMemPerMultiprocessor = this_card().room << 10;
    return cudaSuccess;
}

/* There is no direct way: whoever needs one is to be noticed. */
cudaError_t cudaDeviceCanAccessPeer(int *can, int, int) {
    *can = 0;
    return cudaSuccess;
}

cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) { return note(cudaErrorInvalidValue); }

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    if (is_lost(current)) return state_of(current);
    *total = device_total();
    *free_bytes = *total > device_used[current] ? *total - device_used[current] : 0;
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **p, size_t bytes) {
    size_t *used = &device_used[current];
    if (is_lost(current)) return state_of(current);
    if (*used > device_total() || bytes > device_total() - *used)
        return note(cudaErrorMemoryAllocation);
    cudaError_t rc = allocate(p, bytes, current);
    if (rc == cudaSuccess) *used += bytes;
    return rc;
}

/* Waits for everything queued on the memory's device, as the runtime does. */
cudaError_t cudaFree(void *p) {
    auto it = memory.find(static_cast<char *>(p));
    bool known = p && it != memory.end();
    int device = known ? it->second.device : current;
    wait_for_device(device);
    if (known) device_used[device] -= it->second.bytes;
    release(p);
    return state_of(device);
}

cudaError_t cudaMallocHost(void **p, size_t bytes) {
    if (is_lost(current)) return state_of(current);
    cudaError_t rc = allocate(p, bytes, NO_DEVICE);
    if (rc == cudaSuccess) pinned[static_cast<char *>(*p)] = bytes;
    return rc;
}

cudaError_t cudaFreeHost(void *p) {
    wait_for_device(NO_DEVICE);
    pinned.erase(static_cast<char *>(p));
    release(p);
    return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t *stream) {
    *stream = new emu_stream{};
    (*stream)->device = current;
    streams.insert(*stream);
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    drain(stream);
    streams.erase(stream);
    delete stream;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    lose_if(fails("GPTQT_EMU_FAIL_SYNC", &n_syncs), stream->device);
    drain(stream);
    return state_of(stream->device);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) {
    *event = new emu_event{std::make_shared<event_state>(), current};
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    delete event;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    if (event->device != stream->device) return note(cudaErrorInvalidResourceHandle);
    if (stream->captures) return note(cudaErrorInvalidValue);
    std::shared_ptr<event_state> state = event->state;
    unsigned long record = ++state->recorded;
    state->stream = stream;
    emu::enqueue(stream, [=]() { state->done = record; });
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    const event_state *state = event->state.get();
    if (state->recorded) run_until(state->stream, state, state->recorded);
    return state_of(event->device);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    std::shared_ptr<event_state> state = event->state;
    unsigned long record = state->recorded;
    cudaStream_t of = state->stream;
    if (stream->captures) return note(cudaErrorInvalidValue);
    if (record) emu::enqueue(stream, [=]() { run_until(of, state.get(), record); });
    return cudaSuccess;
}

cudaError_t cudaMemcpyPeerAsync(void *dst, int dst_device, const void *src, int src_device,
                                size_t bytes, cudaStream_t stream) {
    if (owner_of(dst) != dst_device || owner_of(src) != src_device || stream->captures)
        return note(cudaErrorInvalidValue);
    lose_if(fails("GPTQT_EMU_FAIL_COPY", &n_copies), stream->device);
    emu::enqueue(stream, [=]() { memmove(dst, src, bytes); });
    return state_of(stream->device);
}

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
    lose_if(fails("GPTQT_EMU_FAIL_COPY", &n_copies), stream->device);
    if (is_lost(stream->device)) return state_of(stream->device);
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
    if (waits) drain(stream);
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *dst, int value, size_t bytes, cudaStream_t stream) {
    emu::enqueue(stream, [=]() { memset(dst, value, bytes); });
    return state_of(stream->device);
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
    n_captures++;
    return cudaSuccess;
}

/* Its launches count as if they were made one by one. */
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    if (is_lost(stream->device)) return state_of(stream->device);
    n_replays++;
    for (const std::function<void()> &work : exec->work) {
        if (fails("GPTQT_EMU_FAIL_LAUNCH", &n_launches)) return note(cudaErrorLaunchFailure);
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
