#include "kernels/avx2/bcq.h"

#include <string.h>

/* Interleaving words 0-3 | 8-11 and 4-7 | 12-15 of a half block yields rows 0-7 and 8-15. */
static const uint8_t order[16] = {0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15};

enum {
    AHEAD = 256 /* rows are read as a hundred streams, too many for the processor to foresee */
};

static bool whole_row(const struct bcq_spec *w) { return w->group >= w->cols; }

enum avx2_bcq_form avx2_bcq_form(const struct bcq_spec *w) {
    if (w->cols <= AVX2_BCQ_FEW) return AVX2_BCQ_FORM_FEW;
    if (w->group % 16 != 0 && !whole_row(w)) return AVX2_BCQ_FORM_ODD;
    if (w->kind == BCQ_FREE) return AVX2_BCQ_FORM_HALF;
    /* Bounds of the integer sums: q in 4 bits, p in 5. */
    if (w->kind == BCQ_COMPACT && w->scale_bits <= 4 && w->bias_bits <= 5)
        return AVX2_BCQ_FORM_COMPACT;
    return AVX2_BCQ_FORM_SINGLE;
}

static int round_up(int n, int to) { return (n + to - 1) / to * to; }

void avx2_bcq_shape(struct avx2_bcq_shape *ret, const struct bcq_spec *w) {
    struct avx2_bcq_shape s = {.form = avx2_bcq_form(w)};
    size_t bits = (size_t)w->bits;
    s.spans = round_up(w->cols, AVX2_BCQ_SPAN) / AVX2_BCQ_SPAN;
    s.group = whole_row(w) ? s.spans * AVX2_BCQ_SPAN : w->group;
    s.step = s.group & -s.group; /* its largest power of two */
    if (s.step > AVX2_BCQ_SPAN) s.step = AVX2_BCQ_SPAN;
    size_t n_groups = (size_t)((w->cols - 1) / s.group) + 1;
    size_t parameter = s.form == AVX2_BCQ_FORM_HALF ? sizeof(uint16_t) : sizeof(float);
    s.params = AVX2_BCQ_ROWS * parameter * (bits + 1);
    if (s.form == AVX2_BCQ_FORM_COMPACT) {
        s.head = 64 * ((bits + 1) / 2) + 128;
        s.unit = AVX2_BCQ_META + AVX2_BCQ_COLUMNS * bits * 32;
        s.block_bytes = s.head + (size_t)s.spans * AVX2_BCQ_META +
                        (size_t)round_up(w->cols, 32) / 8 * bits * 32;
    } else if (s.form == AVX2_BCQ_FORM_FEW) {
        s.block_bytes = (size_t)w->cols * AVX2_BCQ_ROWS * sizeof(float);
    } else {
        s.head = n_groups * s.params;
        s.block_bytes = s.head + (size_t)round_up(w->cols, 16) / 8 * bits * 32;
    }
    *ret = s;
}

size_t avx2_bcq_pack_bytes(const struct bcq_spec *w) {
    struct avx2_bcq_shape s;
    avx2_bcq_shape(&s, w);
    return (size_t)(round_up(w->rows, AVX2_BCQ_ROWS) / AVX2_BCQ_ROWS) * s.block_bytes;
}

/* The code bytes of a block and span, [plane][half][column], each in the order of words. */
struct tile {
    __m128i column[BCQ_MAX_BITS][2][AVX2_BCQ_COLUMNS];
};

/* One stage of a 16 x 16 byte transposition; four of them make it. */
AVX2_INLINE void interleave(__m128i out[16], const __m128i in[16]) {
    for (int i = 0; i < 8; i++) {
        out[2 * i] = _mm_unpacklo_epi8(in[i], in[i + 8]);
        out[2 * i + 1] = _mm_unpackhi_epi8(in[i], in[i + 8]);
    }
}

static void load_tile(struct tile *out, const struct bcq_view *w, int row0, int span) {
    size_t words = (size_t)w->layout.plane_words, first = (size_t)span * 4;
    size_t n_bytes = words - first < 4 ? (words - first) * 4 : 16;
    for (int plane = 0; plane < w->spec.bits; plane++)
        for (int half = 0; half < 2; half++) {
            __m128i a[16], b[16];
            for (int u = 0; u < 16; u++) {
                int row = row0 + 16 * half + order[u];
                a[u] = _mm_setzero_si128();
                if (row >= w->spec.rows) continue;
                size_t at = ((size_t)row * (size_t)w->spec.bits + (size_t)plane) * words + first;
                const uint8_t *from = (const uint8_t *)(w->planes + at);
                _mm_prefetch((const char *)((uintptr_t)from + AHEAD), _MM_HINT_T0);
                if (n_bytes == sizeof a[u])
                    a[u] = _mm_loadu_si128((const void *)from);
                else
                    memcpy(&a[u], from, n_bytes);
            }
            interleave(b, a);
            interleave(a, b);
            interleave(b, a);
            interleave(out->column[plane][half], b);
        }
}

static void store_pair(uint8_t *dst, __m128i even, __m128i odd) {
    _mm_store_si128((__m128i *)dst, _mm_unpacklo_epi8(even, odd));
    _mm_store_si128((__m128i *)(dst + 16), _mm_unpackhi_epi8(even, odd));
}

/* Code of one plane: both halves of the block in a vector. */
static void store_plane(uint8_t *dst, const struct tile *t, int plane, int column) {
    store_pair(dst, t->column[plane][0][column], t->column[plane][1][column]);
}

static void pack_head(uint8_t *head, const struct bcq_view *w, int row0) {
    int bits = w->spec.bits, pairs = bits / 2;
    uint8_t *scales = head + (size_t)(bits + 1) / 2 * 64;
    for (int half = 0; half < 2; half++)
        for (int u = 0; u < 16; u++) {
            int in_block = 16 * half + order[u], row = row0 + in_block;
            if (row >= w->spec.rows) continue;
            const uint8_t *d = w->shape + (size_t)row * (size_t)bits;
            for (int pair = 0; pair < pairs; pair++)
                memcpy(head + 64 * pair + 32 * half + 2 * u, d + 2 * pair, 2);
            if (bits % 2) head[64 * pairs + 32 * half + 2 * u + half] = d[bits - 1];
            memcpy(scales + 2 * in_block, w->row_scale + 2 * row, 2);
            memcpy(scales + 64 + 2 * in_block, w->row_scale + 2 * row + 1, 2);
        }
}

/* Eight fields, one for each 16 inputs of a span, as bytes; zero past the last group. */
static uint64_t span_fields(const uint8_t *fields, int width, const struct avx2_bcq_shape *s,
                            int n_groups, int span) {
    uint64_t all = 0;
    if (s->group == 16 && (span + 1) * 8 <= n_groups) {
        size_t at = (size_t)span * (size_t)width;
        size_t n_bytes = (size_t)n_groups * (size_t)width / 8 - at;
        _mm_prefetch((const char *)((uintptr_t)fields + at + 64), _MM_HINT_T0);
        if (n_bytes >= sizeof all)
            memcpy(&all, fields + at, sizeof all);
        else
            memcpy(&all, fields + at, n_bytes);
        return _pdep_u64(all, 0x0101010101010101u * ((1u << width) - 1));
    }
    int from = span * AVX2_BCQ_SPAN, group = from / s->group, end = (group + 1) * s->group;
    uint64_t value = bcq_get(fields, width, group);
    for (int i = 0; i < 8; i++, from += 16) {
        if (from == end) {
            if (++group == n_groups) break;
            value = bcq_get(fields, width, group);
            end += s->group;
        }
        all |= value << (8 * i);
    }
    return all;
}

/* q of groups 2j, 2j+1 at bits 4j, 16+4j of a row's 32-bit lane. p likewise in words: group 0 or
 * 1 in the topmost five bits, 2 or 3 below, 4 or 5 below that; 6 and 7 as bytes. */
static void pack_meta(uint8_t *meta, const struct bcq_view *w, const struct avx2_bcq_shape *s,
                      int row0, int span) {
    const int a = w->spec.scale_bits, b = w->spec.bias_bits;
    int n_rows = avx2_bcq_min(w->spec.rows - row0, AVX2_BCQ_ROWS);
    const uint64_t ones = 0x0101010101010101u, extension = 256u - (1u << b);
    for (int i = 0; i < n_rows; i++) {
        size_t row = (size_t)(row0 + i);
        uint64_t q = span_fields(w->q + row * w->layout.q_stride, a, s, w->layout.n_groups, span);
        uint64_t p = span_fields(w->p + row * w->layout.p_stride, b, s, w->layout.n_groups, span);
        p |= (p >> (b - 1) & ones) * extension; /* signed bytes */
        uint32_t lane =
            (uint32_t)(_pext_u64(q, 0x000f000f000f000fu) | _pext_u64(q, 0x0f000f000f000f00u) << 16);
        memcpy(meta + 4 * i, &lane, 4);
        uint64_t even = _pext_u64(p, 0x0000001f001f001fu), odd = _pext_u64(p, 0x00001f001f001f00u);
        lane = (uint32_t)((even & 31) << 11 | (even >> 5 & 31) << 6 | (even >> 10) << 1 |
                          (odd & 31) << 27 | (odd >> 5 & 31) << 22 | (odd >> 10) << 17);
        memcpy(meta + 128 + 4 * i, &lane, 4);
        memcpy(meta + 256 + 2 * i, (const uint8_t *)&p + 6, 2);
    }
}

/* What pack_meta() makes of q of 4 bits and p of 5 bits of groups of 16, eight rows at a time: q holds the
 * q of a span, p the first and the last 32 of its 40 bits. */
static void pack_meta_rows(uint8_t *meta, int first, const uint32_t q[8], uint32_t p[2][8]) {
    const __m256i low = _mm256_set1_epi8(15), merge = _mm256_set1_epi16(16 << 8 | 1);
    const __m256i join = _mm256_set1_epi32(256 << 16 | 1);
    __m256i v = _mm256_loadu_si256((const __m256i *)q);
    __m256i even = _mm256_maddubs_epi16(_mm256_and_si256(v, low), merge);
    __m256i odd = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(v, 4), low), merge);
    odd = _mm256_slli_epi32(_mm256_madd_epi16(odd, join), 16);
    _mm256_store_si256((__m256i *)(meta + 4 * first),
                       _mm256_or_si256(_mm256_madd_epi16(even, join), odd));
#define FIELD(shifted, mask) _mm256_and_si256(shifted, _mm256_set1_epi32((int)(mask)))
    v = _mm256_loadu_si256((const __m256i *)p[0]);
    even = _mm256_or_si256(FIELD(_mm256_slli_epi32(v, 11), 31u << 11),
                           FIELD(_mm256_srli_epi32(v, 4), 31u << 6));
    even = _mm256_or_si256(even, FIELD(_mm256_srli_epi32(v, 19), 31u << 1));
    odd = _mm256_or_si256(FIELD(_mm256_slli_epi32(v, 22), 31u << 27),
                          FIELD(_mm256_slli_epi32(v, 7), 31u << 22));
    odd = _mm256_or_si256(odd, FIELD(_mm256_srli_epi32(v, 8), 31u << 17));
    _mm256_store_si256((__m256i *)(meta + 128 + 4 * first), _mm256_or_si256(even, odd));
    v = _mm256_loadu_si256((const __m256i *)p[1]);
    even = FIELD(_mm256_srai_epi32(_mm256_slli_epi32(v, 5), 27), 0xff);
    odd = FIELD(_mm256_slli_epi32(_mm256_srai_epi32(v, 27), 8), 0xff00);
#undef FIELD
    v = _mm256_or_si256(even, odd);
    v = _mm256_permute4x64_epi64(_mm256_packus_epi32(v, v), 0xd8);
    _mm_store_si128((__m128i *)(meta + 256 + 2 * first), _mm256_castsi256_si128(v));
}

static void pack_meta_usual(uint8_t *meta, const struct bcq_view *w, int row0, int span) {
    const struct bcq_layout *l = &w->layout;
    for (int first = 0; first < AVX2_BCQ_ROWS; first += 8) {
        uint32_t q[8] = {0}, p[2][8] = {{0}};
        for (int i = 0; i < avx2_bcq_min(w->spec.rows - row0 - first, 8); i++) {
            size_t row = (size_t)(row0 + first + i), at = (size_t)span;
            const uint8_t *from_q = w->q + row * l->q_stride + 4 * at;
            const uint8_t *from_p = w->p + row * l->p_stride + 5 * at;
            _mm_prefetch((const char *)((uintptr_t)from_q + 64), _MM_HINT_T0);
            _mm_prefetch((const char *)((uintptr_t)from_p + 64), _MM_HINT_T0);
            memcpy(&q[i], from_q, 4);
            memcpy(&p[0][i], from_p, 4);
            memcpy(&p[1][i], from_p + 1, 4);
        }
        pack_meta_rows(meta, first, q, p);
    }
}

static void pack_compact(uint8_t *dst, const struct bcq_view *w, const struct avx2_bcq_shape *s,
                         int row0) {
    int bits = w->spec.bits;
    bool usual = w->spec.group == 16 && w->spec.scale_bits == 4 && w->spec.bias_bits == 5;
    pack_head(dst, w, row0);
    for (int span = 0; span < s->spans; span++) {
        struct tile t;
        uint8_t *unit = dst + s->head + (size_t)span * s->unit, *code = unit + AVX2_BCQ_META;
        int columns = round_up(w->spec.cols - span * AVX2_BCQ_SPAN, 32) / 8;
        if (usual && (span + 1) * 8 <= w->layout.n_groups)
            pack_meta_usual(unit, w, row0, span);
        else
            pack_meta(unit, w, s, row0, span);
        load_tile(&t, w, row0, span);
        for (int c = 0; c < avx2_bcq_min(columns, AVX2_BCQ_COLUMNS); c++) {
            for (int plane = 0; plane + 1 < bits; plane += 2)
                for (int half = 0; half < 2; half++, code += 32)
                    store_pair(code, t.column[plane][half][c], t.column[plane + 1][half][c]);
            if (bits % 2) {
                store_plane(code, &t, bits - 1, c);
                code += 32;
            }
        }
    }
}

/* A group's parameters as fp16, as they are stored. */
static void pack_half_params(uint8_t *dst, const struct bcq_view *w, int row0, int group) {
    size_t bits = (size_t)w->spec.bits;
    uint16_t *out = (uint16_t *)(void *)dst;
    for (int i = 0; i < avx2_bcq_min(w->spec.rows - row0, AVX2_BCQ_ROWS); i++) {
        size_t at = (size_t)(row0 + i) * (size_t)w->layout.n_groups + (size_t)group;
        for (size_t plane = 0; plane < bits; plane++)
            out[AVX2_BCQ_ROWS * plane + (size_t)i] = w->alpha[at * bits + plane];
        out[AVX2_BCQ_ROWS * bits + (size_t)i] = w->beta[at];
    }
}

static void pack_single_params(uint8_t *dst, const struct bcq_view *w, int row0, int group,
                               float scale) {
    int bits = w->spec.bits;
    float *out = (float *)(void *)dst, alpha[BCQ_MAX_BITS], beta;
    for (int i = 0; i < avx2_bcq_min(w->spec.rows - row0, AVX2_BCQ_ROWS); i++) {
        bcq_group_params(w, row0 + i, group, alpha, &beta);
        for (int plane = 0; plane < bits; plane++)
            out[AVX2_BCQ_ROWS * plane + i] = scale * alpha[plane];
        out[AVX2_BCQ_ROWS * bits + i] = scale * beta;
    }
}

static void pack_free(uint8_t *dst, const struct bcq_view *w, const struct avx2_bcq_shape *s,
                      int row0) {
    struct tile t;
    for (int at = 0; at < w->spec.cols; at += s->step) {
        int column = at % AVX2_BCQ_SPAN / 8;
        int columns = round_up(avx2_bcq_min(s->step, w->spec.cols - at), 16) / 8;
        if (column == 0) load_tile(&t, w, row0, at / AVX2_BCQ_SPAN);
        if (at % s->group == 0) {
            if (s->form == AVX2_BCQ_FORM_HALF)
                pack_half_params(dst, w, row0, at / s->group);
            else
                pack_single_params(dst, w, row0, at / s->group, 1);
            dst += s->params;
        }
        for (int plane = 0; plane < w->spec.bits; plane++)
            for (int c = column; c < column + columns; c++, dst += 32)
                store_plane(dst, &t, plane, c);
    }
}

static void pack_odd(uint8_t *dst, const struct bcq_view *w, const struct avx2_bcq_shape *s,
                     int row0) {
    struct tile t;
    /* Halved: a masked sum is half the sum of two table entries. */
    for (int group = 0; group < w->layout.n_groups; group++, dst += s->params)
        pack_single_params(dst, w, row0, group, 0.5f);
    for (int c = 0; c < round_up(w->spec.cols, 16) / 8; c++) {
        if (c % AVX2_BCQ_COLUMNS == 0) load_tile(&t, w, row0, c / AVX2_BCQ_COLUMNS);
        for (int plane = 0; plane < w->spec.bits; plane++, dst += 32)
            store_plane(dst, &t, plane, c % AVX2_BCQ_COLUMNS);
    }
}

static void pack_few(uint8_t *dst, const struct bcq_view *w, int row0) {
    float *out = (float *)(void *)dst, row[AVX2_BCQ_FEW];
    for (int i = 0; i < avx2_bcq_min(w->spec.rows - row0, AVX2_BCQ_ROWS); i++) {
        bcq_expand_row(w, row0 + i, row);
        for (int k = 0; k < w->spec.cols; k++) out[AVX2_BCQ_ROWS * k + i] = row[k];
    }
}

void avx2_bcq_pack(void *dst, const struct bcq_view *w, int b0, int b1) {
    struct avx2_bcq_shape s;
    avx2_bcq_shape(&s, &w->spec);
    for (int b = b0; b < b1; b++) {
        uint8_t *block = (uint8_t *)dst + (size_t)b * s.block_bytes;
        int row0 = b * AVX2_BCQ_ROWS;
        if (s.form == AVX2_BCQ_FORM_FEW)
            pack_few(block, w, row0);
        else if (s.form == AVX2_BCQ_FORM_COMPACT)
            pack_compact(block, w, &s, row0);
        else if (s.form == AVX2_BCQ_FORM_ODD)
            pack_odd(block, w, &s, row0);
        else
            pack_free(block, w, &s, row0);
    }
}
