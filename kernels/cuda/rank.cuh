/* rank.cuh - logits as whole numbers in the sampler's order.
 *
 * Owns      nothing.
 * Borrows   nothing.
 * Thread    a kernel's.
 * Fails     never.
 * Cost      a few instructions. */
#ifndef KERNELS_CUDA_RANK_CUH
#define KERNELS_CUDA_RANK_CUH

#include <float.h>

#include "kernels/cuda/gpu.h"

static __device__ __forceinline__ float tame(float x) {
    return x != x ? -INFINITY : x > FLT_MAX ? FLT_MAX : x;
}

/* Larger for what is better: values in the order of floats, then lower ids. Equal values, the two zeros
 * too, have equal upper halves. */
static __device__ __forceinline__ uint64_t rank_of(float x, int id) {
    x = tame(x);
    uint32_t bits = (uint32_t)__float_as_int(x == 0 ? 0.0f : x);
    uint32_t key = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (uint64_t)key << 32 | (uint32_t)~id;
}

static __device__ __forceinline__ float value_of(uint64_t rank) {
    uint32_t key = (uint32_t)(rank >> 32);
    return __int_as_float((int)(key & 0x80000000u ? key & 0x7fffffffu : ~key));
}

#endif
