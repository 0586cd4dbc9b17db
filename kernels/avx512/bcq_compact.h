/* bcq_compact.h - reads what a block of the compact form holds besides its code.
 *
 * Owns      nothing.
 * Borrows   arguments during the call.
 * Thread    any; no state.
 * Fails     never.
 * Cost      a few instructions each.
 *
 * Look-ups (bcq_compact.c) and the tile for many tokens (bcq_tile.c) share it, and with it every
 * floating-point operation on a row's totals. */
#ifndef KERNELS_AVX512_BCQ_COMPACT_H
#define KERNELS_AVX512_BCQ_COMPACT_H

#include "kernels/avx512/bcq.h"

/* Of 16 rows and one token. */
struct avx512_compact_sums {
    __m512 y;          /* sum of scale * q * sum_i d_i * (+-x) */
    __m512i low, high; /* sum of p * x, bytes apart */
};

/* Where a span, which begins with the fifth bits of p, is in the last stream, from the block's part. */
AVX512_INLINE size_t avx512_compact_span_at(int bits, int span) {
    return 256 + 64 * (size_t)bits + (size_t)span * (1 + 2 * AVX512_BCQ_UNITS) * 64;
}

AVX512_INLINE const uint8_t *avx512_compact_fifths(const struct avx512_bcq_block *block, int bits,
                                                   int span) {
    return block->rest + avx512_compact_span_at(bits, span);
}

/* Half number i of a span, in the order of units. */
struct avx512_compact_half {
    const uint8_t *code[BCQ_MAX_BITS]; /* of runs 0 and 1, then of 2 and 3 */
    const uint8_t *nibbles;
};

AVX512_INLINE struct avx512_compact_half avx512_compact_half(const struct avx512_bcq_block *block,
                                                             const int bits, int span, int i) {
    struct avx512_compact_half ret;
    const size_t at = (size_t)(2 * AVX512_BCQ_UNITS * span + i) * 128;
    AVX512_UNROLL for (int p = 0; p < bits; p++) ret.code[p] = block->code[p] + at;
    ret.nibbles = avx512_compact_fifths(block, bits, span) + 64 + (size_t)i * 64;
    return ret;
}

/* The fifth bit of run b of the half to bit 4 of byte b, both rows of a 64-bit lane. */
AVX512_INLINE __m512i avx512_compact_fifth_at(int unit, int half) {
    uint64_t at = 0;
    for (int b = 0; b < 8; b++) {
        int from = (b >= 4 ? 32 : 0) + 8 * unit + 4 * half + (b & 3);
        at |= (uint64_t)((from - 4) & 63) << (8 * b);
    }
    return _mm512_set1_epi64((long long)at);
}

/* q of runs 2j and 2j + 1 of a half in the lower and upper word of each row. */
AVX512_INLINE __m512i avx512_compact_q(__m512i nibbles, int j) {
    return _mm512_and_si512(j ? _mm512_srli_epi32(nibbles, 4) : nibbles,
                            _mm512_set1_epi32(0x000f000f));
}

/* q of run 2j + h in the lower word of each row, 0 in the upper one. */
AVX512_INLINE __m512i avx512_compact_q_of_run(__m512i nibbles, const int j, const int h) {
    const int at = 4 * j + 16 * h;
    return _mm512_and_si512(at ? _mm512_srli_epi32(nibbles, (unsigned)at) : nibbles,
                            _mm512_set1_epi32(15));
}

/* p + 16 of four runs in the order of their bytes. */
AVX512_INLINE __m512i avx512_compact_p16(__m512i nibbles, __m512i fifth, __m512i fifth_at) {
    /* Runs 0 to 3 have their nibbles at bits 8, 24, 12, 28 of the word. */
    const __m512i at = _mm512_set1_epi64(0x3c2c38281c0c1808);
    const __m512i low =
        _mm512_and_si512(_mm512_multishift_epi64_epi8(at, nibbles), _mm512_set1_epi8(15));
    const __m512i high = _mm512_multishift_epi64_epi8(fifth_at, fifth);
    return _mm512_ternarylogic_epi32(_mm512_set1_epi8(16), high, low, 0xca); /* 16 ? high : low */
}

/* d of plane p, 32 bits a row. */
AVX512_INLINE __m512i avx512_compact_d(const struct avx512_bcq_block *block, int unit, int p) {
    const void *at = block->rest + 256 + 64 * p + 16 * unit;
    return _mm512_cvtepu8_epi32(_mm_load_si128(at));
}

/* Takes 16 off every p: totals begin at -16 times the sum over all runs. */
AVX512_INLINE struct avx512_compact_sums avx512_compact_begin(const struct avx512_bcq_token *t) {
    return (struct avx512_compact_sums){.y = _mm512_setzero_ps(),
                                        .low = _mm512_set1_epi32(-16 * t->low),
                                        .high = _mm512_set1_epi32(-16 * t->high)};
}

/* A unit's scales of codes (halved) and of offsets. */
struct avx512_compact_scales {
    __m512 code, offset;
};

AVX512_INLINE struct avx512_compact_scales
avx512_compact_scales(const struct avx512_bcq_block *block, int unit) {
    const uint8_t *scales = block->rest + 32 * unit;
    __m512 s0 = _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)scales));
    return (struct avx512_compact_scales){
        .code = _mm512_mul_ps(s0, _mm512_set1_ps(0.5f)),
        .offset = _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)(scales + 128)))};
}

/* A unit's results from its totals. scale: of the token's sums over runs. */
AVX512_INLINE __m512 avx512_compact_end(const struct avx512_compact_scales *s,
                                        const struct avx512_compact_sums *sums, float scale) {
    __m512 bias = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums->high), _mm512_set1_ps(254.0f),
                                  _mm512_cvtepi32_ps(sums->low));
    bias = _mm512_mul_ps(_mm512_mul_ps(bias, _mm512_set1_ps(scale)), s->offset);
    return _mm512_fmadd_ps(sums->y, s->code, bias);
}

#endif
