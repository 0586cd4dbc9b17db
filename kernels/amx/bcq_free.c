/* Free form, many tokens, groups of a multiple of 64 inputs or whole rows: a plane's bits become bytes of
 * +1 and -1, which tiles multiply by the inputs' bytes. A piece's sums are the integers that look-ups add
 * up (kernels/avx512/bcq_free.c), and what follows them is the same sequence of operations. */
#include "kernels/amx/tile.h"

/* A unit's span, by planes: line 4 * run + j of a half has inputs j, j + 4, j + 8 and j + 12 of each row. */
struct planes {
    __m512i lines[BCQ_MAX_BITS][HALVES][TILE];
};

/* Sums of a tile of tokens with a plane of a piece. */
struct plane_sums {
    __m512i low[TILE], high[TILE];
};

/* Of a span with a unit; pieces of 128 inputs have the first row alone. */
struct unit_sums {
    struct plane_sums planes[HALVES][BCQ_MAX_BITS];
};

/* Two runs. */
AVX512_INLINE void expand_word(__m512i *lines, __m512i code) {
    const __m512i plus = _mm512_set1_epi8(1), minus = _mm512_set1_epi8(-1);
    AVX512_UNROLL for (int i = 0; i < 8; i++) lines[i] = _mm512_mask_blend_epi8(
        _mm512_test_epi8_mask(code, _mm512_set1_epi8((char)(1 << i))), minus, plus);
}

/* Inputs behind the last are 0, so that nothing depends on lines without code. */
AVX512_INLINE void expand(const int bits, struct planes *out, const struct avx512_bcq_shape *s,
                          const struct avx512_bcq_block *block, int span, int unit) {
    for (int half = 0; half < HALVES; half++) {
        const int piece = s->piece == AVX512_BCQ_SPAN ? span : HALVES * span + half;
        const int first = s->piece == AVX512_BCQ_SPAN ? 2 * half : 0;
        const size_t at = avx512_bcq_piece_at(s, piece, unit) + (size_t)first * 64;
        for (int word = 0; word < 2; word++) {
            const bool there = 2 * (HALVES * span + half) + word < s->words;
            AVX512_UNROLL for (int p = 0; p < bits; p++) {
                const uint8_t *line = block->code[p] + at + 64 * word;
                if (there) avx512_bcq_prefetch(line);
                expand_word(&out->lines[p][half][8 * word],
                            there ? avx512_load(line) : _mm512_setzero_si512());
            }
        }
    }
}

/* Adds a half's products to the sums in the registers. */
#define ADD_HALF(parts, lines, x_low, x_high)                                                      \
    do {                                                                                           \
        _tile_loadd(W, lines, LINE);                                                               \
        _tile_dpbssd(LOW, x_low, W);                                                               \
        if (parts == 2) _tile_dpbssd(HIGH, x_high, W);                                             \
    } while (0)

AVX512_INLINE void begin_sums(const int parts) {
    _tile_zero(LOW);
    if (parts == 2) _tile_zero(HIGH);
}

AVX512_INLINE void end_sums(const int parts, struct plane_sums *to) {
    _tile_stored(LOW, to->low, LINE);
    if (parts == 2) _tile_stored(HIGH, to->high, LINE);
}

/* Products of the tile of tokens in the registers with a plane. */
AVX512_INLINE void multiply(const int p, const int parts, struct unit_sums *to,
                            const struct planes *w, bool one_piece, int halves) {
    AMX_BEFORE_LOADS();
    begin_sums(parts);
    ADD_HALF(parts, w->lines[p][0], X_LOW_0, X_HIGH_0);
    if (!one_piece) {
        end_sums(parts, &to->planes[0][p]);
        if (halves == 1) return;
        begin_sums(parts);
    }
    if (halves == 2) ADD_HALF(parts, w->lines[p][1], X_LOW_1, X_HIGH_1);
    end_sums(parts, &to->planes[one_piece ? 0 : 1][p]);
    AMX_BEFORE_LOADS();
}

/* Where a tile of tokens is. */
struct tokens {
    int n;
    const struct avx512_bcq_span *x[TILE]; /* their records of the span */
};

/* y += scale * sum_p alpha_p * sums_p + beta * sum of x, as look-ups do it, for tokens t to end - 1. y: UNITS
 * vectors apart. */
AVX512_INLINE void add_piece(const int bits, const int parts, __m512 *y,
                             const struct plane_sums *sums, const uint8_t *params, bool wide,
                             const struct tokens *tokens, int sum, int t, int end) {
    __m512 param[BCQ_MAX_BITS + 1];
    AVX512_UNROLL for (int p = 0; p <= bits; p++) param[p] = avx512_bcq_parameter(params, p, wide);
    for (; t < end; t++) {
        const struct avx512_bcq_span *x = tokens->x[t];
        __m512 v = _mm512_setzero_ps(), to = y[t * UNITS];
        AVX512_UNROLL for (int p = 0; p < bits; p++) {
            __m512i a = sums[p].low[t];
            if (parts == 2) a = _mm512_add_epi32(a, _mm512_slli_epi32(sums[p].high[t], 8));
            v = _mm512_fmadd_ps(param[p], _mm512_cvtepi32_ps(a), v);
        }
        to = _mm512_fmadd_ps(v, _mm512_set1_ps(x->scale), to);
        y[t * UNITS] = _mm512_fmadd_ps(param[bits], _mm512_set1_ps(x->sums[sum]), to);
    }
}

/* A unit's pieces of a span; part p of bits of the tokens. */
AVX512_INLINE void add_unit(const int bits, const int parts, __m512 *y,
                            const struct unit_sums *sums, const struct avx512_bcq_shape *s,
                            const struct avx512_bcq_block *block, const struct tokens *tokens,
                            int span, int unit, int halves, int p) {
    const int pieces = s->piece == AVX512_BCQ_SPAN ? 1 : halves;
    for (int i = 0; i < pieces; i++) {
        const int piece = s->piece == AVX512_BCQ_SPAN ? span : HALVES * span + i;
        const uint8_t *params =
            block->rest + (size_t)(s->row ? unit : piece * UNITS + unit) * s->params;
        /* Levels of sums: of 128 inputs at 0, of 64 from 1 on. */
        add_piece(bits, parts, y, sums->planes[i], params, s->wide, tokens,
                  s->piece == AVX512_BCQ_SPAN ? 0 : 1 + i, tokens->n * p / bits,
                  tokens->n * (p + 1) / bits);
    }
}

static void begin_tile(struct tokens *tokens, const struct avx512_bcq_tile *c, int first, int n,
                       int span) {
    *tokens = (struct tokens){.n = avx512_min(n, TILE)};
    for (int t = 0; t < tokens->n; t++)
        tokens->x[t] = (const void *)((const uint8_t *)c->act +
                                      avx512_bcq_record_at(c->act_bits, c->shape->spans, c->n,
                                                           first + t, span));
}

/* A block's span and all tokens: a unit's sums are added while the next one's products are made. */
AVX512_INLINE void multiply_span(const int bits, const int parts, const struct avx512_bcq_tile *c,
                                 struct avx512_tile_totals *totals, const struct planes *w,
                                 const struct avx512_bcq_block *block, int span, int t0,
                                 int n_tokens) {
    const struct avx512_bcq_shape *s = c->shape;
    const int halves = avx512_min((s->words + 1) / 2 - HALVES * span, HALVES);
    const bool one_piece = s->piece == AVX512_BCQ_SPAN;
    const int8_t *x = avx512_bcq_many_at(c->act, c->act_bits, s->spans, c->n, span).whole;
    const size_t apart = avx512_bcq_n16(c->n) * AVX512_BCQ_SPAN;
    struct unit_sums sums[2];
    for (int t = 0; t < n_tokens; t += TILE) {
        struct tokens tokens;
        begin_tile(&tokens, c, t0 + t, n_tokens - t, span);
        AMX_BEFORE_LOADS();
        amx_load_inputs(parts, halves, x + (size_t)(t0 + t) * AVX512_BCQ_SPAN, apart);
        for (int u = 0; u <= UNITS; u++) AVX512_UNROLL for (int p = 0; p < bits; p++) {
                if (u < UNITS) multiply(p, parts, &sums[u % 2], &w[u], one_piece, halves);
                if (u > 0)
                    add_unit(bits, parts, &totals->y[t][u - 1], &sums[(u + 1) % 2], s, block,
                             &tokens, span, u - 1, halves, p);
            }
    }
}

AVX512_INLINE void block(const int bits, const int parts, const struct avx512_bcq_tile *c,
                         struct avx512_tile_totals *totals, int b, int t0, int n_tokens) {
    const struct avx512_bcq_shape *s = c->shape;
    const struct avx512_bcq_block block = avx512_bcq_block(s, c->packed, b);
    const struct avx512_bcq_panel to = {
        .y = c->y + (size_t)t0 * c->ldy + b * AVX512_BCQ_ROWS,
        .ldy = c->ldy,
        .n_rows = avx512_min(c->rows - b * AVX512_BCQ_ROWS, AVX512_BCQ_ROWS)};
    struct planes w[UNITS];
    memset(totals->y, 0, (size_t)n_tokens * sizeof totals->y[0]);
    for (int span = 0; span < s->spans; span++) {
        for (int u = 0; u < UNITS; u++) expand(bits, &w[u], s, &block, span, u);
        multiply_span(bits, parts, c, totals, w, &block, span, t0, n_tokens);
    }
    for (int u = 0; u < UNITS; u++)
        for (int t = 0; t < n_tokens; t++) avx512_bcq_store(&to, u, t, totals->y[t][u]);
}

#define KERNEL(bits, parts)                                                                        \
    static void free_##bits##_##parts(const struct avx512_bcq_tile *c,                             \
                                      struct avx512_tile_totals *totals, int b, int t0,            \
                                      int n_tokens) {                                              \
        block(bits, parts, c, totals, b, t0, n_tokens);                                            \
    }
#define KERNELS(bits) KERNEL(bits, 1) KERNEL(bits, 2)
KERNELS(1)
KERNELS(2)
KERNELS(3)
KERNELS(4)

amx_block_function *amx_free(int bits, int parts) {
    static amx_block_function *const blocks[BCQ_MAX_BITS][2] = {
        {free_1_1, free_1_2}, {free_2_1, free_2_2}, {free_3_1, free_3_2}, {free_4_1, free_4_2}};
    return blocks[bits - 1][parts - 1];
}
