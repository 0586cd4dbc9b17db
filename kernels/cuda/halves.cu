/* Products of a few tokens with fp16 matrices. */
#include "kernels/cuda/halves.cuh"

cudaError_t halves_run(struct product_set *set, cudaStream_t stream) {
    return product_launch<halves_form>(set, stream);
}
