#include "kernels/avx512/bcq.h"

/* Groups that begin inside a run. Each (run, group) has code words with the bits of its own
 * inputs, all other bits clear in the word's first half and set in its second: the two entries
 * add up to twice what its own inputs give. The parameters are halved for that. Plane "bits" has
 * all own bits set, its parameter is beta. Such groups are rare: simple before fast. */

AVX512_INLINE __m512i both_halves(__m512i word, const int8_t (*table)[64]) {
    const __m512i weight[2] = {_mm512_set1_epi8(1), _mm512_set1_epi8((char)254)};
    __m512i a = _mm512_setzero_si512();
    for (int h = 0; h < 2; h++) {
        __m512i select = avx512_bcq_select(word, h);
        for (int part = 0; part < 2; part++)
            a = _mm512_dpbusd_epi32(a, weight[part],
                                    _mm512_permutexvar_epi8(select, avx512_load(table[part])));
    }
    return a;
}

/* One (run, group) of a unit. */
static void add_entry(int bits, int n, const uint8_t *params, const struct avx512_bcq_span *x,
                      int run, __m512 *y) {
    const uint8_t *code = params + 64 * (bits + 1);
    for (int c = 0; c < n; c++) {
        __m512 v = _mm512_setzero_ps();
        for (int p = 0; p <= bits; p++) {
            __m512i a = both_halves(avx512_load(code + 64 * p), x[c].table[run]);
            v = _mm512_fmadd_ps(_mm512_load_ps((const float *)(params + 64 * p)),
                                _mm512_cvtepi32_ps(a), v);
        }
        y[c] = _mm512_fmadd_ps(v, _mm512_set1_ps(x[c].scale), y[c]);
    }
}

AVX512_INLINE void block(int n, const struct avx512_bcq_panel *panel) {
    const struct avx512_bcq_shape *s = panel->shape;
    const uint8_t *at = panel->block;
    __m512 y[AVX512_BCQ_UNITS][AVX512_BCQ_COLUMNS];
    for (int u = 0; u < AVX512_BCQ_UNITS; u++)
        for (int c = 0; c < n; c++) y[u][c] = _mm512_setzero_ps();
    for (int run = 0; run < s->runs; run++) {
        int first, last;
        avx512_bcq_groups_of(s, run, &first, &last);
        const struct avx512_bcq_span *x =
            panel->spans + (size_t)(run / AVX512_BCQ_RUNS) * (size_t)n;
        for (int g = first; g <= last; g++)
            for (int u = 0; u < AVX512_BCQ_UNITS; u++, at += 2 * s->params)
                add_entry(s->bits, n, at, x, run % AVX512_BCQ_RUNS, y[u]);
    }
    for (int u = 0; u < AVX512_BCQ_UNITS; u++)
        for (int c = 0; c < n; c++) avx512_bcq_store(panel, u, c, y[u][c]);
}

static void block_1(const struct avx512_bcq_panel *panel) { block(1, panel); }
static void block_2(const struct avx512_bcq_panel *panel) { block(2, panel); }
static void block_3(const struct avx512_bcq_panel *panel) { block(3, panel); }
static void block_4(const struct avx512_bcq_panel *panel) { block(4, panel); }

avx512_bcq_panel_function *avx512_bcq_odd(int n) {
    static avx512_bcq_panel_function *const kernels[AVX512_BCQ_COLUMNS] = {block_1, block_2,
                                                                           block_3, block_4};
    return kernels[n - 1];
}
