/* Compact form, many tokens: a block's weights of a span meet the tokens' whole numbers in dot products
 * of pairs.
 *
 * Expanding costs as much as about six tokens of three planes; after it a token takes the same time for any
 * number of planes. */
#include "kernels/avx512/bcq_tile.h"

#include <string.h>

enum {
    PAIRS = AVX512_BCQ_SPAN / 2,
    PANEL = 6,  /* tokens whose sums fit the registers */
    TRIPLE = 3, /* tokens whose sums of p * x do */
    UNITS = AVX512_BCQ_UNITS
};

/* Weights of a block and span: inputs j and j + 8 of run r in pair 8r + j. */
struct expanded {
    __m512i w[PAIRS][UNITS];
};

/* A block's span: weights, and p + 16 of its halves. at: its fifth bits. */
AVX512_INLINE void expand(const int bits, struct expanded *out, __m512i (*p16)[UNITS],
                          const uint8_t *at, const struct avx512_tile_unit *units, int halves) {
    const __m512i fifth = avx512_load(at);
    avx512_bcq_prefetch(at);
    at += 64;
    for (int u = 0; u < UNITS; u++)
        for (int half = 0; half < halves; half++, at += (2 * bits + 1) * 64) {
            struct avx512_tile_half h;
            avx512_tile_read(bits, &h, at, fifth, units[u].fifth_at[half]);
            p16[half][u] = h.p16;
            AVX512_UNROLL for (int run = 0; run < AVX512_TILE_RUNS; run++) {
                __m512i w[8];
                avx512_tile_weights(bits, w, &h, run, &units[u]);
                AVX512_UNROLL for (int j = 0; j < 8; j++) out->w[32 * half + 8 * run + j][u] = w[j];
            }
        }
}

/* gcc 12 keeps copies of sums in memory unless it is told that they change here. */
AVX512_INLINE void add_pairs(__m512i *sum, __m512i w, __m512i x) {
    *sum = _mm512_dpwssd_epi32(*sum, w, x);
    __asm__("" : "+v"(*sum));
}

/* 64 rows x n tokens of a span. x: (n, PAIRS); y: of the first token. */
AVX512_INLINE void panel(const int n, __m512 (*y)[UNITS], const struct expanded *e,
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
        y[t][u] =
            _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[t][u]), _mm512_set1_ps(scales[t]), y[t][u]);
}

#define PANEL_OF(n)                                                                                \
    static void panel_##n(__m512(*y)[UNITS], const struct expanded *e, const int32_t *x,           \
                          const float *scales, int n_pairs) {                                      \
        panel(n, y, e, x, scales, n_pairs);                                                        \
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
    static void (*const panels[])(__m512(*)[UNITS], const struct expanded *, const int32_t *,
                                  const float *,
                                  int) = {panel_1, panel_2, panel_3, panel_4, panel_5, panel_6};
    const struct avx512_bcq_many x =
        avx512_bcq_many_at(c->act, c->act_bits, c->shape->spans, c->n, span);
    const int32_t *pairs = x.whole;
    int n_panels = (n_tokens + PANEL - 1) / PANEL;
    for (int i = 0; i < n_panels; i++) {
        int t = n_tokens * i / n_panels, n = n_tokens * (i + 1) / n_panels - t;
        panels[n - 1](&totals->y[t], e, pairs + (size_t)(t0 + t) * PAIRS, x.scales + t0 + t,
                      n_pairs);
    }
}

/* n tokens: sums of (p + 16) * x over n_halves halves of spans. */
AVX512_INLINE void offset_some(const int n, struct avx512_tile_totals *totals,
                               const struct avx512_bcq_many *x, const struct avx512_tile_offsets *o,
                               int t0, int t, int n_halves) {
    __m512i low[TRIPLE][UNITS], high[TRIPLE][UNITS];
    AVX512_UNROLL for (int k = 0; k < n; k++) AVX512_UNROLL for (int u = 0; u < UNITS; u++) {
        low[k][u] = totals->low[t + k][u];
        high[k][u] = totals->high[t + k][u];
    }
    for (int i = 0; i < n_halves; i++) AVX512_UNROLL for (int k = 0; k < n; k++) {
            int32_t sums[2];
            memcpy(&sums[0], x->sums[0][t0 + t + k] + 4 * i, 4);
            memcpy(&sums[1], x->sums[1][t0 + t + k] + 4 * i, 4);
            const __m512i x_low = _mm512_set1_epi32(sums[0]), x_high = _mm512_set1_epi32(sums[1]);
            AVX512_UNROLL for (int u = 0; u < UNITS; u++) {
                low[k][u] = _mm512_dpbusd_epi32(low[k][u], o->p16[i][u], x_low);
                high[k][u] = _mm512_dpbusd_epi32(high[k][u], o->p16[i][u], x_high);
            }
        }
    AVX512_UNROLL for (int k = 0; k < n; k++) AVX512_UNROLL for (int u = 0; u < UNITS; u++) {
        totals->low[t + k][u] = low[k][u];
        totals->high[t + k][u] = high[k][u];
    }
}

static void add_offsets(struct avx512_tile_totals *totals, const struct avx512_bcq_tile *c,
                        const struct avx512_tile_offsets *o, int span, int t0, int n_tokens,
                        int n_halves) {
    const struct avx512_bcq_many x =
        avx512_bcq_many_at(c->act, c->act_bits, c->shape->spans, c->n, span);
    int t = 0;
    for (; t + TRIPLE <= n_tokens; t += TRIPLE) offset_some(TRIPLE, totals, &x, o, t0, t, n_halves);
    for (; t < n_tokens; t++) offset_some(1, totals, &x, o, t0, t, n_halves);
}

AVX512_INLINE void block(const int bits, const struct avx512_bcq_tile *c,
                         struct avx512_tile_totals *totals, int b, int t0, int n_tokens) {
    const struct avx512_bcq_shape *s = c->shape;
    const uint8_t *block = c->packed + (size_t)b * s->block_bytes, *at = block + s->head;
    const int n_halves = (s->words + 1) / 2;
    struct expanded e;
    struct avx512_tile_offsets o;
    struct avx512_tile_unit units[UNITS];
    avx512_tile_units(bits, units, block);
    avx512_tile_begin(totals, c, t0, n_tokens);
    for (int first = 0; first < s->spans; first += AVX512_BCQ_CHUNK) {
        int end = avx512_min(first + AVX512_BCQ_CHUNK, s->spans);
        for (int span = first; span < end; span++) {
            int halves = avx512_min(n_halves - 2 * span, 2);
            expand(bits, &e, o.p16 + 2 * (span - first), at, units, halves);
            multiply(totals, c, &e, span, t0, n_tokens, 32 * halves);
            at += 64 + (size_t)halves * UNITS * (2 * (size_t)bits + 1) * 64;
        }
        add_offsets(totals, c, &o, first, t0, n_tokens,
                    avx512_min(n_halves - 2 * first, 2 * AVX512_BCQ_CHUNK));
    }
    avx512_tile_end(totals, c, block, b, t0, n_tokens);
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
