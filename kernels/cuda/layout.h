/* layout.h - how packed weights and inputs lie in device memory.
 *
 * Owns      nothing.
 * Borrows   nothing.
 * Thread    any.
 * Fails     never.
 * Cost      nothing.
 *
 * Weights lie in units: 16 rows by UNIT inputs, in the order that the 32 lanes of a warp take them
 * as the A side of mma(): lane 4 g + t has rows g and g + 8. A row tile's units follow each other.
 * Inputs lie as the B side, a column for a token: x as a half, after a power of two of the token's own.
 * Which input belongs to which lane is free as long as both sides agree; there are two orders. Within a chunk of 128, lane t's weights of
 * step s (of 8), register r and half h are those of input
 *   PACK_SPREAD   16 s + 4 t + 2 r + h, so that each step is 16 consecutive inputs;
 *   PACK_OWNED    32 t + 4 s + 2 r + h, so that each lane has whole groups of 16 to itself. */
#ifndef KERNELS_CUDA_LAYOUT_H
#define KERNELS_CUDA_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

enum {
    CHUNK = 128, /* inputs that a lane has 32 of */
    TILE_ROWS = 16,
    PARTS = 8,    /* sums over inputs are cut in as many, whatever the batch */
    STEPS = 8,    /* of mma() in a chunk */
    TILE_COLS = 8 /* columns of one mma(): a token each */
};

#if defined(__CUDACC__)
#define GPU_BOTH __host__ __device__
#else
#define GPU_BOTH
#endif

enum pack_order { PACK_SPREAD, PACK_OWNED, N_PACK_ORDERS };

/* What a matrix became. */
enum weight_form {
    FORM_PLAIN,   /* rows as they were, multiplied by ordinary instructions: the fallback */
    FORM_PLANES,  /* bits of each plane; fp16 or fp32 alphas and beta of each group */
    FORM_COMPACT, /* codes of all planes, looked up in the row's (or the group's) levels */
    FORM_HALVES   /* fp16 */
};

GPU_BOTH static inline int chunks_of(int cols) { return (cols + CHUNK - 1) / CHUNK; }
/* Pairs of chunks: the unit of FORM_COMPACT. */
GPU_BOTH static inline int pairs_of(int cols) { return (cols + 2 * CHUNK - 1) / (2 * CHUNK); }
GPU_BOTH static inline int tiles_of(int rows) { return (rows + TILE_ROWS - 1) / TILE_ROWS; }

/* 32-bit words of a lane in a unit. COMPACT: codes of two chunks, then q of both in nibbles, then p
 * of each in bytes, then (shapes) the shape index of each. */
GPU_BOTH static inline int planes_words(int bits) { return 2 * bits; }
GPU_BOTH static inline int compact_words(int bits, bool shapes) {
    return 4 * bits + 3 + (shapes ? 2 : 0);
}
/* Words of a row's alphas and beta, fp16, for one stretch of inputs. */
GPU_BOTH static inline int param_words(int bits) { return (bits + 2) / 2; }

#endif
