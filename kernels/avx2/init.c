#include "kernels/ops.h"

#include "kernels/avx2/avx2.h"

void ops_init_avx2(struct ops *ops) {
    ops->level = "avx2";
    avx2_bcq_init(&ops->bcq);
    ops->shift = (struct bcq_ops){0};
    avx2_whole_init(&ops->whole);
    avx2_dense_init(&ops->dense);
    avx2_outliers_init(ops);
    avx2_rotate_init(ops);
    avx2_attention_init(ops);
    avx2_norm_init(ops);
    avx2_elementwise_init(ops);
}
