/* beside.h - what may lie beside a matrix's codes: outliers, and rotations that it is stored between.
 *
 * Owns      nothing.
 * Borrows   device memory during the launch.
 * Thread    the back end's.
 * Fails     returns the launch's code.
 * Cost      outliers: a pass over the entries for every 4 tokens. Rotations: n (log2 n + order)
 *           operations of a token, in the shared memory of one block.
 *
 * Both keep fp32 throughout, and a token's sums have one order whoever is in its batch. The layouts and
 * what they mean are those of kernels/sell.h and kernels/rotation.h. */
#ifndef KERNELS_CUDA_BESIDE_H
#define KERNELS_CUDA_BESIDE_H

#include "kernels/cuda/gpu.h"

/* What is left to do with a product: dst = or += act(from + what is added + bias). */
struct product_end {
    float *dst;        /* (n_tokens, rows) */
    const float *from; /* the same; NULL: zeros. May be dst */
    const float *bias; /* (rows) or NULL */
    int rows, act, accumulate;
};

struct outliers_matrix {
    const uint32_t *starts; /* first step of each 16 rows; NULL: there are none */
    const void *columns;
    const uint16_t *values;
    int form; /* enum sell_form */
};

/* x: (n, cols). */
cudaError_t outliers_run(const struct outliers_matrix *m, const struct product_end *end,
                         const float *x, int cols, int n, cudaStream_t stream);

struct rotate_matrix {
    int n, order, length; /* n = order * length; 0: none */
    float scale;          /* 1 / sqrt(length) */
    const float *basis;   /* (order, order), NULL when order is 1 */
    const uint32_t *signs;
};

/* A place is left free after each 32: the first stages, whose threads are 8 numbers apart, meet no bank
 * twice then. */
static inline __host__ __device__ int rotate_place(int i) { return i + i / 32; }
static inline size_t rotate_shared(int n) { return (size_t)rotate_place(n) * sizeof(float); }

/* V x or, back, V^T x of n tokens, x (n, r->n); ends as products do, with end->from NULL. */
cudaError_t rotate_run(const struct rotate_matrix *r, bool back, const struct product_end *end,
                       const float *x, int n, cudaStream_t stream);

#endif
