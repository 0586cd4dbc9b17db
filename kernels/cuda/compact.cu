/* Products with compact matrices. */
#include "kernels/cuda/compact.cuh"

template <int BITS>
static cudaError_t run(bool shapes, struct product_set *set, cudaStream_t stream) {
    if (set->x.wide)
        return shapes ? wide_launch<compact_form<BITS, true>>(set, stream)
                      : wide_launch<compact_form<BITS, false>>(set, stream);
    return shapes ? product_launch<compact_form<BITS, true>>(set, stream)
                  : product_launch<compact_form<BITS, false>>(set, stream);
}

cudaError_t compact_run(const struct product_kind *kind, struct product_set *set,
                        cudaStream_t stream) {
    switch (kind->bits) {
    case 1:
        return run<1>(kind->shapes, set, stream);
    case 2:
        return run<2>(kind->shapes, set, stream);
    case 3:
        return run<3>(kind->shapes, set, stream);
    default:
        return run<4>(kind->shapes, set, stream);
    }
}
