/* Compact form, up to 16 tokens: expanding a unit takes longer than multiplying it. The tiles' products,
 * which need no port of the vectors, go between the operations that expand the unit after it, and between
 * both the sums of the unit before are added. */
#include "kernels/amx/tile.h"

/* What is done with a unit's span. */
struct place {
    int span, u, halves; /* halves: 0 where there is nothing */
    bool first;          /* of the span's units */
};

/* Of step i, where a span has 2^log_units units. */
static struct place place_at(const struct avx512_bcq_tile *c, int log_units, int i) {
    const struct avx512_bcq_shape *s = c->shape;
    if (i < 0 || i >> log_units >= s->spans) return (struct place){0};
    const int span = i >> log_units, u = i - (span << log_units), n_halves = (s->words + 1) / 2;
    return (struct place){span, c->u0 + u, avx512_min(n_halves - HALVES * span, HALVES), u == 0};
}

/* Quarter k of the next unit: half k / 2, runs 2 (k % 2) and 2 (k % 2) + 1. */
AVX512_INLINE void expand_quarter(const int bits, const int k, struct amx_expanded *e,
                                  struct avx512_tile_totals *totals,
                                  const struct avx512_bcq_block *block, const struct place *p,
                                  const struct amx_unit *unit, const struct amx_select *select) {
    const int half = k / 2;
    const struct avx512_compact_half at =
        avx512_compact_half(block, bits, p->span, p->u * p->halves + half);
    const uint8_t *fifths = avx512_compact_fifths(block, bits, p->span);
    if (k == 0 && p->first) avx512_bcq_prefetch(fifths);
    if (k % 2 == 0)
        totals->p16[HALVES * p->span + half][p->u] = amx_p16(&at, avx512_load(fifths), unit, half);
    amx_expand_pair(bits, e, half, k % 2, &at, unit, select);
}

/* Quarter k of the products: low or high bytes of half k / 2. */
AVX512_INLINE void multiply_quarter(const int parts, const int k, const struct amx_expanded *e) {
    AMX_BEFORE_LOADS();
    if (k == 0) {
        _tile_loadd(W, e->low[0], LINE);
        _tile_dpbssd(LOW, X_LOW_0, W);
        if (parts == 2) _tile_dpbssd(MIDDLE, X_HIGH_0, W);
    } else if (k == 1) {
        _tile_loadd(W, e->high[0], LINE);
        _tile_dpbssd(MIDDLE, X_LOW_0, W);
        if (parts == 2) _tile_dpbssd(HIGH, X_HIGH_0, W);
    } else if (k == 2) {
        _tile_loadd(W, e->low[1], LINE);
        _tile_dpbssd(LOW, X_LOW_1, W);
        if (parts == 2) _tile_dpbssd(MIDDLE, X_HIGH_1, W);
    } else {
        _tile_loadd(W, e->high[1], LINE);
        _tile_dpbssd(MIDDLE, X_LOW_1, W);
        if (parts == 2) _tile_dpbssd(HIGH, X_HIGH_1, W);
    }
}

AVX512_INLINE void begin_products(const int parts, const struct avx512_bcq_tile *c,
                                  const struct place *p) {
    if (p->first) {
        const struct avx512_bcq_many many =
            avx512_bcq_many_at(c->act, c->act_bits, c->shape->spans, c->n, p->span);
        const size_t apart = avx512_bcq_n16(c->n) * AVX512_BCQ_SPAN;
        amx_load_inputs(parts, p->halves, many.whole, apart);
    }
    _tile_zero(LOW);
    _tile_zero(MIDDLE);
    if (parts == 2) _tile_zero(HIGH);
}

static struct amx_add_to add_to(struct avx512_tile_totals *totals, const struct avx512_bcq_tile *c,
                                const struct place *p) {
    const struct avx512_bcq_many many =
        avx512_bcq_many_at(c->act, c->act_bits, c->shape->spans, c->n, p->span);
    return (struct amx_add_to){&totals->y[0][p->u], many.scales, p->span > 0 ? 0xffff : 0};
}

AVX512_INLINE void block(const int bits, const int parts, const int tokens,
                         const struct avx512_bcq_tile *c, struct avx512_tile_totals *totals,
                         int b) {
    const struct avx512_bcq_shape *s = c->shape;
    const struct avx512_bcq_block block = avx512_bcq_block(s, c->packed, b);
    struct amx_expanded e[2];
    struct amx_sums sums[2];
    struct amx_select select;
    struct amx_unit units[UNITS];
    amx_select_init(bits, &select);
    for (int u = c->u0; u < c->u1; u++) amx_unit_init(bits, &units[u], &select, &block, u);
    const int log_units = (c->u1 - c->u0) / 2; /* of 1, 2 or 4 */
    for (int i = 0; i < (s->spans << log_units) + 2; i++) {
        const struct place next = place_at(c, log_units, i), now = place_at(c, log_units, i - 1),
                           last = place_at(c, log_units, i - 2);
        const struct amx_add_to to = add_to(totals, c, &last);
        if (now.halves) begin_products(parts, c, &now);
        AVX512_UNROLL for (int k = 0; k < 4; k++) {
            if (k < 2 * next.halves)
                expand_quarter(bits, k, &e[i % 2], totals, &block, &next, &units[next.u], &select);
            if (k < 2 * now.halves) multiply_quarter(parts, k, &e[(i + 1) % 2]);
            if (last.halves) amx_add_some(parts, &sums[i % 2], to, k * tokens / 4, tokens / 4);
        }
        if (!now.halves) continue;
        struct amx_sums *done = &sums[(i + 1) % 2];
        _tile_stored(LOW, done->low, LINE);
        _tile_stored(MIDDLE, done->middle, LINE);
        if (parts == 2) _tile_stored(HIGH, done->high, LINE);
    }
    amx_end_offsets(totals, (s->words + 1) / 2);
    amx_finish(totals, c, &block, b, 0, 0, c->n, tokens);
}

#define KERNEL(bits, parts, tokens)                                                                \
    static void few_##bits##_##parts##_##tokens(const struct avx512_bcq_tile *c,                   \
                                                struct avx512_tile_totals *totals, int b, int t0,  \
                                                int n_tokens) {                                    \
        (void)t0;                                                                                  \
        (void)n_tokens;                                                                            \
        block(bits, parts, tokens, c, totals, b);                                                  \
    }
#define KERNELS(bits) KERNEL(bits, 1, 8) KERNEL(bits, 1, 16) KERNEL(bits, 2, 8) KERNEL(bits, 2, 16)
KERNELS(1)
KERNELS(2)
KERNELS(3)
KERNELS(4)

amx_block_function *amx_few(int bits, int parts, int tokens) {
    static amx_block_function *const blocks[BCQ_MAX_BITS][2][2] = {
        {{few_1_1_8, few_1_1_16}, {few_1_2_8, few_1_2_16}},
        {{few_2_1_8, few_2_1_16}, {few_2_2_8, few_2_2_16}},
        {{few_3_1_8, few_3_1_16}, {few_3_2_8, few_3_2_16}},
        {{few_4_1_8, few_4_1_16}, {few_4_2_8, few_4_2_16}}};
    return blocks[bits - 1][parts - 1][tokens / 8 - 1];
}
