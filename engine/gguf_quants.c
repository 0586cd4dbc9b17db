#include "engine/gguf_quants.h"

#include "kernels/float16.h"

static uint16_t u16_at(const uint8_t *p) { return (uint16_t)(p[0] | p[1] << 8); }
static uint32_t u32_at(const uint8_t *p) { return u16_at(p) | (uint32_t)u16_at(p + 2) << 16; }
static float f16_at(const uint8_t *p) { return f16_to_f32(u16_at(p)); }

static void expand_f32(float *out, const uint8_t *b) { *out = float_from_bits(u32_at(b)); }
static void expand_f16(float *out, const uint8_t *b) { *out = f16_at(b); }
static void expand_bf16(float *out, const uint8_t *b) { *out = bf16_to_f32(u16_at(b)); }

/* d, 32 int8. */
static void expand_q8_0(float *out, const uint8_t *b) {
    float d = f16_at(b);
    for (int i = 0; i < 32; i++) out[i] = d * (float)(int8_t)b[2 + i];
}

/* d, 16 bytes: low nibbles are elements 0..15, high nibbles 16..31. */
static void expand_q4_0(float *out, const uint8_t *b) {
    float d = f16_at(b);
    for (int i = 0; i < 16; i++) {
        out[i] = d * (float)((b[2 + i] & 15) - 8);
        out[i + 16] = d * (float)((b[2 + i] >> 4) - 8);
    }
}

/* d, minimum, nibbles as above. */
static void expand_q4_1(float *out, const uint8_t *b) {
    float d = f16_at(b), m = f16_at(b + 2);
    for (int i = 0; i < 16; i++) {
        out[i] = d * (float)(b[4 + i] & 15) + m;
        out[i + 16] = d * (float)(b[4 + i] >> 4) + m;
    }
}

/* Element i of the 5-bit types: a nibble, and bit i of a word for the top. */
static int five_bits(uint32_t top, const uint8_t *nibbles, int i) {
    int low = i < 16 ? nibbles[i] & 15 : nibbles[i - 16] >> 4;
    return low | (int)(top >> i & 1) << 4;
}

/* d, top bits, nibbles. */
static void expand_q5_0(float *out, const uint8_t *b) {
    float d = f16_at(b);
    uint32_t top = u32_at(b + 2);
    for (int i = 0; i < 32; i++) out[i] = d * (float)(five_bits(top, b + 6, i) - 16);
}

/* d, minimum, top bits, nibbles. */
static void expand_q5_1(float *out, const uint8_t *b) {
    float d = f16_at(b), m = f16_at(b + 2);
    uint32_t top = u32_at(b + 4);
    for (int i = 0; i < 32; i++) out[i] = d * (float)five_bits(top, b + 8, i) + m;
}

/* 16 bytes of scale and minimum nibbles for 16 elements each, 64 bytes of 2-bit codes, d, dmin.
 * In each half of 128, codes of 32 elements share bytes, 2 bits apart. */
static void expand_q2_k(float *out, const uint8_t *b) {
    const uint8_t *codes = b + 16;
    float d = f16_at(b + 80), dmin = f16_at(b + 82);
    for (int i = 0; i < 256; i++) {
        int code = codes[i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3;
        out[i] = d * (float)(b[i / 16] & 15) * (float)code - dmin * (float)(b[i / 16] >> 4);
    }
}

/* Scale i of 16, 6 bits: low nibbles in 8 bytes, upper pairs in 4. */
static int q3_scale(const uint8_t *s, int i) {
    int low = i < 8 ? s[i] & 15 : s[i - 8] >> 4;
    return (low | (s[8 + i % 4] >> i / 4 * 2 & 3) << 4) - 32;
}

/* 32 bytes of top bits, 64 of 2-bit codes as in Q2_K, 12 of scales, d. A top bit that is clear
 * subtracts 4. */
static void expand_q3_k(float *out, const uint8_t *b) {
    const uint8_t *codes = b + 32, *scales = b + 96;
    float d = f16_at(b + 108);
    for (int i = 0; i < 256; i++) {
        int code = codes[i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3;
        int top = b[i % 32] >> i / 32 & 1;
        out[i] = d * (float)q3_scale(scales, i / 16) * (float)(code - (top ? 0 : 4));
    }
}

/* Scale and minimum of 32 elements, 6 bits each: eight pairs in 12 bytes. */
static void q4_scale(int *scale, int *min, const uint8_t *s, int i) {
    if (i < 4) {
        *scale = s[i] & 63;
        *min = s[i + 4] & 63;
    } else {
        *scale = (s[i + 4] & 15) | s[i - 4] >> 6 << 4;
        *min = s[i + 4] >> 4 | s[i] >> 6 << 4;
    }
}

/* d, dmin, 12 bytes of scales, 128 of nibbles: 64 elements share 32 bytes. */
static void expand_q4_k(float *out, const uint8_t *b) {
    float d = f16_at(b), dmin = f16_at(b + 2);
    for (int i = 0; i < 8; i++) {
        int scale, min;
        q4_scale(&scale, &min, b + 4, i);
        float s = d * (float)scale, m = dmin * (float)min;
        const uint8_t *codes = b + 16 + i / 2 * 32;
        for (int k = 0; k < 32; k++) out[32 * i + k] = s * (float)(codes[k] >> i % 2 * 4 & 15) - m;
    }
}

/* As Q4_K with 32 bytes of top bits before the nibbles. */
static void expand_q5_k(float *out, const uint8_t *b) {
    float d = f16_at(b), dmin = f16_at(b + 2);
    for (int i = 0; i < 8; i++) {
        int scale, min;
        q4_scale(&scale, &min, b + 4, i);
        float s = d * (float)scale, m = dmin * (float)min;
        const uint8_t *codes = b + 48 + i / 2 * 32;
        for (int k = 0; k < 32; k++) {
            int code = (codes[k] >> i % 2 * 4 & 15) | (b[16 + k] >> i & 1) << 4;
            out[32 * i + k] = s * (float)code - m;
        }
    }
}

/* 128 bytes of nibbles, 64 of upper pairs, 16 int8 scales, d. In each half of 128, element
 * 32 * part + k has its nibble in byte k + 32 * (part % 2). */
static void expand_q6_k(float *out, const uint8_t *b) {
    float d = f16_at(b + 208);
    for (int i = 0; i < 256; i++) {
        int half = i / 128, part = i % 128 / 32, k = i % 32;
        int low = b[half * 64 + part % 2 * 32 + k] >> part / 2 * 4 & 15;
        int top = b[128 + half * 32 + k] >> part * 2 & 3;
        int scale = (int8_t)b[192 + i / 16];
        out[i] = d * (float)scale * (float)((low | top << 4) - 32);
    }
}

/* The 16 levels of the IQ4 types. */
static const int8_t iq4_levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                      1,    13,   25,  38,  53,  69,  89,  113};

static void expand_iq4(float *out, const uint8_t *codes, float d) {
    for (int i = 0; i < 16; i++) {
        out[i] = d * (float)iq4_levels[codes[i] & 15];
        out[i + 16] = d * (float)iq4_levels[codes[i] >> 4];
    }
}

/* d, nibbles. */
static void expand_iq4_nl(float *out, const uint8_t *b) { expand_iq4(out, b + 2, f16_at(b)); }

/* d, 16 bits of upper pairs of the scales, 4 bytes of their low nibbles, 128 of nibbles. */
static void expand_iq4_xs(float *out, const uint8_t *b) {
    float d = f16_at(b);
    uint16_t top = u16_at(b + 2);
    for (int i = 0; i < 8; i++) {
        int scale = (b[4 + i / 2] >> i % 2 * 4 & 15) | (top >> 2 * i & 3) << 4;
        expand_iq4(out + 32 * i, b + 8 + 16 * i, d * (float)(scale - 32));
    }
}

static const struct gguf_quants_type types[] = {
    {GGUF_F32, "F32", 1, 4, expand_f32},
    {GGUF_F16, "F16", 1, 2, expand_f16},
    {GGUF_BF16, "BF16", 1, 2, expand_bf16},
    {GGUF_Q4_0, "Q4_0", 32, 18, expand_q4_0},
    {GGUF_Q4_1, "Q4_1", 32, 20, expand_q4_1},
    {GGUF_Q5_0, "Q5_0", 32, 22, expand_q5_0},
    {GGUF_Q5_1, "Q5_1", 32, 24, expand_q5_1},
    {GGUF_Q8_0, "Q8_0", 32, 34, expand_q8_0},
    {GGUF_Q2_K, "Q2_K", 256, 84, expand_q2_k},
    {GGUF_Q3_K, "Q3_K", 256, 110, expand_q3_k},
    {GGUF_Q4_K, "Q4_K", 256, 144, expand_q4_k},
    {GGUF_Q5_K, "Q5_K", 256, 176, expand_q5_k},
    {GGUF_Q6_K, "Q6_K", 256, 210, expand_q6_k},
    {GGUF_IQ4_NL, "IQ4_NL", 32, 18, expand_iq4_nl},
    {GGUF_IQ4_XS, "IQ4_XS", 256, 136, expand_iq4_xs},
    {GGUF_I8, "I8", 1, 1, NULL},
    {GGUF_I16, "I16", 1, 2, NULL},
    {GGUF_I32, "I32", 1, 4, NULL},
    {GGUF_I64, "I64", 1, 8, NULL},
    {GGUF_F64, "F64", 1, 8, NULL},
};

const struct gguf_quants_type *gguf_quants_find(uint32_t type) {
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (types[i].type == type) return &types[i];
    return NULL;
}

void gguf_quants_row(const struct gguf_quants_type *type, float *out, const uint8_t *row,
                     int64_t cols) {
    for (int64_t i = 0; i < cols; i += type->block, row += type->n_bytes)
        type->expand(out + i, row);
}
