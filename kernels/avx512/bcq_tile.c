/* Compact form, many tokens: a block's weights of a span meet the tokens' whole numbers in dot products
 * of pairs.
 *
 * Expanding costs as much as about four tokens of three planes; after it a token takes the same time for any
 * number of planes. */
#include "kernels/avx512/bcq_tile.h"

#include <string.h>

enum {
    PAIRS = AVX512_BCQ_SPAN / 2,
    PANEL = 6,  /* tokens whose sums fit the registers */
    TRIPLE = 3, /* tokens whose sums of p * x do */
    UNITS = AVX512_BCQ_UNITS,
    HALVES = AVX512_TILE_HALVES
};

/* Weights of a block and span: inputs j and j + 8 of run r in pair 8r + j. */
struct expanded {
    __m512i w[PAIRS][UNITS];
};

/* A block's span: weights, and p + 16 of its halves. */
AVX512_INLINE void expand(const int bits, struct expanded *out, __m512i (*p16)[UNITS],
                          const struct avx512_bcq_block *block, int span,
                          const struct avx512_tile_unit *units, int halves) {
    const uint8_t *fifths = avx512_compact_fifths(block, bits, span);
    const __m512i fifth = avx512_load(fifths);
    avx512_bcq_prefetch(fifths);
    for (int u = 0; u < UNITS; u++)
        for (int half = 0; half < halves; half++) {
            const struct avx512_compact_half at =
                avx512_compact_half(block, bits, span, u * halves + half);
            struct avx512_tile_half h;
            avx512_tile_read(bits, &h, &at, fifth, units[u].fifth_at[half]);
            p16[half][u] = h.p16;
            AVX512_UNROLL for (int pair = 0; pair < 2; pair++) {
                __m512i w[16];
                avx512_tile_weights(bits, w, h.code[pair], h.q[pair], &units[u]);
                AVX512_UNROLL for (int j = 0; j < 16; j++) out->w[32 * half + 16 * pair + j][u] =
                    w[j];
            }
        }
}

/* gcc 12 keeps copies of sums in memory unless it is told that they change here. */
AVX512_INLINE void add_pairs(__m512i *sum, __m512i w, __m512i x) {
    *sum = _mm512_dpwssd_epi32(*sum, w, x);
    __asm__("" : "+v"(*sum));
}

/* 64 rows x n tokens of a span. x: (n, PAIRS); y: of the first token. old: 0 where y holds nothing yet. */
AVX512_INLINE void panel(const int n, __m512 (*y)[UNITS], __mmask16 old, const struct expanded *e,
                         const int32_t *x, const float *scales, int n_pairs) {
    __m512i sums[PANEL][UNITS];
    AVX512_UNROLL for (int t = 0; t < n; t++) AVX512_UNROLL for (int u = 0; u < UNITS; u++)
        sums[t][u] = _mm512_setzero_si512();
    for (int i = 0; i < n_pairs; i++) {
        const __m512i w0 = e->w[i][0], w1 = e->w[i][1], w2 = e->w[i][2], w3 = e->w[i][3];
        AVX512_UNROLL for (int t = 0; t < n; t++) {
            const __m512i v = _mm512_set1_epi32(x[t * PAIRS + i]);
            add_pairs(&sums[t][0], w0, v);
            add_pairs(&sums[t][1], w1, v);
            add_pairs(&sums[t][2], w2, v);
            add_pairs(&sums[t][3], w3, v);
        }
    }
    AVX512_UNROLL for (int t = 0; t < n; t++) AVX512_UNROLL for (int u = 0; u < UNITS; u++)
        y[t][u] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[t][u]), _mm512_set1_ps(scales[t]),
                                  _mm512_maskz_load_ps(old, &y[t][u]));
}

#define PANEL_OF(n)                                                                                \
    static void panel_##n(__m512(*y)[UNITS], __mmask16 old, const struct expanded *e,              \
                          const int32_t *x, const float *scales, int n_pairs) {                    \
        panel(n, y, old, e, x, scales, n_pairs);                                                   \
    }
PANEL_OF(1)
PANEL_OF(2)
PANEL_OF(3)
PANEL_OF(4)
PANEL_OF(5)
PANEL_OF(6)

/* A block and span, expanded, and its tokens in panels of about equal size. */
static void multiply(struct avx512_tile_totals *totals, const struct avx512_bcq_tile *c,
                     const struct expanded *e, int span, int t0, int n_tokens, int n_pairs) {
    static void (*const panels[])(__m512(*)[UNITS], __mmask16, const struct expanded *,
                                  const int32_t *, const float *,
                                  int) = {panel_1, panel_2, panel_3, panel_4, panel_5, panel_6};
    const struct avx512_bcq_many x =
        avx512_bcq_many_at(c->act, c->act_bits, c->shape->spans, c->n, span);
    const int32_t *pairs = x.whole;
    int n_panels = (n_tokens + PANEL - 1) / PANEL;
    for (int i = 0; i < n_panels; i++) {
        int t = n_tokens * i / n_panels, n = n_tokens * (i + 1) / n_panels - t;
        panels[n - 1](&totals->y[t], span > 0 ? 0xffff : 0, e, pairs + (size_t)(t0 + t) * PAIRS,
                      x.scales + t0 + t, n_pairs);
    }
}

/* Sums of (p + 16) * x of n tokens. */
struct offset_sums {
    __m512i low[TRIPLE][UNITS], high[TRIPLE][UNITS];
};

AVX512_INLINE void add_offset(__m512i *sum, __m512i p16, __m512i x) {
    *sum = _mm512_dpbusd_epi32(*sum, p16, x);
    __asm__("" : "+v"(*sum));
}

/* Adds those of spans [first, end). t: of all tokens. */
AVX512_INLINE void add_offsets(const int n, struct offset_sums *to,
                               const struct avx512_tile_totals *totals,
                               const struct avx512_bcq_tile *c, int first, int end, int t) {
    const int n_halves = (c->shape->words + 1) / 2;
    for (int span = first; span < end; span += AVX512_BCQ_CHUNK) {
        const struct avx512_bcq_many x =
            avx512_bcq_many_at(c->act, c->act_bits, c->shape->spans, c->n, span);
        const __m512i(*p16)[UNITS] = totals->p16 + HALVES * (span - first);
        const int halves = avx512_min(n_halves - HALVES * span, HALVES * AVX512_BCQ_CHUNK);
        for (int i = 0; i < halves; i++) AVX512_UNROLL for (int k = 0; k < n; k++) {
                int32_t sums[2];
                memcpy(&sums[0], x.sums[0][t + k] + 4 * i, 4);
                memcpy(&sums[1], x.sums[1][t + k] + 4 * i, 4);
                const __m512i x_low = _mm512_set1_epi32(sums[0]);
                const __m512i x_high = _mm512_set1_epi32(sums[1]);
                AVX512_UNROLL for (int u = 0; u < UNITS; u++) {
                    add_offset(&to->low[k][u], p16[i][u], x_low);
                    add_offset(&to->high[k][u], p16[i][u], x_high);
                }
            }
    }
}

AVX512_INLINE void begin_offsets(const int n, struct offset_sums *to,
                                 const struct avx512_tile_totals *totals,
                                 const struct avx512_bcq_tile *c, int first, int t0, int t) {
    const struct avx512_bcq_token *tokens = c->act;
    AVX512_UNROLL for (int k = 0; k < n; k++) {
        const struct avx512_compact_sums s = avx512_compact_begin(&tokens[t0 + t + k]);
        AVX512_UNROLL for (int u = 0; u < UNITS; u++) {
            to->low[k][u] = first > 0 ? totals->low[t + k][u] : s.low;
            to->high[k][u] = first > 0 ? totals->high[t + k][u] : s.high;
        }
    }
}

/* Of all spans but the last ones. */
static void keep_offsets(struct avx512_tile_totals *totals, const struct avx512_bcq_tile *c,
                         int first, int end, int t0, int n_tokens) {
    for (int t = 0; t < n_tokens; t++) {
        struct offset_sums s;
        begin_offsets(1, &s, totals, c, first, t0, t);
        add_offsets(1, &s, totals, c, first, end, t0 + t);
        for (int u = 0; u < UNITS; u++) {
            totals->low[t][u] = s.low[0][u];
            totals->high[t][u] = s.high[0][u];
        }
    }
}

AVX512_INLINE void finish_some(const int n, const struct avx512_tile_totals *totals,
                               const struct avx512_bcq_tile *c,
                               const struct avx512_compact_scales *scales, int b, int first, int t0,
                               int t) {
    const struct avx512_bcq_token *tokens = c->act;
    const struct avx512_bcq_panel to = {
        .y = c->y + (size_t)t0 * c->ldy + b * AVX512_BCQ_ROWS,
        .ldy = c->ldy,
        .n_rows = avx512_min(c->rows - b * AVX512_BCQ_ROWS, AVX512_BCQ_ROWS)};
    struct offset_sums sums;
    begin_offsets(n, &sums, totals, c, first, t0, t);
    add_offsets(n, &sums, totals, c, first, c->shape->spans, t0 + t);
    AVX512_UNROLL for (int k = 0; k < n; k++) AVX512_UNROLL for (int u = 0; u < UNITS; u++) {
        const struct avx512_compact_sums s = {
            .y = totals->y[t + k][u], .low = sums.low[k][u], .high = sums.high[k][u]};
        avx512_bcq_store(&to, u, t + k,
                         avx512_compact_end(&scales[u], &s, tokens[t0 + t + k].scale));
    }
}

static void finish(const struct avx512_tile_totals *totals, const struct avx512_bcq_tile *c,
                   const struct avx512_bcq_block *block, int b, int first, int t0, int n_tokens) {
    struct avx512_compact_scales scales[UNITS];
    int t = 0;
    for (int u = 0; u < UNITS; u++) scales[u] = avx512_compact_scales(block, u);
    for (; t + TRIPLE <= n_tokens; t += TRIPLE)
        finish_some(TRIPLE, totals, c, scales, b, first, t0, t);
    for (; t < n_tokens; t++) finish_some(1, totals, c, scales, b, first, t0, t);
}

AVX512_INLINE void block(const int bits, const struct avx512_bcq_tile *c,
                         struct avx512_tile_totals *totals, int b, int t0, int n_tokens) {
    const struct avx512_bcq_shape *s = c->shape;
    const struct avx512_bcq_block block = avx512_bcq_block(s, c->packed, b);
    const int n_halves = (s->words + 1) / 2;
    struct expanded e;
    struct avx512_tile_unit units[UNITS];
    int first = 0; /* span of the first offsets */
    avx512_tile_units(bits, units, &block);
    for (int span = 0; span < s->spans; span++) {
        const int halves = avx512_min(n_halves - HALVES * span, HALVES);
        if (span - first == AVX512_TILE_SPANS) {
            keep_offsets(totals, c, first, span, t0, n_tokens);
            first = span;
        }
        expand(bits, &e, totals->p16 + HALVES * (span - first), &block, span, units, halves);
        multiply(totals, c, &e, span, t0, n_tokens, 32 * halves);
    }
    finish(totals, c, &block, b, first, t0, n_tokens);
}

#define KERNEL(bits)                                                                               \
    static __attribute__((noinline)) void block_##bits(const struct avx512_bcq_tile *c,            \
                                                       struct avx512_tile_totals *totals, int b,   \
                                                       int t0, int n_tokens) {                     \
        block(bits, c, totals, b, t0, n_tokens);                                                   \
    }
KERNEL(1)
KERNEL(2)
KERNEL(3)
KERNEL(4)

void avx512_bcq_mul_tile(const struct avx512_bcq_tile *c) {
    static void (*const blocks[])(const struct avx512_bcq_tile *, struct avx512_tile_totals *, int,
                                  int, int) = {block_1, block_2, block_3, block_4};
    struct avx512_tile_totals totals;
    for (int t0 = 0; t0 < c->n; t0 += AVX512_TILE_TOKENS)
        for (int b = c->b0; b < c->b1; b++)
            blocks[c->shape->bits - 1](c, &totals, b, t0,
                                       avx512_min(c->n - t0, AVX512_TILE_TOKENS));
}
