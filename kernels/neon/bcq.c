#include "kernels/neon/bcq.h"

#include <arm_neon.h>
#include <string.h>

#include "kernels/neon/neon.h"
#include "kernels/ops.h"

#define INLINE static inline __attribute__((always_inline))

/* Tokens that share a reading of a block; their tables of a span fit the first cache. */
enum { TOKENS = 16 };

struct call {
    float *y;
    size_t ldy;
    const uint8_t *packed;
    const struct bcq_spec *w;
    const void *act;
    int n, b0, b1;
};

/* A token's sums over parts: of the planes, and of the offsets (compact form). */
struct sums {
    float planes[NEON_BCQ_ROWS], offsets[NEON_BCQ_ROWS];
};

struct part {
    const uint8_t *params, *code, *d; /* d: [bits][16], compact form */
    int column, columns;
};

/* A plane's sums of 16 rows: 256 * hi + lo. */
struct words {
    int16x8_t lo[2], hi[2];
};

INLINE void add_table(struct words *s, const struct neon_bcq_act *x, int table, uint8x16_t codes,
                      bool bytes) {
    int8x16_t h = vqtbl1q_s8(vld1q_s8(x->hi[table]), codes);
    s->hi[0] = vaddw_s8(s->hi[0], vget_low_s8(h));
    s->hi[1] = vaddw_high_s8(s->hi[1], h);
    if (bytes) return;
    uint8x16_t l = vqtbl1q_u8(vld1q_u8(x->lo[table]), codes);
    /* 32 tables of at most 255 stay positive. */
    s->lo[0] = vreinterpretq_s16_u16(vaddw_u8(vreinterpretq_u16_s16(s->lo[0]), vget_low_u8(l)));
    s->lo[1] = vreinterpretq_s16_u16(vaddw_high_u8(vreinterpretq_u16_s16(s->lo[1]), l));
}

INLINE struct words add_plane(const struct part *p, int plane, const struct neon_bcq_act *x,
                              bool bytes) {
    struct words s = {{vdupq_n_s16(0), vdupq_n_s16(0)}, {vdupq_n_s16(0), vdupq_n_s16(0)}};
    const uint8_t *code = p->code + (size_t)(plane * p->columns) * NEON_BCQ_ROWS;
    for (int c = 0; c < p->columns; c++, code += NEON_BCQ_ROWS) {
        uint8x16_t v = vld1q_u8(code);
        int table = 2 * (p->column + c);
        add_table(&s, x, table, vandq_u8(v, vdupq_n_u8(15)), bytes);
        add_table(&s, x, table + 1, vshrq_n_u8(v, 4), bytes);
    }
    return s;
}

/* The sum of a part's whole numbers. */
INLINE float plain_sum(const struct part *p, const struct neon_bcq_act *x) {
    int32_t sum = 0;
    for (int c = 0; c < p->columns; c++) sum += x->sums[p->column + c];
    return (float)sum;
}

/* sum[k] += a * b for rows 4 k.. of 16. */
INLINE void multiply_words(int32x4_t sum[4], const int16x8_t a[2], const int16x8_t b[2]) {
    for (int i = 0; i < 2; i++) {
        sum[2 * i] = vmlal_s16(sum[2 * i], vget_low_s16(a[i]), vget_low_s16(b[i]));
        sum[2 * i + 1] = vmlal_high_s16(sum[2 * i + 1], a[i], b[i]);
    }
}

/* Sums of d_i times a plane's sum fit 32 bits: 63 * 32 * 32767. */
INLINE void add_compact(struct sums *y, const struct part *p, int bits,
                        const struct neon_bcq_act *x, bool bytes) {
    int32x4_t lo[4], hi[4];
    for (int k = 0; k < 4; k++) lo[k] = hi[k] = vdupq_n_s32(0);
    for (int plane = 0; plane < bits; plane++) {
        struct words s = add_plane(p, plane, x, bytes);
        uint8x16_t d = vld1q_u8(p->d + plane * NEON_BCQ_ROWS);
        int16x8_t factor[2] = {vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(d))),
                               vreinterpretq_s16_u16(vmovl_high_u8(d))};
        multiply_words(hi, s.hi, factor);
        if (!bytes) multiply_words(lo, s.lo, factor);
    }
    const float scale = x->scale, plain = plain_sum(p, x);
    uint8x16_t q = vld1q_u8(p->params);
    int8x16_t offset = vreinterpretq_s8_u8(vld1q_u8(p->params + NEON_BCQ_ROWS));
    int16x8_t qs[2] = {vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(q))),
                       vreinterpretq_s16_u16(vmovl_high_u8(q))};
    int16x8_t ps[2] = {vmovl_s8(vget_low_s8(offset)), vmovl_high_s8(offset)};
    for (int k = 0; k < 4; k++) {
        int32x4_t sum = bytes ? hi[k] : vaddq_s32(vshlq_n_s32(hi[k], 8), lo[k]);
        int16x8_t q8 = qs[k / 2], p8 = ps[k / 2];
        int16x4_t q4 = k % 2 ? vget_high_s16(q8) : vget_low_s16(q8);
        int16x4_t p4 = k % 2 ? vget_high_s16(p8) : vget_low_s16(p8);
        float32x4_t a = vmulq_f32(vcvtq_f32_s32(sum), vcvtq_f32_s32(vmovl_s16(q4)));
        float32x4_t b = vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(p4)), plain);
        vst1q_f32(y->planes + 4 * k, vfmaq_n_f32(vld1q_f32(y->planes + 4 * k), a, scale));
        vst1q_f32(y->offsets + 4 * k, vfmaq_n_f32(vld1q_f32(y->offsets + 4 * k), b, scale));
    }
}

/* Four fp16 parameters. */
INLINE float32x4_t parameters(const uint8_t *params, int plane, int k) {
    const uint16_t *at = (const uint16_t *)(const void *)params + plane * NEON_BCQ_ROWS + 4 * k;
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(at)));
}

INLINE void add_free(struct sums *y, const struct part *p, int bits, const struct neon_bcq_act *x,
                     bool bytes) {
    float32x4_t t[4];
    const float plain = plain_sum(p, x);
    for (int k = 0; k < 4; k++) t[k] = vmulq_n_f32(parameters(p->params, bits, k), plain);
    for (int plane = 0; plane < bits; plane++) {
        struct words s = add_plane(p, plane, x, bytes);
        for (int k = 0; k < 4; k++) {
            int16x4_t h = k % 2 ? vget_high_s16(s.hi[k / 2]) : vget_low_s16(s.hi[k / 2]);
            int16x4_t l = k % 2 ? vget_high_s16(s.lo[k / 2]) : vget_low_s16(s.lo[k / 2]);
            int32x4_t sum = bytes ? vmovl_s16(h) : vaddw_s16(vshll_n_s16(h, 8), l);
            t[k] = vfmaq_f32(t[k], vcvtq_f32_s32(sum), parameters(p->params, plane, k));
        }
    }
    for (int k = 0; k < 4; k++)
        vst1q_f32(y->planes + 4 * k, vfmaq_n_f32(vld1q_f32(y->planes + 4 * k), t[k], x->scale));
}

static void store_rows(const struct call *c, int b, int token, const float *y) {
    int row0 = b * NEON_BCQ_ROWS, left = c->w->rows - row0;
    memcpy(c->y + (size_t)token * c->ldy + row0, y,
           (size_t)(left < NEON_BCQ_ROWS ? left : NEON_BCQ_ROWS) * sizeof *y);
}

/* Writes a token's rows of a block; a compact block begins with the rows' scales. */
INLINE void finish(const struct call *c, int b, int token, struct sums *y, const uint8_t *block,
                   bool compact) {
    const float *scales = (const float *)(const void *)block;
    for (int i = 0; compact && i < NEON_BCQ_ROWS; i += 4) {
        float32x4_t a = vmulq_f32(vld1q_f32(y->planes + i), vld1q_f32(scales + i));
        a = vfmaq_f32(a, vld1q_f32(y->offsets + i), vld1q_f32(scales + NEON_BCQ_ROWS + i));
        vst1q_f32(y->planes + i, a);
    }
    store_rows(c, b, token, y->planes);
}

INLINE void mul_coded(const struct call *c, const struct neon_bcq_shape *s, int bits, bool compact,
                      bool bytes) {
    for (int t0 = 0; t0 < c->n; t0 += TOKENS) {
        int n = c->n - t0 < TOKENS ? c->n - t0 : TOKENS;
        for (int b = c->b0; b < c->b1; b++) {
            struct sums y[TOKENS];
            const uint8_t *block = c->packed + (size_t)b * s->block_bytes;
            struct part p = {.d = block + 2 * NEON_BCQ_ROWS * sizeof(float),
                             .params = block + s->head};
            memset(y, 0, (size_t)n * sizeof *y);
            for (int pos = 0, end; pos < c->w->cols; pos = end) {
                size_t first = (size_t)(pos / NEON_BCQ_SPAN) * (size_t)c->n + (size_t)t0;
                end = neon_bcq_part_end(s, c->w->cols, pos);
                p.code = p.params + s->params;
                p.column = pos % NEON_BCQ_SPAN / 8;
                p.columns = (end - pos + 7) / 8;
                if (s->own_shapes) p.d = p.params + 2 * NEON_BCQ_ROWS;
                for (int t = 0; t < n; t++) {
                    const struct neon_bcq_act *x = neon_bcq_at(c->act, bytes, first + (size_t)t);
                    if (compact)
                        add_compact(&y[t], &p, bits, x, bytes);
                    else
                        add_free(&y[t], &p, bits, x, bytes);
                }
                p.params = p.code + (size_t)(p.columns * bits) * NEON_BCQ_ROWS;
            }
            for (int t = 0; t < n; t++) finish(c, b, t0 + t, &y[t], block, compact);
        }
    }
}

/* Groups that begin inside a byte of code: fp32 weights times whole numbers. */
static void mul_floats(const struct call *c, const struct neon_bcq_shape *s, bool bytes) {
    for (int b = c->b0; b < c->b1; b++) {
        const float *block = (const float *)(const void *)(c->packed + (size_t)b * s->block_bytes);
        for (int t = 0; t < c->n; t++) {
            float y[NEON_BCQ_ROWS] = {0};
            for (int pos = 0; pos < c->w->cols; pos += NEON_BCQ_SPAN) {
                const struct neon_bcq_act *x = neon_bcq_at(
                    c->act, bytes, (size_t)(pos / NEON_BCQ_SPAN) * (size_t)c->n + (size_t)t);
                float32x4_t sum[4];
                for (int k = 0; k < 4; k++) sum[k] = vdupq_n_f32(0);
                for (int i = 0; i < NEON_BCQ_SPAN && pos + i < c->w->cols; i++) {
                    const float *w = block + (size_t)(pos + i) * NEON_BCQ_ROWS;
                    for (int k = 0; k < 4; k++)
                        sum[k] = vfmaq_n_f32(sum[k], vld1q_f32(w + 4 * k), (float)x->whole[i]);
                }
                for (int k = 0; k < 4; k++)
                    vst1q_f32(y + 4 * k, vfmaq_n_f32(vld1q_f32(y + 4 * k), sum[k], x->scale));
            }
            store_rows(c, b, t, y);
        }
    }
}

#define KERNEL(bits)                                                                               \
    static __attribute__((noinline)) void mul_##bits(const struct call *c,                         \
                                                     const struct neon_bcq_shape *s, bool bytes) { \
        if (s->compact && bytes) mul_coded(c, s, bits, true, true);                                \
        if (s->compact && !bytes) mul_coded(c, s, bits, true, false);                              \
        if (!s->compact && bytes) mul_coded(c, s, bits, false, true);                              \
        if (!s->compact && !bytes) mul_coded(c, s, bits, false, false);                            \
    }
KERNEL(1)
KERNEL(2)
KERNEL(3)
KERNEL(4)

static void mul(float *y, size_t ldy, const void *packed, const struct bcq_spec *w, const void *act,
                int act_bits, int n, int b0, int b1) {
    static void (*const kernels[BCQ_MAX_BITS])(const struct call *, const struct neon_bcq_shape *,
                                               bool) = {mul_1, mul_2, mul_3, mul_4};
    const struct call call = {y, ldy, packed, w, act, n, b0, b1};
    struct neon_bcq_shape s;
    neon_bcq_shape(&s, w);
    if (s.floats)
        mul_floats(&call, &s, act_bits < 16);
    else
        kernels[w->bits - 1](&call, &s, act_bits < 16);
}

void neon_bcq_init(struct bcq_ops *bcq) {
    *bcq = (struct bcq_ops){.row_block = NEON_BCQ_ROWS,
                            .pack_bytes = neon_bcq_pack_bytes,
                            .pack = neon_bcq_pack,
                            .act_bytes = neon_bcq_act_bytes,
                            .act_pack = neon_bcq_act_pack,
                            .mul = mul};
}
