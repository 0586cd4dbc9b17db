/* Compact form, many tokens, in tiles of 16 rows x 64 inputs x 16 tokens. Weights are 256 * high + low,
 * whole inputs likewise, all bytes signed: four products of bytes make one of words, in whole numbers,
 * hence the same bits as kernels/avx512/bcq_tile.c. Rounded inputs have no high bytes.
 *
 * Intel's manual, volume 1, chapter 18, is the source for the tiles. */
#include "kernels/amx/amx.h"

#include <string.h>

#include "kernels/avx512/bcq_tile.h"
#include "kernels/ops.h"

enum {
    UNITS = AVX512_BCQ_UNITS,
    TILE = 16,  /* tokens, rows of weights, and lines of a tile */
    HALVES = 2, /* of a span: a tile has 64 inputs */
    LINE = 64   /* bytes */
};

/* Tile registers: sums, of x's and w's bytes, then what is multiplied. Macros, because gcc's intrinsics
 * make text of them. */
#define LOW_LOW   0
#define LOW_HIGH  1
#define HIGH_LOW  2
#define HIGH_HIGH 3
#define X_LOW     4
#define X_HIGH    5
#define W_LOW     6
#define W_HIGH    7

/* gcc 12 does not know that loading a tile reads memory. */
#define AMX_BEFORE_LOADS() __asm__ volatile("" ::: "memory")

/* A unit's half span as a tile: line 4 * run + j has inputs j, j + 4, j + 8 and j + 12 of each row. */
struct expanded {
    __m512i low[UNITS][HALVES][TILE], high[UNITS][HALVES][TILE];
};

struct sums {
    __m512i of[4][TILE];
};

/* All eight tiles are 16 lines of 64 bytes. */
static void configure(void) {
    struct {
        uint8_t palette, start, unused[14];
        uint16_t line_bytes[16];
        uint8_t lines[16];
    } config;
    memset(&config, 0, sizeof config);
    config.palette = 1;
    for (int i = 0; i < 8; i++) {
        config.line_bytes[i] = LINE;
        config.lines[i] = TILE;
    }
    /* gcc 12 takes the configuration for eight bytes. */
    __asm__ volatile("" : : "r"(&config) : "memory");
    _tile_loadconfig(&config);
}

/* Bytes of two vectors of words: a's to the lower byte of each, b's to the upper. */
AVX512_INLINE __m512i join(__m512i a, __m512i b) {
    return _mm512_ternarylogic_epi32(_mm512_set1_epi16(0xff), a, b, 0xca); /* low byte ? a : b */
}

AVX512_INLINE void expand_unit(const int bits, struct expanded *out, __m512i (*p16)[UNITS],
                               const uint8_t *at, __m512i fifth,
                               const struct avx512_tile_unit *unit, int u, int halves) {
    const __m512i half_step = _mm512_set1_epi16(128);
    for (int half = 0; half < halves; half++, at += (2 * bits + 1) * LINE) {
        struct avx512_tile_half h;
        avx512_tile_read(bits, &h, at, fifth, unit->fifth_at[half]);
        p16[half][u] = h.p16;
        AVX512_UNROLL for (int run = 0; run < AVX512_TILE_RUNS; run++) {
            __m512i w[8];
            avx512_tile_weights(bits, w, &h, run, unit);
            AVX512_UNROLL for (int j = 0; j < 4; j++) {
                __m512i a = _mm512_add_epi16(w[j], half_step);
                __m512i b = _mm512_add_epi16(w[j + 4], half_step);
                out->low[u][half][4 * run + j] = join(w[j], _mm512_slli_epi16(w[j + 4], 8));
                out->high[u][half][4 * run + j] = join(_mm512_srli_epi16(a, 8), b);
            }
        }
    }
}

/* A block's span. at: its fifth bits. */
AVX512_INLINE void expand(const int bits, struct expanded *out, __m512i (*p16)[UNITS],
                          const uint8_t *at, const struct avx512_tile_unit *units, int halves) {
    const __m512i fifth = avx512_load(at);
    const uint8_t *code = at + LINE;
    avx512_bcq_prefetch(at);
    for (int u = 0; u < UNITS; u++, code += halves * (2 * bits + 1) * LINE)
        expand_unit(bits, out, p16, code, fifth, &units[u], u, halves);
}

/* Products of 16 tokens with a unit's span. x: low bytes of the first token, high bytes at x + apart;
 * without those parts is 1. */
AVX512_INLINE void multiply_tile(const int parts, struct sums *sums, const struct expanded *e,
                                 int u, const int8_t *x, size_t apart, int halves) {
    _tile_zero(LOW_LOW);
    _tile_zero(LOW_HIGH);
    if (parts == 2) {
        _tile_zero(HIGH_LOW);
        _tile_zero(HIGH_HIGH);
    }
    for (int half = 0; half < halves; half++) {
        _tile_loadd(X_LOW, x + half * LINE, AVX512_BCQ_SPAN);
        _tile_loadd(W_LOW, e->low[u][half], LINE);
        _tile_dpbssd(LOW_LOW, X_LOW, W_LOW);
        _tile_loadd(W_HIGH, e->high[u][half], LINE);
        _tile_dpbssd(LOW_HIGH, X_LOW, W_HIGH);
        if (parts == 1) continue;
        _tile_loadd(X_HIGH, x + apart + half * LINE, AVX512_BCQ_SPAN);
        _tile_dpbssd(HIGH_LOW, X_HIGH, W_LOW);
        _tile_dpbssd(HIGH_HIGH, X_HIGH, W_HIGH);
    }
    _tile_stored(LOW_LOW, sums->of[LOW_LOW], LINE);
    _tile_stored(LOW_HIGH, sums->of[LOW_HIGH], LINE);
    if (parts == 1) return;
    _tile_stored(HIGH_LOW, sums->of[HIGH_LOW], LINE);
    _tile_stored(HIGH_HIGH, sums->of[HIGH_HIGH], LINE);
}

/* y += scale * sum for n tokens of a unit. */
AVX512_INLINE void add_tile(const int parts, __m512 (*y)[UNITS], int u, const struct sums *sums,
                            const float *scales, int n) {
    for (int t = 0; t < n; t++) {
        __m512i middle = sums->of[LOW_HIGH][t], sum = sums->of[LOW_LOW][t];
        if (parts == 2) {
            middle = _mm512_add_epi32(middle, sums->of[HIGH_LOW][t]);
            sum = _mm512_add_epi32(sum, _mm512_slli_epi32(sums->of[HIGH_HIGH][t], 16));
        }
        sum = _mm512_add_epi32(sum, _mm512_slli_epi32(middle, 8));
        y[t][u] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(scales[t]), y[t][u]);
    }
}

AVX512_INLINE void multiply(const int parts, struct avx512_tile_totals *totals,
                            const struct avx512_bcq_tile *c, const struct expanded *e, int span,
                            int t0, int n_tokens, int halves) {
    const struct avx512_bcq_many many =
        avx512_bcq_many_at(c->act, c->act_bits, c->shape->spans, c->n, span);
    const size_t apart = avx512_bcq_n16(c->n) * AVX512_BCQ_SPAN;
    const int8_t *x = many.whole;
    AMX_BEFORE_LOADS();
    for (int t = 0; t < n_tokens; t += TILE)
        for (int u = 0; u < UNITS; u += 2) {
            struct sums sums[2];
            for (int k = 0; k < 2; k++)
                multiply_tile(parts, &sums[k], e, u + k, x + (size_t)(t0 + t) * AVX512_BCQ_SPAN,
                              apart, halves);
            for (int k = 0; k < 2; k++)
                add_tile(parts, &totals->y[t], u + k, &sums[k], many.scales + t0 + t,
                         avx512_min(n_tokens - t, TILE));
        }
}

/* Sums of (p + 16) * x over a chunk of spans: 64 runs are a tile's inputs. */
static void add_offsets(struct avx512_tile_totals *totals, const struct avx512_bcq_tile *c,
                        const struct avx512_tile_offsets *o, int span, int t0, int n_tokens) {
    const struct avx512_bcq_many x =
        avx512_bcq_many_at(c->act, c->act_bits, c->shape->spans, c->n, span);
    AMX_BEFORE_LOADS();
    for (int u = 0; u < UNITS; u++) {
        _tile_loadd(W_LOW, &o->p16[0][u], sizeof o->p16[0]);
        for (int t = 0; t < n_tokens; t += TILE) {
            struct sums sums;
            _tile_loadd(X_LOW, x.sums[0][t0 + t], LINE);
            _tile_loadd(X_HIGH, x.sums[1][t0 + t], LINE);
            _tile_zero(LOW_LOW);
            _tile_zero(HIGH_LOW);
            _tile_dpbssd(LOW_LOW, X_LOW, W_LOW);
            _tile_dpbssd(HIGH_LOW, X_HIGH, W_LOW);
            _tile_stored(LOW_LOW, sums.of[LOW_LOW], LINE);
            _tile_stored(HIGH_LOW, sums.of[HIGH_LOW], LINE);
            for (int i = 0; i < avx512_min(n_tokens - t, TILE); i++) {
                __m512i *low = &totals->low[t + i][u], *high = &totals->high[t + i][u];
                *low = _mm512_add_epi32(*low, sums.of[LOW_LOW][i]);
                *high = _mm512_add_epi32(*high, sums.of[HIGH_LOW][i]);
            }
        }
    }
}

AVX512_INLINE void block(const int bits, const int parts, const struct avx512_bcq_tile *c,
                         struct avx512_tile_totals *totals, int b, int t0, int n_tokens) {
    const struct avx512_bcq_shape *s = c->shape;
    const uint8_t *block = c->packed + (size_t)b * s->block_bytes, *at = block + s->head;
    const int n_halves = (s->words + 1) / 2;
    struct expanded e;
    struct avx512_tile_unit units[UNITS];
    avx512_tile_units(bits, units, block);
    avx512_tile_begin(totals, c, t0, n_tokens);
    for (int first = 0; first < s->spans; first += AVX512_BCQ_CHUNK) {
        struct avx512_tile_offsets o;
        memset(&o, 0, sizeof o); /* whatever stands behind the last span's sums counts nothing */
        int end = avx512_min(first + AVX512_BCQ_CHUNK, s->spans);
        for (int span = first; span < end; span++) {
            int halves = avx512_min(n_halves - 2 * span, HALVES);
            expand(bits, &e, o.p16 + 2 * (span - first), at, units, halves);
            multiply(parts, totals, c, &e, span, t0, n_tokens, halves);
            at += LINE + (size_t)halves * UNITS * (2 * (size_t)bits + 1) * LINE;
        }
        add_offsets(totals, c, &o, first, t0, n_tokens);
    }
    avx512_tile_end(totals, c, block, b, t0, n_tokens);
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

static void mul_tiles(const struct avx512_bcq_tile *c) {
    static void (*const blocks[2][BCQ_MAX_BITS])(const struct avx512_bcq_tile *,
                                                 struct avx512_tile_totals *, int, int, int) = {
        {block_1_1, block_2_1, block_3_1, block_4_1}, {block_1_2, block_2_2, block_3_2, block_4_2}};
    const int parts = avx512_bcq_parts(c->act_bits);
    struct avx512_tile_totals totals;
    configure();
    for (int t0 = 0; t0 < c->n; t0 += AVX512_TILE_TOKENS)
        for (int b = c->b0; b < c->b1; b++)
            blocks[parts - 1][c->shape->bits - 1](c, &totals, b, t0,
                                                  avx512_min(c->n - t0, AVX512_TILE_TOKENS));
    /* Tiles in use cost every switch of threads, and a core its deeper sleep. */
    _tile_release();
}

static bool takes_tiles(const struct bcq_spec *w, int act_bits, int n) {
    return avx512_bcq_form(w) == AVX512_BCQ_COMPACT && n >= (act_bits > 8 ? 7 : 14);
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
