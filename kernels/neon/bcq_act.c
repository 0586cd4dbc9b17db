#include <arm_neon.h>
#include <math.h>
#include <string.h>

#include "kernels/neon/bcq.h"
#include "kernels/ops.h"
#include "kernels/rounding.h"

/* Four magnitudes add up to at most this many whole numbers; rounding four adds up to two. */
static const float FOUR_LIMIT = 32760.0f;

/* Below this a scale would lose bits as a subnormal; such inputs count as zero. */
static const float TINY = 1e-33f;

static size_t spans_of(int cols) { return ((size_t)cols + NEON_BCQ_SPAN - 1) / NEON_BCQ_SPAN; }

size_t neon_bcq_act_bytes(int act_bits, int cols, int n) {
    const bool bytes = act_bits < 16;
    size_t record = bytes ? offsetof(struct neon_bcq_act, lo) : sizeof(struct neon_bcq_act);
    return spans_of(cols) * (size_t)n * record;
}

/* Returns the scale; out: whole numbers. */
static float make_whole(float *out, const float *x) {
    float32x4_t largest = vdupq_n_f32(0), all = vdupq_n_f32(0);
    for (int i = 0; i < NEON_BCQ_SPAN; i += 16) {
        float32x4_t a = vabsq_f32(vld1q_f32(x + i)), b = vabsq_f32(vld1q_f32(x + i + 4));
        float32x4_t c = vabsq_f32(vld1q_f32(x + i + 8)), d = vabsq_f32(vld1q_f32(x + i + 12));
        float32x4_t fours = vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d));
        largest = vmaxq_f32(largest, fours);
        all = vaddq_f32(all, fours);
    }
    float top = vmaxvq_f32(largest), up = 0, scale = 0;
    if (!(vaddvq_f32(all) < INFINITY)) {
        scale = NAN;
    } else if (top > TINY) {
        up = FOUR_LIMIT / top;
        scale = top / FOUR_LIMIT;
    }
    for (int i = 0; i < NEON_BCQ_SPAN; i += 4) {
        float32x4_t v = vrndnq_f32(vmulq_n_f32(vld1q_f32(x + i), up));
        vst1q_f32(out + i, up > 0 ? v : vdupq_n_f32(0));
    }
    return scale;
}

/* The sixteen signed sums of four whole numbers; bit i of an entry's index is the sign of w[i]. */
static int16x8x2_t signed_sums(const int16_t *w) {
    static const int16_t signs[3][8] = {
        {-1, 1, -1, 1, -1, 1, -1, 1}, {-1, -1, 1, 1, -1, -1, 1, 1}, {-1, -1, -1, -1, 1, 1, 1, 1}};
    int16x8_t sum = vmulq_n_s16(vld1q_s16(signs[0]), w[0]);
    sum = vmlaq_n_s16(sum, vld1q_s16(signs[1]), w[1]);
    sum = vmlaq_n_s16(sum, vld1q_s16(signs[2]), w[2]);
    int16x8_t last = vdupq_n_s16(w[3]);
    return (int16x8x2_t){{vsubq_s16(sum, last), vaddq_s16(sum, last)}};
}

static void make_table(int8_t hi[16], uint8_t lo[16], const int16_t *w) {
    int16x8x2_t t = signed_sums(w);
    vst1q_s8(hi, vcombine_s8(vshrn_n_s16(t.val[0], 8), vshrn_n_s16(t.val[1], 8)));
    vst1q_u8(lo, vcombine_u8(vmovn_u16(vreinterpretq_u16_s16(t.val[0])),
                             vmovn_u16(vreinterpretq_u16_s16(t.val[1]))));
}

/* Rounded inputs' sums fit a byte. */
static void make_small_table(int8_t entries[16], const int16_t *w) {
    int16x8x2_t t = signed_sums(w);
    vst1q_s8(entries, vcombine_s8(vmovn_s16(t.val[0]), vmovn_s16(t.val[1])));
}

static void pack_span(struct neon_bcq_act *out, const float *x, int n, int act_bits) {
    float in[NEON_BCQ_SPAN] = {0}, whole[NEON_BCQ_SPAN];
    const bool bytes = act_bits < 16;
    memcpy(in, x, (size_t)n * sizeof *in);
    out->scale = bytes ? rounding_span(whole, in, act_bits) : make_whole(whole, in);
    for (int i = 0; i < NEON_BCQ_SPAN; i += 8) {
        int16x4_t a = vmovn_s32(vcvtq_s32_f32(vld1q_f32(whole + i)));
        int16x4_t b = vmovn_s32(vcvtq_s32_f32(vld1q_f32(whole + i + 4)));
        vst1q_s16(out->whole + i, vcombine_s16(a, b));
        out->sums[i / 8] = vaddlvq_s16(vcombine_s16(a, b));
    }
    for (int t = 0; bytes && t < NEON_BCQ_TABLES; t++)
        make_small_table(out->hi[t], out->whole + 4 * t);
    for (int t = 0; !bytes && t < NEON_BCQ_TABLES; t++)
        make_table(out->hi[t], out->lo[t], out->whole + 4 * t);
}

void neon_bcq_act_pack(void *act, int act_bits, const struct bcq_spec *w, const float *x,
                       size_t ldx, int n, int part, int n_parts) {
    const int cols = w->cols;
    const int spans = (int)spans_of(cols);
    const int64_t first = bcq_first_span(n, spans, part, n_parts);
    const int64_t last = bcq_first_span(n, spans, part + 1, n_parts);
    for (int64_t i = first; i < last; i++) {
        size_t t = (size_t)(i / spans), span = (size_t)(i % spans);
        int pos = (int)span * NEON_BCQ_SPAN;
        int left = cols - pos < NEON_BCQ_SPAN ? cols - pos : NEON_BCQ_SPAN;
        const struct neon_bcq_act *to = neon_bcq_at(act, act_bits < 16, span * (size_t)n + t);
        pack_span((struct neon_bcq_act *)to, x + t * ldx + pos, left, act_bits);
    }
}
