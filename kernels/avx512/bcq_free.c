#include "kernels/avx512/bcq.h"

/* A plane has one accumulator per token and piece: vpdpbusd adds low bytes times 1 and high
 * bytes times 254 to it. A single token has two, to shorten the chains. */

/* Accumulators of 16 rows x 128 inputs at most: |sum| <= 32 * 32512 fits 21 bits. */
struct pieces {
    __m512i a[AVX512_BCQ_COLUMNS][BCQ_MAX_BITS][2];
};

AVX512_INLINE void look_up(const int bits, const int n, const int parts, const int chain,
                           const __m512i *select, const int8_t *tables, struct pieces *s) {
    const __m512i one = _mm512_set1_epi8(1), k254 = _mm512_set1_epi8((char)254);
    AVX512_UNROLL for (int c = 0; c < n; c++) {
        const int8_t *table = tables + (size_t)c * avx512_bcq_span_bytes(parts);
        AVX512_UNROLL for (int part = 0; part < parts; part++) {
            const __m512i t = avx512_load_once(table + 64 * part);
            AVX512_UNROLL for (int p = 0; p < bits; p++) s->a[c][p][chain] = _mm512_dpbusd_epi32(
                s->a[c][p][chain], part ? k254 : one, _mm512_permutexvar_epi8(select[p], t));
        }
    }
}

/* Where a kernel stands in a block. */
struct place {
    const struct avx512_bcq_block *block;
    size_t code;           /* of the piece's unit, from the block's code in each stream */
    const uint8_t *params; /* of the same */
    const struct avx512_bcq_span *x;
    int run, sum; /* the piece's first run in the span, index of its sum of x */
    int words;    /* of the piece */
    bool wide;
};

/* A piece of words. tables: of its first run, first token. */
AVX512_INLINE void sum_words(const int bits, const int n, const int parts, const struct place *at,
                             const int8_t *tables, struct pieces *s) {
    size_t code = at->code;
    for (int w = 0; w < at->words; w++, code += 64, tables += 128 * parts) {
        __m512i select[BCQ_MAX_BITS], word[BCQ_MAX_BITS];
        AVX512_UNROLL for (int h = 0; h < 2; h++) {
            AVX512_STEP_FENCE();
            AVX512_UNROLL for (int p = 0; p < bits; p++) {
                if (!h) {
                    word[p] = avx512_load(at->block->code[p] + code);
                    avx512_bcq_prefetch(at->block->code[p] + code);
                }
                select[p] = avx512_bcq_select(word[p], h);
            }
            look_up(bits, n, parts, n == 1 ? h : 0, select, tables + 64 * parts * h, s);
        }
    }
}

/* A piece of one run: a code vector has two planes. */
AVX512_INLINE void sum_run(const int bits, const int n, const int parts, const struct place *at,
                           const int8_t *tables, struct pieces *s) {
    __m512i select[BCQ_MAX_BITS];
    AVX512_STEP_FENCE();
    AVX512_UNROLL for (int p = 0; p < bits; p++) {
        const uint8_t *code = at->block->code[p / 2] + at->code;
        if (p % 2 == 0) avx512_bcq_prefetch(code);
        select[p] = avx512_bcq_select(avx512_load(code), p % 2);
    }
    look_up(bits, n, parts, 0, select, tables, s);
}

/* y += scale * sum_p alpha_p * a_p + beta * sum of x. */
AVX512_INLINE void add_piece(const int bits, const int n, const int parts, const uint8_t *params,
                             bool wide, const struct avx512_bcq_span *x, int sum,
                             const struct pieces *s, __m512 *y) {
    __m512 param[BCQ_MAX_BITS + 1];
    AVX512_UNROLL for (int p = 0; p <= bits; p++) param[p] = avx512_bcq_parameter(params, p, wide);
    AVX512_UNROLL for (int c = 0; c < n; c++) {
        __m512 v = _mm512_setzero_ps();
        AVX512_UNROLL for (int p = 0; p < bits; p++) {
            __m512i a = s->a[c][p][0];
            if (n == 1) a = _mm512_add_epi32(a, s->a[c][p][1]);
            v = _mm512_fmadd_ps(param[p], _mm512_cvtepi32_ps(a), v);
        }
        const struct avx512_bcq_span *xc = avx512_bcq_at(x, parts, (size_t)c);
        y[c] = _mm512_fmadd_ps(v, _mm512_set1_ps(xc->scale), y[c]);
        y[c] = _mm512_fmadd_ps(param[bits], _mm512_set1_ps(xc->sums[sum]), y[c]);
    }
}

AVX512_INLINE void unit_piece(const int bits, const int n, const int parts, const bool single_run,
                              const struct place *at, __m512 *y) {
    struct pieces s;
    AVX512_UNROLL for (int c = 0; c < n; c++) AVX512_UNROLL for (int p = 0; p < bits; p++)
        s.a[c][p][0] = s.a[c][p][1] = _mm512_setzero_si512();
    const int8_t *tables = at->x->table[at->run * parts];
    if (single_run)
        sum_run(bits, n, parts, at, tables, &s);
    else
        sum_words(bits, n, parts, at, tables, &s);
    add_piece(bits, n, parts, at->params, at->wide, at->x, at->sum, &s, y);
}

/* The four units of a piece. at: at the first. */
AVX512_INLINE void piece(const int bits, const int n, const int parts, const bool single_run,
                         const struct avx512_bcq_shape *s, struct place *at,
                         __m512 (*y)[AVX512_BCQ_COLUMNS]) {
    for (int u = 0; u < AVX512_BCQ_UNITS; u++) {
        unit_piece(bits, n, parts, single_run, at, y[u]);
        at->code += 64 * (size_t)(single_run ? 1 : at->words);
        /* Two units' parameters are whole lines. */
        for (size_t i = 0; u % 2 == 0 && !s->row && i < 2 * s->params; i += 64)
            avx512_bcq_prefetch(at->params + i);
        at->params += s->params;
    }
    if (s->row) at->params = at->block->rest;
}

AVX512_INLINE void block(const int bits, const int n, const int parts, const bool single_run,
                         const struct avx512_bcq_panel *panel) {
    const struct avx512_bcq_shape *s = panel->shape;
    struct place at = {
        .block = &panel->block, .params = panel->block.rest, .x = panel->spans, .wide = s->wide};
    __m512 y[AVX512_BCQ_UNITS][AVX512_BCQ_COLUMNS];
    for (int u = 0; u < AVX512_BCQ_UNITS; u++)
        for (int c = 0; c < n; c++) y[u][c] = _mm512_setzero_ps();
    const int runs = s->piece / 16, n_runs = s->runs;
    for (int run = 0; run < n_runs; run += runs) {
        at.run = run % AVX512_BCQ_RUNS;
        at.sum = AVX512_BCQ_RUNS / runs - 1 + at.run / runs;
        at.words = avx512_min(runs / 2, s->words - run / 2);
        at.x = avx512_bcq_at(panel->spans, parts, (size_t)(run / AVX512_BCQ_RUNS) * (size_t)n);
        piece(bits, n, parts, single_run, s, &at, y);
    }
    for (int u = 0; u < AVX512_BCQ_UNITS; u++)
        for (int c = 0; c < n; c++) avx512_bcq_store(panel, u, c, y[u][c]);
}

#define KERNEL(name, bits, n, parts, single_run)                                                   \
    static void name##_##bits##_##n(const struct avx512_bcq_panel *panel) {                        \
        block(bits, n, parts, single_run, panel);                                                  \
    }
#define KERNELS_N(name, bits, parts, single_run)                                                   \
    KERNEL(name, bits, 1, parts, single_run)                                                       \
    KERNEL(name, bits, 2, parts, single_run)                                                       \
    KERNEL(name, bits, 3, parts, single_run) KERNEL(name, bits, 4, parts, single_run)
#define KERNELS(name, parts, single_run)                                                           \
    KERNELS_N(name, 1, parts, single_run)                                                          \
    KERNELS_N(name, 2, parts, single_run)                                                          \
    KERNELS_N(name, 3, parts, single_run) KERNELS_N(name, 4, parts, single_run)
KERNELS(words, 2, false)
KERNELS(run, 2, true)
KERNELS(byte_words, 1, false)
KERNELS(byte_run, 1, true)

#define ROW(name, bits)                                                                            \
    { name##_##bits##_1, name##_##bits##_2, name##_##bits##_3, name##_##bits##_4 }
#define TABLE(name)                                                                                \
    { ROW(name, 1), ROW(name, 2), ROW(name, 3), ROW(name, 4) }

avx512_bcq_panel_function *avx512_bcq_free(const struct avx512_bcq_shape *s, int n, int parts) {
    static avx512_bcq_panel_function *const kernels[2][2][BCQ_MAX_BITS][AVX512_BCQ_COLUMNS] = {
        {TABLE(byte_words), TABLE(byte_run)}, {TABLE(words), TABLE(run)}};
    return kernels[parts - 1][s->piece == 16][s->bits - 1][n - 1];
}
