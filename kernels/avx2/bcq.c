#include "kernels/avx2/avx2.h"

#include "kernels/avx2/bcq.h"
#include "kernels/ops.h"

static void mul(float *y, size_t ldy, const void *packed, const struct bcq_spec *w, const void *act,
                int act_bits, int n, int b0, int b1) {
    const struct avx2_bcq_mul call = {.y = y,
                                      .ldy = ldy,
                                      .packed = packed,
                                      .w = w,
                                      .act = act,
                                      .n = n,
                                      .b0 = b0,
                                      .b1 = b1,
                                      .bytes = act_bits < 16};
    switch (avx2_bcq_form(w)) {
    case AVX2_BCQ_FORM_FEW:
        avx2_bcq_mul_few(&call);
        break;
    case AVX2_BCQ_FORM_COMPACT:
        avx2_bcq_mul_compact(&call);
        break;
    case AVX2_BCQ_FORM_HALF:
    case AVX2_BCQ_FORM_SINGLE:
        avx2_bcq_mul_free(&call);
        break;
    case AVX2_BCQ_FORM_ODD:
        avx2_bcq_mul_odd(&call);
        break;
    }
}

void avx2_bcq_init(struct bcq_ops *ops) {
    ops->row_block = AVX2_BCQ_ROWS;
    ops->pack_bytes = avx2_bcq_pack_bytes;
    ops->pack = avx2_bcq_pack;
    ops->act_bytes = avx2_bcq_act_bytes;
    ops->act_pack = avx2_bcq_act_pack;
    ops->mul = mul;
}
