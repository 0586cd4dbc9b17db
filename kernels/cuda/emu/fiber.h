/* fiber.h - a stack of its own for each thread of a block, and the switch between them.
 *
 * Owns      the stacks, kept from block to block; each has an inaccessible page below it.
 * Borrows   nothing.
 * Thread    one.
 * Fails     out of memory ends the process.
 * Cost      a switch is a dozen instructions; ucontext would be a system call. */
#ifndef KERNELS_CUDA_EMU_FIBER_H
#define KERNELS_CUDA_EMU_FIBER_H

#include "kernels/cuda/emu/races.h"

namespace emu {

enum { MAX_FIBERS = 1024 };

/* The fibers that the calls below number from now on. All accesses of one fiber are in order, so
 * the thread sanitizer sees races between blocks only where neighbours run on different ones. */
void fiber_next_set();
/* Makes fiber i run entry(i) when it is next resumed; its last entry has returned. */
void fiber_start(int i, void (*entry)(int));
/* From the scheduler: runs fiber i until it yields, or its entry returns. */
void fiber_resume(int i);
/* From a fiber: back to the scheduler. */
void fiber_yield();

} // namespace emu

#endif
