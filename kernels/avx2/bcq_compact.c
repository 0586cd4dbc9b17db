/* Compact form: y = s0/2 * sum_g q_g sum_i d_i B_ig + s1 * sum_g p_g X_g, where B_ig is the
 * signed sum of a group's 16 inputs for plane i and X_g their plain sum.
 *
 * A byte multiply-add weighs two planes with their d and adds them: 16-bit sums of low bytes
 * stay within 2 columns * 254 * 63 = 32004, of high bytes within 2 * 127 * 63. Two groups are
 * then put side by side, multiplied by their q and added in 32 bits: 8 groups * 15 * 63 *
 * 2 columns * 16115 units < 2^28 for a span. */
#include "kernels/avx2/bcq_compact.h"

#include <string.h>

enum { NEVER = 1 << 30 };

/* Expanding weights pays from this many tokens on, by planes, of whole and of rounded inputs; see
 * bcq_tile.c. */
static const int TILE_FROM[2][BCQ_MAX_BITS + 1] = {{0, NEVER, NEVER, 12, 8},
                                                   {0, NEVER, NEVER, NEVER, NEVER}};

/* Sums of a group, by half block. */
struct sums {
    __m256i lo[2], hi[2];
};

/* Selectors, q and p of a block and span, taken apart once for many tokens. */
struct prepared {
    _Alignas(64) uint8_t code[AVX2_BCQ_COLUMNS * BCQ_MAX_BITS * 64];
    __m256i q[AVX2_COMPACT_QUARTERS][4], p[AVX2_COMPACT_QUARTERS][4];
};

/* What a unit's kernel reads: either the packed block or the prepared form. */
struct source {
    const uint8_t *meta, *code;
    const struct prepared *prepared;
};

/* A code vector's selectors, taken apart before or now. */
AVX2_INLINE void selectors(__m256i *even, __m256i *odd, const uint8_t *code, bool split) {
    if (split) {
        *even = avx2_bcq_in_register(avx2_bcq_load(code));
        *odd = avx2_bcq_in_register(avx2_bcq_load(code + 32));
    } else {
        avx2_bcq_split(code, even, odd);
    }
}

/* One code vector against a column's tables: byte sums of the two tables' entries. */
AVX2_INLINE void look_up(__m256i *lo, __m256i *hi, const uint8_t *code, bool split,
                         const struct avx2_bcq_act *x, int column) {
    __m256i even, odd;
    selectors(&even, &odd, code, split);
    *lo = _mm256_add_epi8(_mm256_shuffle_epi8(avx2_bcq_table(x->lo[2 * column]), even),
                          _mm256_shuffle_epi8(avx2_bcq_table(x->lo[2 * column + 1]), odd));
    *hi = _mm256_add_epi8(_mm256_shuffle_epi8(avx2_bcq_table(x->hi[2 * column]), even),
                          _mm256_shuffle_epi8(avx2_bcq_table(x->hi[2 * column + 1]), odd));
}

AVX2_INLINE void weigh(struct sums *s, bool first, int half, __m256i lo, __m256i hi,
                       const uint8_t *shape) {
    const __m256i d = avx2_bcq_in_register(avx2_bcq_load(shape));
    __m256i l = _mm256_maddubs_epi16(lo, d), h = _mm256_maddubs_epi16(d, hi);
    s->lo[half] = first ? l : _mm256_add_epi16(s->lo[half], l);
    s->hi[half] = first ? h : _mm256_add_epi16(s->hi[half], h);
}

/* The same of byte tables: their entries have no room for a sum of two, so each is weighed. A group's
 * sums are within 4 tables * 127 * 63 = 32004; hi is not used. */
AVX2_INLINE void weigh_bytes(struct sums *s, bool first, int half, __m256i even, __m256i odd,
                             const uint8_t *shape) {
    const __m256i d = avx2_bcq_in_register(avx2_bcq_load(shape));
    __m256i v = _mm256_add_epi16(_mm256_maddubs_epi16(d, even), _mm256_maddubs_epi16(d, odd));
    s->lo[half] = first ? v : _mm256_add_epi16(s->lo[half], v);
}

AVX2_INLINE void add_byte_column(struct sums *s, bool first, int bits, bool split,
                                 const uint8_t *head, const uint8_t *code,
                                 const struct avx2_bcq_byte_act *x, int column) {
    const int stride = split ? 64 : 32;
    const __m256i t_even = avx2_bcq_table(x->entry[2 * column]);
    const __m256i t_odd = avx2_bcq_table(x->entry[2 * column + 1]);
    __m256i even, odd;
#pragma GCC unroll 4
    for (int i = 0; i < bits; i++) {
        /* Pairs of planes have a vector for each half, a last one alone has one for both. */
        bool alone = i == bits - 1 && bits % 2;
        selectors(&even, &odd, code, split);
        code += stride;
        even = _mm256_shuffle_epi8(t_even, even);
        odd = _mm256_shuffle_epi8(t_odd, odd);
        weigh_bytes(s, first && i < 2, alone ? 0 : i % 2, even, odd,
                    head + 64 * (i / 2) + (alone ? 0 : 32 * (i % 2)));
        if (alone) weigh_bytes(s, first && bits == 1, 1, even, odd, head + 64 * (i / 2) + 32);
    }
    __asm__ volatile("" : "+x"(s->lo[0]), "+x"(s->lo[1])::"memory");
}

AVX2_INLINE void add_column(struct sums *s, bool first, int bits, bool bytes, bool split,
                            const uint8_t *head, const uint8_t *code, const void *act, int column) {
    const int stride = split ? 64 : 32;
    const struct avx2_bcq_act *x = act;
    if (bytes) {
        add_byte_column(s, first, bits, split, head, code, act, column);
        return;
    }
    __m256i lo, hi;
#pragma GCC unroll 2
    for (int pair = 0; pair < bits / 2; pair++)
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {
            look_up(&lo, &hi, code, split, x, column);
            weigh(s, first && !pair, half, lo, hi, head + 64 * pair + 32 * half);
            code += stride;
        }
    if (bits % 2) {
        look_up(&lo, &hi, code, split, x, column);
        weigh(s, first && bits == 1, 0, lo, hi, head + 64 * (bits / 2));
        weigh(s, first && bits == 1, 1, lo, hi, head + 64 * (bits / 2) + 32);
    }
    /* gcc 12 otherwise gathers the loads of several columns and spills the sums. */
    __asm__ volatile("" : "+x"(s->lo[0]), "+x"(s->lo[1]), "+x"(s->hi[0]), "+x"(s->hi[1])::"memory");
}

/* acc += q * sums for two groups side by side. */
AVX2_INLINE void multiply(__m256i acc[4], const __m256i a[2], const __m256i b[2],
                          const __m256i q[4]) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
        __m256i u = _mm256_unpacklo_epi16(a[half], b[half]);
        __m256i v = _mm256_unpackhi_epi16(a[half], b[half]);
        acc[2 * half] = _mm256_add_epi32(acc[2 * half], _mm256_madd_epi16(u, q[2 * half]));
        acc[2 * half + 1] =
            _mm256_add_epi32(acc[2 * half + 1], _mm256_madd_epi16(v, q[2 * half + 1]));
    }
}

/* ya, yb: (32) fp32, the sums of q and of p. A span's quarters may be fewer than four. */
AVX2_INLINE void finish(float *ya, float *yb, const struct source *from, bool bytes, bool split,
                        const struct avx2_bcq_act *x, const __m256i lo[4], const __m256i hi[4]) {
    const __m256 scale = _mm256_broadcast_ss(&x->scale);
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        __m256i v = bytes ? lo[k] : _mm256_add_epi32(_mm256_slli_epi32(hi[k], 7), lo[k]), b;
        _mm256_store_ps(ya + 8 * k,
                        _mm256_fmadd_ps(_mm256_cvtepi32_ps(v), scale, _mm256_load_ps(ya + 8 * k)));
#pragma GCC unroll 4
        for (int j = 0; j < AVX2_COMPACT_QUARTERS; j++) {
            int32_t sums;
            memcpy(&sums, x->sums16 + 2 * j, sizeof sums);
            __m256i p = split ? from->prepared->p[j][k] : avx2_compact_p(from->meta, k, j);
            __m256i t = _mm256_madd_epi16(p, _mm256_set1_epi32(sums));
            b = j ? _mm256_add_epi32(b, t) : t;
        }
        _mm256_store_ps(yb + 8 * k,
                        _mm256_fmadd_ps(_mm256_cvtepi32_ps(b), scale, _mm256_load_ps(yb + 8 * k)));
    }
}

AVX2_INLINE void unit(float *ya, float *yb, int bits, bool bytes, bool split, const uint8_t *head,
                      const struct source *from, const void *x, int quarters) {
    __m256i lo[4], hi[4];
    const uint8_t *code = split ? from->prepared->code : from->code;
    const size_t column_bytes = (size_t)bits * (split ? 64 : 32);
    for (int k = 0; k < 4; k++) lo[k] = hi[k] = _mm256_setzero_si256();
    for (int j = 0; j < quarters; j++) {
        struct sums a, b;
        __m256i q[4];
        if (!split)
            for (size_t i = 0; i < column_bytes * AVX2_COMPACT_COLUMNS; i += 64)
                avx2_bcq_prefetch(code + i);
        add_column(&a, true, bits, bytes, split, head, code, x, 4 * j);
        add_column(&a, false, bits, bytes, split, head, code + column_bytes, x, 4 * j + 1);
        add_column(&b, true, bits, bytes, split, head, code + 2 * column_bytes, x, 4 * j + 2);
        add_column(&b, false, bits, bytes, split, head, code + 3 * column_bytes, x, 4 * j + 3);
        code += 4 * column_bytes;
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++)
            q[k] = split ? from->prepared->q[j][k] : avx2_compact_q(from->meta, k, j);
        multiply(lo, a.lo, b.lo, q);
        if (!bytes) multiply(hi, a.hi, b.hi, q);
    }
    finish(ya, yb, from, bytes, split, x, lo, hi);
}

AVX2_INLINE void one_token(const struct avx2_bcq_mul *c, const struct avx2_bcq_shape *s, int bits,
                           bool bytes) {
    const size_t scales = (size_t)((bits + 1) / 2) * 64;
    for (int b = c->b0; b < c->b1; b++) {
        _Alignas(32) float y[2][AVX2_BCQ_ROWS] = {{0}};
        const uint8_t *head = c->packed + (size_t)b * s->block_bytes, *at = head + s->head;
        for (int span = 0; span < s->spans; span++, at += s->unit) {
            const struct source from = {.meta = at, .code = at + AVX2_BCQ_META};
            for (int i = 0; i < AVX2_BCQ_META; i += 64) avx2_bcq_prefetch(at + i);
            unit(y[0], y[1], bits, bytes, false, head, &from,
                 avx2_bcq_at(c->act, bytes, (size_t)span), avx2_compact_quarters(c->w, span));
        }
        avx2_compact_store(c, b, 0, head + scales, y[0], y[1]);
    }
}

AVX2_INLINE void prepare(struct prepared *out, const uint8_t *at, int bits, int quarters) {
    avx2_bcq_split_all(out->code, at + AVX2_BCQ_META, quarters * AVX2_COMPACT_COLUMNS * bits);
    for (int k = 0; k < 4; k++) {
        for (int j = 0; j < AVX2_COMPACT_QUARTERS; j++) out->q[j][k] = avx2_compact_q(at, k, j);
        out->p[0][k] = avx2_compact_p(at, k, 0);
        out->p[1][k] = avx2_compact_p(at, k, 1);
        out->p[2][k] = avx2_compact_p(at, k, 2);
        out->p[3][k] = avx2_compact_p(at, k, 3);
    }
}

/* A tile of row blocks against a tile of tokens: a span's tables are used by every block of the
 * tile while they are in cache, a block's selectors by every token. */
AVX2_INLINE void tile(const struct avx2_bcq_mul *c, const struct avx2_bcq_shape *s, int bits,
                      bool bytes, int b0, int n_blocks, int t0, int n_tokens) {
    _Alignas(64) float y[AVX2_BCQ_TILE_BLOCKS][AVX2_BCQ_TILE_TOKENS][2][AVX2_BCQ_ROWS];
    struct prepared p;
    memset(y, 0, sizeof y);
    const uint8_t *blocks = c->packed + (size_t)b0 * s->block_bytes;
    for (int span = 0; span < s->spans; span++) {
        size_t first = (size_t)span * (size_t)c->n + (size_t)t0;
        int quarters = avx2_compact_quarters(c->w, span);
        for (int b = 0; b < n_blocks; b++) {
            const uint8_t *head = blocks + (size_t)b * s->block_bytes;
            const struct source from = {.prepared = &p};
            prepare(&p, head + s->head + (size_t)span * s->unit, bits, quarters);
            for (int t = 0; t < n_tokens; t++) {
                const void *x = avx2_bcq_at(c->act, bytes, first + (size_t)t);
                avx2_bcq_prefetch_act(x, bytes, c->n, b);
                unit(y[b][t][0], y[b][t][1], bits, bytes, true, head, &from, x, quarters);
            }
        }
    }
    for (int b = 0; b < n_blocks; b++)
        for (int t = 0; t < n_tokens; t++)
            avx2_compact_store(c, b0 + b, t0 + t,
                               blocks + (size_t)b * s->block_bytes + (size_t)((bits + 1) / 2) * 64,
                               y[b][t][0], y[b][t][1]);
}

AVX2_INLINE void multiply_all(const struct avx2_bcq_mul *c, int bits, bool bytes) {
    struct avx2_bcq_shape s;
    avx2_bcq_shape(&s, c->w);
    if (c->n == 1) {
        one_token(c, &s, bits, bytes);
        return;
    }
    if (c->n >= TILE_FROM[bytes][bits]) {
        avx2_bcq_mul_tile(c);
        return;
    }
    /* Tokens outside: a tile's tables are more bytes than its weights, and so stay in cache. */
    for (int t = 0; t < c->n; t += AVX2_BCQ_TILE_TOKENS)
        for (int b = c->b0; b < c->b1; b += AVX2_BCQ_TILE_BLOCKS)
            tile(c, &s, bits, bytes, b, avx2_bcq_min(c->b1 - b, AVX2_BCQ_TILE_BLOCKS), t,
                 avx2_bcq_min(c->n - t, AVX2_BCQ_TILE_TOKENS));
}

#define KERNEL(name, bits, bytes)                                                                  \
    static __attribute__((noinline)) void name##_##bits(const struct avx2_bcq_mul *c) {            \
        multiply_all(c, bits, bytes);                                                              \
    }
#define KERNELS(name, bytes)                                                                       \
    KERNEL(name, 1, bytes) KERNEL(name, 2, bytes) KERNEL(name, 3, bytes) KERNEL(name, 4, bytes)
KERNELS(bits, false)
KERNELS(bytes, true)

void avx2_bcq_mul_compact(const struct avx2_bcq_mul *c) {
    static void (*const kernels[2][BCQ_MAX_BITS])(const struct avx2_bcq_mul *) = {
        {bits_1, bits_2, bits_3, bits_4}, {bytes_1, bytes_2, bytes_3, bytes_4}};
    kernels[c->bytes][c->w->bits - 1](c);
}
