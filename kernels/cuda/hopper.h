/* hopper.h - instructions that only sm_90a has, each beside its emulation: barriers that count
 * bytes, bulk copies into shared memory, products of a warp group.
 *
 * Owns      nothing.
 * Borrows   nothing.
 * Thread    a kernel's; group_mma() and its fences are acts of a whole warp group (4 warps).
 * Fails     on a card without them a kernel that calls them traps: it must not be launched there.
 * Cost      one instruction each.
 *
 * A phase of a barrier ends when as many arrivals as it was made for and all bytes that they announced
 * are there; phases have parities 0, 1, 0, ... group_mma() only starts: sums and A side must stay
 * untouched until group_wait() says that they are done, B in shared memory as well. */
#ifndef KERNELS_CUDA_HOPPER_H
#define KERNELS_CUDA_HOPPER_H

#include "kernels/cuda/ptx.h"

#if defined(__CUDACC__) && defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HAVE_HOPPER 1
#endif

#if defined(__CUDACC__)
typedef uint64_t phase_barrier;

/* Memory operations stay on their side of it. */
static __device__ __forceinline__ void keep_order() { asm volatile("" ::: "memory"); }

#if HAVE_HOPPER
static __device__ __forceinline__ unsigned shared_address(const void *p) {
    return (unsigned)__cvta_generic_to_shared(p);
}
static __device__ __forceinline__ void phase_init(phase_barrier *b, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(arrivals)
                 : "memory");
}
/* Makes barriers known to copies; before a block_sync(). */
static __device__ __forceinline__ void phase_inits_done() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
static __device__ __forceinline__ void phase_arrive(phase_barrier *b) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(b)) : "memory");
}
/* Arrives and announces bytes that copies will bring. */
static __device__ __forceinline__ void phase_expect(phase_barrier *b, unsigned bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(b)),
                 "r"(bytes)
                 : "memory");
}
/* Waits for the end of the phase of this parity. */
static __device__ __forceinline__ void phase_wait(phase_barrier *b, int parity) {
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@done bra ready;\n"
                 "bra again;\n"
                 "ready:\n"
                 "}\n" ::"r"(shared_address(b)),
                 "r"(parity)
                 : "memory");
}
/* bytes: a multiple of 16, as are both addresses. */
static __device__ __forceinline__ void copy_bulk(void *to, const void *from, unsigned bytes,
                                                 phase_barrier *b) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1], %2, [%3];" ::"r"(shared_address(to)),
                 "l"(from), "r"(bytes), "r"(shared_address(b))
                 : "memory");
}

/* B (16 x W) in shared memory without swizzle: of each column 8 inputs in 16 bytes, the columns one
 * after another, then the other 8 inputs of all `columns` columns. */
static __device__ __forceinline__ uint64_t b_side(const uint4 *at, int columns) {
    return (uint64_t)((shared_address(at) & 0x3ffff) >> 4) | (uint64_t)columns << 16 |
           (uint64_t)(128 >> 4) << 32;
}
static __device__ __forceinline__ void group_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
static __device__ __forceinline__ void group_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int BUT> static __device__ __forceinline__ void group_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(BUT) : "memory");
}

/* What a warp of a group may have of the multiprocessor's registers from here on: the groups that multiply
 * take what the one that copies gives back. A multiple of 8; all its warps do it. */
template <int N> static __device__ __forceinline__ void registers_less() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N> static __device__ __forceinline__ void registers_more() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

#define GROUP_SUM4(c, i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define GROUP_SUM16(c, i)                                                                          \
    GROUP_SUM4(c, i), GROUP_SUM4(c, i + 4), GROUP_SUM4(c, i + 8), GROUP_SUM4(c, i + 12)

/* c += A B for A (64 x 16), B (16 x W): a warp has 16 rows, its lanes hold A as for mma(), and of c the
 * corners of tile after tile. */
template <int W>
static __device__ __forceinline__ void group_mma(float *c, const uint32_t a[4], uint64_t b) {
    static_assert(W == 32 || W == 64 || W == 128, "a width that has no instruction here");
    if constexpr (W == 32)
        asm volatile("wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 {"
                     "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
                     "{%16, %17, %18, %19}, %20, 1, 1, 1, 0;"
                     : GROUP_SUM16(c, 0)
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
    else if constexpr (W == 64)
        asm volatile(
            "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {"
            "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
            "{%32, %33, %34, %35}, %36, 1, 1, 1, 0;"
            : GROUP_SUM16(c, 0), GROUP_SUM16(c, 16)
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
    else
        asm volatile(
            "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
            "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
            "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
            "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
            "{%64, %65, %66, %67}, %68, 1, 1, 1, 0;"
            : GROUP_SUM16(c, 0), GROUP_SUM16(c, 16), GROUP_SUM16(c, 32), GROUP_SUM16(c, 48)
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
#endif
#else
#define HAVE_HOPPER             1
typedef emu::phase_barrier phase_barrier;
#define phase_init(b, arrivals) emu::phase_init_at(EMU_HERE, b, arrivals)
#define phase_arrive(b)         emu::phase_arrive_at(EMU_HERE, b, 0)
#define phase_expect(b, bytes)  emu::phase_arrive_at(EMU_HERE, b, bytes)
#define phase_wait(b, parity)   emu::phase_wait_at(EMU_HERE, b, parity)
static inline void phase_inits_done() {}
static inline void copy_bulk(void *to, const void *from, unsigned bytes, phase_barrier *b) {
    emu::copy_bulk(to, from, bytes, b);
}

struct b_place {
    const uint4 *at;
    int columns;
};
static inline b_place b_side(const uint4 *at, int columns) { return b_place{at, columns}; }
static inline void group_fence() {}
static inline void keep_order() {}
static inline void group_commit() {}
template <int BUT> static inline void group_wait() { emu::group_meet(EMU_HERE); }
template <int N> static inline void registers_less() {}
template <int N> static inline void registers_more() {}

namespace emu {
template <int W> inline void group_mma(place at, float *c, const uint32_t a[4], b_place b) {
    warp_meet(at, 0xffffffffu, a, 16);
    int g = lane() / 4, t = lane() % 4;
    const uint32_t *rows[4];
    for (int i = 0; i < 4; i++) rows[i] = static_cast<const uint32_t *>(warp_slot(at, 4 * g + i));
    for (int i = 0; i < W / 2; i++) {
        int column = i / 4 * 8 + 2 * t + i % 2, high_row = i % 4 / 2;
        double sum = c[i];
        for (int k = 0; k < 16; k++) {
            uint4 eight = b.at[k / 8 * b.columns + column];
            const uint32_t pairs[4] = {eight.x, eight.y, eight.z, eight.w};
            sum += (double)half_of(rows[k % 8 / 2][k / 8 * 2 + high_row], k % 2) *
                   (double)half_of(pairs[k % 8 / 2], k % 2);
        }
        c[i] = (float)sum;
    }
}
} // namespace emu
#define GROUP_MMA(W, c, a, b)   emu::group_mma<W>(EMU_HERE, c, a, b)
#endif

#if defined(__CUDACC__)
#define GROUP_MMA(W, c, a, b) group_mma<W>(c, a, b)
#endif

#endif
