/* wide.h - products of many tokens.
 *
 * Owns      nothing.
 * Borrows   see product.h; the plan's partial sums during the launches.
 * Thread    the back end's.
 * Fails     returns the launch's code.
 * Cost      a block expands 128 rows of weights into shared memory once for up to 128 tokens, where
 *           its 8 warps multiply them; weights and columns arrive in a ring of stages of 64 inputs.
 *
 * Each sum runs through the same chain of mma() as with few tokens, so the results are the same bits.
 * Where blocks would be fewer than processors, each takes some of the parts and leaves their sums for a
 * second launch that adds them in order. */
#ifndef KERNELS_CUDA_WIDE_H
#define KERNELS_CUDA_WIDE_H

#include "kernels/cuda/product.h"

/* What the choice of a launch depends on. */
struct product_device {
    int processors;
    size_t shared; /* the most that a block may ask for */
    bool copies;   /* from shared memory's own copies on, sm_80 */
};

enum product_way { WAY_NARROW, WAY_WIDE };

struct product_plan {
    enum product_way way;
    int cols;      /* WIDE: columns of a block, 64, 128 or 256: two for a token */
    int stages;    /* WIDE: of the ring, 2..4 */
    int splits;    /* WIDE: blocks that share the parts, 1, 2, 4 or 8 */
    size_t floats; /* of partial sums: 0 without splits */
    float *partial;
};

/* Bytes of shared memory. */
size_t wide_shared(int cols, int stages);
/* Numbers that a part leaves for a row and token. */
int wide_folds(const struct product_kind *kind);
/* floats from splits and set. */
size_t wide_floats(const struct product_kind *kind, const struct product_set *set, int splits);
/* The fastest by a model of the device. */
struct product_plan product_plan_for(const struct product_kind *kind, const struct product_set *set,
                                     const struct product_device *device);

cudaError_t wide_compact_run(const struct product_kind *kind, struct product_set *set,
                             const struct product_plan *plan, cudaStream_t stream);
cudaError_t wide_halves_run(struct product_set *set, const struct product_plan *plan,
                            cudaStream_t stream);

#endif
