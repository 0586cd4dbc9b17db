/* emu.h - stands in for the CUDA language and runtime on a machine without either.
 *
 * Owns      emulated streams, device and pinned memory, the fibers that run a block.
 * Borrows   kernel arguments are copied at launch, as on a GPU.
 * Thread    one.
 * Fails     as the runtime does; a kernel that breaks a rule ends the process with a message that
 *           names file and line, and status 99.
 * Cost      about 30 ns for a thread's barrier or shuffle.
 *
 * Every CUDA thread is a fiber. A fiber leaves only at a barrier or a warp operation; which one
 * goes next is drawn from a seed (GPTQT_EMU_SEED; 0: in order). Shared and device memory begin as
 * 0xff bytes, NaN in every float format. Streams only queue until something waits for them. */
#ifndef KERNELS_CUDA_EMU_EMU_H
#define KERNELS_CUDA_EMU_EMU_H

#include <functional>

#include "kernels/cuda/emu/language.h"
#include "kernels/cuda/emu/runtime.h"

namespace emu {

/* Runs every thread of every block of the grid; called when the stream gets there. */
void run_grid(dim3 grid, int threads, size_t shared, const std::function<void()> &body);

} // namespace emu

extern bool gpu_mute; /* see gpu.h */

template <class... P, class... A>
static inline cudaError_t gpu_launch(void (*kernel)(P...), dim3 grid, int threads, size_t shared,
                                     cudaStream_t stream, A... args) {
    if (gpu_mute) return cudaSuccess;
    cudaError_t rc = emu::check_launch(grid, threads, shared, stream);
    if (rc != cudaSuccess) return rc;
    (emu::check_argument(stream, &args, sizeof args), ...);
    std::function<void()> body = [kernel, args...]() { kernel(static_cast<P>(args)...); };
    emu::enqueue(stream, [=]() { emu::run_grid(grid, threads, shared, body); });
    return cudaSuccess;
}

#endif
