#include "kernels/ops.h"

#include "kernels/avx512/avx512.h"

/* The norms, rope and the other one-pass operations stay with AVX2: they wait for memory, not for
 * arithmetic. */
void ops_init_avx512(struct ops *ops) {
    ops->level = "avx512";
    avx512_bcq_init(&ops->bcq);
    avx512_whole_init(&ops->whole);
    avx512_dense_init(&ops->dense);
    avx512_outliers_init(ops);
    avx512_rotate_init(ops);
    avx512_attention_init(ops);
    avx512_elementwise_init(ops);
}
