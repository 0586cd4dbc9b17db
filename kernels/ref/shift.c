#include "kernels/ref/shift.h"

#include <math.h>
#include <string.h>

#include "kernels/ops.h"
#include "kernels/rounding.h"

/* Packed form: for each row its two logarithms in a word, the planes, a struct pow2_group of every
 * group in two words. Inputs of a token: for each span the scale, then whole numbers as bytes. */
enum { ROW_BLOCK = 16, GROUP_WORDS = 2, SPAN_BYTES = 4 + ROUNDING_SPAN };

_Static_assert(sizeof(struct pow2_group) <= 4 * GROUP_WORDS, "a group fits its words");

static size_t words_of(const struct bcq_spec *w) { return ((size_t)w->cols + 31) / 32; }

static size_t groups_of(const struct bcq_spec *w) {
    return ((size_t)w->cols + (size_t)w->group - 1) / (size_t)w->group;
}

static size_t spans_of(int cols) { return ((size_t)cols + ROUNDING_SPAN - 1) / ROUNDING_SPAN; }

static size_t row_words(const struct bcq_spec *w) {
    return 1 + (size_t)w->bits * words_of(w) + GROUP_WORDS * groups_of(w);
}

static size_t pack_bytes(const struct bcq_spec *w) { return (size_t)w->rows * row_words(w) * 4; }

static int last_row(const struct bcq_spec *w, int b1) {
    return b1 * ROW_BLOCK < w->rows ? b1 * ROW_BLOCK : w->rows;
}

static void pack(void *dst, const struct bcq_view *w, int b0, int b1) {
    const struct bcq_spec *s = &w->spec;
    size_t planes = (size_t)s->bits * words_of(s);
    for (int r = b0 * ROW_BLOCK; r < last_row(s, b1); r++) {
        uint32_t *row = (uint32_t *)dst + (size_t)r * row_words(s);
        int16_t logs[2];
        pow2_row(w, r, &logs[0], &logs[1]);
        memcpy(row, logs, sizeof logs);
        memcpy(row + 1, w->planes + (size_t)r * planes, planes * 4);
        for (int g = 0; g < w->layout.n_groups; g++) {
            struct pow2_group group;
            pow2_group(w, r, g, &group);
            memcpy(row + 1 + planes + GROUP_WORDS * (size_t)g, &group, sizeof group);
        }
    }
}

static size_t act_bytes(int act_bits, int cols, int n) {
    (void)act_bits;
    return spans_of(cols) * (size_t)n * SPAN_BYTES;
}

static void act_pack(void *act, int act_bits, const struct bcq_spec *w, const float *x, size_t ldx,
                     int n, int part, int n_parts) {
    const int cols = w->cols;
    int t0 = bcq_first_token(n, part, n_parts), t1 = bcq_first_token(n, part + 1, n_parts);
    for (int t = t0; t < t1; t++)
        for (size_t s = 0; s < spans_of(cols); s++) {
            uint8_t *out = (uint8_t *)act + ((size_t)t * spans_of(cols) + s) * SPAN_BYTES;
            size_t first = s * ROUNDING_SPAN, left = (size_t)cols - first;
            float in[ROUNDING_SPAN] = {0}, whole[ROUNDING_SPAN];
            size_t size = left < ROUNDING_SPAN ? left : ROUNDING_SPAN;
            memcpy(in, x + (size_t)t * ldx + first, size * sizeof *in);
            float scale = rounding_span(whole, in, act_bits);
            memcpy(out, &scale, sizeof scale);
            for (int k = 0; k < ROUNDING_SPAN; k++) out[4 + k] = (uint8_t)(int8_t)whole[k];
        }
}

/* The whole-number sums of a span, group by group. */
static void span_sums(int32_t sums[2], const uint32_t *row, const struct bcq_spec *w,
                      const uint8_t *span, int first) {
    const uint32_t *groups = row + 1 + (size_t)w->bits * words_of(w);
    int end = first + ROUNDING_SPAN < w->cols ? first + ROUNDING_SPAN : w->cols;
    sums[0] = sums[1] = 0;
    for (int k = first, next; k < end; k = next) {
        struct pow2_group group;
        memcpy(&group, groups + GROUP_WORDS * (size_t)(k / w->group), sizeof group);
        next = (k / w->group + 1) * w->group;
        if (next > end) next = end;
        const struct ref_shift_part part = {.x = (const int8_t *)span + 4 + (k - first),
                                            .planes = row + 1,
                                            .bits = w->bits,
                                            .stride = (int)words_of(w),
                                            .first = k,
                                            .n = next - k,
                                            .group = &group};
        ref_shift_sum(&part, &sums[0], &sums[1]);
    }
}

static float row_product(const uint32_t *row, const struct bcq_spec *w, const uint8_t *token) {
    int16_t logs[2];
    double sum = 0;
    memcpy(logs, row, sizeof logs);
    for (size_t s = 0; s < spans_of(w->cols); s++, token += SPAN_BYTES) {
        int32_t sums[2];
        float scale;
        memcpy(&scale, token, sizeof scale);
        span_sums(sums, row, w, token, (int)(s * ROUNDING_SPAN));
        double share = logs[0] == INT16_MIN ? 0 : ldexp((double)sums[0], logs[0]);
        if (logs[1] != INT16_MIN) share += ldexp((double)sums[1], logs[1]);
        sum += (double)scale * share;
    }
    return (float)sum;
}

static void mul(float *y, size_t ldy, const void *packed, const struct bcq_spec *w, const void *act,
                int act_bits, int n, int b0, int b1) {
    const uint8_t *tokens = act;
    (void)act_bits;
    for (int r = b0 * ROW_BLOCK; r < last_row(w, b1); r++)
        for (int t = 0; t < n; t++)
            y[(size_t)t * ldy + (size_t)r] =
                row_product((const uint32_t *)packed + (size_t)r * row_words(w), w,
                            tokens + (size_t)t * spans_of(w->cols) * SPAN_BYTES);
}

void ref_shift_init(struct bcq_ops *ops) {
    *ops = (struct bcq_ops){
        .row_block = ROW_BLOCK,
        .pack_bytes = pack_bytes,
        .pack = pack,
        .act_bytes = act_bytes,
        .act_pack = act_pack,
        .mul = mul,
    };
}
