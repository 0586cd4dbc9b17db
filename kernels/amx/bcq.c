/* Compact form, many tokens, in tiles of 16 rows x 64 inputs x 16 tokens.
 *
 * Intel's manual, volume 1, chapter 18, is the source for the tiles. */
#include "kernels/amx/amx.h"

#include "kernels/amx/tile.h"
#include "kernels/ops.h"

/* Tiles of W have 16 lines of 64 bytes, the others as many as a tile has tokens. */
static void configure(int tokens) {
    struct amx_shape shapes[8];
    for (int i = 0; i < 8; i++)
        shapes[i] = (struct amx_shape){LINE, (uint8_t)(i == W ? TILE : tokens)};
    amx_configure(shapes);
}

/* A half's products, tokens of the sums before in between: a store of a tile waits for its sums, and
 * what follows it in the program finds little room to be done meanwhile. */
#define HALF(parts, low_bytes, high_bytes, x_low, x_high, before, to, t, each)                     \
    do {                                                                                           \
        _tile_loadd(W, low_bytes, LINE);                                                           \
        _tile_dpbssd(LOW, x_low, W);                                                               \
        if (before) amx_add_some(parts, before, to, t, each);                                      \
        if (parts == 2) _tile_dpbssd(MIDDLE, x_high, W);                                           \
        if (before) amx_add_some(parts, before, to, t + each, each);                               \
        _tile_loadd(W, high_bytes, LINE);                                                          \
        _tile_dpbssd(MIDDLE, x_low, W);                                                            \
        if (before) amx_add_some(parts, before, to, t + 2 * each, each);                           \
        if (parts == 2) _tile_dpbssd(HIGH, x_high, W);                                             \
        if (before) amx_add_some(parts, before, to, t + 3 * each, each);                           \
    } while (0)

/* Products of the tile of tokens in the registers with a unit's span. before: NULL or sums which are
 * added meanwhile. */
AVX512_INLINE void multiply_tile(const int parts, const int halves, struct amx_sums *sums,
                                 const struct amx_expanded *e, const struct amx_sums *before,
                                 struct amx_add_to to) {
    _tile_zero(LOW);
    _tile_zero(MIDDLE);
    if (parts == 2) _tile_zero(HIGH);
    if (halves == 2) {
        HALF(parts, e->low[0], e->high[0], X_LOW_0, X_HIGH_0, before, to, 0, 2);
        HALF(parts, e->low[1], e->high[1], X_LOW_1, X_HIGH_1, before, to, 8, 2);
    } else {
        HALF(parts, e->low[0], e->high[0], X_LOW_0, X_HIGH_0, before, to, 0, 4);
    }
    _tile_stored(LOW, sums->low, LINE);
    _tile_stored(MIDDLE, sums->middle, LINE);
    if (parts == 2) _tile_stored(HIGH, sums->high, LINE);
}

/* Whole tiles of tokens: what lies behind the last is memory, and its sums go nowhere. */
AVX512_INLINE void multiply(const int parts, const int halves, struct avx512_tile_totals *totals,
                            const struct avx512_bcq_tile *c, const struct amx_expanded *e, int span,
                            int t0, int n_tokens) {
    const struct avx512_bcq_many many =
        avx512_bcq_many_at(c->act, c->act_bits, c->shape->spans, c->n, span);
    const size_t apart = avx512_bcq_n16(c->n) * AVX512_BCQ_SPAN;
    const int8_t *x = (const int8_t *)many.whole + (size_t)t0 * AVX512_BCQ_SPAN;
    struct amx_add_to to = {NULL, NULL, span > 0 ? 0xffff : 0};
    struct amx_sums sums[2];
    AMX_BEFORE_LOADS();
    for (int t = 0; t < n_tokens; t += TILE) {
        amx_load_inputs(parts, halves, x + (size_t)t * AVX512_BCQ_SPAN, apart);
        AVX512_UNROLL for (int u = 0; u < UNITS; u++) {
            if (u == 0 && t == 0)
                multiply_tile(parts, halves, &sums[0], &e[u], NULL, to);
            else
                multiply_tile(parts, halves, &sums[u % 2], &e[u], &sums[(u + 1) % 2], to);
            to.y = &totals->y[t][u];
            to.scales = many.scales + t0 + t;
        }
    }
    amx_add_some(parts, &sums[1], to, 0, TILE);
}

/* Of all spans but the last ones. */
static void keep_offsets(struct avx512_tile_totals *totals, const struct avx512_bcq_tile *c,
                         int first, int end, int t0, int n_tokens) {
    AMX_BEFORE_LOADS();
    for (int t = 0; t < n_tokens; t += TILE)
        for (int u = 0; u < UNITS; u++) {
            struct amx_sums sums;
            amx_add_offsets(&sums, totals, c, first, end, t0, t, u);
            for (int i = 0; i < TILE; i++) {
                totals->low[t + i][u] = sums.low[i];
                totals->high[t + i][u] = sums.high[i];
            }
        }
}

/* A block's span. */
AVX512_INLINE void expand(const int bits, struct amx_expanded *e, __m512i (*p16)[UNITS],
                          const struct avx512_bcq_block *block, int span,
                          const struct amx_unit *units, const struct amx_select *select,
                          int halves) {
    const uint8_t *fifths = avx512_compact_fifths(block, bits, span);
    const __m512i fifth = avx512_load(fifths);
    avx512_bcq_prefetch(fifths);
    for (int u = 0; u < UNITS; u++)
        for (int half = 0; half < halves; half++) {
            const struct avx512_compact_half at =
                avx512_compact_half(block, bits, span, u * halves + half);
            p16[half][u] = amx_p16(&at, fifth, &units[u], half);
            amx_expand_pair(bits, &e[u], half, 0, &at, &units[u], select);
            amx_expand_pair(bits, &e[u], half, 1, &at, &units[u], select);
        }
}

AVX512_INLINE void block(const int bits, const int parts, const struct avx512_bcq_tile *c,
                         struct avx512_tile_totals *totals, int b, int t0, int n_tokens) {
    const struct avx512_bcq_shape *s = c->shape;
    const struct avx512_bcq_block block = avx512_bcq_block(s, c->packed, b);
    const int n_halves = (s->words + 1) / 2;
    struct amx_expanded e[UNITS];
    struct amx_select select;
    struct amx_unit units[UNITS];
    int first = 0; /* span of the first offsets */
    amx_select_init(bits, &select);
    for (int u = 0; u < UNITS; u++) amx_unit_init(bits, &units[u], &select, &block, u);
    for (int span = 0; span < s->spans; span++) {
        const int halves = avx512_min(n_halves - HALVES * span, HALVES);
        if (span - first == AVX512_TILE_SPANS) {
            keep_offsets(totals, c, first, span, t0, n_tokens);
            first = span;
        }
        expand(bits, e, totals->p16 + HALVES * (span - first), &block, span, units, &select,
               halves);
        if (halves == 2)
            multiply(parts, 2, totals, c, e, span, t0, n_tokens);
        else
            multiply(parts, 1, totals, c, e, span, t0, n_tokens);
    }
    amx_end_offsets(totals, n_halves - HALVES * first);
    amx_finish(totals, c, &block, b, first, t0, n_tokens, TILE);
}

#define KERNEL(bits, parts)                                                                        \
    static __attribute__((noinline)) void block_##bits##_##parts(                                  \
        const struct avx512_bcq_tile *c, struct avx512_tile_totals *totals, int b, int t0,         \
        int n_tokens) {                                                                            \
        block(bits, parts, c, totals, b, t0, n_tokens);                                            \
    }
KERNEL(1, 1)
KERNEL(2, 1)
KERNEL(3, 1)
KERNEL(4, 1)
KERNEL(1, 2)
KERNEL(2, 2)
KERNEL(3, 2)
KERNEL(4, 2)

static amx_block_function *many(int bits, int parts) {
    static amx_block_function *const blocks[2][BCQ_MAX_BITS] = {
        {block_1_1, block_2_1, block_3_1, block_4_1}, {block_1_2, block_2_2, block_3_2, block_4_2}};
    return blocks[parts - 1][bits - 1];
}

/* Of free parameters: a tile of 16 takes as long for fewer, 12 of its tokens what look-ups take. */
enum { FREE_FROM = 13 };

static bool few_tokens(int spans, int n) { return n <= TILE && spans <= AVX512_TILE_SPANS; }

static void mul_tiles(const struct avx512_bcq_tile *c) {
    const bool is_free = c->shape->form == AVX512_BCQ_FREE;
    const bool few = !is_free && few_tokens(c->shape->spans, c->n);
    const int tokens = few && c->n <= TILE / 2 ? TILE / 2 : TILE;
    const int bits = c->shape->bits, parts = avx512_bcq_parts(c->act_bits);
    amx_block_function *multiply_block = is_free ? amx_free(bits, parts)
                                         : few   ? amx_few(bits, parts, tokens)
                                                 : many(bits, parts);
    struct avx512_tile_totals totals;
    configure(tokens);
    for (int t0 = 0; t0 < c->n; t0 += AVX512_TILE_TOKENS)
        for (int b = c->b0; b < c->b1; b++)
            multiply_block(c, &totals, b, t0, avx512_min(c->n - t0, AVX512_TILE_TOKENS));
    /* Tiles in use cost every switch of threads, and a core its deeper sleep. */
    _tile_release();
}

/* Eight tokens take the time of four by look-ups, of rounded inputs that of seven, or twelve at 4 planes. */
static bool takes_tiles(const struct bcq_spec *w, int act_bits, int n) {
    if (avx512_bcq_form(w) == AVX512_BCQ_FREE)
        return n >= FREE_FROM && (w->group >= w->cols || w->group % LINE == 0);
    if (avx512_bcq_form(w) != AVX512_BCQ_COMPACT) return false;
    return n >= (act_bits > 8 ? 5 : w->bits < 4 ? 7 : 12);
}

static enum avx512_bcq_inputs inputs_of(const struct bcq_spec *w, int act_bits, int n) {
    return takes_tiles(w, act_bits, n) ? AVX512_BCQ_BYTES : AVX512_BCQ_TABLES;
}

static int act_form(const struct bcq_spec *w, int act_bits, int n) {
    return (int)inputs_of(w, act_bits, n);
}

static void act_pack(void *act, int act_bits, const struct bcq_spec *w, const float *x, size_t ldx,
                     int n, int part, int n_parts) {
    avx512_bcq_act_pack(inputs_of(w, act_bits, n), act, act_bits, w, x, ldx, n, part, n_parts);
}

static void mul(float *y, size_t ldy, const void *packed, const struct bcq_spec *w, const void *act,
                int act_bits, int n, int b0, int b1) {
    if (takes_tiles(w, act_bits, n))
        avx512_bcq_mul_many(mul_tiles, y, ldy, packed, w, act, act_bits, n, b0, b1);
    else
        avx512_bcq_mul_tables(y, ldy, packed, w, act, act_bits, n, b0, b1);
}

static int block_parts(const struct bcq_spec *w, int act_bits, int n) {
    int spans = (w->cols + AVX512_BCQ_SPAN - 1) / AVX512_BCQ_SPAN;
    return avx512_bcq_form(w) == AVX512_BCQ_COMPACT && takes_tiles(w, act_bits, n) &&
                   few_tokens(spans, n)
               ? UNITS
               : 1;
}

static void mul_part(float *y, size_t ldy, const void *packed, const struct bcq_spec *w,
                     const void *act, int act_bits, int n, int b, int part, int n_parts) {
    struct avx512_bcq_shape s;
    avx512_bcq_shape(&s, w);
    mul_tiles(&(struct avx512_bcq_tile){.shape = &s,
                                        .packed = packed,
                                        .act = act,
                                        .act_bits = act_bits,
                                        .n = n,
                                        .y = y,
                                        .ldy = ldy,
                                        .rows = w->rows,
                                        .b0 = b,
                                        .b1 = b + 1,
                                        .u0 = UNITS / n_parts * part,
                                        .u1 = UNITS / n_parts * (part + 1)});
}

void amx_bcq_init(struct bcq_ops *ops) {
    ops->act_form = act_form;
    ops->act_pack = act_pack;
    ops->mul = mul;
    ops->block_parts = block_parts;
    ops->mul_part = mul_part;
}
