/* Widening codes to fp32 in place of multiplying words costs twice the operations, which at 4 and 6
 * bits is more than memory takes.
 *
 * Words are vectors of 16 bits, lane 2 r + e of a vector for row r of half a panel and input 2 j + e
 * of the group, the halves in turns. A word holds the codes of several j:
 *   up to 4 bits   4 nibbles, j = 4 v .. 4 v + 3 in vector v;
 *   5, 6 bits      the same for the low 4 bits; then vectors of 8 pairs of bits, the high ones;
 *   7, 8 bits      2 bytes, j = 2 v and 2 v + 1.
 * Neither a shuffle nor a widening is needed to take them out. */
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "kernels/avx2/avx2.h"
#include "kernels/avx2/math.h"
#include "kernels/ops.h"
#include "kernels/rounding.h"
#include "kernels/whole.h"

enum { ROWS = 16, GROUP = WHOLE_GROUP, AHEAD = 2048 };

#define INLINE static inline __attribute__((always_inline))

static size_t pack_bytes(const struct bcq_spec *w) { return whole_pack_bytes(w, ROWS); }

/* words: (vectors, 2, 16) of a group. */
static void place_code(uint16_t *words, enum whole_form form, int row, int k, unsigned code) {
    size_t j = (size_t)k / 2, at = (size_t)row / 8 * 16 + (size_t)row % 8 * 2 + (size_t)k % 2;
    if (form == WHOLE_BYTES) {
        words[j / 2 * 32 + at] |= (uint16_t)(code << 8 * (j % 2));
        return;
    }
    words[j / 4 * 32 + at] |= (uint16_t)((code & 15) << 4 * (j % 4));
    if (form == WHOLE_SIXES) words[(4 + j / 8) * 32 + at] |= (uint16_t)(code >> 4 << 2 * (j % 8));
}

static void place(void *words, int row, const struct bcq_view *w, int r, int group) {
    uint8_t codes[GROUP];
    bcq_whole_codes(w, r, group, codes);
    for (int k = 0; k < GROUP; k++)
        place_code(words, whole_form_of(w->spec.bits), row, k, codes[k]);
}

static void pack(void *dst, const struct bcq_view *w, int b0, int b1) {
    whole_pack(dst, w, b0, b1, ROWS, place);
}

/* -- Inputs ----------------------------------------------------------------------------------- */

static size_t act_bytes(int act_bits, int cols, int n) {
    (void)act_bits;
    return whole_act_bytes(cols, n);
}

/* Magnitudes are compared as integers: that orders finite values alike, and a NaN wins. */
INLINE float largest_of(const float x[GROUP]) {
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    __m256i most = _mm256_setzero_si256();
    for (int i = 0; i < GROUP; i += 8)
        most = _mm256_max_epi32(
            most, _mm256_castps_si256(_mm256_and_ps(_mm256_loadu_ps(x + i), magnitude)));
    __m128i v = _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
    v = _mm_max_epi32(v, _mm_shuffle_epi32(v, 0x4e));
    v = _mm_max_epi32(v, _mm_shuffle_epi32(v, 0xb1));
    return _mm_cvtss_f32(_mm_castsi128_ps(v));
}

static struct whole_factor round_group(union whole_input *to, const float *x) {
    struct rounding r;
    rounding_to(&r, largest_of(x), 32767);
    __m256 up = _mm256_set1_ps(r.up);
    __m256i sum = _mm256_setzero_si256();
    for (int i = 0; i < GROUP; i += 16) {
        __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i), up));
        __m256i b = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i + 8), up));
        __m256i v = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
        if (!(r.up > 0)) v = _mm256_setzero_si256(); /* Inf times 0 is the least integer */
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(v, _mm256_set1_epi16(1)));
        _mm256_storeu_si256((__m256i *)(void *)(to->x + i), v);
    }
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
    return (struct whole_factor){.scale = r.scale, .sum = _mm_cvtsi128_si32(s)};
}

static void act_pack(void *act, int act_bits, const struct bcq_spec *w, const float *x, size_t ldx,
                     int n, int part, int n_parts) {
    (void)act_bits;
    whole_act_pack(act, w->cols, x, ldx, n, part, n_parts, round_group);
}

/* -- Products --------------------------------------------------------------------------------- */

INLINE __m256i vector_at(const char *words, int v, int half) {
    return _mm256_loadu_si256((const __m256i *)(const void *)words + 2 * v + half);
}

/* Codes of inputs 2 j, 2 j + 1 for eight rows; everything but words is a constant. */
INLINE __m256i codes(enum whole_form form, const char *words, int half, int j) {
    if (form == WHOLE_BYTES) {
        __m256i v = vector_at(words, j / 2, half);
        return j % 2 ? _mm256_srli_epi16(v, 8) : _mm256_and_si256(v, _mm256_set1_epi16(0xff));
    }
    __m256i low = _mm256_srli_epi16(vector_at(words, j / 4, half), 4 * (j % 4));
    if (j % 4 < 3) low = _mm256_and_si256(low, _mm256_set1_epi16(15));
    if (form == WHOLE_NIBBLES) return low;
    __m256i high = vector_at(words, 4 + j / 8, half);
    int place = 2 * (j % 8);
    high = place < 4 ? _mm256_slli_epi16(high, 4 - place) : _mm256_srli_epi16(high, place - 4);
    return _mm256_or_si256(low, _mm256_and_si256(high, _mm256_set1_epi16(0x30)));
}

INLINE __m256i pair_of(const union whole_input *x, int j) {
    int32_t pair;
    memcpy(&pair, x->x + 2 * j, sizeof pair);
    return _mm256_set1_epi32(pair);
}

/* Sums are named variables: compilers keep arrays of them in memory. */
#define EACH_1(f) f(0)
#define EACH_2(f) EACH_1(f) f(1)
#define EACH_4(f) EACH_2(f) f(2) f(3)

/* Integer sums may be reordered, and compilers do, to trees whose products no longer fit the registers:
 * 4 tokens then run at two fifths of the speed (gcc 12). */
#define STAY(v) __asm__("" : "+x"(v))

#define SUMS(t)  __m256 p##t = _mm256_setzero_ps(), q##t = p##t;
#define START(t) __m256i a##t = _mm256_set1_epi32(-(factor[t * groups].sum * zero)), b##t = a##t;
#define STEP(t)                                                                                    \
    v = pair_of(x + t * groups, j);                                                                \
    a##t = _mm256_add_epi32(a##t, _mm256_madd_epi16(c, v));                                        \
    b##t = _mm256_add_epi32(b##t, _mm256_madd_epi16(d, v));                                        \
    STAY(a##t);                                                                                    \
    STAY(b##t);
#define END(t)                                                                                     \
    f = _mm256_set1_ps(factor[t * groups].scale);                                                  \
    p##t = _mm256_fmadd_ps(_mm256_cvtepi32_ps(a##t), _mm256_mul_ps(s0, f), p##t);                  \
    q##t = _mm256_fmadd_ps(_mm256_cvtepi32_ps(b##t), _mm256_mul_ps(s1, f), q##t);
#define KEEP(t)                                                                                    \
    store(y + t * ldy, 0, n_rows, p##t);                                                           \
    store(y + t * ldy, 8, n_rows, q##t);

/* Writes lanes of rows r.. below n_rows. */
INLINE void store(float *y, int r, int n_rows, __m256 sum) {
    if (r < n_rows) _mm256_maskstore_ps(y + r, avx2_mask((size_t)(n_rows - r)), sum);
}

INLINE void prefetch(const char *p, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 64) _mm_prefetch(p + i + AHEAD, _MM_HINT_T0);
}

/* y: n_rows rows of a panel for n tokens, whose inputs and factors are groups apart. */
#define DEFINE_PANEL(n)                                                                            \
    INLINE void panel_##n(float *y, size_t ldy, enum whole_form form, const char *w, int zero,     \
                          int n_rows, const union whole_input *x,                                  \
                          const struct whole_factor *factor, size_t groups) {                      \
        EACH_##n(SUMS);                                                                            \
        for (size_t g = 0; g < groups; g++, w += whole_group_bytes(form, ROWS), x++, factor++) {   \
            const char *words = w + whole_scales_bytes(ROWS);                                      \
            prefetch(w, whole_group_bytes(form, ROWS));                                            \
            EACH_##n(START);                                                                       \
            _Pragma("GCC unroll 16") for (int j = 0; j < GROUP / 2; j++) {                         \
                __m256i c = codes(form, words, 0, j), d = codes(form, words, 1, j), v;             \
                EACH_##n(STEP);                                                                    \
            }                                                                                      \
            const __m128i *scales = (const __m128i *)(const void *)w;                              \
            __m256 s0 = _mm256_cvtph_ps(_mm_loadu_si128(scales)), f;                               \
            __m256 s1 = _mm256_cvtph_ps(_mm_loadu_si128(scales + 1));                              \
            EACH_##n(END);                                                                         \
        }                                                                                          \
        EACH_##n(KEEP);                                                                            \
    }
DEFINE_PANEL(1)
DEFINE_PANEL(2)
DEFINE_PANEL(4)

INLINE void mul_form(float *y, size_t ldy, enum whole_form form, const char *packed,
                     const struct bcq_spec *w, const void *act, int n, int b0, int b1) {
    size_t groups = whole_groups(w->cols), panel = groups * whole_group_bytes(form, ROWS);
    const struct whole_factor *all = whole_factors(act, groups, n);
    for (int b = b0; b < b1; b++) {
        const char *from = packed + (size_t)b * panel;
        int n_rows = w->rows - b * ROWS, zero = 1 << (w->bits - 1);
        for (int t = 0, m; t < n; t += m) {
            const union whole_input *x = (const union whole_input *)act + (size_t)t * groups;
            const struct whole_factor *factor = all + (size_t)t * groups;
            float *to = y + (size_t)t * ldy + (size_t)b * ROWS;
            m = n - t >= 4 ? 4 : n - t >= 2 ? 2 : 1;
            if (m == 4) panel_4(to, ldy, form, from, zero, n_rows, x, factor, groups);
            if (m == 2) panel_2(to, ldy, form, from, zero, n_rows, x, factor, groups);
            if (m == 1) panel_1(to, ldy, form, from, zero, n_rows, x, factor, groups);
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

void avx2_whole_init(struct bcq_ops *whole) {
    *whole = (struct bcq_ops){
        .row_block = ROWS,
        .pack_bytes = pack_bytes,
        .pack = pack,
        .act_bytes = act_bytes,
        .act_pack = act_pack,
        .mul = mul,
    };
}
