/* Compact form, many tokens: a block's weights of a span become 16-bit integers w = q * sum_i d_i b_i, within
 * 15 * 63, and meet the tokens' whole numbers in multiply-adds of pairs. A span's sums stay
 * within 945 * 16 * 32220 < 2^29. They are twice (of rounded inputs exactly) what look-ups add up to.
 *
 * Expanding costs as much as about five tokens, and after it a token takes the same time for any number of
 * planes: look-ups are faster for few tokens and few planes. */
#include "kernels/avx2/bcq_compact.h"

#include <string.h>

enum { PAIRS = AVX2_BCQ_SPAN / 2, TOKENS = 128 };

/* Weights of a block and span, of two inputs of rows 8k..8k+7 in each vector k. */
struct expanded {
    __m256i w[PAIRS][4];
};

/* Sums of d of the rows of a half block, in the order of words, for the bits 4..7 of a byte. */
struct heads {
    __m256i shape[(BCQ_MAX_BITS + 1) / 2][2], offset[4][2];
};

AVX2_INLINE void read_head(struct heads *out, const uint8_t *head, int bits) {
    const __m256i one = _mm256_set1_epi8(1);
    for (int half = 0; half < 2; half++) {
        __m256i sum = _mm256_setzero_si256();
        for (int pair = 0; pair < (bits + 1) / 2; pair++) {
            __m256i d = avx2_bcq_load(head + 64 * pair + 32 * half);
            sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(one, d));
            out->shape[pair][half] = _mm256_add_epi8(d, d);
        }
        for (int j = 0; j < 4; j++) out->offset[j][half] = _mm256_slli_epi16(sum, 4 + j);
    }
}

/* Word u of q[group][half]: q of row order[u], of a quarter's two groups. */
AVX2_INLINE void read_q(__m256i q[2][2], const uint8_t *meta, int quarter) {
    const __m256i low = _mm256_set1_epi32(0xffff);
    for (int half = 0; half < 2; half++) {
        __m256i a = avx2_compact_q(meta, 2 * half, quarter);
        __m256i b = avx2_compact_q(meta, 2 * half + 1, quarter);
        q[0][half] = _mm256_packus_epi32(_mm256_and_si256(a, low), _mm256_and_si256(b, low));
        q[1][half] = _mm256_packus_epi32(_mm256_srli_epi32(a, 16), _mm256_srli_epi32(b, 16));
    }
}

/* The weights of one input: its bit of each byte of code is worth 2^(4 + j), and so are the sums until q,
 * raised by the rest of 2^15, takes it off. code: [pair][half], the last plane alone in both. */
AVX2_INLINE __m256i weights(const __m256i code[], const struct heads *h, int bits, int j, int half,
                            __m256i q) {
    const __m256i bit = _mm256_set1_epi8((char)(16 << j));
    __m256i sum = _mm256_setzero_si256();
#pragma GCC unroll 2
    for (int pair = 0; pair < (bits + 1) / 2; pair++) {
        bool alone = pair == bits / 2;
        __m256i v = _mm256_and_si256(code[2 * pair + (alone ? 0 : half)], bit);
        v = _mm256_maddubs_epi16(v, h->shape[pair][half]);
        sum = pair ? _mm256_add_epi16(sum, v) : v;
    }
    sum = _mm256_sub_epi16(sum, h->offset[j][half]);
    return _mm256_mulhrs_epi16(sum, _mm256_slli_epi16(q, 11 - j));
}

/* Four inputs, whose bits are the upper ones of code's bytes. */
AVX2_INLINE void expand_four(__m256i (*out)[4], const __m256i code[], const struct heads *h,
                             int bits, const __m256i q[2]) {
#pragma GCC unroll 2
    for (int j = 0; j < 4; j += 2)
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {
            __m256i a = weights(code, h, bits, j, half, q[half]);
            __m256i b = weights(code, h, bits, j + 1, half, q[half]);
            out[j / 2][2 * half] = _mm256_unpacklo_epi16(a, b);
            out[j / 2][2 * half + 1] = _mm256_unpackhi_epi16(a, b);
        }
}

AVX2_INLINE void expand(struct expanded *out, const uint8_t *at, const struct heads *h, int bits,
                        int quarters) {
    const uint8_t *code = at + AVX2_BCQ_META;
    for (int i = 0; i < quarters; i++) {
        __m256i q[2][2], low[BCQ_MAX_BITS], high[BCQ_MAX_BITS];
        read_q(q, at, i);
        for (int c = 0; c < AVX2_COMPACT_COLUMNS; c++, code += 32 * bits) {
#pragma GCC unroll 4
            for (int k = 0; k < bits; k++) {
                high[k] = avx2_bcq_load(code + 32 * k);
                low[k] = _mm256_slli_epi16(high[k], 4);
            }
            __m256i(*to)[4] = out->w + 4 * (AVX2_COMPACT_COLUMNS * i + c);
            expand_four(to, low, h, bits, q[c / 2]);
            expand_four(to + 2, high, h, bits, q[c / 2]);
        }
    }
}

/* The sums are named variables: compilers keep arrays of them in memory. */
#define EACH_1(f) f(0)
#define EACH_2(f) EACH_1(f) f(1)
#define EACH_3(f) EACH_2(f) f(2)
#define EACH_4(f) EACH_3(f) f(3)
#define EACH_5(f) EACH_4(f) f(4)
#define EACH_6(f) EACH_5(f) f(5)

#define SUMS(t) __m256i a##t = _mm256_setzero_si256(), b##t = a##t;
#define STEP(t)                                                                                    \
    memcpy(&pair, x + t * AVX2_BCQ_SPAN + 2 * i, sizeof pair);                                     \
    v = _mm256_set1_epi32(pair);                                                                   \
    a##t = _mm256_add_epi32(a##t, _mm256_madd_epi16(w0, v));                                       \
    b##t = _mm256_add_epi32(b##t, _mm256_madd_epi16(w1, v));                                       \
    __asm__("" : "+x"(a##t), "+x"(b##t)); /* gcc 12 gathers the products otherwise, and spills */
#define KEEP(t)                                                                                    \
    add_scaled(y + t * 2 * AVX2_BCQ_ROWS, a##t, scales[t]);                                        \
    add_scaled(y + t * 2 * AVX2_BCQ_ROWS + 8, b##t, scales[t]);

/* y += scale * sums for 8 rows. */
AVX2_INLINE void add_scaled(float *y, __m256i sums, float scale) {
    _mm256_store_ps(
        y, _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), _mm256_set1_ps(scale), _mm256_load_ps(y)));
}

/* A half block's 16 rows and n tokens. x: (n, 128); y: (n, 2, 32) from the half's first row. */
#define DEFINE_PANEL(n)                                                                            \
    static void panel_##n(float *y, const __m256i *w, const int16_t *x, const float *scales,       \
                          int n_pairs) {                                                           \
        __m256i v;                                                                                 \
        int32_t pair;                                                                              \
        EACH_##n(SUMS);                                                                            \
        for (int i = 0; i < n_pairs; i++, w += 4) {                                                \
            const __m256i w0 = w[0], w1 = w[1];                                                    \
            EACH_##n(STEP);                                                                        \
        }                                                                                          \
        EACH_##n(KEEP);                                                                            \
    }
DEFINE_PANEL(1)
DEFINE_PANEL(2)
DEFINE_PANEL(3)
DEFINE_PANEL(4)
DEFINE_PANEL(5)
DEFINE_PANEL(6)

/* yb += scale * sum_g p_g X_g, as bcq_compact.c does it. */
AVX2_INLINE void add_offsets(float *yb, __m256i p[AVX2_COMPACT_QUARTERS][4],
                             const struct avx2_bcq_act *x) {
    const __m256 scale = _mm256_broadcast_ss(&x->scale);
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        __m256i sum = _mm256_setzero_si256();
#pragma GCC unroll 4
        for (int j = 0; j < AVX2_COMPACT_QUARTERS; j++) {
            int32_t sums;
            memcpy(&sums, x->sums16 + 2 * j, sizeof sums);
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(p[j][k], _mm256_set1_epi32(sums)));
        }
        _mm256_store_ps(yb + 8 * k, _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), scale,
                                                    _mm256_load_ps(yb + 8 * k)));
    }
}

/* A block and span, expanded, and its tokens in panels of about equal size. */
static void multiply(float (*y)[2][AVX2_BCQ_ROWS], const struct avx2_bcq_mul *c,
                     const struct expanded *w, const uint8_t *meta, int n_spans, int span, int t0,
                     int n_tokens, int quarters) {
    static void (*const panels[])(float *, const __m256i *, const int16_t *, const float *,
                                  int) = {panel_1, panel_2, panel_3, panel_4, panel_5, panel_6};
    const int16_t *x =
        avx2_bcq_whole(c->act, c->bytes, n_spans, c->n, span) + (size_t)t0 * AVX2_BCQ_SPAN;
    __m256i p[AVX2_COMPACT_QUARTERS][4];
    for (int k = 0; k < 4; k++) {
        p[0][k] = avx2_compact_p(meta, k, 0);
        p[1][k] = avx2_compact_p(meta, k, 1);
        p[2][k] = avx2_compact_p(meta, k, 2);
        p[3][k] = avx2_compact_p(meta, k, 3);
    }
    int n_panels = (n_tokens + AVX2_BCQ_PANEL - 1) / AVX2_BCQ_PANEL;
    for (int i = 0; i < n_panels; i++) {
        int t = n_tokens * i / n_panels, n = n_tokens * (i + 1) / n_panels - t;
        float scales[AVX2_BCQ_PANEL];
        for (int k = 0; k < n; k++) {
            const struct avx2_bcq_act *record =
                avx2_bcq_at(c->act, c->bytes, (size_t)span * (size_t)c->n + (size_t)(t0 + t + k));
            /* Exact, and so is the conversion of twice a number where its own is. */
            scales[k] = c->bytes ? record->scale : 0.5f * record->scale;
            add_offsets(y[t + k][1], p, record);
        }
        for (int half = 0; half < 2; half++)
            panels[n - 1](y[t][0] + 16 * half, w->w[0] + 2 * half, x + (size_t)t * AVX2_BCQ_SPAN,
                          scales, 16 * quarters);
    }
}

AVX2_INLINE void multiply_all(const struct avx2_bcq_mul *c, int bits) {
    _Alignas(64) float y[TOKENS][2][AVX2_BCQ_ROWS];
    struct avx2_bcq_shape s;
    struct expanded w;
    struct heads h;
    avx2_bcq_shape(&s, c->w);
    for (int t0 = 0; t0 < c->n; t0 += TOKENS) {
        int n_tokens = avx2_bcq_min(c->n - t0, TOKENS);
        for (int b = c->b0; b < c->b1; b++) {
            const uint8_t *head = c->packed + (size_t)b * s.block_bytes, *at = head + s.head;
            read_head(&h, head, bits);
            memset(y, 0, (size_t)n_tokens * sizeof *y);
            for (int span = 0; span < s.spans; span++, at += s.unit) {
                int quarters = avx2_compact_quarters(c->w, span);
                expand(&w, at, &h, bits, quarters);
                multiply(y, c, &w, at, s.spans, span, t0, n_tokens, quarters);
            }
            for (int t = 0; t < n_tokens; t++)
                avx2_compact_store(c, b, t0 + t, head + (bits + 1) / 2 * 64, y[t][0], y[t][1]);
        }
    }
}

#define KERNEL(bits)                                                                               \
    static __attribute__((noinline)) void bits_##bits(const struct avx2_bcq_mul *c) {              \
        multiply_all(c, bits);                                                                     \
    }
KERNEL(3)
KERNEL(4)

void avx2_bcq_mul_tile(const struct avx2_bcq_mul *c) {
    if (c->w->bits == 3)
        bits_3(c);
    else
        bits_4(c);
}
