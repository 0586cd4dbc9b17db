/* pack_input.h - brings inputs into the form that products take.
 *
 * Owns      nothing.
 * Borrows   x and the room during the launch.
 * Thread    the back end's.
 * Fails     returns the launch's code.
 * Cost      a pass over x; 4 bytes are written for an input.
 *
 * x is multiplied by the power of two that brings the token's largest value to 2^13, so that a half
 * and the half that it lost give about 22 bits of each input, whatever their size. */
#ifndef KERNELS_CUDA_PACK_INPUT_H
#define KERNELS_CUDA_PACK_INPUT_H

#include "kernels/cuda/gpu.h"
#include "kernels/cuda/layout.h"

/* Where it goes; sizes as struct packed_input says, for cols rounded up to pairs of chunks. */
struct input_room {
    uint4 *columns;
    uint2 *group_cols; /* PACK_OWNED */
    float *sums;       /* PACK_SPREAD */
    float *unscale;
    int n_cols;
};

/* An even number of chunks. */
static inline __host__ __device__ size_t pack_chunks(int cols) {
    return 2 * (((size_t)cols + 2 * CHUNK - 1) / (2 * CHUNK));
}
static inline int pack_columns(int n) { return (2 * n + TILE_COLS - 1) / TILE_COLS * TILE_COLS; }

cudaError_t pack_input(const struct input_room *to, const float *x, int cols, int n,
                       enum pack_order order, cudaStream_t stream);

#endif
