/* Three stages of the butterfly stay in a register, the others go through the first cache two at a
 * time; the small factor mixes whole segments, eight places of four of them at once. */
#include <immintrin.h>

#include "kernels/butterfly.h"
#include "kernels/avx2/avx2.h"
#include "kernels/ops.h"

enum { LANES = 8 };

#define INLINE static inline __attribute__((always_inline))

/* Lanes with bit h of their number set subtract from their partner, the others add. */
INLINE __m256 stage(__m256 v, __m256 partner, __m256 sign) {
    return _mm256_fmadd_ps(v, sign, partner);
}

INLINE __m256 hadamard8(__m256 v) {
    v = stage(v, _mm256_permute_ps(v, 0xb1), _mm256_setr_ps(1, -1, 1, -1, 1, -1, 1, -1));
    v = stage(v, _mm256_permute_ps(v, 0x4e), _mm256_setr_ps(1, 1, -1, -1, 1, 1, -1, -1));
    return stage(v, _mm256_permute2f128_ps(v, v, 1), _mm256_setr_ps(1, 1, 1, 1, -1, -1, -1, -1));
}

INLINE __m256 turn(__m256 v, const struct rotate_plan *p, int i) {
    const __m256i place = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    __m256i bits = _mm256_set1_epi32((int)(p->signs[i / 32] >> i % 32));
    __m256i set = _mm256_cmpeq_epi32(_mm256_and_si256(bits, place), place);
    return _mm256_xor_ps(v, _mm256_castsi256_ps(_mm256_slli_epi32(set, 31)));
}

static void turn_signs(float *x, const struct rotate_plan *p) {
    for (int i = 0; i < p->n; i += LANES)
        _mm256_storeu_ps(x + i, turn(_mm256_loadu_ps(x + i), p, i));
}

/* Signs, scale and the stages within a register. */
static void first_stages(float *x, const struct rotate_plan *p, bool signs) {
    __m256 scale = _mm256_set1_ps(p->scale);
    for (int i = 0; i < p->n; i += LANES) {
        __m256 v = _mm256_loadu_ps(x + i);
        if (signs) v = turn(v, p, i);
        _mm256_storeu_ps(x + i, hadamard8(_mm256_mul_ps(v, scale)));
    }
}

static void two_stages(float *x, int half) {
    for (int i = 0; i < half; i += LANES) {
        float *at = x + i;
        __m256 a = _mm256_loadu_ps(at), b = _mm256_loadu_ps(at + half);
        __m256 c = _mm256_loadu_ps(at + 2 * half), d = _mm256_loadu_ps(at + 3 * half);
        __m256 ab = _mm256_add_ps(a, b), a_b = _mm256_sub_ps(a, b);
        __m256 cd = _mm256_add_ps(c, d), c_d = _mm256_sub_ps(c, d);
        _mm256_storeu_ps(at, _mm256_add_ps(ab, cd));
        _mm256_storeu_ps(at + half, _mm256_add_ps(a_b, c_d));
        _mm256_storeu_ps(at + 2 * half, _mm256_sub_ps(ab, cd));
        _mm256_storeu_ps(at + 3 * half, _mm256_sub_ps(a_b, c_d));
    }
}

static void one_stage(float *x, int half) {
    for (int i = 0; i < half; i += LANES) {
        __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + i + half);
        _mm256_storeu_ps(x + i, _mm256_add_ps(a, b));
        _mm256_storeu_ps(x + i + half, _mm256_sub_ps(a, b));
    }
}

/* Eight places of n segments from a on; a segment's sum goes by c in order whatever n is. */
INLINE void mix_tile(float *to, const float *x, const struct rotate_plan *p, const float *basis,
                     int a, int n) {
    __m256 sum[BUTTERFLY_TILE];
    for (int i = 0; i < n; i++) sum[i] = _mm256_setzero_ps();
    for (int c = 0; c < p->order; c++) {
        __m256 v = _mm256_loadu_ps(x + c * p->length);
        for (int i = 0; i < n; i++)
            sum[i] = _mm256_fmadd_ps(_mm256_set1_ps(basis[(a + i) * p->order + c]), v, sum[i]);
    }
    for (int i = 0; i < n; i++) _mm256_storeu_ps(to + (a + i) * p->length, sum[i]);
}

static const struct butterfly_steps steps = {first_stages, two_stages, one_stage, mix_tile,
                                             turn_signs};

static void rotate(float *x, float *tmp, const struct rotate_plan *p, bool back) {
    butterfly_rotate(x, tmp, p, back, LANES, &steps);
}

void avx2_rotate_init(struct ops *ops) { ops->rotate = rotate; }
