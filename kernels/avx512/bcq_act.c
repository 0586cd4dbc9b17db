#include "kernels/avx512/bcq.h"

#include <math.h>
#include <string.h>

#include "kernels/ops.h"

/* Largest sum over a run of the whole token, 127 * 254. */
static const float LIMIT = 32258.0f;

/* Four inputs' magnitudes add up to at most this many whole numbers; rounding each may add two,
 * and then 127 * 254 is the largest entry. */
static const float LIMIT_OF_4 = 32256.0f;

/* Below this the inverse of a scale would overflow; such inputs count as zero. */
static const float TINY = 1e-30f;

static int n_spans(int cols) { return (cols + AVX512_BCQ_SPAN - 1) / AVX512_BCQ_SPAN; }

size_t avx512_bcq_act_bytes(int act_bits, int cols, int n) {
    const int spans = n_spans(cols), chunks = (spans + AVX512_BCQ_CHUNK - 1) / AVX512_BCQ_CHUNK;
    return (uintptr_t)avx512_bcq_many_at(NULL, act_bits, spans, n, chunks * AVX512_BCQ_CHUNK)
        .sums[0];
}

/* One token's records: span i is stride * i bytes after first. */
struct column {
    const float *x;
    int cols, act_bits;
    uint8_t *first;
    size_t stride;
};

static struct column column_of(void *act, int act_bits, const float *x, size_t ldx, int cols, int n,
                               int t) {
    const size_t at = avx512_bcq_record_at(act_bits, n_spans(cols), n, t, 0);
    const size_t next = avx512_bcq_record_at(act_bits, n_spans(cols), n, t, 1);
    return (struct column){.x = x + (size_t)t * ldx,
                           .cols = cols,
                           .act_bits = act_bits,
                           .first = (uint8_t *)act + at,
                           .stride = next - at};
}

static struct avx512_bcq_span *span_of(const struct column *c, int span) {
    void *p = c->first + (size_t)span * c->stride;
    return p;
}

/* A span's inputs; the last span of a column is completed with zeros in tail. */
static const float *inputs(const struct column *c, int span, float tail[AVX512_BCQ_SPAN]) {
    size_t at = (size_t)span * AVX512_BCQ_SPAN, left = (size_t)c->cols - at;
    if (left >= AVX512_BCQ_SPAN) return c->x + at;
    memset(tail, 0, AVX512_BCQ_SPAN * sizeof *tail);
    memcpy(tail, c->x + at, left * sizeof *tail);
    return tail;
}

/* What turns magnitudes up to largest into at most limit units, and back. bits: of largest. */
AVX512_INLINE void scales(float limit, int32_t bits, float *up, float *down) {
    float largest;
    memcpy(&largest, &bits, sizeof largest);
    *up = largest > TINY && largest < INFINITY ? limit / largest : 0;
    *down = largest > TINY ? largest / limit : 0;
    if (!(largest < INFINITY)) *down = NAN;
}

/* Magnitudes are compared as integers: that orders finite values alike, and a NaN wins. */
AVX512_INLINE __m512i max_magnitude(__m512i largest, __m512 v) {
    return _mm512_max_epi32(largest, _mm512_castps_si512(_mm512_abs_ps(v)));
}

/* Sums of four runs. */
AVX512_INLINE __m128 sums_of_4_runs(const float *x) {
    __m512 v0 = _mm512_loadu_ps(x), v1 = _mm512_loadu_ps(x + 16), v2 = _mm512_loadu_ps(x + 32),
           v3 = _mm512_loadu_ps(x + 48);
    __m512 a = _mm512_add_ps(_mm512_unpacklo_ps(v0, v1), _mm512_unpackhi_ps(v0, v1));
    __m512 b = _mm512_add_ps(_mm512_unpacklo_ps(v2, v3), _mm512_unpackhi_ps(v2, v3));
    a = _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
    __m256 c = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    return _mm_add_ps(_mm256_castps256_ps128(c), _mm256_extractf128_ps(c, 1));
}

/* Fills the sums of all spans; returns the bits of the largest magnitude of a run's sum. */
static int32_t sum_spans(const struct column *c) {
    __m128i largest = _mm_setzero_si128();
    const __m128i magnitude = _mm_set1_epi32(0x7fffffff);
    for (int i = 0; i < n_spans(c->cols); i++) {
        float tail[AVX512_BCQ_SPAN], *sums = span_of(c, i)->sums;
        const float *x = inputs(c, i, tail);
        if (c->act_bits < 16) {
            float scale = avx512_bcq_round(tail, x, c->act_bits);
            for (int k = 0; k < AVX512_BCQ_SPAN; k++) tail[k] *= scale;
            x = tail;
        }
        __m128 a = sums_of_4_runs(x), b = sums_of_4_runs(x + 64);
        _mm_storeu_ps(sums + 7, a);
        _mm_storeu_ps(sums + 11, b);
        __m128 of_32 = _mm_hadd_ps(a, b), of_64 = _mm_hadd_ps(of_32, of_32);
        _mm_storeu_ps(sums + 3, of_32);
        _mm_storel_pi((__m64 *)(sums + 1), of_64);
        _mm_store_ss(sums, _mm_hadd_ps(of_64, of_64));
        largest = _mm_max_epi32(largest, _mm_and_si128(_mm_castps_si128(a), magnitude));
        largest = _mm_max_epi32(largest, _mm_and_si128(_mm_castps_si128(b), magnitude));
    }
    return _mm512_reduce_max_epi32(_mm512_zextsi128_si512(largest));
}

/* Sums over runs as bytes, with one scale for the whole token. */
static void pack_sums(const struct column *c, struct avx512_bcq_token *token, const void *act,
                      int n, int t, bool many) {
    float up, down;
    scales(LIMIT, sum_spans(c), &up, &down);
    __m256i low_total = _mm256_setzero_si256(), high_total = low_total;
    for (int i = 0; i < n_spans(c->cols); i++) {
        struct avx512_bcq_span *s = span_of(c, i);
        __m256 sums = _mm256_mul_ps(_mm256_loadu_ps(s->sums + 7), _mm256_set1_ps(up));
        /* NaN becomes a number here: every byte fits whatever the sums are. */
        sums = _mm256_min_ps(_mm256_max_ps(sums, _mm256_set1_ps(-LIMIT)), _mm256_set1_ps(LIMIT));
        __m256i v = _mm256_cvtps_epi32(sums);
        __m256i high =
            _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_cvtepi32_ps(v), _mm256_set1_ps(1.0f / 254.0f)));
        __m256i low = _mm256_sub_epi32(v, _mm256_mullo_epi32(high, _mm256_set1_epi32(254)));
        low_total = _mm256_add_epi32(low_total, low);
        high_total = _mm256_add_epi32(high_total, high);
        __m128i bytes = _mm_unpacklo_epi32(_mm256_cvtepi32_epi8(low), _mm256_cvtepi32_epi8(high));
        _mm_store_si128((__m128i *)s->run_sums, bytes);
        if (!many) continue;
        struct avx512_bcq_many to = avx512_bcq_many_at(act, c->act_bits, n_spans(c->cols), n, i);
        const int at = i % AVX512_BCQ_CHUNK * AVX512_BCQ_RUNS;
        _mm_storel_epi64((__m128i *)(to.sums[0][t] + at), _mm256_cvtepi32_epi8(low));
        _mm_storel_epi64((__m128i *)(to.sums[1][t] + at), _mm256_cvtepi32_epi8(high));
    }
    token->scale = down;
    token->low = _mm512_reduce_add_epi32(_mm512_zextsi256_si512(low_total));
    token->high = _mm512_reduce_add_epi32(_mm512_zextsi256_si512(high_total));
}

/* Bits of the largest sum of four magnitudes: the largest table entry. */
AVX512_INLINE int32_t largest_entry(const float *x) {
    __m512i largest = _mm512_setzero_si512();
    AVX512_UNROLL for (int i = 0; i < AVX512_BCQ_RUNS; i++) {
        __m512 a = _mm512_abs_ps(_mm512_loadu_ps(x + 16 * i));
        a = _mm512_add_ps(a, _mm512_permute_ps(a, 0xb1));
        largest = max_magnitude(largest, _mm512_add_ps(a, _mm512_permute_ps(a, 0x4e)));
    }
    return _mm512_reduce_max_epi32(largest);
}

/* +1 where bit i of the lane's number is set, else -1. */
AVX512_INLINE __m512 signs(int i) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __mmask16 plus = _mm512_test_epi32_mask(lane, _mm512_set1_epi32(1 << i));
    return _mm512_mask_blend_ps(plus, _mm512_set1_ps(-1), _mm512_set1_ps(1));
}

/* The 16 signed sums of four whole numbers. */
AVX512_INLINE __m512i entries(const float *x, const __m512 sign[4]) {
    __m512 v = _mm512_mul_ps(sign[0], _mm512_set1_ps(x[0]));
    v = _mm512_fmadd_ps(sign[1], _mm512_set1_ps(x[1]), v);
    v = _mm512_fmadd_ps(sign[2], _mm512_set1_ps(x[2]), v);
    return _mm512_cvtps_epi32(_mm512_fmadd_ps(sign[3], _mm512_set1_ps(x[3]), v));
}

/* Saturated bytes of four tables of 16-bit entries as the two packs below left them. */
AVX512_INLINE __m512i join(__m512i a, __m512i b) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_permutexvar_epi32(order, _mm512_packs_epi16(a, b));
}

/* 16-bit entries as 254 * high + low, exactly: a product by 129 / 32768 is not quite one by a
 * 254th and may leave a low of 128. */
AVX512_INLINE __m512i split(__m512i *v) {
    const __m512i k254 = _mm512_set1_epi16(254);
    __m512i high = _mm512_mulhrs_epi16(*v, _mm512_set1_epi16(129));
    __m512i low = _mm512_sub_epi16(*v, _mm512_mullo_epi16(high, k254));
    __mmask32 over = _mm512_cmpgt_epi16_mask(low, _mm512_set1_epi16(127));
    *v = _mm512_mask_sub_epi16(low, over, low, k254);
    return _mm512_mask_add_epi16(high, over, high, _mm512_set1_epi16(1));
}

/* x as whole numbers, whose scale is out's. */
static void make_whole(float *whole, struct avx512_bcq_span *out, const float *x) {
    float up;
    scales(LIMIT_OF_4, largest_entry(x), &up, &out->scale);
    for (int i = 0; i < AVX512_BCQ_SPAN; i += 16) {
        __m512 v = _mm512_mul_ps(_mm512_loadu_ps(x + i), _mm512_set1_ps(up));
        _mm512_storeu_ps(whole + i, _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT));
    }
}

static void pack_tables(struct avx512_bcq_span *out, const float *v) {
    const __m512 sign[4] = {signs(0), signs(1), signs(2), signs(3)};
    for (int i = 0; i < AVX512_BCQ_RUNS; i++, v += 16) {
        __m512i a = _mm512_packs_epi32(entries(v, sign), entries(v + 4, sign));
        __m512i b = _mm512_packs_epi32(entries(v + 8, sign), entries(v + 12, sign));
        __m512i high_a = split(&a), high_b = split(&b);
        _mm512_store_si512(out->table[2 * i], join(a, b));
        _mm512_store_si512(out->table[2 * i + 1], join(high_a, high_b));
    }
}

/* Of rounded inputs: entries are whole numbers of at most 127. */
static void pack_bytes(struct avx512_bcq_span *out, const float *v) {
    const __m512 sign[4] = {signs(0), signs(1), signs(2), signs(3)};
    for (int i = 0; i < AVX512_BCQ_RUNS; i++, v += 16) {
        __m512i a = _mm512_packs_epi32(entries(v, sign), entries(v + 4, sign));
        __m512i b = _mm512_packs_epi32(entries(v + 8, sign), entries(v + 12, sign));
        _mm512_store_si512(out->table[i], join(a, b));
    }
}

/* A run's whole numbers in 16 bits. */
AVX512_INLINE __m256i words(const float *whole) {
    return _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(_mm512_loadu_ps(whole)));
}

/* Inputs j and j + 8 of a run side by side, as the tile's weights are. */
static void pack_pairs(int16_t *out, const float *whole) {
    for (int i = 0; i < AVX512_BCQ_RUNS; i++, whole += 16, out += 16) {
        __m256i v = words(whole);
        __m128i low = _mm256_castsi256_si128(v), high = _mm256_extracti128_si256(v, 1);
        _mm_storeu_si128((__m128i *)out, _mm_unpacklo_epi16(low, high));
        _mm_storeu_si128((__m128i *)(out + 8), _mm_unpackhi_epi16(low, high));
    }
}

/* x times up as 256 * high + low, both signed; inputs j, j + 4, j + 8 and j + 12 of a run side by side. */
static void pack_bytes_apart(int8_t *low, int8_t *high, const float *x, float up) {
    /* Where lower bytes are: inputs 4 j to 4 j + 3 of two runs are packed into lane j of words. */
    const __m512i first =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 64, 66, 68, 70, 72, 74, 76, 78);
    const __m512i lower = _mm512_add_epi32(
        _mm512_set1_epi32(0x30201000), _mm512_mullo_epi32(first, _mm512_set1_epi32(0x01010101)));
    const __m512i upper = _mm512_add_epi8(lower, _mm512_set1_epi8(1));
    for (int i = 0; i < AVX512_BCQ_SPAN; i += 64) {
        __m512i v[4], w[2];
        AVX512_UNROLL for (int k = 0; k < 4; k++) v[k] =
            _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i + 16 * k), _mm512_set1_ps(up)));
        AVX512_UNROLL for (int k = 0; k < 2; k++) w[k] = _mm512_packs_epi32(v[2 * k], v[2 * k + 1]);
        _mm512_storeu_si512(low + i, _mm512_permutex2var_epi8(w[0], lower, w[1]));
        AVX512_UNROLL for (int k = 0; k < 2; k++) w[k] =
            _mm512_add_epi16(w[k], _mm512_set1_epi16(128));
        _mm512_storeu_si512(high + i, _mm512_permutex2var_epi8(w[0], upper, w[1]));
    }
}

/* Inputs that are whole once they are multiplied by up and rounded. */
static void pack_many(const struct avx512_bcq_many *to, enum avx512_bcq_inputs use, int n, int t,
                      const float *x, float up) {
    const size_t row = (size_t)t * AVX512_BCQ_SPAN;
    int8_t *bytes = to->whole;
    if (use == AVX512_BCQ_PAIRS)
        pack_pairs((int16_t *)to->whole + row, x);
    else
        pack_bytes_apart(bytes + row, bytes + avx512_bcq_n16(n) * AVX512_BCQ_SPAN + row, x, up);
}

static void pack_span(enum avx512_bcq_inputs use, void *act, const struct column *c, int n, int t,
                      int span) {
    struct avx512_bcq_span *out = span_of(c, span);
    float tail[AVX512_BCQ_SPAN], whole[AVX512_BCQ_SPAN];
    const float *x = inputs(c, span, tail);
    float up = 1;
    if (use == AVX512_BCQ_BYTES && c->act_bits == 16) {
        scales(LIMIT_OF_4, largest_entry(x), &up, &out->scale);
    } else {
        if (c->act_bits < 16)
            out->scale = avx512_bcq_round(whole, x, c->act_bits);
        else
            make_whole(whole, out, x);
        x = whole;
    }
    if (use != AVX512_BCQ_TABLES) {
        struct avx512_bcq_many to = avx512_bcq_many_at(act, c->act_bits, n_spans(c->cols), n, span);
        pack_many(&to, use, n, t, x, up);
        to.scales[t] = out->scale;
    } else if (c->act_bits < 16) {
        pack_bytes(out, x);
    } else {
        pack_tables(out, x);
    }
}

/* Parts are ranges of (token, span). What is packed of a span belongs to the part that has it, a
 * token's sums to the part that has its first span. */
void avx512_bcq_act_pack(enum avx512_bcq_inputs use, void *act, int act_bits,
                         const struct bcq_spec *w, const float *x, size_t ldx, int n, int part,
                         int n_parts) {
    const int spans = n_spans(w->cols);
    const int64_t first = bcq_first_span(n, spans, part, n_parts);
    const int64_t last = bcq_first_span(n, spans, part + 1, n_parts);
    struct avx512_bcq_token *tokens = act;
    for (int64_t i = first; i < last; i++) {
        int t = (int)(i / spans), span = (int)(i % spans);
        struct column c = column_of(act, act_bits, x, ldx, w->cols, n, t);
        if (span == 0) pack_sums(&c, &tokens[t], act, n, t, use != AVX512_BCQ_TABLES);
        pack_span(use, act, &c, n, t, span);
    }
}
