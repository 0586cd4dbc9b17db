#include "kernels/cuda/emu/fiber.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#define EMU_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMU_ASAN 1
#endif
#endif
#if EMU_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

namespace {

enum { STACK = 128 * 1024, GUARD = 4096 };
#if EMU_TSAN
enum { SETS = 3, NO_ORDER = 1 };
#else
enum { SETS = 1 };
#endif

struct fiber {
    void *sp;
    char *stack;
    void (*entry)(int);
    void *fake;  /* the address sanitizer's */
    void *clock; /* the thread sanitizer's; made once: reports get lost with those of ended ones */
};
fiber fibers[SETS * emu::MAX_FIBERS];
void *scheduler_sp;
int set, running;
#if EMU_TSAN
void *scheduler_clock;
#endif
#if EMU_ASAN
void *scheduler_fake;
const void *scheduler_stack;
size_t scheduler_size;
#endif

/* Saves what a call must keep, stores the stack pointer in *from and goes on at to. */
extern "C" void emu_switch(void **from, void *to);
#if defined(__x86_64__)
asm(".text\n.globl emu_switch\n.type emu_switch,@function\nemu_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp, (%rdi)\nmovq %rsi, %rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n"
    ".size emu_switch,.-emu_switch\n");
#elif defined(__aarch64__)
asm(".text\n.globl emu_switch\n.type emu_switch,%function\nemu_switch:\n"
    "sub sp, sp, #160\n"
    "stp x19, x20, [sp]\nstp x21, x22, [sp, #16]\nstp x23, x24, [sp, #32]\n"
    "stp x25, x26, [sp, #48]\nstp x27, x28, [sp, #64]\nstp x29, x30, [sp, #80]\n"
    "stp d8, d9, [sp, #96]\nstp d10, d11, [sp, #112]\nstp d12, d13, [sp, #128]\n"
    "stp d14, d15, [sp, #144]\nmov x9, sp\nstr x9, [x0]\nmov sp, x1\n"
    "ldp x19, x20, [sp]\nldp x21, x22, [sp, #16]\nldp x23, x24, [sp, #32]\n"
    "ldp x25, x26, [sp, #48]\nldp x27, x28, [sp, #64]\nldp x29, x30, [sp, #80]\n"
    "ldp d8, d9, [sp, #96]\nldp d10, d11, [sp, #112]\nldp d12, d13, [sp, #128]\n"
    "ldp d14, d15, [sp, #144]\nadd sp, sp, #160\nret\n"
    ".size emu_switch,.-emu_switch\n");
#else
#error "the emulation needs a context switch for this processor"
#endif

void begin() {
#if EMU_ASAN
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_size);
#endif
    for (int i = running;;) {
        fibers[i].entry(i % emu::MAX_FIBERS);
        emu::fiber_yield();
    }
}

char *stack_new() {
    void *p = mmap(nullptr, STACK + GUARD, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED || mprotect(p, GUARD, PROT_NONE)) {
        fprintf(stderr, "emulation: no memory for a thread's stack\n");
        exit(1);
    }
    return static_cast<char *>(p) + GUARD;
}

} // namespace

namespace emu {

void fiber_next_set() { set = (set + 1) % SETS; }

void fiber_start(int i, void (*entry)(int)) {
    fiber &f = fibers[set * MAX_FIBERS + i];
    f.entry = entry;
    if (f.stack) return; /* it waits in begin() */
    f.stack = stack_new();
#if EMU_TSAN
    f.clock = __tsan_create_fiber(0);
#endif
    void **top = reinterpret_cast<void **>(f.stack + STACK);
#if defined(__x86_64__)
    *--top = nullptr; /* keeps the stack aligned as at a function's first instruction */
    *--top = reinterpret_cast<void *>(begin);
    for (int r = 0; r < 6; r++) *--top = nullptr;
#else
    top -= 20;
    for (int r = 0; r < 20; r++) top[r] = nullptr;
    top[11] = reinterpret_cast<void *>(begin);
#endif
    f.sp = top;
}

void fiber_resume(int i) {
    running = set * MAX_FIBERS + i;
    fiber &f = fibers[running];
#if EMU_ASAN
    __sanitizer_start_switch_fiber(&scheduler_fake, f.stack, STACK);
#endif
#if EMU_TSAN
    scheduler_clock = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(f.clock, NO_ORDER);
#endif
    emu_switch(&scheduler_sp, f.sp);
#if EMU_ASAN
    __sanitizer_finish_switch_fiber(scheduler_fake, nullptr, nullptr);
#endif
}

void fiber_yield() {
    unseen here_on;
    fiber &f = fibers[running];
#if EMU_ASAN
    __sanitizer_start_switch_fiber(&f.fake, scheduler_stack, scheduler_size);
#endif
#if EMU_TSAN
    __tsan_switch_to_fiber(scheduler_clock, NO_ORDER);
#endif
    emu_switch(&f.sp, scheduler_sp);
#if EMU_ASAN
    __sanitizer_finish_switch_fiber(f.fake, &scheduler_stack, &scheduler_size);
#endif
}

} // namespace emu
