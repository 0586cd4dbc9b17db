/* Four stages of the butterfly stay in a register, the others go through the first cache two at a
 * time; the small factor mixes whole segments, sixteen places of four of them at once. */
#include <immintrin.h>

#include "kernels/butterfly.h"
#include "kernels/avx512/avx512.h"
#include "kernels/ops.h"

enum { LANES = 16 };

#define INLINE static inline __attribute__((always_inline))

/* Lanes with bit h of their number set subtract from their partner, the others add. */
INLINE __m512 stage(__m512 v, __m512 partner, __mmask16 upper) {
    return _mm512_mask_sub_ps(_mm512_add_ps(partner, v), upper, partner, v);
}

INLINE __m512 hadamard16(__m512 v) {
    v = stage(v, _mm512_permute_ps(v, 0xb1), 0xaaaa);
    v = stage(v, _mm512_permute_ps(v, 0x4e), 0xcccc);
    v = stage(v, _mm512_shuffle_f32x4(v, v, 0xb1), 0xf0f0);
    return stage(v, _mm512_shuffle_f32x4(v, v, 0x4e), 0xff00);
}

INLINE __m512 turn(__m512 v, const struct rotate_plan *p, int i) {
    __mmask16 minus = (__mmask16)(p->signs[i / 32] >> i % 32 & 0xffff);
    return _mm512_mask_sub_ps(v, minus, _mm512_setzero_ps(), v);
}

static void turn_signs(float *x, const struct rotate_plan *p) {
    for (int i = 0; i < p->n; i += LANES)
        _mm512_storeu_ps(x + i, turn(_mm512_loadu_ps(x + i), p, i));
}

/* Signs, scale and the stages within a register. */
static void first_stages(float *x, const struct rotate_plan *p, bool signs) {
    __m512 scale = _mm512_set1_ps(p->scale);
    for (int i = 0; i < p->n; i += LANES) {
        __m512 v = _mm512_loadu_ps(x + i);
        if (signs) v = turn(v, p, i);
        _mm512_storeu_ps(x + i, hadamard16(_mm512_mul_ps(v, scale)));
    }
}

static void two_stages(float *x, int half) {
    for (int i = 0; i < half; i += LANES) {
        float *at = x + i;
        __m512 a = _mm512_loadu_ps(at), b = _mm512_loadu_ps(at + half);
        __m512 c = _mm512_loadu_ps(at + 2 * half), d = _mm512_loadu_ps(at + 3 * half);
        __m512 ab = _mm512_add_ps(a, b), a_b = _mm512_sub_ps(a, b);
        __m512 cd = _mm512_add_ps(c, d), c_d = _mm512_sub_ps(c, d);
        _mm512_storeu_ps(at, _mm512_add_ps(ab, cd));
        _mm512_storeu_ps(at + half, _mm512_add_ps(a_b, c_d));
        _mm512_storeu_ps(at + 2 * half, _mm512_sub_ps(ab, cd));
        _mm512_storeu_ps(at + 3 * half, _mm512_sub_ps(a_b, c_d));
    }
}

static void one_stage(float *x, int half) {
    for (int i = 0; i < half; i += LANES) {
        __m512 a = _mm512_loadu_ps(x + i), b = _mm512_loadu_ps(x + i + half);
        _mm512_storeu_ps(x + i, _mm512_add_ps(a, b));
        _mm512_storeu_ps(x + i + half, _mm512_sub_ps(a, b));
    }
}

/* Sixteen places of n segments from a on; a segment's sum goes by c in order whatever n is. */
INLINE void mix_tile(float *to, const float *x, const struct rotate_plan *p, const float *basis,
                     int a, int n) {
    __m512 sum[BUTTERFLY_TILE];
    for (int i = 0; i < n; i++) sum[i] = _mm512_setzero_ps();
    for (int c = 0; c < p->order; c++) {
        __m512 v = _mm512_loadu_ps(x + c * p->length);
        for (int i = 0; i < n; i++)
            sum[i] = _mm512_fmadd_ps(_mm512_set1_ps(basis[(a + i) * p->order + c]), v, sum[i]);
    }
    for (int i = 0; i < n; i++) _mm512_storeu_ps(to + (a + i) * p->length, sum[i]);
}

static const struct butterfly_steps steps = {first_stages, two_stages, one_stage, mix_tile,
                                             turn_signs};

static void rotate(float *x, float *tmp, const struct rotate_plan *p, bool back) {
    butterfly_rotate(x, tmp, p, back, LANES, &steps);
}

void avx512_rotate_init(struct ops *ops) { ops->rotate = rotate; }
