#include "kernels/avx512/bcq.h"

/* Groups that begin inside a run. Each (run, group) has code words with the bits of its own
 * inputs, all other bits clear in the word's first half and set in its second: the two entries
 * add up to twice what its own inputs give. The parameters are halved for that. Plane "bits" has
 * all own bits set, its parameter is beta. Such groups are rare: simple before fast. */

AVX512_INLINE __m512i both_halves(const int parts, __m512i word, const int8_t (*table)[64]) {
    const __m512i weight[2] = {_mm512_set1_epi8(1), _mm512_set1_epi8((char)254)};
    __m512i a = _mm512_setzero_si512();
    for (int h = 0; h < 2; h++) {
        __m512i select = avx512_bcq_select(word, h);
        for (int part = 0; part < parts; part++)
            a = _mm512_dpbusd_epi32(a, weight[part],
                                    _mm512_permutexvar_epi8(select, avx512_load(table[part])));
    }
    return a;
}

/* One (run, group) of a unit. */
static void add_entry(int bits, int n, int parts, const uint8_t *params,
                      const struct avx512_bcq_span *x, int run, __m512 *y) {
    const uint8_t *code = params + 64 * (bits + 1);
    for (int c = 0; c < n; c++) {
        const struct avx512_bcq_span *xc = avx512_bcq_at(x, parts, (size_t)c);
        __m512 v = _mm512_setzero_ps();
        for (int p = 0; p <= bits; p++) {
            __m512i a = both_halves(parts, avx512_load(code + 64 * p), xc->table + run * parts);
            v = _mm512_fmadd_ps(_mm512_load_ps((const float *)(params + 64 * p)),
                                _mm512_cvtepi32_ps(a), v);
        }
        y[c] = _mm512_fmadd_ps(v, _mm512_set1_ps(xc->scale), y[c]);
    }
}

AVX512_INLINE void block(int n, int parts, const struct avx512_bcq_panel *panel) {
    const struct avx512_bcq_shape *s = panel->shape;
    const uint8_t *at = panel->block.rest;
    __m512 y[AVX512_BCQ_UNITS][AVX512_BCQ_COLUMNS];
    for (int u = 0; u < AVX512_BCQ_UNITS; u++)
        for (int c = 0; c < n; c++) y[u][c] = _mm512_setzero_ps();
    for (int run = 0; run < s->runs; run++) {
        int first, last;
        avx512_bcq_groups_of(s, run, &first, &last);
        const struct avx512_bcq_span *x =
            avx512_bcq_at(panel->spans, parts, (size_t)(run / AVX512_BCQ_RUNS) * (size_t)n);
        for (int g = first; g <= last; g++)
            for (int u = 0; u < AVX512_BCQ_UNITS; u++, at += 2 * s->params)
                add_entry(s->bits, n, parts, at, x, run % AVX512_BCQ_RUNS, y[u]);
    }
    for (int u = 0; u < AVX512_BCQ_UNITS; u++)
        for (int c = 0; c < n; c++) avx512_bcq_store(panel, u, c, y[u][c]);
}

#define KERNEL(n)                                                                                  \
    static void bytes_##n(const struct avx512_bcq_panel *panel) { block(n, 1, panel); }            \
    static void pairs_##n(const struct avx512_bcq_panel *panel) { block(n, 2, panel); }
KERNEL(1)
KERNEL(2)
KERNEL(3)
KERNEL(4)

avx512_bcq_panel_function *avx512_bcq_odd(int n, int parts) {
    static avx512_bcq_panel_function *const kernels[2][AVX512_BCQ_COLUMNS] = {
        {bytes_1, bytes_2, bytes_3, bytes_4}, {pairs_1, pairs_2, pairs_3, pairs_4}};
    return kernels[parts - 1][n - 1];
}
