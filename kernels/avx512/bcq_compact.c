#include "kernels/avx512/bcq_compact.h"

/* One run of a plane is one group or part of one: d_i is the unsigned operand of vpdpbusd, so
 * the planes of a run share an accumulator (one for low, one for high bytes). Its sums are at
 * most 4 * 128 * 63 and fit 16 bits: vpdpwssd multiplies them by q. p + 16 is the unsigned operand
 * for the sums over runs. */

/* Constants of a unit. */
struct unit {
    __m512i d[BCQ_MAX_BITS]; /* four equal bytes per row */
    __m512i fifth[2];        /* positions of p's fifth bits, for each half of a span */
};

/* sum_i d_i * (+-x) over a run, low and high bytes apart. */
AVX512_INLINE void look_up(const int bits, const int parts, const int8_t (*table)[64],
                           const __m512i *select, const __m512i *d, __m512i *a) {
    AVX512_UNROLL for (int part = 0; part < parts; part++) {
        const __m512i t = avx512_load_once(table[part]);
        a[part] = _mm512_setzero_si512();
        AVX512_UNROLL for (int p = 0; p < bits; p++) a[part] =
            _mm512_dpbusd_epi32(a[part], d[p], _mm512_permutexvar_epi8(select[p], t));
    }
}

/* low, high += q times the sums of runs 2j and 2j + 1. Whole inputs: a product for each run, whose q has
 * nothing in the upper word; one for both would take a permutation of three operations. Rounded ones have
 * half as many sums, and a shift and a blend are less than the other q. */
AVX512_INLINE void add_runs(const int parts, const int j, __m512i nibbles, __m512i (*a)[2],
                            __m512i *low, __m512i *high) {
    if (parts == 1) {
        const __m512i sums =
            _mm512_mask_blend_epi16(0xaaaaaaaa, a[0][0], _mm512_slli_epi32(a[1][0], 16));
        *low = _mm512_dpwssd_epi32(*low, sums, avx512_compact_q(nibbles, j));
        return;
    }
    AVX512_UNROLL for (int h = 0; h < 2; h++) {
        const __m512i q = avx512_compact_q_of_run(nibbles, j, h);
        *low = _mm512_dpwssd_epi32(*low, a[h][0], q);
        *high = _mm512_dpwssd_epi32(*high, a[h][1], q);
    }
}

/* 16 rows x 64 inputs of n tokens; x: the span of the first. */
AVX512_INLINE void half_unit(const int bits, const int n, const int parts,
                             const struct avx512_compact_half *at, __m512i fifth, __m512i fifth_at,
                             const __m512i *d, const struct avx512_bcq_span *x, int half,
                             __m512i *low, __m512i *high, struct avx512_compact_sums *sums) {
    const __m512i nibbles = avx512_load(at->nibbles);
    AVX512_UNROLL for (int j = 0; j < 2; j++) {
        __m512i select[2][BCQ_MAX_BITS], word[BCQ_MAX_BITS];
        AVX512_UNROLL for (int c = 0; c < n; c++) {
            __m512i a[2][2];
            AVX512_UNROLL for (int h = 0; h < 2; h++) {
                AVX512_STEP_FENCE();
                AVX512_UNROLL for (int p = 0; p < bits && c == 0; p++) {
                    if (!h) {
                        word[p] = avx512_load(at->code[p] + 64 * j);
                        avx512_bcq_prefetch(at->code[p] + 64 * j);
                    }
                    select[h][p] = avx512_bcq_select(word[p], h);
                }
                look_up(bits, parts,
                        avx512_bcq_at(x, parts, (size_t)c)->table + (half * 4 + j * 2 + h) * parts,
                        select[h], d, a[h]);
            }
            add_runs(parts, j, nibbles, a, &low[c], &high[c]);
        }
    }
    avx512_bcq_prefetch(at->nibbles);
    const __m512i p16 = avx512_compact_p16(nibbles, fifth, fifth_at);
    AVX512_UNROLL for (int c = 0; c < n; c++) {
        const int32_t *r = avx512_bcq_at(x, parts, (size_t)c)->run_sums + 2 * half;
        sums[c].low = _mm512_dpbusd_epi32(sums[c].low, p16, _mm512_set1_epi32(r[0]));
        sums[c].high = _mm512_dpbusd_epi32(sums[c].high, p16, _mm512_set1_epi32(r[1]));
    }
}

/* first: number of the unit's first half in the span. */
AVX512_INLINE void unit_span(const int bits, const int n, const int parts,
                             const struct avx512_bcq_panel *panel, int span, int first, int halves,
                             __m512i fifth, const struct unit *unit,
                             const struct avx512_bcq_span *x, struct avx512_compact_sums *sums) {
    __m512i d[BCQ_MAX_BITS], low[AVX512_BCQ_COLUMNS], high[AVX512_BCQ_COLUMNS];
    AVX512_UNROLL for (int p = 0; p < bits; p++) d[p] = unit->d[p];
    AVX512_UNROLL for (int c = 0; c < n; c++) low[c] = high[c] = _mm512_setzero_si512();
    for (int half = 0; half < halves; half++) {
        const struct avx512_compact_half at =
            avx512_compact_half(&panel->block, bits, span, first + half);
        half_unit(bits, n, parts, &at, fifth, unit->fifth[half], d, x, half, low, high, sums);
    }
    AVX512_UNROLL for (int c = 0; c < n; c++) {
        const __m512 scale = _mm512_set1_ps(avx512_bcq_at(x, parts, (size_t)c)->scale);
        __m512 v = _mm512_cvtepi32_ps(low[c]);
        if (parts == 2) v = _mm512_fmadd_ps(_mm512_cvtepi32_ps(high[c]), _mm512_set1_ps(254.0f), v);
        sums[c].y = _mm512_fmadd_ps(v, scale, sums[c].y);
    }
}

static void begin(int n, struct avx512_compact_sums (*sums)[AVX512_BCQ_COLUMNS],
                  const struct avx512_bcq_token *tokens) {
    for (int u = 0; u < AVX512_BCQ_UNITS; u++)
        for (int c = 0; c < n; c++) sums[u][c] = avx512_compact_begin(&tokens[c]);
}

static void finish(int n, const struct avx512_bcq_panel *panel,
                   struct avx512_compact_sums (*sums)[AVX512_BCQ_COLUMNS]) {
    for (int u = 0; u < AVX512_BCQ_UNITS; u++) {
        const struct avx512_compact_scales s = avx512_compact_scales(&panel->block, u);
        for (int c = 0; c < n; c++)
            avx512_bcq_store(panel, u, c,
                             avx512_compact_end(&s, &sums[u][c], panel->tokens[c].scale));
    }
}

static void load_units(int bits, struct unit *units, const struct avx512_bcq_block *block) {
    for (int u = 0; u < AVX512_BCQ_UNITS; u++) {
        for (int p = 0; p < bits; p++)
            units[u].d[p] =
                _mm512_mullo_epi32(avx512_compact_d(block, u, p), _mm512_set1_epi32(0x01010101));
        units[u].fifth[0] = avx512_compact_fifth_at(u, 0);
        units[u].fifth[1] = avx512_compact_fifth_at(u, 1);
    }
}

AVX512_INLINE void block(const int bits, const int n, const int parts,
                         const struct avx512_bcq_panel *panel) {
    const struct avx512_bcq_span *x = panel->spans;
    struct avx512_compact_sums sums[AVX512_BCQ_UNITS][AVX512_BCQ_COLUMNS];
    struct unit units[AVX512_BCQ_UNITS];
    begin(n, sums, panel->tokens);
    load_units(bits, units, &panel->block);
    for (int span = 0; span < panel->shape->spans; span++) {
        const int halves = avx512_min((panel->shape->words + 1) / 2 - 2 * span, 2);
        const uint8_t *fifths = avx512_compact_fifths(&panel->block, bits, span);
        const __m512i fifth = avx512_load(fifths);
        avx512_bcq_prefetch(fifths);
        for (int u = 0; u < AVX512_BCQ_UNITS; u++)
            unit_span(bits, n, parts, panel, span, u * halves, halves, fifth, &units[u], x,
                      sums[u]);
        x = avx512_bcq_at(x, parts, (size_t)n);
    }
    finish(n, panel, sums);
}

#define KERNEL(bits, n)                                                                            \
    static void bytes_##bits##_##n(const struct avx512_bcq_panel *panel) {                         \
        block(bits, n, 1, panel);                                                                  \
    }                                                                                              \
    static void pairs_##bits##_##n(const struct avx512_bcq_panel *panel) {                         \
        block(bits, n, 2, panel);                                                                  \
    }
#define KERNELS(bits) KERNEL(bits, 1) KERNEL(bits, 2) KERNEL(bits, 3) KERNEL(bits, 4)
KERNELS(1)
KERNELS(2)
KERNELS(3)
KERNELS(4)

avx512_bcq_panel_function *avx512_bcq_compact(const struct avx512_bcq_shape *s, int n, int parts) {
    static avx512_bcq_panel_function *const kernels[2][BCQ_MAX_BITS][AVX512_BCQ_COLUMNS] = {
        {{bytes_1_1, bytes_1_2, bytes_1_3, bytes_1_4},
         {bytes_2_1, bytes_2_2, bytes_2_3, bytes_2_4},
         {bytes_3_1, bytes_3_2, bytes_3_3, bytes_3_4},
         {bytes_4_1, bytes_4_2, bytes_4_3, bytes_4_4}},
        {{pairs_1_1, pairs_1_2, pairs_1_3, pairs_1_4},
         {pairs_2_1, pairs_2_2, pairs_2_3, pairs_2_4},
         {pairs_3_1, pairs_3_2, pairs_3_3, pairs_3_4},
         {pairs_4_1, pairs_4_2, pairs_4_3, pairs_4_4}}};
    return kernels[parts - 1][s->bits - 1][n - 1];
}
