#include <immintrin.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "kernels/avx512/avx512.h"
#include "kernels/avx512/math.h"
#include "kernels/ops.h"

/* Whole numbers times whole numbers: x is rounded to 16 bits with a scale for each 32 inputs, the
 * group of the weights, so that a group's sum is exact in 32 bits and one multiply-add brings it
 * into the row's. x is 256 times a high byte plus a low one, both signed: vpdpbusd multiplies four
 * codes of a row as they lie in memory, and nothing is widened. Codes stay unsigned; their zero,
 * 2^(m-1), is taken off through the group's sum of x.
 *
 * Packed form: panels of 32 rows, group by group: 32 scales in fp16, then vectors of words, a word
 * for each of 16 rows with four inputs ("a quad", 8 in a group), the halves of a panel in turns:
 *   up to 4 bits   quads 2 v and 2 v + 1 in the nibbles of vector v;
 *   5, 6 bits      the same for the low 4 bits; then vectors of 4 quads' high pairs of bits;
 *   7, 8 bits      quad v. */
enum {
    LANES = 16,
    ROWS = 2 * LANES,
    GROUP = BCQ_WHOLE_GROUP,
    QUADS = GROUP / 4,
    SCALES = ROWS * (int)sizeof(uint16_t), /* bytes before a group's words */
    TOKENS = 4,                            /* whose sums are in registers */
    TILE = 32,                             /* that a chunk of a panel serves from the first cache */
    CHUNK = 16,                            /* groups */
    FAR = 16384,
    NEAR = 4096
};

/* The most that a high byte of 127 and a low one of 127 make. */
static const float MOST = 32639.0f;

#define INLINE static inline __attribute__((always_inline))

/* Accumulators stay in registers only where every loop over them is unrolled. */
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

enum form { NIBBLES, SIXES, BYTES };

static enum form form_of(int bits) { return bits <= 4 ? NIBBLES : bits <= 6 ? SIXES : BYTES; }

/* Bytes of a group of a panel. */
INLINE size_t group_bytes(enum form form) {
    return SCALES + (form == NIBBLES ? 4 : form == SIXES ? 6 : 8) * 2 * sizeof(__m512i);
}

static size_t groups_of(int cols) { return ((size_t)cols + GROUP - 1) / GROUP; }

static size_t pack_bytes(const struct bcq_spec *w) {
    size_t panels = ((size_t)w->rows + ROWS - 1) / ROWS;
    return panels * groups_of(w->cols) * group_bytes(form_of(w->bits));
}

/* The codes of a group of a row, a byte each. */
static void codes_of(uint32_t quads[QUADS], const struct bcq_view *w, int row, size_t group) {
    size_t bits = (size_t)w->spec.bits, words = (size_t)w->layout.plane_words;
    const uint32_t *plane = w->planes + (size_t)row * bits * words + group;
    __m256i codes = _mm256_setzero_si256();
    for (size_t p = 0; p < bits; p++)
        codes =
            _mm256_mask_add_epi8(codes, plane[p * words], codes, _mm256_set1_epi8((char)(1 << p)));
    _mm256_storeu_si256((__m256i *)(void *)quads, codes);
}

/* words: (vectors, 2, 16) of a group. */
static void place(uint32_t *words, enum form form, int row, const uint32_t quads[QUADS]) {
    const uint32_t nibble = 0x0f0f0f0f, pair = 0x03030303;
    words += row;
    for (size_t j = 0; j < QUADS; j++) {
        if (form == BYTES) {
            words[ROWS * j] = quads[j];
            continue;
        }
        words[ROWS * (j / 2)] |= (quads[j] & nibble) << 4 * (j % 2);
        if (form == SIXES) words[ROWS * (4 + j / 4)] |= (quads[j] >> 4 & pair) << 2 * (j % 4);
    }
}

static void pack(void *dst, const struct bcq_view *w, int b0, int b1) {
    enum form form = form_of(w->spec.bits);
    size_t groups = groups_of(w->spec.cols), bytes = group_bytes(form);
    for (int b = b0; b < b1; b++)
        for (size_t g = 0; g < groups; g++) {
            char *to = (char *)dst + ((size_t)b * groups + g) * bytes;
            for (int r = 0; r < ROWS && b * ROWS + r < w->spec.rows; r++) {
                uint32_t quads[QUADS];
                codes_of(quads, w, b * ROWS + r, g);
                ((uint16_t *)(void *)to)[r] = w->alpha[(size_t)(b * ROWS + r) * groups + g];
                place((uint32_t *)(void *)(to + SCALES), form, r, quads);
            }
        }
}

/* -- Inputs ----------------------------------------------------------------------------------- */

/* A group of a token's x: 256 * high + low. */
struct input {
    int8_t high[GROUP], low[GROUP];
};
struct factor {
    float scale; /* NaN if an x was not finite */
    int32_t sum; /* of the whole numbers */
};

/* All inputs of n tokens, then their factors. */
static const struct factor *factors(const void *act, size_t groups, int n) {
    return (const struct factor *)((const struct input *)act + groups * (size_t)n);
}

static size_t act_bytes(int act_bits, int cols, int n) {
    (void)act_bits;
    return groups_of(cols) * (size_t)n * (sizeof(struct input) + sizeof(struct factor));
}

/* Magnitudes are compared as integers: that orders finite values alike, and a NaN wins. */
INLINE float largest_of(__m512 a, __m512 b) {
    __m512i v = _mm512_max_epi32(_mm512_castps_si512(_mm512_abs_ps(a)),
                                 _mm512_castps_si512(_mm512_abs_ps(b)));
    int32_t bits = _mm512_reduce_max_epi32(v);
    float ret;
    memcpy(&ret, &bits, sizeof ret);
    return ret;
}

/* Sixteen numbers to bytes; returns them. */
INLINE __m512i split(int8_t *high, int8_t *low, __m512 x, __m512 up, __mmask16 some) {
    /* Inf times 0 is the least integer: nothing of it is used. */
    __m512i v = _mm512_maskz_cvtps_epi32(some, _mm512_mul_ps(x, up));
    __m512i above = _mm512_srai_epi32(_mm512_add_epi32(v, _mm512_set1_epi32(128)), 8);
    _mm_storeu_si128((__m128i *)(void *)high, _mm512_cvtepi32_epi8(above));
    _mm_storeu_si128((__m128i *)(void *)low, _mm512_cvtepi32_epi8(v));
    return v;
}

static void round_group(struct input *to, struct factor *factor, const float *x, size_t n) {
    const float tiny = 1e-30f;
    __m512 a = _mm512_maskz_loadu_ps(avx512_mask(n), x);
    __m512 b = _mm512_maskz_loadu_ps(avx512_mask(n > LANES ? n - LANES : 0), x + LANES);
    float largest = largest_of(a, b);
    bool some = largest > tiny && largest < INFINITY;
    __mmask16 mask = some ? 0xffff : 0;
    __m512 up = _mm512_set1_ps(some ? MOST / largest : 0);
    __m512i v = split(to->high, to->low, a, up, mask);
    v = _mm512_add_epi32(v, split(to->high + LANES, to->low + LANES, b, up, mask));
    factor->sum = _mm512_reduce_add_epi32(v);
    factor->scale = some ? largest / MOST : largest < INFINITY ? 0 : NAN;
}

static void act_pack(void *act, int act_bits, const struct bcq_spec *w, const float *x, size_t ldx,
                     int n, int part, int n_parts) {
    const int cols = w->cols;
    size_t groups = groups_of(cols);
    int t0 = (int)((int64_t)n * part / n_parts), t1 = (int)((int64_t)n * (part + 1) / n_parts);
    (void)act_bits;
    for (int t = t0; t < t1; t++) {
        size_t at = (size_t)t * groups;
        struct input *to = (struct input *)act + at;
        struct factor *factor = (struct factor *)((struct input *)act + groups * (size_t)n) + at;
        for (size_t g = 0; g < groups; g++)
            round_group(&to[g], &factor[g], x + (size_t)t * ldx + g * GROUP,
                        (size_t)cols - g * GROUP);
    }
}

/* -- Products --------------------------------------------------------------------------------- */

INLINE __m512i vector_at(const char *words, int v, int half) {
    return _mm512_loadu_si512(words + 64 * (2 * v + half));
}

/* Quad j of sixteen rows; everything but words is a constant. */
INLINE __m512i codes(enum form form, const char *words, int half, int j) {
    const __m512i nibble = _mm512_set1_epi8(15);
    if (form == BYTES) return vector_at(words, j, half);
    __m512i low = vector_at(words, j / 2, half);
    if (j % 2) low = _mm512_srli_epi16(low, 4);
    if (form == NIBBLES) return _mm512_and_si512(low, nibble);
    __m512i high = vector_at(words, 4 + j / 4, half);
    int place = 2 * (j % 4);
    high = place < 4 ? _mm512_slli_epi16(high, 4 - place) : _mm512_srli_epi16(high, place - 4);
    high = _mm512_and_si512(high, _mm512_set1_epi8(0x30));
    return _mm512_ternarylogic_epi32(high, low, nibble, 0xf8); /* high | (low & nibble) */
}

INLINE __m512i quad_of(const int8_t *x, int j) {
    int32_t quad;
    memcpy(&quad, x + 4 * j, sizeof quad);
    return _mm512_set1_epi32(quad);
}

INLINE void prefetch(const char *p, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 64) {
        _mm_prefetch(p + i + FAR, _MM_HINT_T1);
        _mm_prefetch(p + i + NEAR, _MM_HINT_T0);
    }
}

/* Some groups of a panel. */
struct chunk {
    const char *scales, *words; /* of the first group */
    size_t scales_step, words_step;
    int zero, n; /* groups */
};

/* Inputs of some tokens, from the chunk's first group on. */
struct tokens {
    const struct input *x;
    const struct factor *factor;
    size_t step; /* from token to token */
};

/* sums: (n, 2) vectors of a panel's rows. ahead: the panel is read for the first time. */
INLINE void add_chunk(__m512 (*sums)[2], enum form form, const struct chunk *c,
                      const struct tokens *tokens, int n, bool ahead) {
    const struct input *x = tokens->x;
    const struct factor *factor = tokens->factor;
    const char *words = c->words, *scales = c->scales;
    __m512 sum[TOKENS][2];
    UNROLL for (int t = 0; t < n; t++) sum[t][0] = sums[t][0], sum[t][1] = sums[t][1];
    for (int g = 0; g < c->n; g++, x++, factor++) {
        __m512i high[TOKENS][2], low[TOKENS][2];
        if (ahead) prefetch(scales, group_bytes(form));
        UNROLL for (int t = 0; t < n; t++) {
            high[t][0] = high[t][1] = _mm512_setzero_si512();
            low[t][0] = low[t][1] =
                _mm512_set1_epi32(-(factor[(size_t)t * tokens->step].sum * c->zero));
        }
        UNROLL for (int j = 0; j < QUADS; j++) {
            const __m512i v0 = codes(form, words, 0, j), v1 = codes(form, words, 1, j);
            UNROLL for (int t = 0; t < n; t++) {
                const __m512i a = quad_of(x[(size_t)t * tokens->step].high, j);
                const __m512i b = quad_of(x[(size_t)t * tokens->step].low, j);
                high[t][0] = _mm512_dpbusd_epi32(high[t][0], v0, a);
                high[t][1] = _mm512_dpbusd_epi32(high[t][1], v1, a);
                low[t][0] = _mm512_dpbusd_epi32(low[t][0], v0, b);
                low[t][1] = _mm512_dpbusd_epi32(low[t][1], v1, b);
            }
        }
        UNROLL for (int h = 0; h < 2; h++) {
            const __m512 s = _mm512_cvtph_ps(
                _mm256_loadu_si256((const __m256i *)(const void *)(scales + 32 * h)));
            UNROLL for (int t = 0; t < n; t++) {
                const __m512 f = _mm512_set1_ps(factor[(size_t)t * tokens->step].scale);
                __m512i v = _mm512_add_epi32(low[t][h], _mm512_slli_epi32(high[t][h], 8));
                sum[t][h] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(v), _mm512_mul_ps(s, f), sum[t][h]);
            }
        }
        words += c->words_step;
        scales += c->scales_step;
    }
    UNROLL for (int t = 0; t < n; t++) sums[t][0] = sum[t][0], sums[t][1] = sum[t][1];
}

INLINE void add_some(__m512 (*sums)[2], enum form form, const struct chunk *c,
                     const struct tokens *tokens, int n, bool ahead) {
    if (n >= 4)
        add_chunk(sums, form, c, tokens, 4, ahead);
    else if (n >= 2)
        add_chunk(sums, form, c, tokens, 2, ahead);
    else
        add_chunk(sums, form, c, tokens, 1, ahead);
}

/* Codes as bytes: many tokens take them out once. */
INLINE void expand(char *to, enum form form, const struct chunk *c) {
    const char *words = c->words;
    for (int g = 0; g < c->n; g++, words += c->words_step) {
        prefetch(words, c->words_step);
        UNROLL for (int j = 0; j < QUADS; j++) {
            for (int h = 0; h < 2; h++)
                _mm512_store_si512(to + 64 * (2 * j + h), codes(form, words, h, j));
        }
        to += 128 * QUADS;
    }
}

INLINE int step_of(int n) { return n >= 4 ? 4 : n >= 2 ? 2 : 1; }

/* Of up to TILE tokens. */
INLINE void add_tile(__m512 (*sums)[2], enum form form, const struct chunk *chunk,
                     const struct tokens *tokens, int n) {
    _Alignas(64) char bytes[CHUNK * 128 * QUADS];
    struct chunk c = *chunk;
    struct tokens some = *tokens;
    if (n == step_of(n)) { /* one reading is all */
        add_some(sums, form, &c, &some, n, true);
        return;
    }
    if (form != BYTES) {
        expand(bytes, form, &c);
        c.words = bytes;
        c.words_step = 128 * QUADS;
    }
    for (int t = 0, m; t < n; t += m) {
        m = step_of(n - t);
        if (t == 0 && form == BYTES)
            add_some(sums, BYTES, &c, &some, m, true);
        else
            add_some(sums + t, BYTES, &c, &some, m, false);
        some.x += (size_t)m * some.step;
        some.factor += (size_t)m * some.step;
    }
}

/* Writes lanes of rows r.. below n_rows. */
INLINE void store(float *y, int r, int n_rows, __m512 sum) {
    if (r < n_rows) _mm512_mask_storeu_ps(y + r, avx512_mask((size_t)(n_rows - r)), sum);
}

/* y: n_rows rows of a panel for up to TILE tokens. */
INLINE void panel(float *y, size_t ldy, enum form form, const char *w, int zero, int n_rows,
                  struct tokens tokens, size_t groups, int n) {
    const size_t bytes = group_bytes(form);
    __m512 sums[TILE][2];
    for (int t = 0; t < n; t++) sums[t][0] = sums[t][1] = _mm512_setzero_ps();
    for (size_t g = 0; g < groups; g += CHUNK) {
        int n_groups = groups - g < CHUNK ? (int)(groups - g) : CHUNK;
        struct chunk c = {w, w + SCALES, bytes, bytes, zero, n_groups};
        add_tile(sums, form, &c, &tokens, n);
        w += CHUNK * bytes;
        tokens.x += CHUNK;
        tokens.factor += CHUNK;
    }
    for (int t = 0; t < n; t++) {
        store(y + (size_t)t * ldy, 0, n_rows, sums[t][0]);
        store(y + (size_t)t * ldy, LANES, n_rows, sums[t][1]);
    }
}

INLINE void mul_form(float *y, size_t ldy, enum form form, const char *packed,
                     const struct bcq_spec *w, const void *act, int n, int b0, int b1) {
    size_t groups = groups_of(w->cols), bytes = groups * group_bytes(form);
    for (int b = b0; b < b1; b++)
        for (int t = 0; t < n; t += TILE) {
            size_t at = (size_t)t * groups;
            const struct tokens tokens = {(const struct input *)act + at,
                                          factors(act, groups, n) + at, groups};
            panel(y + (size_t)t * ldy + (size_t)b * ROWS, ldy, form, packed + (size_t)b * bytes,
                  1 << (w->bits - 1), w->rows - b * ROWS, tokens, groups,
                  n - t < TILE ? n - t : TILE);
        }
}

static void mul(float *y, size_t ldy, const void *packed, const struct bcq_spec *w, const void *act,
                int act_bits, int n, int b0, int b1) {
    enum form form = form_of(w->bits);
    (void)act_bits;
    if (form == NIBBLES) mul_form(y, ldy, NIBBLES, packed, w, act, n, b0, b1);
    if (form == SIXES) mul_form(y, ldy, SIXES, packed, w, act, n, b0, b1);
    if (form == BYTES) mul_form(y, ldy, BYTES, packed, w, act, n, b0, b1);
}

void avx512_whole_init(struct bcq_ops *whole) {
    *whole = (struct bcq_ops){
        .row_block = ROWS,
        .pack_bytes = pack_bytes,
        .pack = pack,
        .act_bytes = act_bytes,
        .act_pack = act_pack,
        .mul = mul,
    };
}
