/* Free parameters: y = sum_g (sum_i alpha_ig B_ig + beta_g X_g). The planes of a step (16 to
 * 128 inputs of one group) are summed one after the other in 16-bit words.
 *
 * Bytes of even and odd rows are told apart late: F adds the bytes as words, H the odd ones
 * alone (a byte multiply-add by 0, 1), so S_odd = H and S_even = F - 256 H modulo 2^16. That
 * needs unsigned bytes: sums of high bytes carry +128 a column, taken off at the start. */
#include "kernels/avx2/bcq.h"

#include <string.h>

/* Word sums of a plane: f, h of the low and of the high bytes. */
struct words {
    __m256i fl, hl, fh, hh;
};

/* A step's place in a block. */
struct step {
    size_t params, code;
    int column, columns, sum; /* first column in the span, how many, index into the act's sums */
};

/* A column of byte tables: f and h of the entries, which carry +128 each. */
AVX2_INLINE void add_bytes(struct words *s, __m256i even, __m256i odd,
                           const struct avx2_bcq_byte_act *x, int column) {
    const __m256i odd_byte = _mm256_set1_epi16(0x0100);
    even = _mm256_shuffle_epi8(avx2_bcq_table(x->entry_up[2 * column]), even);
    odd = _mm256_shuffle_epi8(avx2_bcq_table(x->entry_up[2 * column + 1]), odd);
    s->fl = _mm256_add_epi16(s->fl, _mm256_add_epi16(even, odd));
    s->hl = _mm256_add_epi16(s->hl, _mm256_add_epi16(_mm256_maddubs_epi16(even, odd_byte),
                                                     _mm256_maddubs_epi16(odd, odd_byte)));
    __asm__ volatile("" : "+x"(s->fl), "+x"(s->hl)::"memory");
}

AVX2_INLINE void add_column(struct words *s, const uint8_t *code, bool bytes, bool split,
                            const void *act, int column) {
    const __m256i odd_byte = _mm256_set1_epi16(0x0100);
    const struct avx2_bcq_act *x = act;
    __m256i even, odd;
    if (split) {
        even = avx2_bcq_in_register(avx2_bcq_load(code));
        odd = avx2_bcq_in_register(avx2_bcq_load(code + 32));
    } else {
        avx2_bcq_split(code, &even, &odd);
    }
    if (bytes) {
        add_bytes(s, even, odd, act, column);
        return;
    }
    __m256i lo = _mm256_add_epi8(_mm256_shuffle_epi8(avx2_bcq_table(x->lo[2 * column]), even),
                                 _mm256_shuffle_epi8(avx2_bcq_table(x->lo[2 * column + 1]), odd));
    __m256i hi = _mm256_add_epi8(_mm256_shuffle_epi8(avx2_bcq_table(x->hi_up[column]), even),
                                 _mm256_shuffle_epi8(avx2_bcq_table(x->hi[2 * column + 1]), odd));
    s->fl = _mm256_add_epi16(s->fl, lo);
    s->hl = _mm256_add_epi16(s->hl, _mm256_maddubs_epi16(lo, odd_byte));
    s->fh = _mm256_add_epi16(s->fh, hi);
    s->hh = _mm256_add_epi16(s->hh, _mm256_maddubs_epi16(hi, odd_byte));
    /* gcc 12 otherwise gathers the loads of several columns and spills the sums. */
    __asm__ volatile("" : "+x"(s->fl), "+x"(s->hl), "+x"(s->fh), "+x"(s->hh)::"memory");
}

AVX2_INLINE __m256 parameter(const uint8_t *params, bool wide, int k) {
    if (wide) return _mm256_load_ps((const float *)(const void *)params + 8 * k);
    return _mm256_cvtph_ps(_mm_load_si128((const __m128i *)(const void *)params + k));
}

/* t += alpha * (128 * hi + lo) for eight rows. */
AVX2_INLINE __m256 fold(__m256i lo_hi, __m256 alpha, __m256 t) {
    const __m256i weights = _mm256_set1_epi32(128 << 16 | 1);
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_madd_epi16(lo_hi, weights)), alpha, t);
}

/* t += alpha * sum for sixteen rows, whose words are in order of four and four. */
AVX2_INLINE void fold_words(__m256 t[2], __m256i words, __m256 first, __m256 second) {
    __m256i low = _mm256_srai_epi32(_mm256_unpacklo_epi16(words, words), 16);
    __m256i high = _mm256_srai_epi32(_mm256_unpackhi_epi16(words, words), 16);
    t[0] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(low), first, t[0]);
    t[1] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(high), second, t[1]);
}

AVX2_INLINE void fold_bytes(__m256 t[4], const struct words *s, const uint8_t *params, bool wide) {
    __m256i even = _mm256_sub_epi16(s->fl, _mm256_slli_epi16(s->hl, 8));
    fold_words(t, even, parameter(params, wide, 0), parameter(params, wide, 1));
    fold_words(t + 2, s->hl, parameter(params, wide, 2), parameter(params, wide, 3));
}

AVX2_INLINE void fold_plane(__m256 t[4], const struct words *s, const uint8_t *params, bool wide) {
    __m256i lo = _mm256_sub_epi16(s->fl, _mm256_slli_epi16(s->hl, 8));
    __m256i hi = _mm256_sub_epi16(s->fh, _mm256_slli_epi16(s->hh, 8));
    t[0] = fold(_mm256_unpacklo_epi16(lo, hi), parameter(params, wide, 0), t[0]);
    t[1] = fold(_mm256_unpackhi_epi16(lo, hi), parameter(params, wide, 1), t[1]);
    t[2] = fold(_mm256_unpacklo_epi16(s->hl, s->hh), parameter(params, wide, 2), t[2]);
    t[3] = fold(_mm256_unpackhi_epi16(s->hl, s->hh), parameter(params, wide, 3), t[3]);
}

/* y: (32) fp32, to which a step's share is added. */
AVX2_INLINE void add_step(float *y, int bits, bool wide, bool bytes, bool split,
                          const uint8_t *params, const uint8_t *code, const struct avx2_bcq_act *x,
                          const struct step *at) {
    const __m256 scale = _mm256_broadcast_ss(&x->scale);
    const __m256 sum = _mm256_broadcast_ss(&x->sums[at->sum]);
    const size_t plane_bytes = AVX2_BCQ_ROWS * (wide ? sizeof(float) : sizeof(uint16_t));
    const int stride = split ? 64 : 32;
    __m256 t[4];
    for (int k = 0; k < 4; k++) t[k] = _mm256_setzero_ps();
#pragma GCC unroll 4
    for (int plane = 0; plane < bits; plane++) {
        struct words s = {.fl = _mm256_setzero_si256(), .hl = _mm256_setzero_si256()};
        /* One entry of a column is raised by 128, of byte tables both. */
        __m256i start = _mm256_set1_epi16((short)(-128 * (bytes ? 2 : 1) * at->columns));
        *(bytes ? &s.hl : &s.hh) = start;
        *(bytes ? &s.fl : &s.fh) = _mm256_add_epi16(start, _mm256_slli_epi16(start, 8));
        for (int c = 0; c < at->columns; c += 2, code += 2 * stride) {
            if (!split) avx2_bcq_prefetch(code);
            add_column(&s, code, bytes, split, x, at->column + c);
            add_column(&s, code + stride, bytes, split, x, at->column + c + 1);
        }
        if (bytes)
            fold_bytes(t, &s, params + (size_t)plane * plane_bytes, wide);
        else
            fold_plane(t, &s, params + (size_t)plane * plane_bytes, wide);
    }
    const uint8_t *beta = params + (size_t)bits * plane_bytes;
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        __m256 v = _mm256_fmadd_ps(t[k], scale, _mm256_load_ps(y + 8 * k));
        _mm256_store_ps(y + 8 * k, _mm256_fmadd_ps(parameter(beta, wide, k), sum, v));
    }
}

/* Advances to the step that begins at input pos; next is where the block's unread bytes begin. */
AVX2_INLINE void place(struct step *at, size_t *next, const struct avx2_bcq_shape *s,
                       const struct bcq_spec *w, int pos) {
    if (pos % s->group == 0) {
        at->params = *next;
        *next += s->params;
    }
    at->code = *next;
    at->column = pos % AVX2_BCQ_SPAN / 8;
    at->columns = (avx2_bcq_min(s->step, w->cols - pos) + 15) / 16 * 2;
    at->sum = AVX2_BCQ_SPAN / s->step - 1 + pos % AVX2_BCQ_SPAN / s->step;
    *next += (size_t)(at->columns * w->bits) * 32;
}

static void store_rows(const struct avx2_bcq_mul *c, int b, int token, const float *y) {
    int row0 = b * AVX2_BCQ_ROWS;
    avx2_bcq_store(c->y + (size_t)token * c->ldy + row0, y, c->w->rows - row0);
}

AVX2_INLINE void one_token(const struct avx2_bcq_mul *c, const struct avx2_bcq_shape *s, int bits,
                           bool wide, bool bytes) {
    for (int b = c->b0; b < c->b1; b++) {
        _Alignas(32) float y[AVX2_BCQ_ROWS] = {0};
        const uint8_t *block = c->packed + (size_t)b * s->block_bytes;
        struct step at = {0};
        size_t next = 0;
        for (int pos = 0; pos < c->w->cols; pos += s->step) {
            place(&at, &next, s, c->w, pos);
            for (size_t i = at.params; pos % s->group == 0 && i < at.code; i += 64)
                avx2_bcq_prefetch(block + i);
            add_step(y, bits, wide, bytes, false, block + at.params, block + at.code,
                     avx2_bcq_at(c->act, bytes, (size_t)(pos / AVX2_BCQ_SPAN)), &at);
        }
        store_rows(c, b, 0, y);
    }
}

/* A tile of row blocks against a tile of tokens: a span's tables are used by every block of the
 * tile while they are in cache, a block's selectors by every token. */
AVX2_INLINE void tile(const struct avx2_bcq_mul *c, const struct avx2_bcq_shape *s, int bits,
                      bool wide, bool bytes, int b0, int n_blocks, int t0, int n_tokens) {
    _Alignas(64) float y[AVX2_BCQ_TILE_BLOCKS][AVX2_BCQ_TILE_TOKENS][AVX2_BCQ_ROWS];
    _Alignas(64) uint8_t code[AVX2_BCQ_COLUMNS * BCQ_MAX_BITS * 64];
    struct step at = {0};
    size_t next = 0;
    memset(y, 0, sizeof y);
    for (int pos = 0; pos < c->w->cols; pos += s->step) {
        size_t first = (size_t)(pos / AVX2_BCQ_SPAN) * (size_t)c->n + (size_t)t0;
        place(&at, &next, s, c->w, pos);
        for (int b = 0; b < n_blocks; b++) {
            const uint8_t *block = c->packed + (size_t)(b0 + b) * s->block_bytes;
            avx2_bcq_split_all(code, block + at.code, at.columns * bits);
            for (int t = 0; t < n_tokens; t++) {
                const void *x = avx2_bcq_at(c->act, bytes, first + (size_t)t);
                if (at.column == 0) avx2_bcq_prefetch_act(x, bytes, c->n, b);
                add_step(y[b][t], bits, wide, bytes, true, block + at.params, code, x, &at);
            }
        }
    }
    for (int b = 0; b < n_blocks; b++)
        for (int t = 0; t < n_tokens; t++) store_rows(c, b0 + b, t0 + t, y[b][t]);
}

AVX2_INLINE void multiply_all(const struct avx2_bcq_mul *c, int bits, bool wide, bool bytes) {
    struct avx2_bcq_shape s;
    avx2_bcq_shape(&s, c->w);
    if (c->n == 1) {
        one_token(c, &s, bits, wide, bytes);
        return;
    }
    /* Tokens outside: a tile's tables are more bytes than its weights, and so stay in cache. */
    for (int t = 0; t < c->n; t += AVX2_BCQ_TILE_TOKENS)
        for (int b = c->b0; b < c->b1; b += AVX2_BCQ_TILE_BLOCKS)
            tile(c, &s, bits, wide, bytes, b, avx2_bcq_min(c->b1 - b, AVX2_BCQ_TILE_BLOCKS), t,
                 avx2_bcq_min(c->n - t, AVX2_BCQ_TILE_TOKENS));
}

#define KERNEL(name, bits, wide, bytes)                                                            \
    static __attribute__((noinline)) void name##_##bits(const struct avx2_bcq_mul *c) {            \
        multiply_all(c, bits, wide, bytes);                                                        \
    }
#define KERNELS(name, wide, bytes)                                                                 \
    KERNEL(name, 1, wide, bytes)                                                                   \
    KERNEL(name, 2, wide, bytes) KERNEL(name, 3, wide, bytes) KERNEL(name, 4, wide, bytes)
KERNELS(half, false, false)
KERNELS(single, true, false)
KERNELS(byte_half, false, true)
KERNELS(byte_single, true, true)
#define ROW(name)                                                                                  \
    { name##_1, name##_2, name##_3, name##_4 }

void avx2_bcq_mul_free(const struct avx2_bcq_mul *c) {
    static void (*const kernels[2][2][BCQ_MAX_BITS])(const struct avx2_bcq_mul *) = {
        {ROW(half), ROW(single)}, {ROW(byte_half), ROW(byte_single)}};
    kernels[c->bytes][avx2_bcq_form(c->w) == AVX2_BCQ_FORM_SINGLE][c->w->bits - 1](c);
}
