/* bcq_tile.h - expands a block of the compact form, for the tiles that multiply many tokens.
 *
 * Owns      nothing.
 * Borrows   arguments during the call.
 * Thread    any; no state.
 * Fails     never.
 * Cost      some 140 cycles for 16 rows x 128 inputs of three planes.
 *
 * A weight is a whole number w = q * sum_i d_i b_i within 15 * 63. The sums are bytes, 64 at a time: those
 * of planes 0 and 1 are looked up in a table of a unit, the other planes add 2 d_i where their bit is set.
 * A product with bytes of which every other one is q leaves every other weight, in words. A span's sums
 * with whole inputs stay within 945 * 32 * 32258 < 2^30 and are what look-ups add up to. */
#ifndef KERNELS_AVX512_BCQ_TILE_H
#define KERNELS_AVX512_BCQ_TILE_H

#include "kernels/avx512/bcq_compact.h"

enum {
    AVX512_TILE_TOKENS = 128,
    AVX512_TILE_HALVES = 2, /* of a span */
    /* Whose offsets are kept: products with them are made once, at the end. */
    AVX512_TILE_SPANS = 128
};

/* Of a block and its tokens, by 16 rows. */
struct avx512_tile_totals {
    __m512 y[AVX512_TILE_TOKENS][AVX512_BCQ_UNITS];
    /* p + 16, four runs of a half in each row's word. */
    __m512i p16[AVX512_TILE_HALVES * AVX512_TILE_SPANS][AVX512_BCQ_UNITS];
    /* Sums over offsets of matrices that have more spans than those. */
    __m512i low[AVX512_TILE_TOKENS][AVX512_BCQ_UNITS], high[AVX512_TILE_TOKENS][AVX512_BCQ_UNITS];
};

/* Constants of a unit. Byte 4 r + s of the first table, r + 16 s of the second: of row r the sum of the d
 * of planes 0 and 1, with the signs that s has in its bits, less all other d. */
struct avx512_tile_unit {
    __m512i table[2];
    __m512i twice_d[BCQ_MAX_BITS]; /* of the other planes, in all bytes of a row */
    __m512i fifth_at[2];
};

/* Adds a plane's d where plus says so, else subtracts it. */
AVX512_INLINE __m512i avx512_tile_signed(__m512i to, __mmask64 plus, __m512i d) {
    return _mm512_mask_add_epi8(_mm512_sub_epi8(to, d), plus, to, d);
}

AVX512_INLINE void avx512_tile_units(int bits, struct avx512_tile_unit *units,
                                     const struct avx512_bcq_block *block) {
    static const __mmask64 plus[BCQ_MAX_BITS][2] = {{0xaaaaaaaaaaaaaaaa, 0xffff0000ffff0000},
                                                    {0xcccccccccccccccc, 0xffffffff00000000}};
    for (int u = 0; u < AVX512_BCQ_UNITS; u++) {
        struct avx512_tile_unit *unit = &units[u];
        unit->table[0] = unit->table[1] = _mm512_setzero_si512();
        for (int p = 0; p < bits; p++) {
            const __m512i d = avx512_compact_d(block, u, p);
            const __m512i of_rows = _mm512_mullo_epi32(d, _mm512_set1_epi32(0x01010101));
            const __m512i in_turn = _mm512_broadcast_i32x4(_mm512_cvtepi32_epi8(d));
            unit->table[0] = avx512_tile_signed(unit->table[0], plus[p][0], of_rows);
            unit->table[1] = avx512_tile_signed(unit->table[1], plus[p][1], in_turn);
            unit->twice_d[p] = _mm512_add_epi8(of_rows, of_rows);
        }
        for (int half = 0; half < 2; half++)
            unit->fifth_at[half] = avx512_compact_fifth_at(u, half);
    }
}

/* What a half's four runs are made of. */
struct avx512_tile_half {
    __m512i code[2][BCQ_MAX_BITS]; /* of two runs each */
    __m512i q[2];                  /* of two runs each, in a row's words */
    __m512i p16;
};

AVX512_INLINE void avx512_tile_read(const int bits, struct avx512_tile_half *out,
                                    const struct avx512_compact_half *at, __m512i fifth,
                                    __m512i fifth_at) {
    const __m512i nibbles = avx512_load(at->nibbles);
    AVX512_UNROLL for (int j = 0; j < 2; j++) {
        AVX512_UNROLL for (int p = 0; p < bits; p++) {
            out->code[j][p] = avx512_load(at->code[p] + 64 * j);
            avx512_bcq_prefetch(at->code[p] + 64 * j);
        }
        out->q[j] = avx512_compact_q(nibbles, j);
    }
    avx512_bcq_prefetch(at->nibbles);
    out->p16 = avx512_compact_p16(nibbles, fifth, fifth_at);
}

/* Sums of d of inputs j, j + 4, j + 8 and j + 12 of each row, of one of the code's two runs. at: has the bits
 * of planes 0 and 1 side by side, the first run's from bit 0, the second's from bit 4 of each byte on. */
AVX512_INLINE __m512i avx512_tile_sums(const int bits, const int run, const int j, __m512i at,
                                       const __m512i *code, const struct avx512_tile_unit *unit) {
    const __m512i number = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i row =
        _mm512_mullo_epi32(number, _mm512_set1_epi32(run ? 0x01010101 : 0x04040404));
    const __m512i bit = _mm512_set1_epi8((char)(1 << (j + 4 * run)));
    at = _mm512_ternarylogic_epi32(at, _mm512_set1_epi8(run ? 0x30 : 3), row, 0xea); /* a & b | c */
    __m512i sum = _mm512_permutexvar_epi8(at, unit->table[run]);
    AVX512_UNROLL for (int p = 2; p < bits; p++) sum =
        _mm512_mask_add_epi8(sum, _mm512_test_epi8_mask(code[p], bit), sum, unit->twice_d[p]);
    return sum;
}

/* Two runs. w[8 * run + j]: weights of inputs j and j + 8 in the lower and upper word of a row. A nibble's bit
 * j is bit j of its byte, the second run's are four further up. */
AVX512_INLINE void avx512_tile_weights(const int bits, __m512i w[16], const __m512i *code,
                                       __m512i q, const struct avx512_tile_unit *unit) {
    const __m512i even = _mm512_set1_epi8(0x55), second = code[bits > 1];
    /* Plane 0 in even bits, plane 1 in odd ones: inputs 0 and 2 of a nibble, then 1 and 3. */
    const __m512i at[2] = {
        _mm512_ternarylogic_epi32(even, code[0], _mm512_slli_epi16(second, 1), 0xca),
        _mm512_ternarylogic_epi32(even, _mm512_srli_epi16(code[0], 1), second, 0xca)};
    /* Lower byte of a row's first word to those of both words, none to the upper ones. */
    const __m512i both =
        _mm512_set4_epi32((int)0x800c800c, (int)0x80088008, (int)0x80048004, (int)0x80008000);
    AVX512_UNROLL for (int run = 0; run < 2; run++) {
        const __m512i from = _mm512_add_epi8(both, _mm512_set1_epi8((char)(2 * run)));
        const __m512i q_lower = _mm512_shuffle_epi8(q, from);
        const __m512i q_upper = _mm512_slli_epi16(q_lower, 8);
        AVX512_UNROLL for (int j = 0; j < 4; j++) {
            const __m512i of_j = j < 2 ? at[j] : _mm512_srli_epi16(at[j - 2], 2);
            const __m512i sums = avx512_tile_sums(bits, run, j, of_j, code, unit);
            w[8 * run + j] = _mm512_maddubs_epi16(q_lower, sums);
            w[8 * run + j + 4] = _mm512_maddubs_epi16(q_upper, sums);
        }
    }
}

#endif
