/* pack_input.h - brings inputs into the form that products take, and makes them on the way.
 *
 * Owns      nothing.
 * Borrows   what the arguments name, during the launch.
 * Thread    the back end's.
 * Fails     returns the launch's code.
 * Cost      a pass over x, kept in shared memory where it fits; 2 bytes are written for an input.
 *
 * x is multiplied by the power of two that brings the token's largest value to 2^13 and becomes a
 * half, whatever its size: 11 bits, as activations have in every fp16 server. Sums of inputs, which meet
 * offsets, are those of the rounded inputs, so that a product is W x~ as exactly as sums in fp32 are.
 * A norm or a gate before a product runs in the same launch; its results are the same bits without the
 * packing. */
#ifndef KERNELS_CUDA_PACK_INPUT_H
#define KERNELS_CUDA_PACK_INPUT_H

#include "kernels/cuda/gpu.h"
#include "kernels/cuda/layout.h"

/* Where it goes; sizes as struct packed_input says, for cols rounded up to pairs of chunks. */
struct input_room {
    uint4 *columns;    /* NULL: nothing is packed */
    uint4 *group_cols; /* PACK_OWNED */
    float *sums;       /* PACK_SPREAD */
    float *unscale;
    int n_cols;
    bool wide; /* columns as wide.cuh takes them */
};

enum { WIDE_COLS = 128, WIDE_BLOCK_ROWS = 128 }; /* columns and rows of its widest block */

/* An even number of chunks. */
static inline __host__ __device__ size_t pack_chunks(int cols) {
    return 2 * (((size_t)cols + 2 * CHUNK - 1) / (2 * CHUNK));
}
static inline int pack_columns(int n, bool wide) {
    int each = wide ? (int)WIDE_COLS : (int)TILE_COLS;
    return (n + each - 1) / each * each;
}

enum input_made {
    INPUT_AS_IS,
    INPUT_NORM, /* dst = norm of x by w, b (NULL: RMSNorm) and eps */
    INPUT_GATE  /* dst = silu(x) up */
};

struct input_args {
    enum input_made made;
    enum pack_order order;
    struct input_room to;
    float *dst; /* may be x */
    const float *x, *up, *w, *b;
    float eps;
    int cols, n;
};

/* shared: the most that a block may ask for. */
cudaError_t input_run(const struct input_args *args, size_t shared, cudaStream_t stream);

#endif
