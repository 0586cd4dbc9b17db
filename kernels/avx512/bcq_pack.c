#include "kernels/avx512/bcq_compact.h"

#include <string.h>

#include "kernels/float16.h"

/* One block of rows being repacked. */
struct source {
    const struct bcq_view *w;
    const struct avx512_bcq_shape *shape;
    uint8_t *code[BCQ_MAX_BITS]; /* the block's in each stream of it */
    uint8_t *rest;
    int row;    /* the block's first */
    int n_rows; /* that the matrix has in it */
};

/* Words of two runs, bits in order, to code words: nibble b of the first run goes to the low
 * half of byte b, of the second to the high half. */
AVX512_INLINE __m512i code_words(__m512i v) {
    const __m512i low_at = _mm512_set1_epi64(0x2c2824200c080400);
    const __m512i high_at = _mm512_set1_epi64(0x3834302c1814100c);
    return _mm512_ternarylogic_epi32(_mm512_set1_epi8(15), _mm512_multishift_epi64_epi8(low_at, v),
                                     _mm512_multishift_epi64_epi8(high_at, v), 0xca);
}

/* Words that are transposed at once: a cache line of a row's plane. A block is packed in such
 * chunks, so that all writes of one go to a few neighbouring KiB. */
enum { CHUNK = 16 };

/* The rows of a block are read in an order that no processor foresees: each line that is read
 * asks for the one that far from it in the next block, whose rows follow in memory. */
AVX512_INLINE void ahead(const void *row, size_t row_bytes) {
    _mm_prefetch((const char *)((uintptr_t)row + AVX512_BCQ_ROWS * row_bytes), _MM_HINT_T1);
}

/* Words first..first+15 of a plane of a unit's rows, zero past the matrix. */
static void load_words(__m512i out[16], const struct source *s, int unit, int plane, int first) {
    const struct bcq_view *w = s->w;
    size_t stride = (size_t)w->spec.bits * (size_t)w->layout.plane_words;
    const uint32_t *row = w->planes + (size_t)(s->row + 16 * unit) * stride +
                          (size_t)plane * (size_t)w->layout.plane_words + first;
    int left = w->layout.plane_words - first, rows = s->n_rows - 16 * unit;
    __mmask16 words = left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1);
    AVX512_UNROLL for (int i = 0; i < 16; i++) if (i < rows) {
        out[i] = _mm512_maskz_loadu_epi32(words, row + (size_t)i * stride);
        ahead(row + (size_t)i * stride, stride * sizeof *row);
    }
    else {
        out[i] = _mm512_setzero_si512();
    }
    avx512_transpose(out);
}

/* ---- compact ---- */

/* The number of the half of 64 inputs of a unit in the block, where it has its words of q and p, and where
 * a span has its fifth bits. */
static size_t half_of(const struct source *s, int unit, int half) {
    int span = half / 2, in_span = avx512_min(2, (s->shape->words + 1) / 2 - 2 * span);
    return (size_t)(2 * AVX512_BCQ_UNITS * span + unit * in_span + half % 2);
}

static uint8_t *fifths_at(const struct source *s, int span) {
    return s->rest + avx512_compact_span_at(s->shape->bits, span);
}

static uint8_t *nibbles_at(const struct source *s, int unit, int half) {
    return fifths_at(s, half / 2) + 64 + 64 * (half_of(s, unit, half) % (2 * AVX512_BCQ_UNITS));
}

static void compact_code(const struct source *s, int unit, int first) {
    int bits = s->shape->bits, n = avx512_min(CHUNK, s->shape->words - first);
    for (int p = 0; p < bits; p++) {
        __m512i v[CHUNK];
        load_words(v, s, unit, p, first);
        for (int i = 0; i < n; i += 2) {
            uint8_t *half = s->code[p] + 128 * half_of(s, unit, (first + i) / 2);
            _mm512_store_si512(half, code_words(v[i]));
            if (i + 1 < n) _mm512_store_si512(half + 64, code_words(v[i + 1]));
        }
    }
}

static void compact_head(const struct source *s) {
    int bits = s->shape->bits;
    for (int i = 0; i < s->n_rows; i++) {
        size_t row = (size_t)(s->row + i);
        memcpy(s->rest + 2 * i, s->w->row_scale + 2 * row, 2);
        memcpy(s->rest + 128 + 2 * i, s->w->row_scale + 2 * row + 1, 2);
        for (int p = 0; p < bits; p++)
            s->rest[256 + 64 * p + i] = s->w->shape[row * (size_t)bits + (size_t)p];
    }
}

/* The fields of a row's 8 runs from run on, a byte each; runs past the matrix are 0. */
static uint64_t fields_of_span(const uint8_t *fields, size_t n_bytes, int width, int run,
                               const struct avx512_bcq_shape *s) {
    uint64_t out = 0;
    if (s->group == 16) {
        /* 8 fields are width whole bytes. */
        size_t at = (size_t)run / 8 * (size_t)width;
        if (n_bytes - at >= sizeof out)
            memcpy(&out, fields + at, sizeof out);
        else
            memcpy(&out, fields + at, n_bytes - at);
        return _pdep_u64(out, 0x0101010101010101u * ((1u << width) - 1));
    }
    for (int i = 0, group = -1, v = 0; i < 8 && run + i < s->runs; i++) {
        int g = 16 * (run + i) / s->group;
        if (g != group) v = (int)bcq_get(fields, width, g);
        group = g;
        out |= (uint64_t)v << (8 * i);
    }
    return out;
}

/* Four bytes below 16 to nibbles: 0 and 2 in byte 0, 1 and 3 in byte 1. */
static uint32_t nibbles(uint64_t v) {
    uint32_t u = (uint32_t)v & 0x0f0f0f0fu;
    return (u | u >> 12) & 0xffffu;
}

/* q and p of a row's span. */
static void compact_fields(const struct source *s, int row, int span) {
    const struct bcq_spec *w = &s->w->spec;
    const struct bcq_layout *l = &s->w->layout;
    const uint8_t *q = s->w->q + (size_t)(s->row + row) * l->q_stride;
    const uint8_t *p = s->w->p + (size_t)(s->row + row) * l->p_stride;
    const uint64_t bytes = 0x0101010101010101u, sign = bytes << (w->bias_bits - 1);
    int unit = row / 16, halves = (s->shape->words + 1) / 2;
    uint64_t qs = fields_of_span(q, l->q_stride, w->scale_bits, 8 * span, s->shape);
    uint64_t ps = fields_of_span(p, l->p_stride, w->bias_bits, 8 * span, s->shape);
    /* Two's complement to p + 16; both steps stay inside the bytes. */
    ps = (ps ^ sign) + bytes * (16u - (1u << (w->bias_bits - 1)));
    fifths_at(s, span)[4 * (row % 16) + unit] = (uint8_t)_pext_u64(ps, bytes << 4);
    uint8_t *line = nibbles_at(s, unit, 2 * span);
    for (int h = 0; h < 2 && 2 * span + h < halves; h++, qs >>= 32, ps >>= 32) {
        uint32_t word = _pdep_u32(nibbles(qs), 0x00ff00ff) | _pdep_u32(nibbles(ps), 0xff00ff00);
        memcpy(line + 4 * (row % 16), &word, 4);
        line += 64;
    }
}

/* Spans whose fields of 4 and 5 bits are taken from a unit's rows at once. */
enum { FIELD_SPANS = 8 };

/* q: the 8 nibbles of a row's span in a word. low, high: bits 0-31 and 8-39 of its p of 5 bits. */
struct fields {
    __m512i q[16], high[16]; /* low: q[FIELD_SPANS..] */
};

static void load_fields(struct fields *out, const struct source *s, int unit, int span) {
    const struct bcq_layout *l = &s->w->layout;
    const uint8_t *q = s->w->q + (size_t)(s->row + 16 * unit) * l->q_stride + 4 * (size_t)span;
    const uint8_t *p = s->w->p + (size_t)(s->row + 16 * unit) * l->p_stride + 5 * (size_t)span;
    size_t left_q = l->q_stride - 4 * (size_t)span, left_p = l->p_stride - 5 * (size_t)span;
    __mmask32 mask_q = left_q < 32 ? (1u << left_q) - 1 : ~0u;
    __mmask64 mask_p = left_p < 40 ? ((uint64_t)1 << left_p) - 1 : ((uint64_t)1 << 40) - 1;
    uint8_t low_at[64], high_at[64] = {0};
    for (int i = 0; i < 32; i++) {
        low_at[i] = (uint8_t)i;
        low_at[32 + i] = (uint8_t)(64 + i / 4 * 5 + i % 4);
        high_at[i] = (uint8_t)(i / 4 * 5 + i % 4 + 1);
    }
    const __m512i low = _mm512_loadu_si512(low_at), high = _mm512_loadu_si512(high_at);
    AVX512_UNROLL for (int i = 0; i < 16; i++) {
        bool there = i < s->n_rows - 16 * unit;
        const __m512i vq = _mm512_castsi256_si512(
            _mm256_maskz_loadu_epi8(there ? mask_q : 0, q + (size_t)i * l->q_stride));
        const __m512i vp = _mm512_maskz_loadu_epi8(there ? mask_p : 0, p + (size_t)i * l->p_stride);
        ahead(q + (size_t)i * l->q_stride, l->q_stride);
        ahead(p + (size_t)i * l->p_stride, l->p_stride);
        out->q[i] = _mm512_permutex2var_epi8(vq, low, vp);
        out->high[i] = _mm512_permutexvar_epi8(high, vp);
    }
    avx512_transpose(out->q);
    avx512_transpose(out->high);
}

/* to | (v & mask) */
AVX512_INLINE __m512i with(__m512i to, __m512i v, uint32_t mask) {
    return _mm512_ternarylogic_epi32(to, v, _mm512_set1_epi32((int)mask), 0xf8);
}

/* Words of q and p of a span's halves; what compact_fields() makes. */
AVX512_INLINE void field_words(__m512i out[2], __m512i q, __m512i low, __m512i high) {
    const __m512i none = _mm512_setzero_si512();
    __m512i even = _mm512_and_si512(q, _mm512_set1_epi32(0x0f0f0f0f));
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(q, 4), _mm512_set1_epi32(0x0f0f0f0f));
    even = _mm512_or_si512(even, _mm512_srli_epi32(even, 4));
    odd = _mm512_or_si512(odd, _mm512_srli_epi32(odd, 4));
    __m512i v = with(with(none, even, 0xff), _mm512_slli_epi32(odd, 16), 0xff0000);
    v = with(with(v, _mm512_slli_epi32(low, 8), 0xf00), _mm512_slli_epi32(low, 2), 0xf000);
    out[0] = with(with(v, _mm512_slli_epi32(low, 19), 0xf000000), _mm512_slli_epi32(low, 13),
                  0xf0000000);
    v = with(with(none, _mm512_srli_epi32(even, 16), 0xff), odd, 0xff0000);
    v = with(with(v, _mm512_srli_epi32(low, 12), 0xf00), _mm512_srli_epi32(high, 10), 0xf000);
    out[1] =
        with(with(v, _mm512_srli_epi32(low, 1), 0xf000000), _mm512_slli_epi32(high, 1), 0xf0000000);
}

/* Bit 4 of p + 16 of run g at bit g. */
AVX512_INLINE __m512i fifth_bits(__m512i low, __m512i high) {
    __m512i v = _mm512_and_si512(_mm512_srli_epi32(low, 4), _mm512_set1_epi32(1));
    v = with(with(v, _mm512_srli_epi32(low, 8), 2), _mm512_srli_epi32(low, 12), 4);
    v = with(with(v, _mm512_srli_epi32(low, 16), 8), _mm512_srli_epi32(low, 20), 16);
    v = with(with(v, _mm512_srli_epi32(low, 24), 32), _mm512_srli_epi32(high, 20), 64);
    v = with(v, _mm512_srli_epi32(high, 24), 128);
    return _mm512_xor_si512(v, _mm512_set1_epi32(255));
}

/* compact_fields() of all rows for FIELD_SPANS spans: q of 4 bits, p of 5, groups of 16. */
static void usual_fields(const struct source *s, int span) {
    int n = avx512_min(FIELD_SPANS, s->shape->spans - span), halves = (s->shape->words + 1) / 2;
    __m512i fifth[FIELD_SPANS], words[2];
    struct fields f;
    for (int i = 0; i < FIELD_SPANS; i++) fifth[i] = _mm512_setzero_si512();
    for (int unit = 0; unit < AVX512_BCQ_UNITS; unit++) {
        load_fields(&f, s, unit, span);
        for (int i = 0; i < n; i++) {
            const __m512i low = f.q[FIELD_SPANS + i], high = f.high[i];
            const __m128i place = _mm_cvtsi32_si128(8 * unit);
            uint8_t *line = nibbles_at(s, unit, 2 * (span + i));
            field_words(words, f.q[i], low, high);
            _mm512_store_si512(line, words[0]);
            if (2 * (span + i) + 1 < halves) _mm512_store_si512(line + 64, words[1]);
            fifth[i] = _mm512_or_si512(fifth[i], _mm512_sll_epi32(fifth_bits(low, high), place));
        }
    }
    for (int i = 0; i < n; i++) _mm512_store_si512(fifths_at(s, span + i), fifth[i]);
}

static void pack_compact(const struct source *s) {
    const struct bcq_spec *w = &s->w->spec;
    bool usual = w->group == 16 && w->scale_bits == 4 && w->bias_bits == 5;
    compact_head(s);
    for (int first = 0; first < s->shape->words; first += CHUNK) {
        int span = first / 4, end = avx512_min(span + CHUNK / 4, s->shape->spans);
        for (int unit = 0; unit < AVX512_BCQ_UNITS; unit++) compact_code(s, unit, first);
        if (usual && span % FIELD_SPANS == 0) usual_fields(s, span);
        for (; span < end && !usual; span++)
            for (int row = 0; row < s->n_rows; row++) compact_fields(s, row, span);
    }
}

/* ---- free ---- */

static uint8_t *params_at(const struct source *s, int piece, int unit) {
    return s->rest + (size_t)(piece * AVX512_BCQ_UNITS + unit) * s->shape->params;
}

static void free_words(const struct source *s, int unit, int first) {
    int bits = s->shape->bits, per = s->shape->piece / 32;
    int n = avx512_min(CHUNK, s->shape->words - first);
    for (int p = 0; p < bits; p++) {
        __m512i v[CHUNK];
        load_words(v, s, unit, p, first);
        for (int w = 0, piece = first / per; w < n; piece++) {
            uint8_t *to = s->code[p] + avx512_bcq_piece_at(s->shape, piece, unit);
            for (int end = avx512_min(w + per, n); w < end; w++, to += 64)
                _mm512_store_si512(to, code_words(v[w]));
        }
    }
}

/* Pieces of one run: the same run of two planes makes a code word. */
static void free_runs(const struct source *s, int unit, int first) {
    const __m512i low = _mm512_set1_epi32(0xffff);
    int bits = s->shape->bits, end = avx512_min(first + CHUNK, s->shape->words);
    for (int p = 0; p < bits; p += 2) {
        __m512i a[CHUNK], b[CHUNK];
        load_words(a, s, unit, p, first);
        for (int i = 0; i < CHUNK; i++) b[i] = _mm512_setzero_si512();
        if (p + 1 < bits) load_words(b, s, unit, p + 1, first);
        for (int w = first; w < end; w++) {
            __m512i va = a[w - first], vb = b[w - first];
            __m512i even = _mm512_or_si512(_mm512_and_si512(va, low), _mm512_slli_epi32(vb, 16));
            __m512i odd = _mm512_or_si512(_mm512_srli_epi32(va, 16), _mm512_andnot_si512(low, vb));
            _mm512_store_si512(s->code[p / 2] + avx512_bcq_piece_at(s->shape, 2 * w, unit),
                               code_words(even));
            if (2 * w + 1 < s->shape->runs)
                _mm512_store_si512(s->code[p / 2] + avx512_bcq_piece_at(s->shape, 2 * w + 1, unit),
                                   code_words(odd));
        }
    }
}

/* Pieces that have parameters of their own in the block, and how many of them a group has. */
static int param_pieces(const struct avx512_bcq_shape *f) {
    return f->row ? 1 : (f->cols + f->piece - 1) / f->piece;
}

static int pieces_of_group(const struct avx512_bcq_shape *f) {
    return f->row ? 1 : f->group / f->piece;
}

/* fp32, from any kind. */
static void wide_params(const struct source *s) {
    int bits = s->shape->bits, pieces = param_pieces(s->shape), per = pieces_of_group(s->shape);
    for (int piece = 0; piece < pieces; piece++)
        for (int row = 0; row < s->n_rows; row++) {
            float params[BCQ_MAX_BITS + 1];
            uint8_t *out = params_at(s, piece, row / 16) + 4 * (row % 16);
            bcq_group_params(s->w, s->row + row, piece / per, params, &params[bits]);
            for (int p = 0; p <= bits; p++) memcpy(out + 64 * p, &params[p], 4);
        }
}

/* One parameter of a unit's rows, in the lower halves of words, to each piece of a group. */
static void put_half(const struct source *s, int unit, int group, int param, __m512i rows) {
    int per = pieces_of_group(s->shape), piece = group * per;
    int end = avx512_min(piece + per, param_pieces(s->shape));
    const __m256i v = _mm512_cvtepi32_epi16(rows);
    for (; piece < end; piece++)
        _mm256_store_si256((__m256i *)(params_at(s, piece, unit) + 32 * param), v);
}

/* n parameters of each group, the first of them number param of a piece; from: those of the matrix,
 * (rows, groups, n) fp16. Two of a row are a word: 32 are transposed at once. */
static void half_params(const struct source *s, int unit, const uint16_t *from, int n, int param) {
    size_t row_halves = (size_t)s->w->layout.n_groups * (size_t)n;
    int group = 0, at = 0;
    from += (size_t)(s->row + 16 * unit) * row_halves;
    for (size_t first = 0; first < row_halves; first += 32) {
        int left = (int)(row_halves - first);
        __mmask32 halves = left < 32 ? (1u << left) - 1 : ~0u;
        __m512i v[16];
        AVX512_UNROLL for (int i = 0; i < 16; i++) {
            const uint16_t *row = from + (size_t)i * row_halves + first;
            v[i] = _mm512_maskz_loadu_epi16(i < s->n_rows - 16 * unit ? halves : 0, row);
            ahead(row, row_halves * sizeof *row);
        }
        avx512_transpose(v);
        for (int i = 0; i < avx512_min(left, 32); i++) {
            put_half(s, unit, group, param + at,
                     i % 2 ? _mm512_srli_epi32(v[i / 2], 16) : v[i / 2]);
            if (++at < n) continue;
            at = 0;
            group++;
        }
    }
}

static void pack_free(const struct source *s) {
    const struct avx512_bcq_shape *f = s->shape;
    for (int first = 0; first < f->words; first += CHUNK)
        for (int unit = 0; unit < AVX512_BCQ_UNITS; unit++)
            (f->piece == 16 ? free_runs : free_words)(s, unit, first);
    if (f->wide) wide_params(s);
    for (int unit = 0; unit < AVX512_BCQ_UNITS && !f->wide; unit++) {
        half_params(s, unit, s->w->alpha, f->bits, 0);
        half_params(s, unit, s->w->beta, 1, f->bits);
    }
}

/* ---- odd ---- */

/* Plane bits of a run; past cols they do not matter. */
static uint32_t run_bits(const struct source *s, int row, int plane, int run) {
    const struct bcq_view *w = s->w;
    size_t words = (size_t)w->layout.plane_words;
    size_t first = ((size_t)(s->row + row) * (size_t)w->spec.bits + (size_t)plane) * words;
    return w->planes[first + (size_t)run / 2] >> (run % 2 * 16) & 0xffffu;
}

static void odd_row(const struct source *s, uint8_t *unit, int row, int run, int group) {
    int bits = s->shape->bits, first = group * s->shape->group - 16 * run;
    int last = first + s->shape->group;
    uint32_t from = 0xffffu << (first > 0 ? first : 0), to = 0xffffu >> (16 - avx512_min(last, 16));
    uint32_t own = from & to;
    float params[BCQ_MAX_BITS + 1];
    bcq_group_params(s->w, s->row + row, group, params, &params[bits]);
    for (int p = 0; p <= bits; p++) {
        uint32_t v = own & (p < bits ? run_bits(s, row, p, run) : own);
        uint32_t word = _pdep_u32(v, 0x0f0f0f0f) | _pdep_u32(v | (own ^ 0xffffu), 0xf0f0f0f0);
        float half = 0.5f * params[p];
        memcpy(unit + 64 * p + 4 * (row % 16), &half, 4);
        memcpy(unit + 64 * (bits + 1 + p) + 4 * (row % 16), &word, 4);
    }
}

static void pack_odd(const struct source *s) {
    uint8_t *at = s->rest;
    for (int run = 0; run < s->shape->runs; run++) {
        int first, last;
        avx512_bcq_groups_of(s->shape, run, &first, &last);
        for (int g = first; g <= last; g++, at += AVX512_BCQ_UNITS * 2 * s->shape->params)
            for (int row = 0; row < s->n_rows; row++)
                odd_row(s, at + (size_t)(row / 16) * 2 * s->shape->params, row, run, g);
    }
}

void avx512_bcq_pack(void *dst, const struct bcq_view *w, int b0, int b1) {
    struct avx512_bcq_shape shape;
    avx512_bcq_shape(&shape, &w->spec);
    for (int b = b0; b < b1; b++) {
        int row = b * AVX512_BCQ_ROWS;
        struct source s = {.w = w,
                           .shape = &shape,
                           .rest = (uint8_t *)dst + avx512_bcq_rest_at(&shape, b),
                           .row = row,
                           .n_rows = avx512_min(w->spec.rows - row, AVX512_BCQ_ROWS)};
        for (int i = 0; i < shape.streams; i++)
            s.code[i] = (uint8_t *)dst + avx512_bcq_code_at(&shape, i, b);
        if (shape.form == AVX512_BCQ_COMPACT) pack_compact(&s);
        if (shape.form == AVX512_BCQ_FREE) pack_free(&s);
        if (shape.form == AVX512_BCQ_ODD) pack_odd(&s);
    }
}
