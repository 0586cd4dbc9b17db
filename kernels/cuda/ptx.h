/* ptx.h - the instructions that CUDA C++ has no plain word for, each beside its emulation.
 *
 * Owns      nothing.
 * Borrows   nothing.
 * Thread    a kernel's; mma() is an act of the whole warp.
 * Fails     never.
 * Cost      one instruction each.
 *
 * Pairs of halves travel as uint32_t: the first in the low bits. */
#ifndef KERNELS_CUDA_PTX_H
#define KERNELS_CUDA_PTX_H

#include "kernels/cuda/gpu.h"
#if !defined(__CUDACC__)
#include "kernels/float16.h"
#endif

/* c += A B for A (16 x 16) and B (16 x 8) in halves. Lane 4 g + t holds of
 * A: a[0] row g, columns 2t, 2t+1; a[1] row g + 8; a[2] row g, columns 2t+8, 2t+9; a[3] row g + 8;
 * B: b0 rows 2t, 2t+1 of column g; b1 rows 2t+8, 2t+9;
 * c: row g, columns 2t, 2t+1; row g + 8, the same. */
#if defined(__CUDACC__)
static __device__ __forceinline__ void mma(float c[4], const uint32_t a[4], uint32_t b0,
                                           uint32_t b1) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
        "{%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(b0));
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
        "{%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[2]), "r"(a[3]), "r"(b1));
#else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

/* Byte i of the result is byte (selector >> 4i & 7) of b:a. */
static __device__ __forceinline__ uint32_t pick_bytes(uint32_t a, uint32_t b, uint32_t selector) {
    uint32_t r;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(selector));
    return r;
}
static __device__ __forceinline__ uint32_t half2_fma(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t r;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
    return r;
}
static __device__ __forceinline__ uint32_t half2_add(uint32_t a, uint32_t b) {
    uint32_t r;
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
}
static __device__ __forceinline__ uint32_t half2_mul(uint32_t a, uint32_t b) {
    uint32_t r;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
}
/* To nearest, ties to even. */
static __device__ __forceinline__ uint32_t to_half(float f) {
    uint16_t h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}
static __device__ __forceinline__ float from_half(uint32_t h) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"((uint16_t)h));
    return f;
}
/* Loads past the first cache that nobody will read again. Volatile: they stay where they are written, a
 * unit before they are needed; the compiler would move them down to their use. */
static __device__ __forceinline__ uint4 load_once(const uint4 *p) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
}
static __device__ __forceinline__ uint2 load_once(const uint2 *p) {
    uint2 v;
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];"
                 : "=r"(v.x), "=r"(v.y)
                 : "l"(p));
    return v;
}
static __device__ __forceinline__ uint32_t load_once(const uint32_t *p) {
    uint32_t v;
    asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(p));
    return v;
}
/* Copies from global to shared memory that a thread need not wait for: they belong to the group that
 * copy_commit() closes; copy_wait(n) waits for all groups but the n last. Where have is false the
 * bytes become zeros. */
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
static __device__ __forceinline__ void copy_async(uint4 *to, const uint4 *from, bool have) {
    *to = have ? __ldg(from) : uint4{0, 0, 0, 0};
}
static __device__ __forceinline__ void copy_async(uint2 *to, const uint2 *from, bool have) {
    *to = have ? __ldg(from) : uint2{0, 0};
}
static __device__ __forceinline__ void copy_commit() {}
static __device__ __forceinline__ void copy_wait(int) {}
#else
static __device__ __forceinline__ void copy_async(uint4 *to, const uint4 *from, bool have) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                     (unsigned)__cvta_generic_to_shared(to)),
                 "l"(from), "r"(have ? 16 : 0)
                 : "memory");
}
static __device__ __forceinline__ void copy_async(uint2 *to, const uint2 *from, bool have) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(
                     (unsigned)__cvta_generic_to_shared(to)),
                 "l"(from), "r"(have ? 8 : 0)
                 : "memory");
}
static __device__ __forceinline__ void copy_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
static __device__ __forceinline__ void copy_wait(int but) {
    if (but == 0)
        asm volatile("cp.async.wait_group 0;" ::: "memory");
    else if (but == 1)
        asm volatile("cp.async.wait_group 1;" ::: "memory");
    else
        asm volatile("cp.async.wait_group 2;" ::: "memory");
}
#endif
#else
namespace emu {
/* Every half in fp32, made when the library is loaded. */
struct half_table {
    float of[1 << 16];
    half_table() {
        for (uint32_t i = 0; i < 1 << 16; i++) of[i] = f16_to_f32((uint16_t)i);
    }
};
inline const half_table halves;
inline float half_of(uint32_t pair, int i) { return halves.of[pair >> 16 * i & 0xffff]; }

inline void mma_at(place at, float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
    const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
    warp_meet(at, 0xffffffffu, mine, sizeof mine);
    const uint32_t *all[32];
    for (int i = 0; i < 32; i++) all[i] = static_cast<const uint32_t *>(warp_slot(at, i));
    int g = lane() / 4, t = lane() % 4;
    for (int i = 0; i < 4; i++) {
        int column = 2 * t + i % 2, high_row = i / 2;
        double sum = c[i];
        for (int k = 0; k < 16; k++) {
            const uint32_t *row = all[4 * g + k % 8 / 2], *col = all[4 * column + k % 8 / 2];
            sum += (double)half_of(row[k / 8 * 2 + high_row], k % 2) *
                   (double)half_of(col[4 + k / 8], k % 2);
        }
        c[i] = (float)sum;
    }
}
} // namespace emu
#define mma(c, a, b0, b1) emu::mma_at(EMU_HERE, c, a, b0, b1)

static inline uint32_t pick_bytes(uint32_t a, uint32_t b, uint32_t selector) {
    uint64_t both = (uint64_t)b << 32 | a;
    uint32_t r = 0;
    for (int i = 0; i < 4; i++) {
        uint32_t s = selector >> 4 * i & 15, byte = both >> 8 * (s & 7) & 0xff;
        r |= (s & 8 ? (byte & 0x80 ? 0xffu : 0u) : byte) << 8 * i;
    }
    return r;
}
static inline uint32_t to_half(float f) { return f32_to_f16(f); }
static inline float from_half(uint32_t h) { return f16_to_f32((uint16_t)h); }
static inline uint32_t half2_fma(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t r = 0;
    for (int i = 0; i < 2; i++)
        r |= to_half((float)((double)emu::half_of(a, i) * (double)emu::half_of(b, i) +
                             (double)emu::half_of(c, i)))
             << 16 * i;
    return r;
}
static inline uint32_t half2_add(uint32_t a, uint32_t b) { return half2_fma(a, 0x3c003c00u, b); }
static inline uint32_t half2_mul(uint32_t a, uint32_t b) { return half2_fma(a, b, 0x80008000u); }
template <class T> static inline T load_once(const T *p) { return *p; }

/* Done no earlier than a wait asks for them. */
static inline void copy_async(uint4 *to, const uint4 *from, bool have) {
    emu::copy_later(to, have ? from : nullptr, sizeof *to);
}
static inline void copy_async(uint2 *to, const uint2 *from, bool have) {
    emu::copy_later(to, have ? from : nullptr, sizeof *to);
}
static inline void copy_commit() { emu::copies_commit(); }
static inline void copy_wait(int but) { emu::copies_wait(but); }
#endif

#endif
