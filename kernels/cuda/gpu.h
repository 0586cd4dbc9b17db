/* gpu.h - lets one .cu file compile for a GPU and, through the emulation, as plain C++.
 *
 * Owns      nothing.
 * Borrows   nothing.
 * Thread    the back end's.
 * Fails     gpu_launch() returns what the runtime says of the launch.
 * Cost      none over the bare language.
 *
 * Kernels are launched by gpu_launch() alone, shared memory is declared by the two macros alone,
 * barriers and shuffles by the names here: each carries its place, which the emulation checks. */
#ifndef KERNELS_CUDA_GPU_H
#define KERNELS_CUDA_GPU_H

#include <stddef.h>
#include <stdint.h>

/* While a step is rehearsed, launches are made up to here and no further. */
extern bool gpu_mute;

#if defined(__CUDACC__)
#include <cuda_runtime.h>

#define SHARED_ARRAY(type, name, n) __shared__ type name[n]
#define SHARED_DYNAMIC(type, name)                                                                 \
    extern __shared__ __align__(16) unsigned char gpu_dynamic_bytes[];                             \
    type *name = reinterpret_cast<type *>(gpu_dynamic_bytes)
#define block_sync()           __syncthreads()
#define warp_sync()            __syncwarp()
#define warp_xor(value, lanes) __shfl_xor_sync(0xffffffffu, value, lanes)
#define warp_from(value, lane) __shfl_sync(0xffffffffu, value, lane)

/* From Hopper on a kernel may start while the one before drains: it first brings what does not
 * depend on that one, then calls this, which waits for the other's results. Every kernel that a
 * stream of this back end runs calls it, so waiting for one is waiting for all before. */
static __device__ __forceinline__ void kernel_begin() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* Whether launches overlap; set when the device is opened. */
extern bool gpu_overlap;

template <class... P, class... A>
static inline cudaError_t gpu_launch(void (*kernel)(P...), dim3 grid, int threads, size_t shared,
                                     cudaStream_t stream, A... args) {
    if (gpu_mute) return cudaSuccess;
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute overlap = {};
    /* Above 48 KiB it has to be asked for, and what the kernel declares itself counts too. */
    if (shared) {
        cudaError_t code =
            cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel),
                                 cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
        if (code != cudaSuccess) return code;
    }
    config.gridDim = grid;
    config.blockDim = dim3((unsigned)threads);
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    config.attrs = &overlap;
    config.numAttrs = gpu_overlap ? 1 : 0;
    return cudaLaunchKernelEx(&config, kernel, static_cast<P>(args)...);
}
#else
#include "kernels/cuda/emu/emu.h"
#endif

#endif
