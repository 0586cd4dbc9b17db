/* math.h - small functions on vectors of four floats.
 *
 * Owns      nothing.
 * Borrows   arguments during the call.
 * Thread    any.
 * Fails     never; NaN stays NaN.
 * Cost      neon_exp() about 16 operations.
 *
 * A loop handles its last elements with the same instructions as the others, filled up with
 * zeros, so that an element's result does not depend on its place. */
#ifndef KERNELS_NEON_MATH_H
#define KERNELS_NEON_MATH_H

#include <arm_neon.h>
#include <stddef.h>
#include <string.h>

#define NEON_INLINE static inline __attribute__((always_inline))

/* Accumulators stay in registers only where every loop over them is unrolled. */
#ifdef __clang__
#define NEON_UNROLL _Pragma("clang loop unroll(full)")
#else
#define NEON_UNROLL _Pragma("GCC unroll 16")
#endif

/* Up to four floats, the other lanes 0. */
static inline float32x4_t neon_load(const float *x, size_t n) {
    if (n >= 4) return vld1q_f32(x);
    float some[4] = {0};
    memcpy(some, x, n * sizeof *x);
    return vld1q_f32(some);
}

/* The first n lanes. */
static inline void neon_store(float *x, float32x4_t v, size_t n) {
    if (n >= 4) {
        vst1q_f32(x, v);
        return;
    }
    float some[4];
    vst1q_f32(some, v);
    memcpy(x, some, n * sizeof *x);
}

enum { NEON_PANEL = 16 /* rows that lie side by side in a packed matrix */ };

/* The first n_rows of a panel, all if there are more. */
static inline void neon_store_rows(float *y, const float32x4_t v[NEON_PANEL / 4], int n_rows) {
    float rows[NEON_PANEL];
    for (int i = 0; i < NEON_PANEL / 4; i++) vst1q_f32(rows + 4 * i, v[i]);
    memcpy(y, rows, (size_t)(n_rows < NEON_PANEL ? n_rows : NEON_PANEL) * sizeof *y);
}

/* e^x to 1.2e-7 of its value; 0 below -86.9, and at 88.3 it stops growing. x = n ln 2 + r with
 * |r| <= 0.35, where the Taylor series up to r^7 errs by 5e-9. */
static inline float32x4_t neon_exp(float32x4_t x) {
    const float32x4_t least = vdupq_n_f32(-86.9f);
    uint32x4_t small = vcltq_f32(x, least), number = vceqq_f32(x, x);
    float32x4_t v = vmaxq_f32(least, vminq_f32(vdupq_n_f32(88.3f), x));
    float32x4_t n = vrndnq_f32(vmulq_n_f32(v, 1.44269504f));
    /* 15 bits of ln 2: n times the first part is exact. */
    float32x4_t r = vfmsq_n_f32(v, n, 0x1.62e4p-1f);
    r = vfmsq_n_f32(r, n, 0x1.7f7d1cp-20f);
    float32x4_t p = vdupq_n_f32(1.0f / 5040);
    p = vfmaq_f32(vdupq_n_f32(1.0f / 720), p, r);
    p = vfmaq_f32(vdupq_n_f32(1.0f / 120), p, r);
    p = vfmaq_f32(vdupq_n_f32(1.0f / 24), p, r);
    p = vfmaq_f32(vdupq_n_f32(1.0f / 6), p, r);
    p = vfmaq_f32(vdupq_n_f32(0.5f), p, r);
    p = vfmaq_f32(vdupq_n_f32(1), p, r);
    p = vfmaq_f32(vdupq_n_f32(1), p, r);
    int32x4_t exponent = vshlq_n_s32(vcvtq_s32_f32(n), 23);
    p = vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(p), exponent));
    p = vbslq_f32(small, vdupq_n_f32(0), p);
    /* A NaN would lose its mark to the integer addition. */
    return vbslq_f32(number, p, x);
}

/* x / (1 + e^-u) */
static inline float32x4_t neon_gate(float32x4_t x, float32x4_t u) {
    return vdivq_f32(x, vaddq_f32(vdupq_n_f32(1), neon_exp(vnegq_f32(u))));
}

#endif
