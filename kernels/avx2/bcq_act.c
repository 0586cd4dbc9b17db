#include "kernels/avx2/bcq.h"

#include <math.h>
#include <string.h>

#include "kernels/ops.h"

/* Eight inputs' magnitudes add up to at most this many whole numbers. Half of it, the sum of two
 * entries, is 125.9 * 128 less what rounding may add: the sum of two high bytes is inside
 * -127..126 whatever the low bytes carry. */
static const float PAIR_LIMIT = 32220.0f;

/* Below this a scale would lose bits as a subnormal; such inputs count as zero. */
static const float TINY = 1e-33f;

/* Sums of eight vectors, in order. */
AVX2_INLINE __m256 sums_of_8(const __m256 v[8]) {
    __m256 a = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
    __m256 b = _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));
    return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}

AVX2_INLINE float max_of_8(__m256 v) {
    __m128 a = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    a = _mm_max_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_max_ss(a, _mm_movehdup_ps(a)));
}

AVX2_INLINE float sum_of_8(__m256 v) {
    __m128 a = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    a = _mm_add_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_add_ss(a, _mm_movehdup_ps(a)));
}

/* Fills the scale and the sums; returns what inputs are multiplied by to get whole numbers. */
AVX2_INLINE float measure(struct avx2_bcq_act *out, const float *x) {
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    __m256 size[2][8], sum[8];
    for (int i = 0; i < 8; i++) {
        __m256 a = _mm256_loadu_ps(x + 16 * i), b = _mm256_loadu_ps(x + 16 * i + 8);
        size[0][i] = _mm256_and_ps(a, magnitude);
        size[1][i] = _mm256_and_ps(b, magnitude);
        sum[i] = _mm256_add_ps(a, b);
    }
    __m256 even = sums_of_8(size[0]), odd = sums_of_8(size[1]), sums = sums_of_8(sum);
    float largest = max_of_8(_mm256_max_ps(even, odd)), up = 0, down = 0;
    /* A maximum can lose a NaN, a sum cannot. */
    if (!(sum_of_8(_mm256_add_ps(even, odd)) < INFINITY)) {
        down = NAN;
    } else if (largest > TINY) {
        up = PAIR_LIMIT / largest;
        down = 2 * largest / PAIR_LIMIT;
    }
    out->scale = down;
    _mm256_storeu_ps(out->sums + 7, sums);
    for (int i = 6; i >= 0; i--) out->sums[i] = out->sums[2 * i + 1] + out->sums[2 * i + 2];
    return up;
}

/* Whole numbers of 128 inputs. Where the sum of 16 is odd, the first of them goes to its other
 * neighbour: an error of a twelfth more than plain rounding has. */
AVX2_INLINE void make_whole(int16_t *out, const float *x, float up) {
    static const int32_t first[2][8] = {{0}, {-1}};
    const __m256 factor = _mm256_set1_ps(up);
    for (int i = 0; i < AVX2_BCQ_SPAN; i += 16) {
        __m256 exact = _mm256_mul_ps(_mm256_loadu_ps(x + i), factor);
        __m256i a = _mm256_cvtps_epi32(exact);
        __m256i b = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i + 8), factor));
        __m256i bits = _mm256_slli_epi32(_mm256_xor_si256(a, b), 31);
        int odd = __builtin_parity((unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(bits)));
        __m256 above = _mm256_cmp_ps(exact, _mm256_cvtepi32_ps(a), _CMP_LE_OQ);
        __m256i step = _mm256_or_si256(_mm256_castps_si256(above), _mm256_set1_epi32(1));
        a = _mm256_add_epi32(
            a, _mm256_and_si256(step, _mm256_loadu_si256((const __m256i *)first[odd])));
        __m256i v = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
        _mm256_store_si256((__m256i *)(out + i), v);
    }
}

/* Sums of 4 of 32 numbers: (8) in order. */
AVX2_INLINE __m256i sums_of_4(const int16_t *whole) {
    const __m256i one = _mm256_set1_epi16(1);
    __m256i a = _mm256_madd_epi16(avx2_bcq_load(whole), one);
    __m256i b = _mm256_madd_epi16(avx2_bcq_load(whole + 16), one);
    return _mm256_permute4x64_epi64(_mm256_hadd_epi32(a, b), 0xd8);
}

/* Sums of 16 from four vectors of sums of 4. */
AVX2_INLINE void store_sums16(int16_t out[8], const __m256i v[4]) {
    __m256i a = _mm256_hadd_epi32(v[0], v[1]), b = _mm256_hadd_epi32(v[2], v[3]);
    a = _mm256_hadd_epi32(a, b); /* groups 0, 2, 4, 6 and 1, 3, 5, 7 */
    a = _mm256_permutevar8x32_epi32(a, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm_store_si128((__m128i *)out,
                    _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1)));
}

/* Half the sums of each table's inputs, what they lost, and half the sums of 16. A half is rounded
 * down where the sum of the tables before it in the 16 inputs is even, otherwise up. */
AVX2_INLINE void halve(int32_t half[2 * AVX2_BCQ_COLUMNS], struct avx2_bcq_act *out,
                       const int16_t *whole) {
    const __m256i one = _mm256_set1_epi32(1);
    __m256i lost[4], halves[4];
    for (int i = 0; i < 4; i++) {
        __m256i sums = sums_of_4(whole + 32 * i), before = _mm256_slli_si256(sums, 4);
        before = _mm256_xor_si256(before, _mm256_slli_si256(before, 4));
        before = _mm256_xor_si256(before, _mm256_slli_si256(sums, 12));
        halves[i] = _mm256_srai_epi32(_mm256_add_epi32(sums, _mm256_and_si256(before, one)), 1);
        lost[i] = _mm256_sub_epi32(_mm256_slli_epi32(halves[i], 1), sums);
        _mm256_store_si256((__m256i *)(half + 8 * i), halves[i]);
    }
    __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(lost[0], lost[1]),
                                       _mm256_packs_epi32(lost[2], lost[3]));
    _mm256_storeu_si256(
        (__m256i *)out->lost,
        _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
    store_sums16(out->sums16, halves);
}

/* The 16 sums of four whole numbers less an offset: number j counts zero or once in entries without and
 * with bit j set, when minus is 0, and minus once or once when it is -1. */
AVX2_INLINE __m256i entries(const int16_t *x, int32_t offset, const int minus) {
    const short m = (short)minus;
    const __m256i first = _mm256_setr_epi16(m, m, 1, m, m, 1, 1, 1, m, m, 1, m, m, 1, 1, 1);
    const __m256i second = _mm256_setr_epi16(m, m, m, m, m, m, m, m, m, 1, m, 1, m, 1, m, 1);
    const __m256i third = _mm256_setr_epi16(1, m, 1, m, 1, m, 1, m, 1, 1, 1, 1, 1, 1, 1, 1);
    int32_t low, high;
    memcpy(&low, x, sizeof low);
    memcpy(&high, x + 2, sizeof high);
    const __m256i pair = _mm256_set1_epi32(high);
    __m256i v = _mm256_madd_epi16(_mm256_set1_epi32(low), first);
    v = _mm256_sub_epi32(v, _mm256_set1_epi32(offset));
    return _mm256_packs_epi32(_mm256_add_epi32(v, _mm256_madd_epi16(pair, second)),
                              _mm256_add_epi32(v, _mm256_madd_epi16(pair, third)));
}

static void tables(struct avx2_bcq_act *out, int16_t *whole, const float *x) {
    const __m256i low = _mm256_set1_epi16(127), flip = _mm256_set1_epi8(-128);
    _Alignas(32) int32_t half[2 * AVX2_BCQ_COLUMNS];
    make_whole(whole, x, measure(out, x));
    halve(half, out, whole);
    for (int c = 0; c < AVX2_BCQ_COLUMNS; c++) {
        __m256i a = entries(whole + 8 * c, half[2 * c], 0);
        __m256i b = entries(whole + 8 * c + 4, half[2 * c + 1], 0);
        __m256i lo = _mm256_packus_epi16(_mm256_and_si256(a, low), _mm256_and_si256(b, low));
        __m256i hi = _mm256_packs_epi16(_mm256_srai_epi16(a, 7), _mm256_srai_epi16(b, 7));
        lo = _mm256_permute4x64_epi64(lo, 0xd8);
        hi = _mm256_permute4x64_epi64(hi, 0xd8);
        _mm256_store_si256((__m256i *)out->lo[2 * c], lo);
        _mm256_store_si256((__m256i *)out->hi[2 * c], hi);
        _mm_store_si128((__m128i *)out->hi_up[c],
                        _mm256_castsi256_si128(_mm256_xor_si256(hi, flip)));
    }
}

/* Of rounded inputs: entries are whole numbers of at most 127. */
static void byte_tables(struct avx2_bcq_byte_act *out, int16_t *whole, const float *x,
                        int act_bits) {
    const __m256i flip = _mm256_set1_epi8(-128);
    float numbers[AVX2_BCQ_SPAN];
    __m256i sums[4];
    out->scale = avx2_bcq_round(numbers, x, act_bits);
    for (int i = 0; i < AVX2_BCQ_SPAN; i += 16) {
        __m256i a = _mm256_cvtps_epi32(_mm256_loadu_ps(numbers + i));
        __m256i b = _mm256_cvtps_epi32(_mm256_loadu_ps(numbers + i + 8));
        __m256i v = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
        _mm256_store_si256((__m256i *)(whole + i), v);
    }
    for (int c = 0; c < AVX2_BCQ_COLUMNS; c++) {
        __m256i a = entries(whole + 8 * c, 0, -1), b = entries(whole + 8 * c + 4, 0, -1);
        __m256i v = _mm256_permute4x64_epi64(_mm256_packs_epi16(a, b), 0xd8);
        _mm256_store_si256((__m256i *)out->entry[2 * c], v);
        _mm256_store_si256((__m256i *)out->entry_up[2 * c], _mm256_xor_si256(v, flip));
    }
    for (int i = 0; i < 4; i++) sums[i] = sums_of_4(whole + 32 * i);
    store_sums16(out->sums16, sums);
    for (int i = 0; i < 8; i++) out->sums[7 + i] = out->scale * (float)out->sums16[i];
    for (int i = 6; i >= 0; i--) out->sums[i] = out->sums[2 * i + 1] + out->sums[2 * i + 2];
}

static int n_spans(int cols) { return (cols + AVX2_BCQ_SPAN - 1) / AVX2_BCQ_SPAN; }

size_t avx2_bcq_act_bytes(int act_bits, int cols, int n) {
    if (cols <= AVX2_BCQ_FEW) return (size_t)cols * (size_t)n * sizeof(float);
    return (size_t)n_spans(cols) * (size_t)n *
           (avx2_bcq_record(act_bits < 16) + AVX2_BCQ_SPAN * sizeof(int16_t));
}

/* A span's inputs; the last span of a row is completed with zeros in tail. */
static const float *inputs(const float *x, int cols, int span, float tail[AVX2_BCQ_SPAN]) {
    int left = cols - span * AVX2_BCQ_SPAN;
    x += (size_t)span * AVX2_BCQ_SPAN;
    if (left >= AVX2_BCQ_SPAN) return x;
    memset(tail, 0, AVX2_BCQ_SPAN * sizeof *tail);
    memcpy(tail, x, (size_t)left * sizeof *tail);
    return tail;
}

static void copy_few(float *act, int act_bits, const float *x, int cols) {
    if (act_bits >= 16) {
        memcpy(act, x, (size_t)cols * sizeof *x);
        return;
    }
    for (int span = 0; span < n_spans(cols); span++) {
        float tail[AVX2_BCQ_SPAN], whole[AVX2_BCQ_SPAN];
        float scale = avx2_bcq_round(whole, inputs(x, cols, span, tail), act_bits);
        for (int i = 0, k = span * AVX2_BCQ_SPAN; i < AVX2_BCQ_SPAN && k < cols; i++, k++)
            act[k] = scale * whole[i];
    }
}

void avx2_bcq_act_pack(void *act, int act_bits, const struct bcq_spec *w, const float *x,
                       size_t ldx, int n, int part, int n_parts) {
    const int cols = w->cols;
    const bool few = cols <= AVX2_BCQ_FEW;
    const int spans = few ? 1 : n_spans(cols);
    const int64_t first = bcq_first_span(n, spans, part, n_parts);
    const int64_t last = bcq_first_span(n, spans, part + 1, n_parts);
    int16_t *whole = (int16_t *)(uintptr_t)avx2_bcq_whole(act, act_bits < 16, n_spans(cols), n, 0);
    for (int64_t i = first; i < last; i++) {
        float tail[AVX2_BCQ_SPAN];
        const int t = (int)(i / spans), span = (int)(i % spans);
        const size_t at = (size_t)span * (size_t)n + (size_t)t;
        const float *from = x + (size_t)t * ldx;
        void *record = (uint8_t *)act + at * avx2_bcq_record(act_bits < 16);
        if (few)
            copy_few((float *)act + (size_t)t * (size_t)cols, act_bits, from, cols);
        else if (act_bits < 16)
            byte_tables(record, whole + at * AVX2_BCQ_SPAN, inputs(from, cols, span, tail),
                        act_bits);
        else
            tables(record, whole + at * AVX2_BCQ_SPAN, inputs(from, cols, span, tail));
    }
}
