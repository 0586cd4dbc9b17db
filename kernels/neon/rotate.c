/* Two stages of the butterfly stay in a register, the others go through the first cache two at a
 * time; the small factor mixes whole segments, four places of four of them at once. */
#include <arm_neon.h>

#include "kernels/butterfly.h"
#include "kernels/neon/math.h"
#include "kernels/neon/neon.h"
#include "kernels/ops.h"

enum { LANES = 4 };

/* Lanes whose sign is -1 subtract from their partner, the others add. */
NEON_INLINE float32x4_t stage(float32x4_t v, float32x4_t partner, const float sign[LANES]) {
    return vfmaq_f32(partner, v, vld1q_f32(sign));
}

NEON_INLINE float32x4_t hadamard4(float32x4_t v) {
    static const float odd[LANES] = {1, -1, 1, -1}, upper[LANES] = {1, 1, -1, -1};
    v = stage(v, vrev64q_f32(v), odd);
    return stage(v, vextq_f32(v, v, 2), upper);
}

NEON_INLINE float32x4_t turn(float32x4_t v, const struct rotate_plan *p, int i) {
    static const uint32_t place[LANES] = {1, 2, 4, 8};
    uint32x4_t set = vtstq_u32(vdupq_n_u32(p->signs[i / 32] >> i % 32), vld1q_u32(place));
    uint32x4_t turned = veorq_u32(vreinterpretq_u32_f32(v), vshlq_n_u32(set, 31));
    return vreinterpretq_f32_u32(turned);
}

static void turn_signs(float *x, const struct rotate_plan *p) {
    for (int i = 0; i < p->n; i += LANES) vst1q_f32(x + i, turn(vld1q_f32(x + i), p, i));
}

/* Signs, scale and the stages within a register. */
static void first_stages(float *x, const struct rotate_plan *p, bool signs) {
    for (int i = 0; i < p->n; i += LANES) {
        float32x4_t v = vld1q_f32(x + i);
        if (signs) v = turn(v, p, i);
        vst1q_f32(x + i, hadamard4(vmulq_n_f32(v, p->scale)));
    }
}

static void two_stages(float *x, int half) {
    for (int i = 0; i < half; i += LANES) {
        float *at = x + i;
        float32x4_t a = vld1q_f32(at), b = vld1q_f32(at + half);
        float32x4_t c = vld1q_f32(at + 2 * half), d = vld1q_f32(at + 3 * half);
        float32x4_t ab = vaddq_f32(a, b), a_b = vsubq_f32(a, b);
        float32x4_t cd = vaddq_f32(c, d), c_d = vsubq_f32(c, d);
        vst1q_f32(at, vaddq_f32(ab, cd));
        vst1q_f32(at + half, vaddq_f32(a_b, c_d));
        vst1q_f32(at + 2 * half, vsubq_f32(ab, cd));
        vst1q_f32(at + 3 * half, vsubq_f32(a_b, c_d));
    }
}

static void one_stage(float *x, int half) {
    for (int i = 0; i < half; i += LANES) {
        float32x4_t a = vld1q_f32(x + i), b = vld1q_f32(x + i + half);
        vst1q_f32(x + i, vaddq_f32(a, b));
        vst1q_f32(x + i + half, vsubq_f32(a, b));
    }
}

/* Four places of n segments from a on; a segment's sum goes by c in order whatever n is. */
NEON_INLINE void mix_tile(float *to, const float *x, const struct rotate_plan *p,
                          const float *basis, int a, int n) {
    float32x4_t sum[BUTTERFLY_TILE];
    NEON_UNROLL for (int i = 0; i < n; i++) sum[i] = vdupq_n_f32(0);
    for (int c = 0; c < p->order; c++) {
        const float32x4_t v = vld1q_f32(x + c * p->length);
        NEON_UNROLL for (int i = 0; i < n; i++) sum[i] =
            vfmaq_n_f32(sum[i], v, basis[(a + i) * p->order + c]);
    }
    NEON_UNROLL for (int i = 0; i < n; i++) vst1q_f32(to + (a + i) * p->length, sum[i]);
}

static const struct butterfly_steps steps = {first_stages, two_stages, one_stage, mix_tile,
                                             turn_signs};

static void rotate(float *x, float *tmp, const struct rotate_plan *p, bool back) {
    butterfly_rotate(x, tmp, p, back, LANES, &steps);
}

void neon_rotate_init(struct ops *ops) { ops->rotate = rotate; }
