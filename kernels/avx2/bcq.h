/* bcq.h - the packed forms that the AVX2 kernels for binary-coded matrices share.
 *
 * Owns      nothing.
 * Borrows   arguments during the call.
 * Thread    any; no state.
 * Fails     never.
 * Cost      as in kernels/ops.h.
 *
 * The method: four inputs make a table of their 16 signed sums, a plane's four bits select one,
 * and a byte shuffle selects for 32 rows at once. One scale serves a span of 128 inputs, which
 * become whole numbers, the sum of each 16 of them even. A table's signed sums are then all even or all
 * odd, so it keeps half of them, rounded up here and down there so that nothing is lost over
 * 16 inputs: 15-bit integers, as a low byte (7 bits) and a signed high byte, in a range such that
 * the entries of two neighbouring tables ("a column", 8 inputs) can be added in bytes. Because
 * tables stand for whole inputs exactly, sums may as well be made of the inputs themselves
 * (bcq_tile.c): the same integers, hence the same bits.
 * Everything up to the end of a span (compact form) or of a group in it (the other forms) is
 * integer arithmetic, the floating-point operations after it are the same sequence for every
 * way of splitting the work: that is why a token's result is the same bits in any batch.
 *
 * A block is 32 rows. Word u of a vector of 16-bit sums belongs to row order[u] of half a block
 * (bcq_pack.c has the order): interleaving two such vectors gives 32-bit lanes in row order.
 * A byte of code is 8 consecutive inputs of a row and plane, the first input lowest. A vector of
 * code holds, in bytes 2u and 2u + 1, either
 *   two planes of row order[u] of a half block (pairs of planes in the compact form), or
 *   one plane of row order[u] of the first and of the second half (everything else). */
#ifndef KERNELS_AVX2_BCQ_H
#define KERNELS_AVX2_BCQ_H

#include <immintrin.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/avx2/math.h"
#include "kernels/weights.h"

enum {
    AVX2_BCQ_ROWS = 32,
    AVX2_BCQ_FEW = 255, /* up to this many inputs weights are kept as fp32; see bcq_few.c */
    AVX2_BCQ_SPAN = 128,
    AVX2_BCQ_COLUMNS = AVX2_BCQ_SPAN / 8,
    AVX2_BCQ_META = 320,  /* compact form: bytes of q and p of a block and span */
    AVX2_BCQ_NEAR = 3072, /* prefetch distances; see avx2_bcq_prefetch() */
    AVX2_BCQ_FAR = 16384,
    AVX2_BCQ_TILE_BLOCKS = 4,
    AVX2_BCQ_TILE_TOKENS = 16,
    AVX2_BCQ_PANEL = 6 /* tokens whose sums fit the registers, see bcq_tile.c */
};

/* Which kernel takes a matrix. */
enum avx2_bcq_form {
    AVX2_BCQ_FORM_FEW,     /* fp32 weights */
    AVX2_BCQ_FORM_COMPACT, /* small q and p, stored for each 16 inputs */
    AVX2_BCQ_FORM_HALF,    /* fp16 alpha and beta, groups of a multiple of 16 or whole rows */
    AVX2_BCQ_FORM_SINGLE,  /* the same with fp32 parameters, for what fits no other form */
    AVX2_BCQ_FORM_ODD      /* groups that begin inside a table or a column; fp32 parameters */
};

enum avx2_bcq_form avx2_bcq_form(const struct bcq_spec *w);

/* What a token's 128 inputs look like to the kernels. */
struct avx2_bcq_act {
    float scale;    /* x = scale / 2 * whole number; NaN if an x is not finite */
    float sums[15]; /* of 128, 2 of 64, 4 of 32, 8 of 16 inputs: level of c sums begins at c - 1 */
    int16_t sums16[8];                 /* of 16 inputs, in units of scale */
    int8_t lost[2 * AVX2_BCQ_COLUMNS]; /* signed sums of a table's inputs less twice its entries */
    int8_t unused[16];                 /* fills the cache line */
    uint8_t lo[2 * AVX2_BCQ_COLUMNS][16];
    int8_t hi[2 * AVX2_BCQ_COLUMNS][16];
    uint8_t hi_up[AVX2_BCQ_COLUMNS][16]; /* hi of the even tables + 128 */
};

/* The same of rounded activations (struct bcq_ops): exact entries of one byte. */
struct avx2_bcq_byte_act {
    float scale, sums[15]; /* x = scale * whole number */
    int16_t sums16[32];    /* exact */
    int8_t entry[2 * AVX2_BCQ_COLUMNS][16];
    uint8_t entry_up[2 * AVX2_BCQ_COLUMNS][16]; /* entry + 128 */
};
_Static_assert(sizeof(struct avx2_bcq_act) % 64 == 0 && sizeof(struct avx2_bcq_byte_act) % 64 == 0,
               "records begin at cache lines");

/* Records are (span, token); the whole numbers follow, int16 (span, token, 128). Of few inputs,
 * fp32 (token, cols) instead. */
size_t avx2_bcq_act_bytes(int act_bits, int cols, int n);
void avx2_bcq_act_pack(void *act, int act_bits, const struct bcq_spec *w, const float *x,
                       size_t ldx, int n, int part, int n_parts);

/* kernels/rounding.h for 128 inputs: whole numbers to out, returns their scale. */
float avx2_bcq_round(float *out, const float *x, int act_bits);

/* Where things lie in a packed block, bytes from its start.
 *   FEW      weights [cols][32]
 *   COMPACT  head: multiplier vectors (2 for each pair of planes), s0[32] s1[32] fp16;
 *            for each span: q 4x32, p 4x32, last p 64, code of quarters (32 inputs, 4 columns)
 *   HALF, SINGLE  at each group's first step: alpha[bits][32] beta[32];
 *            for each step (see step): code [plane][column]
 *   ODD      for each group: alpha[bits][32] beta[32], halved; then code [column][plane] */
struct avx2_bcq_shape {
    enum avx2_bcq_form form;
    int spans;
    int step;           /* inputs per step: HALF and SINGLE, a power of two 16..128 */
    int group;          /* inputs per group; whole rows: a multiple of 128 that covers them */
    size_t head;        /* COMPACT: bytes of the head; ODD: of all parameters */
    size_t params;      /* bytes of a group's parameters */
    size_t unit;        /* COMPACT: bytes of a whole span */
    size_t block_bytes; /* a multiple of 64 */
};

void avx2_bcq_shape(struct avx2_bcq_shape *ret, const struct bcq_spec *w);

size_t avx2_bcq_pack_bytes(const struct bcq_spec *w);
void avx2_bcq_pack(void *dst, const struct bcq_view *w, int b0, int b1);

/* struct bcq_ops.mul of the forms. */
struct avx2_bcq_mul {
    float *y;
    size_t ldy;
    const uint8_t *packed;
    const struct bcq_spec *w;
    const void *act;
    int n, b0, b1;
    bool bytes; /* act has struct avx2_bcq_byte_act */
};

void avx2_bcq_mul_few(const struct avx2_bcq_mul *c);
void avx2_bcq_mul_compact(const struct avx2_bcq_mul *c);
void avx2_bcq_mul_tile(const struct avx2_bcq_mul *c); /* compact, 3 or 4 planes, many tokens */
void avx2_bcq_mul_free(const struct avx2_bcq_mul *c);
void avx2_bcq_mul_odd(const struct avx2_bcq_mul *c);

AVX2_INLINE int avx2_bcq_min(int a, int b) { return a < b ? a : b; }

AVX2_INLINE __m256i avx2_bcq_load(const void *p) { return _mm256_load_si256(p); }

AVX2_INLINE __m256i avx2_bcq_table(const void *t) {
    return _mm256_broadcastsi128_si256(_mm_load_si128(t));
}

/* Asks for a line of packed weights twice: early into the second-level cache, then into the
 * first. One request alone, at any distance of 1 to 8 KiB, left a third of the speed from
 * memory unused. Reads nothing, so the addresses may lie past the end. */
AVX2_INLINE void avx2_bcq_prefetch(const uint8_t *p) {
    _mm_prefetch((const char *)((uintptr_t)p + AVX2_BCQ_FAR), _MM_HINT_T1);
    _mm_prefetch((const char *)((uintptr_t)p + AVX2_BCQ_NEAR), _MM_HINT_T0);
}

AVX2_INLINE size_t avx2_bcq_record(const bool bytes) {
    return bytes ? sizeof(struct avx2_bcq_byte_act) : sizeof(struct avx2_bcq_act);
}

/* Record i of act. */
AVX2_INLINE const void *avx2_bcq_at(const void *act, const bool bytes, size_t i) {
    return (const uint8_t *)act + i * avx2_bcq_record(bytes);
}

/* The whole numbers of the first token in a span; of n tokens in n_spans. */
AVX2_INLINE const int16_t *avx2_bcq_whole(const void *act, const bool bytes, int n_spans, int n,
                                          int span) {
    const void *all = avx2_bcq_at(act, bytes, (size_t)n_spans * (size_t)n);
    return (const int16_t *)all + (size_t)span * (size_t)n * AVX2_BCQ_SPAN;
}

/* Asks for a part of the tables that a tile uses next: x's token in the next span, n records on
 * (past the end in the last). The blocks of a tile take a part each, which spreads the requests. */
AVX2_INLINE void avx2_bcq_prefetch_act(const void *x, const bool bytes, int n, int block) {
    const size_t record = avx2_bcq_record(bytes);
    const int lines = ((int)record / 64 + AVX2_BCQ_TILE_BLOCKS - 1) / AVX2_BCQ_TILE_BLOCKS;
    uintptr_t next = (uintptr_t)x + (size_t)n * record + (size_t)(block * lines) * 64;
    for (int i = 0; i < lines; i++)
        _mm_prefetch((const char *)(next + (size_t)i * 64), _MM_HINT_T1);
}

/* Keeps gcc from folding a load into each of its uses: these kernels are short of loads. */
AVX2_INLINE __m256i avx2_bcq_in_register(__m256i v) {
    __asm__("" : "+x"(v));
    return v;
}

/* A code vector's selectors for the even and the odd table of a column. */
AVX2_INLINE void avx2_bcq_split(const uint8_t *code, __m256i *even, __m256i *odd) {
    const __m256i low = _mm256_set1_epi8(15);
    __m256i v = avx2_bcq_load(code);
    *even = _mm256_and_si256(v, low);
    *odd = _mm256_and_si256(_mm256_srli_epi16(v, 4), low);
}

/* Several tokens share a block's selectors: they are split once into pairs of vectors. */
AVX2_INLINE void avx2_bcq_split_all(uint8_t *dst, const uint8_t *code, int n_vectors) {
    for (int i = 0; i < n_vectors; i++, code += 32, dst += 64) {
        __m256i even, odd;
        avx2_bcq_split(code, &even, &odd);
        if (i % 2 == 0) avx2_bcq_prefetch(code);
        _mm256_store_si256((void *)dst, even);
        _mm256_store_si256((void *)(dst + 32), odd);
    }
}

/* Writes a block's rows of one token, as many as there are. */
AVX2_INLINE void avx2_bcq_store(float *y, const float *rows, int n_rows) {
    for (int i = 0; i < avx2_bcq_min(n_rows, AVX2_BCQ_ROWS); i++) y[i] = rows[i];
}

#endif
