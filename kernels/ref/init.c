#include "kernels/ops.h"

#include "kernels/ref/ref.h"
#include "kernels/ref/shift.h"

void ops_init_ref(struct ops *ops) {
    ops->level = "ref";
    ref_bcq_init(&ops->bcq);
    ref_shift_init(&ops->shift);
    ref_whole_init(&ops->whole);
    ref_dense_init(&ops->dense);
    ref_outliers_init(ops);
    ref_rotate_init(ops);
    ref_attention_init(ops);
    ref_norm_init(ops);
    ref_elementwise_init(ops);
}
