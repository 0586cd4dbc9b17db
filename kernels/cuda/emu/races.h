/* races.h - tells the thread sanitizer what CUDA says of order, so that it finds kernels' races.
 *
 * Owns      nothing.
 * Borrows   addresses that stand for an order; nothing is read or written there.
 * Thread    each call speaks of the fiber that makes it.
 * Fails     never.
 * Cost      none without the thread sanitizer.
 *
 * Only one fiber runs at a time, yet a switch orders nothing here: two accesses are ordered by what
 * a kernel does, a barrier or the end of a launch, as on a GPU. Memory of the emulation itself, which
 * all fibers share without any of that, is used in `unseen` only. */
#ifndef KERNELS_CUDA_EMU_RACES_H
#define KERNELS_CUDA_EMU_RACES_H

#include <stddef.h>

#if defined(__SANITIZE_THREAD__)
#define EMU_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define EMU_TSAN 1
#endif
#endif

#if EMU_TSAN
extern "C" {
void AnnotateIgnoreReadsBegin(const char *file, int line);
void AnnotateIgnoreReadsEnd(const char *file, int line);
void AnnotateIgnoreWritesBegin(const char *file, int line);
void AnnotateIgnoreWritesEnd(const char *file, int line);
void __tsan_acquire(void *at);
void __tsan_release(void *at);
void __tsan_read_range(void *at, unsigned long bytes);
void __tsan_write_range(void *at, unsigned long bytes);
void *__tsan_get_current_fiber(void);
void *__tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void *fiber, unsigned flags);
}
#endif

namespace emu {

/* While one lives, the accesses of its fiber are not looked at. */
class unseen {
  public:
#if EMU_TSAN
    unseen() {
        AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
        AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
    }
    ~unseen() {
        AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
        AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
    }
#else
    unseen() {}
    ~unseen() {}
#endif
    unseen(const unseen &) = delete;
    unseen &operator=(const unseen &) = delete;
};

/* What a fiber did before order_give() comes before what another does after order_take(). */
static inline void order_give(void *at) {
    (void)at;
#if EMU_TSAN
    __tsan_release(at);
#endif
}
static inline void order_take(void *at) {
    (void)at;
#if EMU_TSAN
    __tsan_acquire(at);
#endif
}

/* An access that the fiber makes, or that is made for it. */
static inline void seen_read(const void *at, size_t bytes) {
    (void)at, (void)bytes;
#if EMU_TSAN
    __tsan_read_range(const_cast<void *>(at), bytes);
#endif
}
static inline void seen_write(void *at, size_t bytes) {
    (void)at, (void)bytes;
#if EMU_TSAN
    __tsan_write_range(at, bytes);
#endif
}

} // namespace emu

#endif
