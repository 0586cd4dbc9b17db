#include "kernels/ops.h"

#include "kernels/neon/neon.h"

void ops_init_neon(struct ops *ops) {
    ops->level = "neon";
    neon_bcq_init(&ops->bcq);
    neon_whole_init(&ops->whole);
    ops->shift = (struct bcq_ops){0};
    neon_dense_init(&ops->dense);
    neon_outliers_init(ops);
    neon_rotate_init(ops);
    neon_attention_init(ops);
    neon_norm_init(ops);
    neon_elementwise_init(ops);
}
