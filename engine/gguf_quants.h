/* gguf_quants.h - expands rows of GGUF tensor types to fp32.
 *
 * Owns      nothing.
 * Borrows   arguments during the call.
 * Thread    any.
 * Fails     never; a type that cannot be expanded says so in its table row.
 * Cost      O(cols), table-free except for the IQ4 types.
 *
 * Results equal those of the format's reference code bit for bit: products and sums are rounded
 * in its order, so these files must not be compiled with contraction of a * b + c. */
#ifndef ENGINE_GGUF_QUANTS_H
#define ENGINE_GGUF_QUANTS_H

#include <stddef.h>
#include <stdint.h>

/* Numbers as in the files. */
enum gguf_type {
    GGUF_F32 = 0,
    GGUF_F16 = 1,
    GGUF_Q4_0 = 2,
    GGUF_Q4_1 = 3,
    GGUF_Q5_0 = 6,
    GGUF_Q5_1 = 7,
    GGUF_Q8_0 = 8,
    GGUF_Q2_K = 10,
    GGUF_Q3_K = 11,
    GGUF_Q4_K = 12,
    GGUF_Q5_K = 13,
    GGUF_Q6_K = 14,
    GGUF_IQ4_NL = 20,
    GGUF_IQ4_XS = 23,
    GGUF_I8 = 24,
    GGUF_I16 = 25,
    GGUF_I32 = 26,
    GGUF_I64 = 27,
    GGUF_F64 = 28,
    GGUF_BF16 = 30
};

struct gguf_quants_type {
    uint32_t type; /* enum gguf_type */
    const char *name;
    int block;   /* elements in a block; rows hold whole blocks */
    int n_bytes; /* of a block */
    /* out: (block). NULL: known by size only (integers, F64). */
    void (*expand)(float *out, const uint8_t *bytes);
};

/* NULL for a number that is no type or one that is not read here. */
const struct gguf_quants_type *gguf_quants_find(uint32_t type);

/* out: (cols), a multiple of the block. The type must have an expand function. */
void gguf_quants_row(const struct gguf_quants_type *type, float *out, const uint8_t *row,
                     int64_t cols);

#endif
