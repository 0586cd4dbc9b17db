/* Products of many tokens with compact matrices. */
#include "kernels/cuda/compact.cuh"
#include "kernels/cuda/wide.cuh"

template <int BITS>
static cudaError_t run(bool shapes, struct product_set *set, const struct product_plan *plan,
                       cudaStream_t stream) {
    return shapes ? wide_launch<compact_form<BITS, true>>(set, plan, stream)
                  : wide_launch<compact_form<BITS, false>>(set, plan, stream);
}

cudaError_t wide_compact_run(const struct product_kind *kind, struct product_set *set,
                             const struct product_plan *plan, cudaStream_t stream) {
    switch (kind->bits) {
    case 1:
        return run<1>(kind->shapes, set, plan, stream);
    case 2:
        return run<2>(kind->shapes, set, plan, stream);
    case 3:
        return run<3>(kind->shapes, set, plan, stream);
    default:
        return run<4>(kind->shapes, set, plan, stream);
    }
}
