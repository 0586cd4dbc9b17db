#include "kernels/ref/ref.h"

#include <string.h>

#include "kernels/ops.h"
#include "kernels/whole.h"

/* Packed form: for each row the codes, a byte each, then the scales in fp32. act is a copy of x. */
enum { ROW_BLOCK = 16, GROUP = WHOLE_GROUP };

static size_t row_bytes(const struct bcq_spec *w) {
    return whole_groups(w->cols) * (GROUP + sizeof(float));
}

static int last_row(const struct bcq_spec *w, int b1) {
    return b1 * ROW_BLOCK < w->rows ? b1 * ROW_BLOCK : w->rows;
}

static size_t pack_bytes(const struct bcq_spec *w) { return (size_t)w->rows * row_bytes(w); }

static void pack(void *dst, const struct bcq_view *w, int b0, int b1) {
    size_t groups = whole_groups(w->spec.cols);
    for (int r = b0 * ROW_BLOCK; r < last_row(&w->spec, b1); r++) {
        uint8_t *codes = (uint8_t *)dst + (size_t)r * row_bytes(&w->spec);
        for (size_t g = 0; g < groups; g++) {
            float scale = bcq_whole_scale(w, r, (int)g);
            bcq_whole_codes(w, r, (int)g, codes + g * GROUP);
            memcpy(codes + groups * GROUP + g * sizeof scale, &scale, sizeof scale);
        }
    }
}

static size_t act_bytes(int act_bits, int cols, int n) {
    (void)act_bits;
    return (size_t)cols * (size_t)n * sizeof(float);
}

static void act_pack(void *act, int act_bits, const struct bcq_spec *w, const float *x, size_t ldx,
                     int n, int part, int n_parts) {
    const int cols = w->cols;
    int t0 = bcq_first_token(n, part, n_parts), t1 = bcq_first_token(n, part + 1, n_parts);
    (void)act_bits;
    for (int t = t0; t < t1; t++)
        memcpy((float *)act + (size_t)t * (size_t)cols, x + (size_t)t * ldx,
               (size_t)cols * sizeof *x);
}

static double mul_row(const uint8_t *codes, const struct bcq_spec *w, const float *x) {
    int zero = 1 << (w->bits - 1);
    double sum = 0;
    for (int k = 0; k < w->cols; k++) {
        float scale;
        memcpy(&scale, codes + whole_groups(w->cols) * GROUP + (size_t)(k / GROUP) * sizeof scale,
               sizeof scale);
        sum += (double)scale * (codes[k] - zero) * (double)x[k];
    }
    return sum;
}

static void mul(float *y, size_t ldy, const void *packed, const struct bcq_spec *w, const void *act,
                int act_bits, int n, int b0, int b1) {
    (void)act_bits;
    for (int r = b0 * ROW_BLOCK; r < last_row(w, b1); r++)
        for (int t = 0; t < n; t++)
            y[(size_t)t * ldy + (size_t)r] =
                (float)mul_row((const uint8_t *)packed + (size_t)r * row_bytes(w), w,
                               (const float *)act + (size_t)t * (size_t)w->cols);
}

void ref_whole_init(struct bcq_ops *whole) {
    *whole = (struct bcq_ops){
        .row_block = ROW_BLOCK,
        .pack_bytes = pack_bytes,
        .pack = pack,
        .act_bytes = act_bytes,
        .act_pack = act_pack,
        .mul = mul,
    };
}
