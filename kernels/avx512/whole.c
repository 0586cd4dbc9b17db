/* Whole numbers: vpdpbusd multiplies four codes of a row as they lie in memory by high and by low bytes of
 * x, and nothing is widened. The codes' zero is taken off through the group's sum of x. */
#include "kernels/avx512/whole.h"

#include "kernels/avx512/avx512.h"
#include "kernels/ops.h"

enum {
    TOKENS = 4, /* whose sums are in registers */
    TILE = 32,  /* that a chunk of a panel serves from the first cache */
    CHUNK = 16, /* groups */
    FAR = 16384,
    NEAR = 4096
};

static size_t pack_bytes(const struct bcq_spec *w) { return whole_pack_bytes(w, WHOLE_ROWS); }

/* The codes of a group of a row, a byte each. */
static void codes_of(uint32_t quads[WHOLE_QUADS], const struct bcq_view *w, int row, int group) {
    size_t bits = (size_t)w->spec.bits, words = (size_t)w->layout.plane_words;
    const uint32_t *plane = w->planes + (size_t)row * bits * words + (size_t)group;
    __m256i codes = _mm256_setzero_si256();
    for (size_t p = 0; p < bits; p++)
        codes =
            _mm256_mask_add_epi8(codes, plane[p * words], codes, _mm256_set1_epi8((char)(1 << p)));
    _mm256_storeu_si256((__m256i *)(void *)quads, codes);
}

/* to: (vectors, 2, 16) of a group. */
static void place(void *to, int row, const struct bcq_view *w, int r, int group) {
    const uint32_t nibble = 0x0f0f0f0f, pair = 0x03030303;
    const enum whole_form form = whole_form_of(w->spec.bits);
    uint32_t quads[WHOLE_QUADS], *words = (uint32_t *)to + row;
    codes_of(quads, w, r, group);
    for (size_t j = 0; j < WHOLE_QUADS; j++) {
        if (form == WHOLE_BYTES) {
            words[WHOLE_ROWS * j] = quads[j];
            continue;
        }
        words[WHOLE_ROWS * (j / 2)] |= (quads[j] & nibble) << 4 * (j % 2);
        if (form == WHOLE_SIXES)
            words[WHOLE_ROWS * (4 + j / 4)] |= (quads[j] >> 4 & pair) << 2 * (j % 4);
    }
}

static void pack(void *dst, const struct bcq_view *w, int b0, int b1) {
    whole_pack(dst, w, b0, b1, WHOLE_ROWS, place);
}

/* -- Inputs ----------------------------------------------------------------------------------- */

size_t avx512_whole_act_bytes(int act_bits, int cols, int n) {
    (void)act_bits;
    return whole_act_bytes(cols, n);
}

static struct whole_factor round_group(union whole_input *to, const float *x) {
    return whole_round(to->high, to->low, x, WHOLE_GROUP);
}

void avx512_whole_act_pack(void *act, int act_bits, const struct bcq_spec *w, const float *x,
                           size_t ldx, int n, int part, int n_parts) {
    (void)act_bits;
    whole_act_pack(act, w->cols, x, ldx, n, part, n_parts, round_group);
}

/* -- Products --------------------------------------------------------------------------------- */

AVX512_INLINE __m512i quad_of(const int8_t *x, int j) {
    int32_t quad;
    memcpy(&quad, x + 4 * j, sizeof quad);
    return _mm512_set1_epi32(quad);
}

AVX512_INLINE void prefetch(const char *p, size_t bytes) {
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
    const union whole_input *x;
    const struct whole_factor *factor;
    size_t step; /* from token to token */
};

/* sums: (n, 2) vectors of a panel's rows. ahead: the panel is read for the first time. */
AVX512_INLINE void add_chunk(__m512 (*sums)[2], enum whole_form form, const struct chunk *c,
                             const struct tokens *tokens, int n, bool ahead) {
    const union whole_input *x = tokens->x;
    const struct whole_factor *factor = tokens->factor;
    const char *words = c->words, *scales = c->scales;
    __m512 sum[TOKENS][2];
    AVX512_UNROLL for (int t = 0; t < n; t++) sum[t][0] = sums[t][0], sum[t][1] = sums[t][1];
    for (int g = 0; g < c->n; g++, x++, factor++) {
        __m512i high[TOKENS][2], low[TOKENS][2];
        if (ahead) prefetch(scales, whole_group_bytes(form, WHOLE_ROWS));
        AVX512_UNROLL for (int t = 0; t < n; t++) {
            high[t][0] = high[t][1] = _mm512_setzero_si512();
            low[t][0] = low[t][1] =
                _mm512_set1_epi32(-(factor[(size_t)t * tokens->step].sum * c->zero));
        }
        AVX512_UNROLL for (int j = 0; j < WHOLE_QUADS; j++) {
            const __m512i v0 = whole_codes(form, words, 0, j), v1 = whole_codes(form, words, 1, j);
            AVX512_UNROLL for (int t = 0; t < n; t++) {
                const __m512i a = quad_of(x[(size_t)t * tokens->step].high, j);
                const __m512i b = quad_of(x[(size_t)t * tokens->step].low, j);
                high[t][0] = _mm512_dpbusd_epi32(high[t][0], v0, a);
                high[t][1] = _mm512_dpbusd_epi32(high[t][1], v1, a);
                low[t][0] = _mm512_dpbusd_epi32(low[t][0], v0, b);
                low[t][1] = _mm512_dpbusd_epi32(low[t][1], v1, b);
            }
        }
        AVX512_UNROLL for (int h = 0; h < 2; h++) {
            const __m512 s = whole_scales(scales, h);
            AVX512_UNROLL for (int t = 0; t < n; t++) {
                const __m512 f = _mm512_set1_ps(factor[(size_t)t * tokens->step].scale);
                __m512i v = _mm512_add_epi32(low[t][h], _mm512_slli_epi32(high[t][h], 8));
                sum[t][h] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(v), _mm512_mul_ps(s, f), sum[t][h]);
            }
        }
        words += c->words_step;
        scales += c->scales_step;
    }
    AVX512_UNROLL for (int t = 0; t < n; t++) sums[t][0] = sum[t][0], sums[t][1] = sum[t][1];
}

AVX512_INLINE void add_some(__m512 (*sums)[2], enum whole_form form, const struct chunk *c,
                            const struct tokens *tokens, int n, bool ahead) {
    if (n >= 4)
        add_chunk(sums, form, c, tokens, 4, ahead);
    else if (n >= 2)
        add_chunk(sums, form, c, tokens, 2, ahead);
    else
        add_chunk(sums, form, c, tokens, 1, ahead);
}

/* Codes as bytes: many tokens take them out once. */
AVX512_INLINE void expand(char *to, enum whole_form form, const struct chunk *c) {
    const char *words = c->words;
    for (int g = 0; g < c->n; g++, words += c->words_step) {
        prefetch(words, c->words_step);
        AVX512_UNROLL for (int j = 0; j < WHOLE_QUADS; j++) {
            for (int h = 0; h < 2; h++)
                _mm512_store_si512(to + 64 * (2 * j + h), whole_codes(form, words, h, j));
        }
        to += 128 * WHOLE_QUADS;
    }
}

AVX512_INLINE int step_of(int n) { return n >= 4 ? 4 : n >= 2 ? 2 : 1; }

/* Of up to TILE tokens. */
AVX512_INLINE void add_tile(__m512 (*sums)[2], enum whole_form form, const struct chunk *chunk,
                            const struct tokens *tokens, int n) {
    _Alignas(64) char bytes[CHUNK * 128 * WHOLE_QUADS];
    struct chunk c = *chunk;
    struct tokens some = *tokens;
    if (n == step_of(n)) { /* one reading is all */
        add_some(sums, form, &c, &some, n, true);
        return;
    }
    if (form != WHOLE_BYTES) {
        expand(bytes, form, &c);
        c.words = bytes;
        c.words_step = 128 * WHOLE_QUADS;
    }
    for (int t = 0, m; t < n; t += m) {
        m = step_of(n - t);
        if (t == 0 && form == WHOLE_BYTES)
            add_some(sums, WHOLE_BYTES, &c, &some, m, true);
        else
            add_some(sums + t, WHOLE_BYTES, &c, &some, m, false);
        some.x += (size_t)m * some.step;
        some.factor += (size_t)m * some.step;
    }
}

/* y: n_rows rows of a panel for up to TILE tokens. */
AVX512_INLINE void panel(float *y, size_t ldy, enum whole_form form, const char *w, int zero,
                         int n_rows, struct tokens tokens, size_t groups, int n) {
    const size_t bytes = whole_group_bytes(form, WHOLE_ROWS);
    __m512 sums[TILE][2];
    for (int t = 0; t < n; t++) sums[t][0] = sums[t][1] = _mm512_setzero_ps();
    for (size_t g = 0; g < groups; g += CHUNK) {
        int n_groups = groups - g < CHUNK ? (int)(groups - g) : CHUNK;
        struct chunk c = {w, w + whole_scales_bytes(WHOLE_ROWS), bytes, bytes, zero, n_groups};
        add_tile(sums, form, &c, &tokens, n);
        w += CHUNK * bytes;
        tokens.x += CHUNK;
        tokens.factor += CHUNK;
    }
    for (int t = 0; t < n; t++) {
        whole_store(y + (size_t)t * ldy, 0, n_rows, sums[t][0]);
        whole_store(y + (size_t)t * ldy, WHOLE_LANES, n_rows, sums[t][1]);
    }
}

AVX512_INLINE void mul_form(float *y, size_t ldy, enum whole_form form, const char *packed,
                            const struct bcq_spec *w, const void *act, int n, int b0, int b1) {
    size_t groups = whole_groups(w->cols), bytes = groups * whole_group_bytes(form, WHOLE_ROWS);
    for (int b = b0; b < b1; b++)
        for (int t = 0; t < n; t += TILE) {
            size_t at = (size_t)t * groups;
            const struct tokens tokens = {(const union whole_input *)act + at,
                                          whole_factors(act, groups, n) + at, groups};
            panel(y + (size_t)t * ldy + (size_t)b * WHOLE_ROWS, ldy, form,
                  packed + (size_t)b * bytes, 1 << (w->bits - 1), w->rows - b * WHOLE_ROWS, tokens,
                  groups, n - t < TILE ? n - t : TILE);
        }
}

void avx512_whole_mul(float *y, size_t ldy, const void *packed, const struct bcq_spec *w,
                      const void *act, int act_bits, int n, int b0, int b1) {
    enum whole_form form = whole_form_of(w->bits);
    (void)act_bits;
    if (form == WHOLE_NIBBLES) mul_form(y, ldy, WHOLE_NIBBLES, packed, w, act, n, b0, b1);
    if (form == WHOLE_SIXES) mul_form(y, ldy, WHOLE_SIXES, packed, w, act, n, b0, b1);
    if (form == WHOLE_BYTES) mul_form(y, ldy, WHOLE_BYTES, packed, w, act, n, b0, b1);
}

void avx512_whole_init(struct bcq_ops *whole) {
    *whole = (struct bcq_ops){
        .row_block = WHOLE_ROWS,
        .pack_bytes = pack_bytes,
        .pack = pack,
        .act_bytes = avx512_whole_act_bytes,
        .act_pack = avx512_whole_act_pack,
        .mul = avx512_whole_mul,
    };
}
