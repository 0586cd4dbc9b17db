#include "kernels/avx2/bcq.h"

#include <math.h>
#include <string.h>

/* Two tables add up to at most this many units: 125.9 * 128 leaves the sum of two high bytes
 * inside -127..126 whatever the low bytes carry. */
static const float PAIR_LIMIT = 16115.0f;

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

/* Fills the scale and the sums; returns what inputs are multiplied by to get units. */
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
        down = largest / PAIR_LIMIT;
    }
    out->scale = down;
    _mm256_storeu_ps(out->sums + 7, sums);
    for (int i = 6; i >= 0; i--) out->sums[i] = out->sums[2 * i + 1] + out->sums[2 * i + 2];
    __m256i units = _mm256_cvtps_epi32(_mm256_mul_ps(sums, _mm256_set1_ps(up)));
    _mm_store_si128((__m128i *)out->sums16, _mm_packs_epi32(_mm256_castsi256_si128(units),
                                                            _mm256_extracti128_si256(units, 1)));
    return up;
}

/* The 16 signed sums of four inputs, input j positive in entries with bit j set. */
AVX2_INLINE __m256i entries(const float *x, __m256 up) {
    const __m256 s0 = _mm256_setr_ps(-1, 1, -1, 1, -1, 1, -1, 1);
    const __m256 s1 = _mm256_setr_ps(-1, -1, 1, 1, -1, -1, 1, 1);
    const __m256 s3 = _mm256_setr_ps(-1, -1, -1, -1, 1, 1, 1, 1);
    __m256 base = _mm256_mul_ps(_mm256_broadcast_ss(x), s0);
    base = _mm256_fmadd_ps(_mm256_broadcast_ss(x + 1), s1, base);
    base = _mm256_mul_ps(_mm256_fmadd_ps(_mm256_broadcast_ss(x + 3), s3, base), up);
    __m256 x2 = _mm256_broadcast_ss(x + 2);
    return _mm256_packs_epi32(_mm256_cvtps_epi32(_mm256_fnmadd_ps(x2, up, base)),
                              _mm256_cvtps_epi32(_mm256_fmadd_ps(x2, up, base)));
}

static void tables(struct avx2_bcq_act *out, const float *x) {
    const __m256 up = _mm256_set1_ps(measure(out, x));
    const __m256i low = _mm256_set1_epi16(127), flip = _mm256_set1_epi8(-128);
    for (int c = 0; c < AVX2_BCQ_COLUMNS; c++) {
        __m256i a = entries(x + 8 * c, up), b = entries(x + 8 * c + 4, up);
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
static void byte_tables(struct avx2_bcq_byte_act *out, const float *x, int act_bits) {
    const __m256i flip = _mm256_set1_epi8(-128);
    const __m256 one = _mm256_set1_ps(1);
    float whole[AVX2_BCQ_SPAN];
    out->scale = avx2_bcq_round(whole, x, act_bits);
    for (int c = 0; c < AVX2_BCQ_COLUMNS; c++) {
        __m256i a = entries(whole + 8 * c, one), b = entries(whole + 8 * c + 4, one);
        __m256i v = _mm256_permute4x64_epi64(_mm256_packs_epi16(a, b), 0xd8);
        _mm256_store_si256((__m256i *)out->entry[2 * c], v);
        _mm256_store_si256((__m256i *)out->entry_up[2 * c], _mm256_xor_si256(v, flip));
    }
    for (int i = 0; i < 8; i++) {
        int sum = 0;
        for (int t = 4 * i; t < 4 * i + 4; t++) sum += out->entry[t][15];
        out->sums16[i] = (int16_t)sum;
        out->sums[7 + i] = out->scale * (float)sum;
    }
    for (int i = 6; i >= 0; i--) out->sums[i] = out->sums[2 * i + 1] + out->sums[2 * i + 2];
}

static int n_spans(int cols) { return (cols + AVX2_BCQ_SPAN - 1) / AVX2_BCQ_SPAN; }

size_t avx2_bcq_act_bytes(int act_bits, int cols, int n) {
    if (cols <= AVX2_BCQ_FEW) return (size_t)cols * (size_t)n * sizeof(float);
    return (size_t)n_spans(cols) * (size_t)n * avx2_bcq_record(act_bits < 16);
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

void avx2_bcq_act_pack(void *act, int act_bits, const float *x, size_t ldx, int cols, int n,
                       int part, int n_parts) {
    const bool few = cols <= AVX2_BCQ_FEW;
    int64_t total = few ? n : (int64_t)n_spans(cols) * n;
    int64_t first = total * part / n_parts, last = total * (part + 1) / n_parts;
    for (int64_t i = first; i < last; i++) {
        float tail[AVX2_BCQ_SPAN];
        const float *from = x + (size_t)(few ? i : i % n) * ldx;
        void *record = (uint8_t *)act + (size_t)i * avx2_bcq_record(act_bits < 16);
        if (few)
            copy_few((float *)act + (size_t)i * (size_t)cols, act_bits, from, cols);
        else if (act_bits < 16)
            byte_tables(record, inputs(from, cols, (int)(i / n), tail), act_bits);
        else
            tables(record, inputs(from, cols, (int)(i / n), tail));
    }
}
