/* Words are vectors of 16 bytes, one for each row of a panel:
 *   up to 4 bits   the codes of inputs 2 v and 2 v + 1 in the nibbles of vector v;
 *   5, 6 bits      the same for the low 4 bits; then vectors of 4 inputs' high pairs of bits;
 *   7, 8 bits      the codes of input v.
 * Codes become 16-bit words once for up to four tokens, whose x are lanes of the multiply-adds. */
#include <arm_neon.h>
#include <stdint.h>

#include "kernels/neon/math.h"
#include "kernels/neon/neon.h"
#include "kernels/ops.h"
#include "kernels/rounding.h"
#include "kernels/whole.h"

enum { ROWS = NEON_PANEL, TOKENS = 4 /* whose sums fill half of the registers */ };

static size_t pack_bytes(const struct bcq_spec *w) { return whole_pack_bytes(w, ROWS); }

static void place(void *words, int row, const struct bcq_view *w, int r, int group) {
    enum whole_form form = whole_form_of(w->spec.bits);
    uint8_t codes[WHOLE_GROUP], *to = (uint8_t *)words + row;
    bcq_whole_codes(w, r, group, codes);
    for (int k = 0; k < WHOLE_GROUP; k++) {
        if (form == WHOLE_BYTES) {
            to[k * ROWS] = codes[k];
            continue;
        }
        to[k / 2 * ROWS] |= (uint8_t)((codes[k] & 15) << 4 * (k % 2));
        if (form == WHOLE_SIXES)
            to[(WHOLE_GROUP / 2 + k / 4) * ROWS] |= (uint8_t)(codes[k] >> 4 << 2 * (k % 4));
    }
}

static void pack(void *dst, const struct bcq_view *w, int b0, int b1) {
    whole_pack(dst, w, b0, b1, ROWS, place);
}

/* -- Inputs ----------------------------------------------------------------------------------- */

static size_t act_bytes(int act_bits, int cols, int n) {
    (void)act_bits;
    return whole_act_bytes(cols, n);
}

/* A NaN is the largest, and it or Inf times 0 becomes the whole number 0. */
static struct whole_factor round_group(union whole_input *to, const float *x) {
    float32x4_t largest = vdupq_n_f32(0);
    int32x4_t sum = vdupq_n_s32(0);
    struct rounding r;
    for (int i = 0; i < WHOLE_GROUP; i += 4)
        largest = vmaxq_f32(largest, vabsq_f32(vld1q_f32(x + i)));
    rounding_to(&r, vmaxvq_f32(largest), 32767);
    for (int i = 0; i < WHOLE_GROUP; i += 8) {
        int32x4_t a = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + i), r.up));
        int32x4_t b = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + i + 4), r.up));
        vst1q_s16(to->x + i, vcombine_s16(vmovn_s32(a), vmovn_s32(b)));
        sum = vaddq_s32(sum, vaddq_s32(a, b));
    }
    return (struct whole_factor){.scale = r.scale, .sum = vaddvq_s32(sum)};
}

static void act_pack(void *act, int act_bits, const struct bcq_spec *w, const float *x, size_t ldx,
                     int n, int part, int n_parts) {
    (void)act_bits;
    whole_act_pack(act, w->cols, x, ldx, n, part, n_parts, round_group);
}

/* -- Products --------------------------------------------------------------------------------- */

/* Codes of input 8 * eight + i of a group; form and i are constants. */
NEON_INLINE uint8x16_t codes(enum whole_form form, const uint8_t *words, int eight, int i) {
    if (form == WHOLE_BYTES) return vld1q_u8(words + (8 * eight + i) * ROWS);
    uint8x16_t low = vld1q_u8(words + (4 * eight + i / 2) * ROWS);
    low = i % 2 ? vshrq_n_u8(low, 4) : vandq_u8(low, vdupq_n_u8(15));
    if (form == WHOLE_NIBBLES) return low;
    uint8x16_t high = vld1q_u8(words + (WHOLE_GROUP / 2 + 2 * eight + i / 4) * ROWS);
    high = vshlq_u8(high, vdupq_n_s8((int8_t)(4 - 2 * (i % 4))));
    return vorrq_u8(low, vandq_u8(high, vdupq_n_u8(0x30)));
}

/* Of n tokens, whose inputs and factors are `step` groups apart. */
struct tokens {
    const union whole_input *x;
    const struct whole_factor *factor;
    size_t step;
};

/* Input i of eight for n tokens; a macro, because i must be a constant in the text. */
#define ADD(i)                                                                                     \
    do {                                                                                           \
        const uint8x16_t bytes = codes(form, words, eight, i);                                     \
        const int16x8_t c = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(bytes)));                   \
        const int16x8_t d = vreinterpretq_s16_u16(vmovl_high_u8(bytes));                           \
        NEON_UNROLL for (int t = 0; t < n; t++) {                                                  \
            a[t][0] = vmlal_laneq_s16(a[t][0], vget_low_s16(c), x[t], i);                          \
            a[t][1] = vmlal_high_laneq_s16(a[t][1], c, x[t], i);                                   \
            a[t][2] = vmlal_laneq_s16(a[t][2], vget_low_s16(d), x[t], i);                          \
            a[t][3] = vmlal_high_laneq_s16(a[t][3], d, x[t], i);                                   \
        }                                                                                          \
    } while (0)

/* Sums of a group in whole numbers: at most 32 * 32767 * 255. */
NEON_INLINE void group_sums(int32x4_t a[TOKENS][4], enum whole_form form, const uint8_t *words,
                            int zero, const struct tokens *tokens, int n) {
    NEON_UNROLL for (int t = 0; t < n; t++) {
        int32x4_t start = vdupq_n_s32(-(tokens->factor[(size_t)t * tokens->step].sum * zero));
        NEON_UNROLL for (int k = 0; k < 4; k++) a[t][k] = start;
    }
    for (int eight = 0; eight < WHOLE_GROUP / 8; eight++) {
        int16x8_t x[TOKENS];
        NEON_UNROLL for (int t = 0; t < n; t++) x[t] =
            vld1q_s16(tokens->x[(size_t)t * tokens->step].x + 8 * eight);
        ADD(0);
        ADD(1);
        ADD(2);
        ADD(3);
        ADD(4);
        ADD(5);
        ADD(6);
        ADD(7);
    }
}

/* y: n_rows rows of a panel for n tokens; form and n are constants. */
NEON_INLINE void panel(float *y, size_t ldy, enum whole_form form, const uint8_t *w, int zero,
                       int n_rows, struct tokens tokens, size_t groups, int n) {
    float32x4_t sum[TOKENS][4];
    NEON_UNROLL for (int t = 0; t < n; t++) {
        NEON_UNROLL for (int k = 0; k < 4; k++) sum[t][k] = vdupq_n_f32(0);
    }
    for (size_t g = 0; g < groups; g++, w += whole_group_bytes(form, ROWS)) {
        int32x4_t a[TOKENS][4];
        group_sums(a, form, w + whole_scales_bytes(ROWS), zero, &tokens, n);
        NEON_UNROLL for (int k = 0; k < 4; k++) {
            const uint16x4_t half = vld1_u16((const uint16_t *)(const void *)w + 4 * k);
            const float32x4_t scale = vcvt_f32_f16(vreinterpret_f16_u16(half));
            NEON_UNROLL for (int t = 0; t < n; t++) {
                const float factor = tokens.factor[(size_t)t * tokens.step].scale;
                sum[t][k] =
                    vfmaq_f32(sum[t][k], vcvtq_f32_s32(a[t][k]), vmulq_n_f32(scale, factor));
            }
        }
        tokens.x++;
        tokens.factor++;
    }
    for (int t = 0; t < n; t++) neon_store_rows(y + (size_t)t * ldy, sum[t], n_rows);
}

NEON_INLINE void mul_form(float *y, size_t ldy, enum whole_form form, const uint8_t *packed,
                          const struct bcq_spec *w, const void *act, int n, int b0, int b1) {
    size_t groups = whole_groups(w->cols), bytes = groups * whole_group_bytes(form, ROWS);
    for (int b = b0; b < b1; b++) {
        const uint8_t *from = packed + (size_t)b * bytes;
        int n_rows = w->rows - b * ROWS, zero = 1 << (w->bits - 1);
        for (int t = 0, m; t < n; t += m) {
            size_t at = (size_t)t * groups;
            const struct tokens tokens = {(const union whole_input *)act + at,
                                          whole_factors(act, groups, n) + at, groups};
            float *to = y + (size_t)t * ldy + (size_t)b * ROWS;
            m = n - t >= 4 ? 4 : n - t >= 2 ? 2 : 1;
            if (m == 4) panel(to, ldy, form, from, zero, n_rows, tokens, groups, 4);
            if (m == 2) panel(to, ldy, form, from, zero, n_rows, tokens, groups, 2);
            if (m == 1) panel(to, ldy, form, from, zero, n_rows, tokens, groups, 1);
        }
    }
}

static void mul(float *y, size_t ldy, const void *packed, const struct bcq_spec *w, const void *act,
                int act_bits, int n, int b0, int b1) {
    enum whole_form form = whole_form_of(w->bits);
    (void)act_bits;
    if (form == WHOLE_NIBBLES) mul_form(y, ldy, WHOLE_NIBBLES, packed, w, act, n, b0, b1);
    if (form == WHOLE_SIXES) mul_form(y, ldy, WHOLE_SIXES, packed, w, act, n, b0, b1);
    if (form == WHOLE_BYTES) mul_form(y, ldy, WHOLE_BYTES, packed, w, act, n, b0, b1);
}

void neon_whole_init(struct bcq_ops *whole) {
    *whole = (struct bcq_ops){
        .row_block = ROWS,
        .pack_bytes = pack_bytes,
        .pack = pack,
        .act_bytes = act_bytes,
        .act_pack = act_pack,
        .mul = mul,
    };
}
