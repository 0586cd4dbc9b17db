/* fiber.h - a stack of its own for each thread of a block, and the switch between them.
 *
 * Owns      the stacks, kept from block to block; each has an inaccessible page below it.
 * Borrows   nothing.
 * Thread    one.
 * Fails     out of memory ends the process.
 * Cost      a switch is a dozen instructions; ucontext would be a system call. */
#ifndef KERNELS_CUDA_EMU_FIBER_H
#define KERNELS_CUDA_EMU_FIBER_H

namespace emu {

enum { MAX_FIBERS = 1024 };

/* Makes fiber i begin at entry(i) when it is next resumed. */
void fiber_start(int i, void (*entry)(int));
/* From the scheduler: runs fiber i until it yields. */
void fiber_resume(int i);
/* From a fiber: back to the scheduler; last: it will not be resumed. */
void fiber_yield(bool last);

} // namespace emu

#endif
