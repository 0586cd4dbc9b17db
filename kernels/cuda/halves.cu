/* Products with fp16 matrices. */
#include "kernels/cuda/halves.cuh"

cudaError_t halves_run(struct product_set *set, cudaStream_t stream) {
    if (set->x.wide) return wide_launch<halves_form>(set, stream);
    return product_launch<halves_form>(set, stream);
}
