/* tile.h - what the kernels of tiles for a few and for many tokens share.
 *
 * Owns      nothing.
 * Borrows   arguments during the call.
 * Thread    any that has configured its tiles; no other state.
 * Fails     never.
 * Cost      stated per function.
 *
 * Weights are 256 * high + low, whole inputs likewise, all bytes signed: four products of bytes make one of
 * words, in whole numbers, hence the same bits as kernels/avx512/bcq_tile.c. Rounded inputs have no high
 * bytes. */
#ifndef KERNELS_AMX_TILE_H
#define KERNELS_AMX_TILE_H

#include <string.h>

#include "kernels/amx/amx.h"
#include "kernels/amx/expand.h"

enum { UNITS = AVX512_BCQ_UNITS, TILE = AMX_TILE, HALVES = AVX512_TILE_HALVES, LINE = AMX_LINE };

/* Tile registers: sums of low by low bytes, of low by high and high by low, of high by high; x's low and
 * high bytes of both halves; what it is multiplied by. Macros, because gcc's intrinsics make text of
 * them. */
#define LOW      0
#define MIDDLE   1
#define HIGH     2
#define X_LOW_0  3
#define X_HIGH_0 4
#define X_LOW_1  5
#define X_HIGH_1 6
#define W        7

struct amx_sums {
    __m512i low[TILE], middle[TILE], high[TILE];
};

/* Where the sums of a tile of tokens with a unit are added: rows of y are UNITS vectors apart. old: 0 where
 * y holds nothing yet. */
struct amx_add_to {
    __m512 *y;
    const float *scales;
    __mmask16 old;
};

/* y += scale * sum for tokens t to t + n - 1. */
AVX512_INLINE void amx_add_some(const int parts, const struct amx_sums *sums, struct amx_add_to to,
                                const int t, const int n) {
    AVX512_UNROLL for (int i = t; i < t + n; i++) {
        __m512i sum = _mm512_add_epi32(sums->low[i], _mm512_slli_epi32(sums->middle[i], 8));
        if (parts == 2) sum = _mm512_add_epi32(sum, _mm512_slli_epi32(sums->high[i], 16));
        to.y[i * UNITS] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(to.scales[i]),
                                          _mm512_maskz_load_ps(to.old, &to.y[i * UNITS]));
    }
    AMX_BEFORE_LOADS();
}

/* x: low bytes of the first token, high bytes at x + apart. */
AVX512_INLINE void amx_load_inputs(const int parts, const int halves, const int8_t *x,
                                   size_t apart) {
    _tile_loadd(X_LOW_0, x, AVX512_BCQ_SPAN);
    if (parts == 2) _tile_loadd(X_HIGH_0, x + apart, AVX512_BCQ_SPAN);
    if (halves == 1) return;
    _tile_loadd(X_LOW_1, x + LINE, AVX512_BCQ_SPAN);
    if (parts == 2) _tile_loadd(X_HIGH_1, x + apart + LINE, AVX512_BCQ_SPAN);
}

/* Sums of (p + 16) * x over spans [first, end) of a tile of tokens and a unit: 64 runs are a tile's inputs.
 * They go on from those in totals where first is not 0. */
AVX512_INLINE void amx_add_offsets(struct amx_sums *to, const struct avx512_tile_totals *totals,
                                   const struct avx512_bcq_tile *c, int first, int end, int t0,
                                   int t, int u) {
    _tile_zero(LOW);
    _tile_zero(HIGH);
    if (first > 0) {
        _tile_loadd(LOW, &totals->low[t][u], sizeof totals->low[0]);
        _tile_loadd(HIGH, &totals->high[t][u], sizeof totals->high[0]);
    }
    for (int span = first; span < end; span += AVX512_BCQ_CHUNK) {
        const struct avx512_bcq_many x =
            avx512_bcq_many_at(c->act, c->act_bits, c->shape->spans, c->n, span);
        _tile_loadd(W, &totals->p16[HALVES * (span - first)][u], sizeof totals->p16[0]);
        _tile_loadd(X_LOW_0, x.sums[0][t0 + t], LINE);
        _tile_loadd(X_HIGH_0, x.sums[1][t0 + t], LINE);
        _tile_dpbssd(LOW, X_LOW_0, W);
        _tile_dpbssd(HIGH, X_HIGH_0, W);
    }
    _tile_stored(LOW, to->low, LINE);
    _tile_stored(HIGH, to->high, LINE);
}

AVX512_INLINE void amx_finish(struct avx512_tile_totals *totals, const struct avx512_bcq_tile *c,
                              const struct avx512_bcq_block *block, int b, int first, int t0,
                              int n_tokens, int tokens) {
    const struct avx512_bcq_token *of_tokens = c->act;
    const struct avx512_bcq_panel to = {
        .y = c->y + (size_t)t0 * c->ldy + b * AVX512_BCQ_ROWS,
        .ldy = c->ldy,
        .n_rows = avx512_min(c->rows - b * AVX512_BCQ_ROWS, AVX512_BCQ_ROWS)};
    struct avx512_compact_scales scales[UNITS];
    AMX_BEFORE_LOADS();
    for (int u = c->u0; u < c->u1; u++) scales[u] = avx512_compact_scales(block, u);
    for (int t = 0; t < n_tokens; t += tokens)
        for (int u = c->u0; u < c->u1; u++) {
            struct amx_sums sums;
            amx_add_offsets(&sums, totals, c, first, c->shape->spans, t0, t, u);
            for (int i = 0; i < avx512_min(n_tokens - t, tokens); i++) {
                const struct avx512_bcq_token *token = &of_tokens[t0 + t + i];
                struct avx512_compact_sums s = avx512_compact_begin(token);
                s.y = totals->y[t + i][u];
                s.low = _mm512_add_epi32(s.low, sums.low[i]);
                s.high = _mm512_add_epi32(s.high, sums.high[i]);
                avx512_bcq_store(&to, u, t + i, avx512_compact_end(&scales[u], &s, token->scale));
            }
        }
}

/* Whatever stands behind the last span's sums counts nothing. n_halves: from the first offsets on. */
AVX512_INLINE void amx_end_offsets(struct avx512_tile_totals *totals, int n_halves) {
    for (int half = n_halves; half % (HALVES * AVX512_BCQ_CHUNK); half++)
        memset(totals->p16[half], 0, sizeof totals->p16[half]);
}

typedef void amx_block_function(const struct avx512_bcq_tile *c, struct avx512_tile_totals *totals,
                                int b, int t0, int n_tokens);

/* bcq_few.c: all tokens, at most 8 or 16, and at most AVX512_TILE_SPANS spans. */
amx_block_function *amx_few(int bits, int parts, int tokens);

/* bcq_free.c: the free form with pieces of 64 or 128 inputs, all units. */
amx_block_function *amx_free(int bits, int parts);

#endif
