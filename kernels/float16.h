/* float16.h - converts between fp32 and the two 16-bit floating formats.
 *
 * Owns      nothing.
 * Borrows   nothing.
 * Thread    any.
 * Fails     never; NaN stays NaN, overflow becomes infinity.
 * Cost      a few integer operations; the vector kernels use the processor's own instructions.
 *
 * Rounding is to nearest, ties to even, so that these agree bit for bit with F16C. */
#ifndef KERNELS_FLOAT16_H
#define KERNELS_FLOAT16_H

#include <stdint.h>
#include <string.h>

static inline uint32_t float_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static inline float float_from_bits(uint32_t u) {
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static inline float f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t exponent = (h >> 10) & 31u, mantissa = h & 1023u;
    if (exponent == 31) return float_from_bits(sign | 0x7f800000u | mantissa << 13);
    if (exponent == 0) {
        /* Zero or subnormal: mantissa * 2^-24 is exact in fp32. */
        float f = (float)mantissa * 0x1p-24f;
        return float_from_bits(float_bits(f) | sign);
    }
    return float_from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
}

static inline uint16_t f32_to_f16(float f) {
    uint32_t u = float_bits(f), sign = (u >> 16) & 0x8000u;
    u &= 0x7fffffffu;
    if (u > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | ((u >> 13) & 0x3ffu));
    if (u >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* rounds to 65536 or more */
    if (u < 0x38800000u) {
        /* Subnormal half: adding 0.5 leaves the rounded mantissa in the low bits. */
        uint32_t r = float_bits(float_from_bits(u) + 0.5f) - 0x3f000000u;
        return (uint16_t)(sign | r);
    }
    u += 0xfffu + ((u >> 13) & 1u);
    return (uint16_t)(sign | (u - 0x38000000u) >> 13);
}

static inline float bf16_to_f32(uint16_t h) { return float_from_bits((uint32_t)h << 16); }

static inline uint16_t f32_to_bf16(float f) {
    uint32_t u = float_bits(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40u);
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

#endif
