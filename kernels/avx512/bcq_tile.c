/* Compact form, many tokens: a block's weights of a span become 16-bit integers w = q * sum_i d_i b_i,
 * within 15 * 63, and meet the tokens' whole numbers in dot products of pairs. A span's sums stay
 * within 945 * 32 * 32258 < 2^30 and are what look-ups add up to.
 *
 * Expanding costs as much as about six tokens of three planes; after it a token takes the same time for any
 * number of planes. */
#include "kernels/avx512/bcq_compact.h"

#include <string.h>

enum {
    PAIRS = AVX512_BCQ_SPAN / 2,
    TOKENS = 128,
    PANEL = 6,  /* tokens whose sums fit the registers */
    CHUNK = 8,  /* spans after which the sums of p * x are taken up */
    TRIPLE = 3, /* tokens of those at once */
    ROWS = AVX512_BCQ_ROWS,
    UNITS = AVX512_BCQ_UNITS
};

/* Of a block and up to TOKENS tokens, by 16 rows. */
struct totals {
    __m512 y[TOKENS][UNITS];
    __m512i low[TOKENS][UNITS], high[TOKENS][UNITS];
};

/* Weights of a block and span: inputs j and j + 8 of run r in pair 8r + j. */
struct expanded {
    __m512i w[PAIRS][UNITS];
};

/* p + 16 of a chunk's halves of spans. */
struct offsets {
    __m512i p16[2 * CHUNK][UNITS];
};

/* Constants of a unit: d of each plane, doubled, and their sum, in both words of a row. */
struct unit {
    __m512i twice_d[BCQ_MAX_BITS], sum_d;
    __m512i fifth_at[2];
};

static void load_units(int bits, struct unit *units, const uint8_t *block) {
    for (int u = 0; u < UNITS; u++) {
        struct unit *unit = &units[u];
        unit->sum_d = _mm512_setzero_si512();
        for (int p = 0; p < bits; p++) {
            __m512i d = avx512_compact_d(block, u, p);
            d = _mm512_or_si512(d, _mm512_slli_epi32(d, 16));
            unit->sum_d = _mm512_add_epi16(unit->sum_d, d);
            unit->twice_d[p] = _mm512_add_epi16(d, d);
        }
        for (int half = 0; half < 2; half++)
            unit->fifth_at[half] = avx512_compact_fifth_at(u, half);
    }
}

/* Run h of a code vector: a weight is -q sum_i d_i, plus 2 q d_i for each plane whose bit is set.
 * A nibble's bit j is at j of its byte, inputs 8 to 15 are in the upper word of a row. */
AVX512_INLINE void expand_run(const int bits, __m512i (*out)[UNITS], const __m512i *code,
                              const struct unit *unit, __m512i q, const int h) {
    __m512i step[BCQ_MAX_BITS];
    const __m512i base =
        _mm512_sub_epi16(_mm512_setzero_si512(), _mm512_mullo_epi16(q, unit->sum_d));
    AVX512_UNROLL for (int p = 0; p < bits; p++) step[p] = _mm512_mullo_epi16(q, unit->twice_d[p]);
    AVX512_UNROLL for (int j = 0; j < 8; j++) {
        const __m512i bit = _mm512_set1_epi16((short)(1 << (j / 4 * 8 + j % 4 + 4 * h)));
        __m512i w = base;
        AVX512_UNROLL for (int p = 0; p < bits; p++) w =
            _mm512_mask_add_epi16(w, _mm512_test_epi16_mask(code[p], bit), w, step[p]);
        _mm512_store_si512(&out[j][0], w);
    }
}

/* 16 rows x 64 inputs; code: of the half, out: its first pair. */
AVX512_INLINE void expand_half(const int bits, __m512i (*out)[UNITS], const uint8_t *code,
                               const struct unit *unit) {
    const __m512i low = _mm512_set1_epi32(0xffff), nibbles = avx512_load(code + 2 * bits * 64);
    avx512_bcq_prefetch(code + 2 * bits * 64);
    AVX512_UNROLL for (int j = 0; j < 2; j++, code += 64 * bits) {
        __m512i word[BCQ_MAX_BITS];
        AVX512_UNROLL for (int p = 0; p < bits; p++) {
            word[p] = avx512_load(code + 64 * p);
            avx512_bcq_prefetch(code + 64 * p);
        }
        const __m512i q = avx512_compact_q(nibbles, j);
        const __m512i first = _mm512_and_si512(q, low), second = _mm512_srli_epi32(q, 16);
        expand_run(bits, out + 16 * j, word, unit,
                   _mm512_or_si512(first, _mm512_slli_epi32(first, 16)), 0);
        expand_run(bits, out + 16 * j + 8, word, unit,
                   _mm512_or_si512(second, _mm512_slli_epi32(second, 16)), 1);
    }
}

/* A block's span: weights, and p + 16 of its halves. at: its fifth bits. */
AVX512_INLINE void expand(const int bits, struct expanded *out, __m512i (*p16)[UNITS],
                          const uint8_t *at, const struct unit *units, int halves) {
    const size_t bytes = (2 * (size_t)bits + 1) * 64;
    const __m512i fifth = avx512_load(at);
    avx512_bcq_prefetch(at);
    at += 64;
    for (int u = 0; u < UNITS; u++)
        for (int half = 0; half < halves; half++, at += bytes) {
            __m512i(*to)[UNITS] = out->w + 32 * half;
            expand_half(bits, (__m512i(*)[UNITS])(&to[0][u]), at, &units[u]);
            p16[half][u] =
                avx512_compact_p16(avx512_load(at + 2 * bits * 64), fifth, units[u].fifth_at[half]);
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
static void multiply(struct totals *totals, const struct avx512_bcq_tile *c,
                     const struct expanded *e, int span, int t0, int n_tokens, int n_pairs) {
    static void (*const panels[])(__m512(*)[UNITS], const struct expanded *, const int32_t *,
                                  const float *,
                                  int) = {panel_1, panel_2, panel_3, panel_4, panel_5, panel_6};
    const struct avx512_bcq_many x =
        avx512_bcq_many_at(c->act, c->act_bits, c->shape->spans, c->n, span);
    int n_panels = (n_tokens + PANEL - 1) / PANEL;
    for (int i = 0; i < n_panels; i++) {
        int t = n_tokens * i / n_panels, n = n_tokens * (i + 1) / n_panels - t;
        const void *whole = x.whole[t0 + t];
        panels[n - 1](&totals->y[t], e, whole, x.scales + t0 + t, n_pairs);
    }
}

/* n tokens: sums of (p + 16) * x over n_halves halves of spans. */
AVX512_INLINE void offset_some(const int n, struct totals *totals, const struct avx512_bcq_tile *c,
                               const struct offsets *o, int span, int t0, int t, int n_halves) {
    __m512i low[TRIPLE][UNITS], high[TRIPLE][UNITS];
    AVX512_UNROLL for (int k = 0; k < n; k++) AVX512_UNROLL for (int u = 0; u < UNITS; u++) {
        low[k][u] = totals->low[t + k][u];
        high[k][u] = totals->high[t + k][u];
    }
    for (int i = 0; i < n_halves; i++) {
        const struct avx512_bcq_many x =
            avx512_bcq_many_at(c->act, c->act_bits, c->shape->spans, c->n, span + i / 2);
        AVX512_UNROLL for (int k = 0; k < n; k++) {
            const int32_t *sums = x.run_sums[t0 + t + k] + i % 2 * 2;
            const __m512i x_low = _mm512_set1_epi32(sums[0]), x_high = _mm512_set1_epi32(sums[1]);
            AVX512_UNROLL for (int u = 0; u < UNITS; u++) {
                low[k][u] = _mm512_dpbusd_epi32(low[k][u], o->p16[i][u], x_low);
                high[k][u] = _mm512_dpbusd_epi32(high[k][u], o->p16[i][u], x_high);
            }
        }
    }
    AVX512_UNROLL for (int k = 0; k < n; k++) AVX512_UNROLL for (int u = 0; u < UNITS; u++) {
        totals->low[t + k][u] = low[k][u];
        totals->high[t + k][u] = high[k][u];
    }
}

static void add_offsets(struct totals *totals, const struct avx512_bcq_tile *c,
                        const struct offsets *o, int span, int t0, int n_tokens, int n_halves) {
    int t = 0;
    for (; t + TRIPLE <= n_tokens; t += TRIPLE)
        offset_some(TRIPLE, totals, c, o, span, t0, t, n_halves);
    for (; t < n_tokens; t++) offset_some(1, totals, c, o, span, t0, t, n_halves);
}

static void begin(struct totals *totals, const struct avx512_bcq_tile *c, int t0, int n_tokens) {
    const struct avx512_bcq_token *tokens = c->act;
    for (int t = 0; t < n_tokens; t++)
        for (int u = 0; u < UNITS; u++) {
            struct avx512_compact_sums s = avx512_compact_begin(&tokens[t0 + t]);
            totals->y[t][u] = s.y;
            totals->low[t][u] = s.low;
            totals->high[t][u] = s.high;
        }
}

static void finish(const struct totals *totals, const struct avx512_bcq_tile *c,
                   const uint8_t *block, int b, int t0, int n_tokens) {
    const struct avx512_bcq_token *tokens = c->act;
    const struct avx512_bcq_panel to = {.y = c->y + (size_t)t0 * c->ldy + b * ROWS,
                                        .ldy = c->ldy,
                                        .n_rows = avx512_min(c->rows - b * ROWS, ROWS)};
    for (int u = 0; u < UNITS; u++)
        for (int t = 0; t < n_tokens; t++) {
            const struct avx512_compact_sums s = {
                .y = totals->y[t][u], .low = totals->low[t][u], .high = totals->high[t][u]};
            avx512_bcq_store(&to, u, t, avx512_compact_end(block, u, &s, tokens[t0 + t].scale));
        }
}

AVX512_INLINE void block(const int bits, const struct avx512_bcq_tile *c, struct totals *totals,
                         int b, int t0, int n_tokens) {
    const struct avx512_bcq_shape *s = c->shape;
    const uint8_t *block = c->packed + (size_t)b * s->block_bytes, *at = block + s->head;
    const int n_halves = (s->words + 1) / 2;
    struct expanded e;
    struct offsets o;
    struct unit units[UNITS];
    load_units(bits, units, block);
    begin(totals, c, t0, n_tokens);
    for (int first = 0; first < s->spans; first += CHUNK) {
        int end = avx512_min(first + CHUNK, s->spans);
        for (int span = first; span < end; span++) {
            int halves = avx512_min(n_halves - 2 * span, 2);
            expand(bits, &e, o.p16 + 2 * (span - first), at, units, halves);
            multiply(totals, c, &e, span, t0, n_tokens, 32 * halves);
            at += 64 + (size_t)halves * UNITS * (2 * (size_t)bits + 1) * 64;
        }
        add_offsets(totals, c, &o, first, t0, n_tokens,
                    avx512_min(n_halves - 2 * first, 2 * CHUNK));
    }
    finish(totals, c, block, b, t0, n_tokens);
}

#define KERNEL(bits)                                                                               \
    static __attribute__((noinline)) void block_##bits(                                            \
        const struct avx512_bcq_tile *c, struct totals *totals, int b, int t0, int n_tokens) {     \
        block(bits, c, totals, b, t0, n_tokens);                                                   \
    }
KERNEL(1)
KERNEL(2)
KERNEL(3)
KERNEL(4)

void avx512_bcq_mul_tile(const struct avx512_bcq_tile *c) {
    static void (*const blocks[])(const struct avx512_bcq_tile *, struct totals *, int, int,
                                  int) = {block_1, block_2, block_3, block_4};
    struct totals totals;
    for (int t0 = 0; t0 < c->n; t0 += TOKENS)
        for (int b = c->b0; b < c->b1; b++)
            blocks[c->shape->bits - 1](c, &totals, b, t0, avx512_min(c->n - t0, TOKENS));
}
