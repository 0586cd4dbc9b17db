#include "kernels/pow2.h"

#include <math.h>

#include "kernels/float16.h"

/* POW2_NONE for 0, -1 for what is no power of two. */
static int log_of(int v) {
    if (v == 0) return POW2_NONE;
    if (v < 0 || v & (v - 1)) return -1;
    int log = 0;
    while (v > 1) {
        v >>= 1;
        log++;
    }
    return log;
}

static bool scale_log(uint16_t half, int16_t *ret) {
    float v = f16_to_f32(half);
    int exponent;
    *ret = INT16_MIN;
    if (v == 0) return true;
    float fraction = frexpf(v, &exponent);
    *ret = (int16_t)(exponent - 1);
    return fraction == 0.5f;
}

static bool group_logs(const struct bcq_view *v, int row, int group, struct pow2_group *ret) {
    int d[BCQ_MAX_BITS], q, p;
    bcq_group_codes(v, row, group, d, &q, &p);
    int lq = log_of(q), lp = log_of(p < 0 ? -p : p);
    *ret = (struct pow2_group){.offset = (uint8_t)lp, .is_negative = p < 0};
    for (int i = 0; i < v->spec.bits; i++) {
        int ld = log_of(d[i]);
        if (ld < 0) return false;
        ret->plane[i] = (uint8_t)(lq == POW2_NONE || ld == POW2_NONE ? POW2_NONE : lq + ld);
    }
    return lq >= 0 && lp >= 0;
}

bool pow2_ready(const struct bcq_view *v) {
    int16_t scale, offset;
    struct pow2_group group;
    if (v->spec.kind >= BCQ_FREE) return false;
    for (int row = 0; row < v->spec.rows; row++) {
        if (!scale_log(v->row_scale[2 * row], &scale)) return false;
        if (!scale_log(v->row_scale[2 * row + 1], &offset)) return false;
        for (int g = 0; g < v->layout.n_groups; g++)
            if (!group_logs(v, row, g, &group)) return false;
    }
    return true;
}

void pow2_group(const struct bcq_view *v, int row, int group, struct pow2_group *ret) {
    group_logs(v, row, group, ret);
}

void pow2_row(const struct bcq_view *v, int row, int16_t *ret_scale, int16_t *ret_offset) {
    scale_log(v->row_scale[2 * row], ret_scale);
    scale_log(v->row_scale[2 * row + 1], ret_offset);
    if (*ret_scale != INT16_MIN) *ret_scale = (int16_t)(*ret_scale - 1);
}
