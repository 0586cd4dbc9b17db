/* expand.h - a block of the compact form as the bytes that tiles multiply.
 *
 * Owns      nothing.
 * Borrows   arguments during the call.
 * Thread    any; no state.
 * Fails     never.
 * Cost      about 14 operations for 64 weights at 3 planes.
 *
 * A row's weights in a run are q times one of 2^bits signed sums of its d: for each run a table of those
 * products, low and high bytes apart, in which the planes' bits select. Weights are 256 * high + low, both
 * bytes signed.
 *
 * Tables are of 64 bytes. Byte 16 l + 2 k + w of table i has
 *   1, 2 planes   of row 8 w + 4 (k / 4) + l the sum k % 4
 *   3 planes      of row 8 i + 4 w + l the sum k
 *   4 planes      of row 4 i + l the sum 8 w + k
 * so that plane p selects by bit p + 1, the fourth by bit 0. */
#ifndef KERNELS_AMX_EXPAND_H
#define KERNELS_AMX_EXPAND_H

#include "kernels/avx512/bcq_tile.h"

enum {
    AMX_TILE = 16, /* tokens, rows of weights, and lines of a tile */
    AMX_LINE = 64  /* bytes */
};

/* A unit's span, half by half as tiles: line 4 * run + j has inputs j, j + 4, j + 8 and j + 12 of each
 * row. */
struct amx_expanded {
    __m512i low[AVX512_TILE_HALVES][AMX_TILE], high[AVX512_TILE_HALVES][AMX_TILE];
};

/* Tables for a run, two vectors of words each. */
#define AMX_TABLES(bits) ((bits) < 3 ? 1 : (bits) == 3 ? 2 : 4)

/* What selecting needs, the same for all units. */
struct amx_select {
    /* Of table i's bytes w, at 2 i + w: the bytes of their rows' first words, of two for each row. By bytes,
     * because permuting words takes two operations. */
    __m512i row[8];
    __m512i at; /* (16 rows, 4 bytes) what a row's bytes have in common */
};

/* Constants of a unit: the signed sums of d, in the order of the tables, and where p's fifth bits are. */
struct amx_unit {
    __m512i sum[8], fifth_at[AVX512_TILE_HALVES];
};

AVX512_INLINE void amx_select_init(const int bits, struct amx_select *s) {
    const __m512i dword = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    /* Words 0 to 31: their lane, and whether they are in its second half. */
    const __m512i word =
        _mm512_or_si512(_mm512_slli_epi32(dword, 17),
                        _mm512_or_si512(_mm512_slli_epi32(dword, 1), _mm512_set1_epi32(1 << 16)));
    const __m512i lane = _mm512_srli_epi16(word, 3);
    const __m512i half = _mm512_and_si512(_mm512_srli_epi16(word, 2), _mm512_set1_epi16(1));
    for (int v = 0; v < 2 * AMX_TABLES(bits); v++) {
        int first = bits < 3 ? 8 * v : bits == 3 ? 4 * v : 4 * (v / 2);
        __m512i row = _mm512_add_epi16(lane, _mm512_set1_epi16((short)first));
        if (bits < 3) row = _mm512_add_epi16(row, _mm512_slli_epi16(half, 2));
        /* Row r has its first word at byte 4 r. */
        row = _mm512_slli_epi16(row, 2);
        s->row[v] = _mm512_or_si512(_mm512_or_si512(row, _mm512_slli_epi16(row, 8)),
                                    _mm512_set1_epi16(0x0100));
    }
    const __m512i four = _mm512_and_si512(dword, _mm512_set1_epi32(4));
    __m512i at = _mm512_slli_epi32(_mm512_and_si512(dword, _mm512_set1_epi32(3)), 4);
    if (bits == 3) at = _mm512_or_si512(at, _mm512_srli_epi32(four, 2));
    if (bits < 3)
        at = _mm512_or_si512(
            at, _mm512_or_si512(_mm512_slli_epi32(four, 1), _mm512_srli_epi32(dword, 3)));
    s->at = _mm512_mullo_epi32(at, _mm512_set1_epi32(0x01010101));
}

AVX512_INLINE void amx_unit_init(const int bits, struct amx_unit *unit, const struct amx_select *s,
                                 const struct avx512_bcq_block *block, int u) {
    static const __mmask32 plus[3] = {0xaaaaaaaa, 0xcccccccc, 0xf0f0f0f0};
    __m512i d[BCQ_MAX_BITS];
    for (int p = 0; p < bits; p++) {
        d[p] = avx512_compact_d(block, u, p);
        d[p] = _mm512_or_si512(d[p], _mm512_slli_epi32(d[p], 16));
    }
    for (int v = 0; v < 2 * AMX_TABLES(bits); v++) {
        __m512i sum = _mm512_setzero_si512();
        for (int p = 0; p < bits; p++) {
            __m512i of_rows = _mm512_permutexvar_epi8(s->row[v], d[p]);
            __mmask32 add = p < 3 ? plus[p] : v % 2 ? 0xffffffff : 0;
            sum = _mm512_mask_add_epi16(_mm512_sub_epi16(sum, of_rows), add, sum, of_rows);
        }
        unit->sum[v] = sum;
    }
    for (int half = 0; half < AVX512_TILE_HALVES; half++)
        unit->fifth_at[half] = avx512_compact_fifth_at(u, half);
}

/* Lower bytes of a's words, upper ones of b's. */
AVX512_INLINE __m512i amx_join(__m512i a, __m512i b) {
    return _mm512_ternarylogic_epi32(b, _mm512_set1_epi16(0xff), a, 0xb8); /* low byte ? a : b */
}

/* The tables of a run. q: in the lower word of each row. */
AVX512_INLINE void amx_tables(const int bits, __m512i *low, __m512i *high,
                              const struct amx_unit *unit, const struct amx_select *s, __m512i q) {
    const __m512i k128 = _mm512_set1_epi16(128);
    for (int i = 0; i < AMX_TABLES(bits); i++) {
        __m512i w[2];
        AVX512_UNROLL for (int k = 0; k < 2; k++) w[k] =
            _mm512_mullo_epi16(_mm512_permutexvar_epi8(s->row[2 * i + k], q), unit->sum[2 * i + k]);
        low[i] = amx_join(w[0], _mm512_slli_epi16(w[1], 8));
        /* w + 128 over 256, in the lower byte by a rounded product with 128 / 32768. */
        high[i] = amx_join(_mm512_mulhrs_epi16(w[0], k128), _mm512_add_epi16(w[1], k128));
    }
}

/* Of each row by its own table. */
AVX512_INLINE __m512i amx_look_up(const int bits, const __m512i *table, __m512i at) {
    const int n = AMX_TABLES(bits), bytes = 64 / n;
    __m512i v = _mm512_permutexvar_epi8(at, table[0]);
    for (int i = 1; i < n; i++) {
        const __mmask64 rows = (~(__mmask64)0 >> (64 - bytes % 64)) << (bytes * i % 64);
        v = _mm512_mask_permutexvar_epi8(v, rows, at, table[i]);
    }
    return v;
}

/* Bits j of the planes' nibbles, of two runs side by side: in bits 0 to 3 for the first, 4 to 7 for the
 * second. */
AVX512_INLINE __m512i amx_gather_bits(const int bits, const __m512i *code, const int j) {
    __m512i at = _mm512_setzero_si512();
    AVX512_UNROLL for (int p = 0; p < bits; p++) {
        const int to = (p + 1) % 4;
        const __m512i v = to > j ? _mm512_slli_epi16(code[p], (unsigned)(to - j))
                                 : _mm512_srli_epi16(code[p], (unsigned)(j - to));
        /* bit `to` ? v : at */
        at = p ? _mm512_ternarylogic_epi32(v, _mm512_set1_epi8((char)(0x11 << to)), at, 0xe2) : v;
    }
    return at;
}

/* Two runs: eight lines. code: their words, of each plane. */
AVX512_INLINE void amx_expand_runs(const int bits, __m512i *low, __m512i *high,
                                   const struct amx_unit *unit, const struct amx_select *s,
                                   const __m512i *code, __m512i q) {
    const __m512i sum = _mm512_set1_epi8(bits == 4 ? 15 : (char)((2 << bits) - 2));
    __m512i lows[2][4], highs[2][4];
    amx_tables(bits, lows[0], highs[0], unit, s, q);
    amx_tables(bits, lows[1], highs[1], unit, s, _mm512_srli_epi32(q, 16));
    AVX512_UNROLL for (int j = 0; j < 4; j++) {
        const __m512i both = amx_gather_bits(bits, code, j);
        AVX512_UNROLL for (int run = 0; run < 2; run++) {
            const __m512i of_run = run ? _mm512_srli_epi16(both, 4) : both;
            const __m512i at = _mm512_ternarylogic_epi32(of_run, sum, s->at, 0xea); /* a & b | c */
            low[4 * run + j] = amx_look_up(bits, lows[run], at);
            high[4 * run + j] = amx_look_up(bits, highs[run], at);
        }
    }
}

/* p + 16 of a half's runs. */
AVX512_INLINE __m512i amx_p16(const struct avx512_compact_half *at, __m512i fifth,
                              const struct amx_unit *unit, int half) {
    return avx512_compact_p16(avx512_load(at->nibbles), fifth, unit->fifth_at[half]);
}

/* Runs 2 j and 2 j + 1 of a half: eight of its lines. */
AVX512_INLINE void amx_expand_pair(const int bits, struct amx_expanded *out, int half, const int j,
                                   const struct avx512_compact_half *at,
                                   const struct amx_unit *unit, const struct amx_select *s) {
    const __m512i nibbles = avx512_load(at->nibbles);
    __m512i words[BCQ_MAX_BITS];
    AVX512_UNROLL for (int p = 0; p < bits; p++) {
        words[p] = avx512_load(at->code[p] + AMX_LINE * j);
        avx512_bcq_prefetch(at->code[p] + AMX_LINE * j);
    }
    if (j) avx512_bcq_prefetch(at->nibbles);
    amx_expand_runs(bits, &out->low[half][8 * j], &out->high[half][8 * j], unit, s, words,
                    avx512_compact_q(nibbles, j));
}

#endif
