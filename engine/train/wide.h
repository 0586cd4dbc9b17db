/* wide.h - what lets plain loops run on the widest vectors of the machine: versions, and exp.
 *
 * Owns      nothing.
 * Borrows   nothing.
 * Thread    any.
 * Fails     never.
 * Cost      exp some twenty operations, in every lane.
 *
 * A library's expf() keeps a loop from being vectorized; this one is a polynomial, within 2 units in
 * the last place of expf() over -87..88, 0 below and expf(88) above. */
#ifndef ENGINE_TRAIN_WIDE_H
#define ENGINE_TRAIN_WIDE_H

#include <stdint.h>
#include <string.h>

/* ThreadSanitizer is called by the code that picks a version, which runs before it is loaded. */
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__SANITIZE_THREAD__)
#define WIDE_VERSIONS __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define WIDE_VERSIONS
#endif

/* 2^n e^r with r within +-ln(2)/2; the polynomial is Taylor's to the sixth power, whose rest there
 * is below 1e-7 of the value. */
static inline __attribute__((always_inline)) float wide_exp(float x) {
    float top = x > 88.0f ? 88.0f : x, low = top < -87.0f ? -87.0f : top;
    /* Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits. */
    float shifted = low * 1.44269504088896341f + 12582912.0f;
    float n = shifted - 12582912.0f;
    float r = (low - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.0f / 720.0f;
    p = p * r + 1.0f / 120.0f;
    p = p * r + 1.0f / 24.0f;
    p = p * r + 1.0f / 6.0f;
    p = p * r + 0.5f;
    p = p * r * r + r + 1.0f;
    int32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (int32_t)((uint32_t)(bits - 0x4b400000 + 127) << 23);
    float power;
    memcpy(&power, &bits, sizeof power);
    return x < -87.0f ? 0.0f : p * power;
}

#endif
