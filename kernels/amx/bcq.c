/* Compact form, many tokens, in tiles of 16 rows x 64 inputs x 16 tokens. Weights are 256 * high + low,
 * whole inputs likewise, all bytes signed: four products of bytes make one of words, in whole numbers,
 * hence the same bits as kernels/avx512/bcq_tile.c. Rounded inputs have no high bytes.
 *
 * Intel's manual, volume 1, chapter 18, is the source for the tiles. */
#include "kernels/amx/amx.h"

#include <string.h>

#include "kernels/amx/expand.h"
#include "kernels/avx512/bcq_tile.h"
#include "kernels/ops.h"

enum { UNITS = AVX512_BCQ_UNITS, TILE = AMX_TILE, HALVES = AMX_HALVES, LINE = AMX_LINE };

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

/* gcc 12 does not know that loading a tile reads memory. */
#define AMX_BEFORE_LOADS() __asm__ volatile("" ::: "memory")

struct sums {
    __m512i low[TILE], middle[TILE], high[TILE];
};

/* p + 16 of up to 64 spans: 16 halves, a chunk of spans, are a tile. */
enum { OFFSET_SPANS = 64 };
struct offsets {
    __m512i p16[HALVES * OFFSET_SPANS][UNITS];
};

/* Of a block and its tokens, by 16 rows. */
struct totals {
    __m512 y[AVX512_TILE_TOKENS][UNITS];
    struct offsets offsets;
    /* Sums over offsets of matrices that have more spans than those. */
    __m512i low[AVX512_TILE_TOKENS][UNITS], high[AVX512_TILE_TOKENS][UNITS];
};

/* Tiles of W have 16 lines of 64 bytes, the others as many as a tile has tokens. */
static void configure(int tokens) {
    struct {
        uint8_t palette, start, unused[14];
        uint16_t line_bytes[16];
        uint8_t lines[16];
    } config;
    memset(&config, 0, sizeof config);
    config.palette = 1;
    for (int i = 0; i < 8; i++) {
        config.line_bytes[i] = LINE;
        config.lines[i] = (uint8_t)(i == W ? TILE : tokens);
    }
    /* gcc 12 takes the configuration for eight bytes. */
    __asm__ volatile("" : : "r"(&config) : "memory");
    _tile_loadconfig(&config);
}

/* Where the sums of a tile of tokens with a unit are added: rows of y are UNITS vectors apart. old: 0 where
 * y holds nothing yet. */
struct add_to {
    __m512 *y;
    const float *scales;
    __mmask16 old;
};

/* y += scale * sum for tokens t to t + n - 1. */
AVX512_INLINE void add_some(const int parts, const struct sums *sums, struct add_to to, const int t,
                            const int n) {
    AVX512_UNROLL for (int i = t; i < t + n; i++) {
        __m512i sum = _mm512_add_epi32(sums->low[i], _mm512_slli_epi32(sums->middle[i], 8));
        if (parts == 2) sum = _mm512_add_epi32(sum, _mm512_slli_epi32(sums->high[i], 16));
        to.y[i * UNITS] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(to.scales[i]),
                                          _mm512_maskz_load_ps(to.old, &to.y[i * UNITS]));
    }
    AMX_BEFORE_LOADS();
}

/* A half's products, tokens of the sums before in between: a store of a tile waits for its sums, and
 * what follows it in the program finds little room to be done meanwhile. */
#define HALF(parts, low_bytes, high_bytes, x_low, x_high, before, to, t, each)                     \
    do {                                                                                           \
        _tile_loadd(W, low_bytes, LINE);                                                           \
        _tile_dpbssd(LOW, x_low, W);                                                               \
        if (before) add_some(parts, before, to, t, each);                                          \
        if (parts == 2) _tile_dpbssd(MIDDLE, x_high, W);                                           \
        if (before) add_some(parts, before, to, t + each, each);                                   \
        _tile_loadd(W, high_bytes, LINE);                                                          \
        _tile_dpbssd(MIDDLE, x_low, W);                                                            \
        if (before) add_some(parts, before, to, t + 2 * each, each);                               \
        if (parts == 2) _tile_dpbssd(HIGH, x_high, W);                                             \
        if (before) add_some(parts, before, to, t + 3 * each, each);                               \
    } while (0)

/* Products of the tile of tokens in the registers with a unit's span. before: NULL or sums which are
 * added meanwhile. */
AVX512_INLINE void multiply_tile(const int parts, const int tokens, const int halves,
                                 struct sums *sums, const struct amx_expanded *e, int u,
                                 const struct sums *before, struct add_to to) {
    _tile_zero(LOW);
    _tile_zero(MIDDLE);
    if (parts == 2) _tile_zero(HIGH);
    if (halves == 2) {
        HALF(parts, e->low[u][0], e->high[u][0], X_LOW_0, X_HIGH_0, before, to, 0, tokens / 8);
        HALF(parts, e->low[u][1], e->high[u][1], X_LOW_1, X_HIGH_1, before, to, tokens / 2,
             tokens / 8);
    } else {
        HALF(parts, e->low[u][0], e->high[u][0], X_LOW_0, X_HIGH_0, before, to, 0, tokens / 4);
    }
    _tile_stored(LOW, sums->low, LINE);
    _tile_stored(MIDDLE, sums->middle, LINE);
    if (parts == 2) _tile_stored(HIGH, sums->high, LINE);
}

/* x: low bytes of the first token, high bytes at x + apart. */
AVX512_INLINE void load_inputs(const int parts, const int halves, const int8_t *x, size_t apart) {
    _tile_loadd(X_LOW_0, x, AVX512_BCQ_SPAN);
    if (parts == 2) _tile_loadd(X_HIGH_0, x + apart, AVX512_BCQ_SPAN);
    if (halves == 1) return;
    _tile_loadd(X_LOW_1, x + LINE, AVX512_BCQ_SPAN);
    if (parts == 2) _tile_loadd(X_HIGH_1, x + apart + LINE, AVX512_BCQ_SPAN);
}

/* Whole tiles of tokens: what lies behind the last is memory, and its sums go nowhere. */
AVX512_INLINE void multiply(const int parts, const int tokens, const int halves,
                            struct totals *totals, const struct avx512_bcq_tile *c,
                            const struct amx_expanded *e, int span, int t0, int n_tokens) {
    const struct avx512_bcq_many many =
        avx512_bcq_many_at(c->act, c->act_bits, c->shape->spans, c->n, span);
    const size_t apart = avx512_bcq_n16(c->n) * AVX512_BCQ_SPAN;
    const int8_t *x = (const int8_t *)many.whole + (size_t)t0 * AVX512_BCQ_SPAN;
    struct add_to to = {NULL, NULL, span > 0 ? 0xffff : 0};
    struct sums sums[2];
    AMX_BEFORE_LOADS();
    for (int t = 0; t < n_tokens; t += tokens) {
        load_inputs(parts, halves, x + (size_t)t * AVX512_BCQ_SPAN, apart);
        AVX512_UNROLL for (int u = 0; u < UNITS; u++) {
            if (u == 0 && t == 0)
                multiply_tile(parts, tokens, halves, &sums[0], e, u, NULL, to);
            else
                multiply_tile(parts, tokens, halves, &sums[u % 2], e, u, &sums[(u + 1) % 2], to);
            to.y = &totals->y[t][u];
            to.scales = many.scales + t0 + t;
        }
    }
    add_some(parts, &sums[1], to, 0, tokens);
}

/* Sums of (p + 16) * x over spans [first, end) of a tile of tokens and a unit: 64 runs are a tile's inputs.
 * They go on from those in totals where first is not 0. */
AVX512_INLINE void add_offsets(struct sums *to, const struct totals *totals,
                               const struct avx512_bcq_tile *c, int first, int end, int t0, int t,
                               int u) {
    _tile_zero(LOW);
    _tile_zero(HIGH);
    if (first > 0) {
        _tile_loadd(LOW, &totals->low[t][u], sizeof totals->low[0]);
        _tile_loadd(HIGH, &totals->high[t][u], sizeof totals->high[0]);
    }
    for (int span = first; span < end; span += AVX512_BCQ_CHUNK) {
        const struct avx512_bcq_many x =
            avx512_bcq_many_at(c->act, c->act_bits, c->shape->spans, c->n, span);
        _tile_loadd(W, &totals->offsets.p16[HALVES * (span - first)][u],
                    sizeof totals->offsets.p16[0]);
        _tile_loadd(X_LOW_0, x.sums[0][t0 + t], LINE);
        _tile_loadd(X_HIGH_0, x.sums[1][t0 + t], LINE);
        _tile_dpbssd(LOW, X_LOW_0, W);
        _tile_dpbssd(HIGH, X_HIGH_0, W);
    }
    _tile_stored(LOW, to->low, LINE);
    _tile_stored(HIGH, to->high, LINE);
}

/* Of all spans but the last ones. */
static void keep_offsets(struct totals *totals, const struct avx512_bcq_tile *c, int first, int end,
                         int t0, int n_tokens, int tokens) {
    AMX_BEFORE_LOADS();
    for (int t = 0; t < n_tokens; t += tokens)
        for (int u = 0; u < UNITS; u++) {
            struct sums sums;
            add_offsets(&sums, totals, c, first, end, t0, t, u);
            for (int i = 0; i < tokens; i++) {
                totals->low[t + i][u] = sums.low[i];
                totals->high[t + i][u] = sums.high[i];
            }
        }
}

static void finish(struct totals *totals, const struct avx512_bcq_tile *c, const uint8_t *block,
                   int b, int first, int t0, int n_tokens, int tokens) {
    const struct avx512_bcq_token *of_tokens = c->act;
    const struct avx512_bcq_panel to = {
        .y = c->y + (size_t)t0 * c->ldy + b * AVX512_BCQ_ROWS,
        .ldy = c->ldy,
        .n_rows = avx512_min(c->rows - b * AVX512_BCQ_ROWS, AVX512_BCQ_ROWS)};
    struct avx512_compact_scales scales[UNITS];
    AMX_BEFORE_LOADS();
    for (int u = 0; u < UNITS; u++) scales[u] = avx512_compact_scales(block, u);
    for (int t = 0; t < n_tokens; t += tokens)
        for (int u = 0; u < UNITS; u++) {
            struct sums sums;
            add_offsets(&sums, totals, c, first, c->shape->spans, t0, t, u);
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

AVX512_INLINE void block(const int bits, const int parts, const int tokens,
                         const struct avx512_bcq_tile *c, struct totals *totals, int b, int t0,
                         int n_tokens) {
    const struct avx512_bcq_shape *s = c->shape;
    const uint8_t *block = c->packed + (size_t)b * s->block_bytes, *at = block + s->head;
    const int n_halves = (s->words + 1) / 2;
    struct amx_expanded e;
    struct amx_select select;
    struct amx_unit units[UNITS];
    int first = 0; /* span of the first offsets */
    amx_select_init(bits, &select);
    for (int u = 0; u < UNITS; u++) amx_unit_init(bits, &units[u], &select, block, u);
    for (int span = 0; span < s->spans; span++) {
        const int halves = avx512_min(n_halves - HALVES * span, HALVES);
        if (span - first == OFFSET_SPANS) {
            keep_offsets(totals, c, first, span, t0, n_tokens, tokens);
            first = span;
        }
        amx_expand(bits, &e, totals->offsets.p16 + HALVES * (span - first), at, units, &select,
                   halves);
        if (halves == 2)
            multiply(parts, tokens, 2, totals, c, &e, span, t0, n_tokens);
        else
            multiply(parts, tokens, 1, totals, c, &e, span, t0, n_tokens);
        at += LINE + (size_t)halves * UNITS * (2 * (size_t)bits + 1) * LINE;
    }
    /* Whatever stands behind the last span's sums counts nothing. */
    const int end = n_halves - HALVES * first, tiles = HALVES * AVX512_BCQ_CHUNK;
    for (int half = end; half % tiles; half++)
        memset(totals->offsets.p16[half], 0, sizeof totals->offsets.p16[half]);
    finish(totals, c, block, b, first, t0, n_tokens, tokens);
}

typedef void block_function(const struct avx512_bcq_tile *c, struct totals *totals, int b, int t0,
                            int n_tokens);

#define KERNEL(bits, parts, tokens)                                                                \
    static __attribute__((noinline)) void block_##bits##_##parts##_##tokens(                       \
        const struct avx512_bcq_tile *c, struct totals *totals, int b, int t0, int n_tokens) {     \
        block(bits, parts, tokens, c, totals, b, t0, n_tokens);                                    \
    }
#define KERNELS(bits) KERNEL(bits, 1, 8) KERNEL(bits, 1, 16) KERNEL(bits, 2, 8) KERNEL(bits, 2, 16)
KERNELS(1)
KERNELS(2)
KERNELS(3)
KERNELS(4)

static block_function *kernel(int bits, int parts, int tokens) {
    static block_function *const blocks[BCQ_MAX_BITS][2][2] = {
        {{block_1_1_8, block_1_1_16}, {block_1_2_8, block_1_2_16}},
        {{block_2_1_8, block_2_1_16}, {block_2_2_8, block_2_2_16}},
        {{block_3_1_8, block_3_1_16}, {block_3_2_8, block_3_2_16}},
        {{block_4_1_8, block_4_1_16}, {block_4_2_8, block_4_2_16}}};
    return blocks[bits - 1][parts - 1][tokens / 8 - 1];
}

static void mul_tiles(const struct avx512_bcq_tile *c) {
    const int tokens = c->n <= TILE / 2 ? TILE / 2 : TILE;
    block_function *multiply_block = kernel(c->shape->bits, avx512_bcq_parts(c->act_bits), tokens);
    struct totals totals;
    configure(tokens);
    for (int t0 = 0; t0 < c->n; t0 += AVX512_TILE_TOKENS)
        for (int b = c->b0; b < c->b1; b++)
            multiply_block(c, &totals, b, t0, avx512_min(c->n - t0, AVX512_TILE_TOKENS));
    /* Tiles in use cost every switch of threads, and a core its deeper sleep. */
    _tile_release();
}

/* Eight tokens take the time of four by look-ups, of rounded inputs that of seven, or twelve at 4 planes. */
static bool takes_tiles(const struct bcq_spec *w, int act_bits, int n) {
    if (avx512_bcq_form(w) != AVX512_BCQ_COMPACT) return false;
    return n >= (act_bits > 8 ? 5 : w->bits < 4 ? 7 : 12);
}

static void act_pack(void *act, int act_bits, const struct bcq_spec *w, const float *x, size_t ldx,
                     int n, int part, int n_parts) {
    avx512_bcq_act_pack_for(takes_tiles(w, act_bits, n) ? AVX512_BCQ_BYTES : AVX512_BCQ_TABLES, act,
                            act_bits, w, x, ldx, n, part, n_parts);
}

static void mul(float *y, size_t ldy, const void *packed, const struct bcq_spec *w, const void *act,
                int act_bits, int n, int b0, int b1) {
    if (takes_tiles(w, act_bits, n))
        avx512_bcq_mul_many(mul_tiles, y, ldy, packed, w, act, act_bits, n, b0, b1);
    else
        avx512_bcq_mul_tables(y, ldy, packed, w, act, act_bits, n, b0, b1);
}

void amx_bcq_init(struct bcq_ops *ops) {
    ops->act_pack = act_pack;
    ops->mul = mul;
}
