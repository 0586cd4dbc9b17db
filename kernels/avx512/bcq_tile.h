/* bcq_tile.h - expands a block of the compact form, for the tiles that multiply many tokens.
 *
 * Owns      nothing.
 * Borrows   arguments during the call.
 * Thread    any; no state.
 * Fails     never.
 * Cost      some 200 cycles for 16 rows x 128 inputs of three planes.
 *
 * A weight is a whole number w = q * sum_i d_i b_i within 15 * 63: -q sum_i d_i, plus 2 q d_i for each
 * plane whose bit is set. A span's sums with whole inputs stay within 945 * 32 * 32258 < 2^30 and are
 * what look-ups add up to. */
#ifndef KERNELS_AVX512_BCQ_TILE_H
#define KERNELS_AVX512_BCQ_TILE_H

#include "kernels/avx512/bcq_compact.h"

enum {
    AVX512_TILE_TOKENS = 128,
    AVX512_TILE_RUNS = 4 /* in half a span */
};

/* Of a block and its tokens, by 16 rows. */
struct avx512_tile_totals {
    __m512 y[AVX512_TILE_TOKENS][AVX512_BCQ_UNITS];
    __m512i low[AVX512_TILE_TOKENS][AVX512_BCQ_UNITS], high[AVX512_TILE_TOKENS][AVX512_BCQ_UNITS];
};

/* p + 16 of a chunk's halves of spans, four runs in each row's word. */
struct avx512_tile_offsets {
    __m512i p16[2 * AVX512_BCQ_CHUNK][AVX512_BCQ_UNITS];
};

/* Constants of a unit: d of each plane, doubled, and their sum, in both words of a row. */
struct avx512_tile_unit {
    __m512i twice_d[BCQ_MAX_BITS], sum_d;
    __m512i fifth_at[2];
};

AVX512_INLINE void avx512_tile_units(int bits, struct avx512_tile_unit *units,
                                     const uint8_t *block) {
    for (int u = 0; u < AVX512_BCQ_UNITS; u++) {
        struct avx512_tile_unit *unit = &units[u];
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

/* What a half's four runs are made of. */
struct avx512_tile_half {
    __m512i code[2][BCQ_MAX_BITS]; /* of two runs each */
    __m512i q[AVX512_TILE_RUNS];   /* in both words of a row */
    __m512i p16;
};

AVX512_INLINE void avx512_tile_read(const int bits, struct avx512_tile_half *out,
                                    const uint8_t *code, __m512i fifth, __m512i fifth_at) {
    const __m512i low = _mm512_set1_epi32(0xffff), nibbles = avx512_load(code + 2 * bits * 64);
    AVX512_UNROLL for (int j = 0; j < 2; j++) {
        AVX512_UNROLL for (int p = 0; p < bits; p++) {
            out->code[j][p] = avx512_load(code + (j * bits + p) * 64);
            avx512_bcq_prefetch(code + (j * bits + p) * 64);
        }
        const __m512i q = avx512_compact_q(nibbles, j);
        const __m512i first = _mm512_and_si512(q, low), second = _mm512_srli_epi32(q, 16);
        out->q[2 * j] = _mm512_or_si512(first, _mm512_slli_epi32(first, 16));
        out->q[2 * j + 1] = _mm512_or_si512(second, _mm512_slli_epi32(second, 16));
    }
    avx512_bcq_prefetch(code + 2 * bits * 64);
    out->p16 = avx512_compact_p16(nibbles, fifth, fifth_at);
}

/* w[j]: weights of inputs j and j + 8 of a run of the half, in the lower and upper word of a row. */
AVX512_INLINE void avx512_tile_weights(const int bits, __m512i w[8],
                                       const struct avx512_tile_half *half, const int run,
                                       const struct avx512_tile_unit *unit) {
    const __m512i q = half->q[run], *code = half->code[run / 2];
    __m512i step[BCQ_MAX_BITS];
    const __m512i base =
        _mm512_sub_epi16(_mm512_setzero_si512(), _mm512_mullo_epi16(q, unit->sum_d));
    AVX512_UNROLL for (int p = 0; p < bits; p++) step[p] = _mm512_mullo_epi16(q, unit->twice_d[p]);
    /* A nibble's bit j is bit j of its byte, the second run's are four further up. */
    AVX512_UNROLL for (int j = 0; j < 8; j++) {
        const __m512i bit = _mm512_set1_epi16((short)(1 << (j / 4 * 8 + j % 4 + 4 * (run % 2))));
        w[j] = base;
        AVX512_UNROLL for (int p = 0; p < bits; p++) w[j] =
            _mm512_mask_add_epi16(w[j], _mm512_test_epi16_mask(code[p], bit), w[j], step[p]);
    }
}

AVX512_INLINE void avx512_tile_begin(struct avx512_tile_totals *totals,
                                     const struct avx512_bcq_tile *c, int t0, int n_tokens) {
    const struct avx512_bcq_token *tokens = c->act;
    for (int t = 0; t < n_tokens; t++)
        for (int u = 0; u < AVX512_BCQ_UNITS; u++) {
            struct avx512_compact_sums s = avx512_compact_begin(&tokens[t0 + t]);
            totals->y[t][u] = s.y;
            totals->low[t][u] = s.low;
            totals->high[t][u] = s.high;
        }
}

AVX512_INLINE void avx512_tile_end(const struct avx512_tile_totals *totals,
                                   const struct avx512_bcq_tile *c, const uint8_t *block, int b,
                                   int t0, int n_tokens) {
    const struct avx512_bcq_token *tokens = c->act;
    const struct avx512_bcq_panel to = {
        .y = c->y + (size_t)t0 * c->ldy + b * AVX512_BCQ_ROWS,
        .ldy = c->ldy,
        .n_rows = avx512_min(c->rows - b * AVX512_BCQ_ROWS, AVX512_BCQ_ROWS)};
    for (int u = 0; u < AVX512_BCQ_UNITS; u++) {
        const struct avx512_compact_scales scales = avx512_compact_scales(block, u);
        for (int t = 0; t < n_tokens; t++) {
            const struct avx512_compact_sums s = {
                .y = totals->y[t][u], .low = totals->low[t][u], .high = totals->high[t][u]};
            avx512_bcq_store(&to, u, t, avx512_compact_end(&scales, &s, tokens[t0 + t].scale));
        }
    }
}

#endif
