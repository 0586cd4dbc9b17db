#include "kernels/ref/ref.h"

#include <string.h>

#include "kernels/ops.h"
#include "kernels/rounding.h"

/* Packed form: for each row the planes as they are, then alpha_1..alpha_m and beta of every
 * group in fp32. act is a copy of x. Tokens go in blocks so that a row is decoded once for all
 * of them; each token's sum still runs over k in order, in double. */
enum { ROW_BLOCK = 16, TOKENS = 16, SPAN = 32 };

static size_t words_of(const struct bcq_spec *w) { return ((size_t)w->cols + 31) / 32; }

static size_t groups_of(const struct bcq_spec *w) {
    return ((size_t)w->cols + (size_t)w->group - 1) / (size_t)w->group;
}

static size_t row_words(const struct bcq_spec *w) {
    size_t bits = (size_t)w->bits;
    return bits * words_of(w) + (bits + 1) * groups_of(w);
}

static int last_row(const struct bcq_spec *w, int b1) {
    return b1 * ROW_BLOCK < w->rows ? b1 * ROW_BLOCK : w->rows;
}

static size_t pack_bytes(const struct bcq_spec *w) { return (size_t)w->rows * row_words(w) * 4; }

static void pack(void *dst, const struct bcq_view *w, int b0, int b1) {
    const struct bcq_spec *s = &w->spec;
    size_t planes = (size_t)s->bits * words_of(s);
    for (int r = b0 * ROW_BLOCK; r < last_row(s, b1); r++) {
        uint32_t *row = (uint32_t *)dst + (size_t)r * row_words(s);
        memcpy(row, w->planes + (size_t)r * planes, planes * 4);
        for (int g = 0; g < w->layout.n_groups; g++) {
            float params[BCQ_MAX_BITS + 1];
            bcq_group_params(w, r, g, params, &params[s->bits]);
            size_t n = (size_t)s->bits + 1;
            memcpy(row + planes + (size_t)g * n, params, n * sizeof *params);
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
    for (int t = t0; t < t1; t++) {
        float *out = (float *)act + (size_t)t * (size_t)cols;
        if (act_bits < 16)
            rounding_row(out, x + (size_t)t * ldx, cols, act_bits);
        else
            memcpy(out, x + (size_t)t * ldx, (size_t)cols * sizeof *out);
    }
}

/* out: the weights of columns [k0, k1) of a packed row. */
static void decode(double *out, const uint32_t *row, const struct bcq_spec *w, int k0, int k1) {
    size_t words = words_of(w), bits = (size_t)w->bits;
    for (int k = k0; k < k1; k++) {
        float params[BCQ_MAX_BITS + 1];
        memcpy(params, row + bits * words + (size_t)(k / w->group) * (bits + 1),
               (bits + 1) * sizeof *params);
        double v = params[bits];
        for (size_t i = 0; i < bits; i++)
            v += row[i * words + (size_t)k / 32] >> k % 32 & 1u ? params[i] : -params[i];
        out[k - k0] = v;
    }
}

static void mul_row(float *y, size_t ldy, const uint32_t *row, const struct bcq_spec *w,
                    const float *x, int n) {
    double sum[TOKENS] = {0}, weight[SPAN];
    for (int k = 0; k < w->cols; k += SPAN) {
        int end = k + SPAN < w->cols ? k + SPAN : w->cols;
        decode(weight, row, w, k, end);
        for (int t = 0; t < n; t++)
            for (int i = k; i < end; i++)
                sum[t] += weight[i - k] * (double)x[(size_t)t * (size_t)w->cols + (size_t)i];
    }
    for (int t = 0; t < n; t++) y[(size_t)t * ldy] = (float)sum[t];
}

static void mul(float *y, size_t ldy, const void *packed, const struct bcq_spec *w, const void *act,
                int act_bits, int n, int b0, int b1) {
    (void)act_bits;
    for (int r = b0 * ROW_BLOCK; r < last_row(w, b1); r++)
        for (int t = 0; t < n; t += TOKENS)
            mul_row(y + (size_t)t * ldy + r, ldy,
                    (const uint32_t *)packed + (size_t)r * row_words(w), w,
                    (const float *)act + (size_t)t * (size_t)w->cols,
                    n - t < TOKENS ? n - t : TOKENS);
}

void ref_bcq_init(struct bcq_ops *bcq) {
    *bcq = (struct bcq_ops){
        .row_block = ROW_BLOCK,
        .pack_bytes = pack_bytes,
        .pack = pack,
        .act_bytes = act_bytes,
        .act_pack = act_pack,
        .mul = mul,
    };
}
