/* runtime.h - the calls of the CUDA runtime that the back end makes, on host memory.
 *
 * Owns      what it allocates; poisoned with 0xff.
 * Borrows   nothing past the call, but for pinned memory in queued copies, as on a GPU.
 * Thread    one.
 * Fails     with the runtime's codes; GPTQT_EMU_FAIL_ALLOC=n and GPTQT_EMU_FAIL_LAUNCH=n make the
 *           n-th allocation or launch fail, GPTQT_EMU_FAIL_COPY=n and GPTQT_EMU_FAIL_SYNC=n lose the
 *           device at the n-th copy or wait for a stream: all that follows fails. Counted on device
 *           GPTQT_EMU_FAIL_DEVICE where that is set; GPTQT_EMU_DEVICES=0..8 is how many there are
 *           (1), GPTQT_EMU_MEMORY=bytes what each has (16 GiB), GPTQT_EMU_CARD=75, 80, 86, 89, 90,
 *           100 or 120 the capability (90) and with it the shared memory of a block.
 * Cost      that of the host's memory. */
#ifndef KERNELS_CUDA_EMU_RUNTIME_H
#define KERNELS_CUDA_EMU_RUNTIME_H

#include <functional>

#include "kernels/cuda/emu/language.h"

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101,
    cudaErrorECCUncorrectable = 214,
    cudaErrorInvalidResourceHandle = 400,
    cudaErrorLaunchFailure = 719
};
enum cudaMemcpyKind {
    cudaMemcpyHostToDevice = 1,
    cudaMemcpyDeviceToHost = 2,
    cudaMemcpyDefault = 4
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaStreamCaptureMode { cudaStreamCaptureModeRelaxed = 2 };
enum { cudaEventDisableTiming = 2 };
struct emu_event;
struct emu_stream;
struct emu_graph;
typedef emu_graph *cudaGraph_t;
typedef emu_graph *cudaGraphExec_t;
typedef emu_stream *cudaStream_t;
typedef emu_event *cudaEvent_t;
struct cudaDeviceProp {
    char name[256];
    int major, minor, multiProcessorCount;
    size_t totalGlobalMem, sharedMemPerBlockOptin, sharedMemPerMultiprocessor;
};

const char *cudaGetErrorString(cudaError_t code);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDeviceCount(int *n);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *prop, int device);
cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer);
cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned flags);
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total);
cudaError_t cudaMalloc(void **p, size_t bytes);
cudaError_t cudaFree(void *p);
cudaError_t cudaMallocHost(void **p, size_t bytes);
cudaError_t cudaFreeHost(void *p);
cudaError_t cudaStreamCreate(cudaStream_t *stream);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
/* Pageable memory is read before the call returns, pinned memory when the stream gets there. */
cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
/* Wants to know where both lie. */
cudaError_t cudaMemcpyPeerAsync(void *dst, int dst_device, const void *src, int src_device,
                                size_t bytes, cudaStream_t stream);
/* An event is recorded on streams of the device that was the current one when it was made; streams of
 * any device may wait for it. */
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
/* The stream gets as far as the last record and no further. */
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags);
cudaError_t cudaMemsetAsync(void *dst, int value, size_t bytes, cudaStream_t stream);
/* A captured stream keeps its work, arguments and all, and runs none of it. */
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph,
                                 unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);
/* How many graphs have been made and how often one was launched; for tests, which find it by name. */
extern "C" void gptqt_emu_graphs(long *captures, long *replays);

namespace emu {

/* Bytes that a block may ask for. */
size_t most_shared();
void enqueue(cudaStream_t stream, std::function<void()> work);
cudaError_t check_launch(dim3 grid, int threads, size_t shared, cudaStream_t stream);
/* Ends the process when a kernel is given an address of another device's memory. */
void check_argument(cudaStream_t stream, const void *argument, size_t bytes);

} // namespace emu

template <class F> cudaError_t cudaFuncSetAttribute(F *, cudaFuncAttribute, int bytes) {
    return (size_t)bytes <= emu::most_shared() ? cudaSuccess : cudaErrorInvalidValue;
}

#endif
