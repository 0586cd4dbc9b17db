/* language.h - the words of CUDA C++ that kernels use, as plain C++.
 *
 * Owns      nothing.
 * Borrows   nothing.
 * Thread    one; inside a kernel, the fiber that runs.
 * Fails     a broken rule ends in emu::fault() with file and line.
 * Cost      see emu.h. */
#ifndef KERNELS_CUDA_EMU_LANGUAGE_H
#define KERNELS_CUDA_EMU_LANGUAGE_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace emu {

struct place {
    const char *file;
    int line;
};

/* What a thread of a kernel can ask about itself. */
struct indices {
    dim3 thread, block, threads, blocks;
};
extern indices here;

[[noreturn]] void fault(place at, const char *format, ...) __attribute__((format(printf, 2, 3)));

enum { FENCE = 32, FENCE_BYTE = 0xa5 }; /* behind shared and device memory; no NaN */
/* Whether nobody wrote there. */
bool fence_is_whole(const void *fence, size_t bytes);

void block_barrier(place at);
/* Lanes of mask meet; each sees what the others brought: slot(lane) until its next warp
 * operation. */
void warp_meet(place at, uint32_t mask, const void *mine, size_t bytes);
const void *warp_slot(place at, int lane);
/* All lanes meet, and what each wrote is there for the others. No other warp operation promises
 * that, so no other orders memory for the thread sanitizer. */
void warp_barrier(place at);

/* Memory of this block for the array declared at this place; the same for all its threads. */
void *shared_array(place at, size_t bytes);
void *shared_dynamic();

/* A thread's copies into shared memory: made when copies_wait() asks for their group. A thread that
 * ends with some still to be made is a fault. */
void copy_later(void *to, const void *from, size_t bytes); /* from NULL: zeros */
void copies_commit();
void copies_wait(int but);

/* The 4 warps of a group meet: what one has waited for, all have started. */
void group_meet(place at);

/* Barriers of phases, with the copies that belong to one; see hopper.h. Copies are made when the phase
 * ends, which is when somebody waits for it. */
struct phase_barrier {
    int count, arrived, phase;
    size_t expected, brought;
};
void phase_init_at(place at, phase_barrier *b, int arrivals);
void phase_arrive_at(place at, phase_barrier *b, size_t bytes);
void phase_wait_at(place at, phase_barrier *b, int parity);
void copy_bulk(void *to, const void *from, size_t bytes, phase_barrier *b);

template <class T> inline T shuffle(place at, uint32_t mask, T value, int lane) {
    T got;
    warp_meet(at, mask, &value, sizeof value);
    memcpy(&got, warp_slot(at, lane), sizeof got);
    return got;
}
int lane();

} // namespace emu

#define EMU_HERE  (emu::place{__FILE__, __LINE__})
#define threadIdx (emu::here.thread)
#define blockIdx  (emu::here.block)
#define blockDim  (emu::here.threads)
#define gridDim   (emu::here.blocks)
#define SHARED_ARRAY(type, name, n)                                                                \
    type *name = static_cast<type *>(emu::shared_array(EMU_HERE, sizeof(type) * (n)))
#define SHARED_DYNAMIC(type, name) type *name = static_cast<type *>(emu::shared_dynamic())
#define block_sync()               emu::block_barrier(EMU_HERE)
#define warp_sync()                emu::warp_barrier(EMU_HERE)
#define warp_xor(value, lanes)     emu::shuffle(EMU_HERE, 0xffffffffu, (value), emu::lane() ^ (lanes))
#define warp_from(value, from)     emu::shuffle(EMU_HERE, 0xffffffffu, (value), (from))

static inline float __int_as_float(int i) {
    float f;
    memcpy(&f, &i, sizeof f);
    return f;
}
static inline void kernel_begin() {}
static inline int __float_as_int(float f) {
    int i;
    memcpy(&i, &f, sizeof i);
    return i;
}
static inline float __fmul_rn(float a, float b) { return a * b; }
template <class T> static inline T __ldg(const T *p) { return *p; }

#endif
