/* bcq.h - the packed forms that the AVX-512 kernels for binary-coded matrices share.
 *
 * Owns      nothing.
 * Borrows   arguments during the call.
 * Thread    any; no state.
 * Fails     never.
 * Cost      as in kernels/ops.h.
 *
 * The method: four inputs make a table of their 16 signed sums, a plane's four bits select one,
 * and vpermb selects in four tables ("a run", 16 inputs) for 16 rows at once. Entries are
 * 254 * high + low with both bytes signed; vpdpbusd adds a row's four bytes, its unsigned
 * operand carrying a constant weight: 1 or 254, or the row's d_i. One scale serves a span of
 * 128 inputs. Everything up to the end of a span (compact form) or of a piece of it (the other
 * forms) is integer arithmetic; the floating-point operations after it are the same for every
 * number of tokens: that is why a token's result is the same bits in any batch.
 *
 * A block is 64 rows in four units of 16, so that a span's tables serve four units from L1.
 * A code word holds two runs of a row and plane, nibble b of the first in the low half of byte
 * b, of the second in the high half; a code vector is the code words of a unit. */
#ifndef KERNELS_AVX512_BCQ_H
#define KERNELS_AVX512_BCQ_H

#include <immintrin.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/avx512/math.h"
#include "kernels/weights.h"

/* Keeps gcc 12 from gathering the loads and prefetches of several steps, which costs a fifth
 * of the speed out of cache. */
#define AVX512_STEP_FENCE() __asm__ volatile("" ::: "memory")

enum {
    AVX512_BCQ_ROWS = 64,
    AVX512_BCQ_UNITS = 4,
    AVX512_BCQ_SPAN = 128,
    AVX512_BCQ_RUNS = AVX512_BCQ_SPAN / 16,
    AVX512_BCQ_COLUMNS = 4 /* tokens that a kernel takes at once */
};

/* Prefetch distances in bytes, in each stream. A line is fetched into L2 far ahead and into L1 near its use:
 * L1 has too few miss buffers to wait for memory. */
enum { AVX512_BCQ_FAR = 2048, AVX512_BCQ_NEAR = 1024 };

/* Which kernel takes a matrix. */
enum avx512_bcq_form {
    AVX512_BCQ_COMPACT, /* small q and p, stored for each run */
    AVX512_BCQ_FREE,    /* alpha and beta for each piece of a span, or for the row */
    AVX512_BCQ_ODD      /* groups that begin inside a run */
};

/* A packed matrix is streams, each of all its blocks: code of a plane (FREE with pieces of 16: of two
 * planes) in each of the first, everything else in the last. One product reads them side by side,
 * because memory gives more to several streams than to one (SPEED.md).
 *   COMPACT  code: for each span, unit and half of 64 inputs two vectors;
 *            rest: s0[64] s1[64] fp16, d[bits][64]; for each span fifth bits of p (word i, byte u,
 *            bit g = row 16u+i, run g), then for each unit and half a vector of words with the
 *            nibbles q0 q2 p0 p2 q1 q3 p1 p3 of its four runs (p + 16, lower four bits)
 *   FREE     code: for each piece and unit [words] vectors, for pieces of 16 one vector with the run
 *            of a plane in the low nibbles and of the next in the high ones;
 *            rest: for each piece (whole rows: once) and unit alpha[bits][16] beta[16], fp16 or fp32
 *   ODD      rest: for each run and each group in it, for each unit: alpha[bits][16] beta[16], fp32
 *            and halved; code [bits + 1], see bcq_odd.c */
struct avx512_bcq_shape {
    enum avx512_bcq_form form;
    int cols, group; /* as in the spec */
    int bits, spans;
    int runs, words;   /* ceil(cols / 16), ceil(cols / 32) */
    int piece;         /* FREE: inputs per piece, a power of two 16..128 */
    bool wide;         /* FREE: fp32 parameters */
    bool row;          /* FREE: one group per row */
    size_t params;     /* FREE, ODD: bytes of a unit's parameters */
    int blocks;        /* of the matrix */
    int streams;       /* of code */
    size_t code, rest; /* bytes of a block in each of them and in the last, multiples of 64 */
};

void avx512_bcq_shape(struct avx512_bcq_shape *ret, const struct bcq_spec *w);

/* Bytes from the beginning of a packed matrix to a block's part of a stream of code, of the last one. */
AVX512_INLINE size_t avx512_bcq_code_at(const struct avx512_bcq_shape *s, int stream, int block) {
    return ((size_t)stream * (size_t)s->blocks + (size_t)block) * s->code;
}

AVX512_INLINE size_t avx512_bcq_rest_at(const struct avx512_bcq_shape *s, int block) {
    return avx512_bcq_code_at(s, s->streams, 0) + (size_t)block * s->rest;
}

/* FREE: where a unit's code of a piece is in each stream, from the block's. All pieces before one are whole. */
AVX512_INLINE size_t avx512_bcq_piece_at(const struct avx512_bcq_shape *s, int piece, int unit) {
    const int words = s->piece == 16 ? 1 : s->piece / 32, left = s->words - piece * words;
    const int own = s->piece == 16 || words < left ? words : left;
    return 64 * (size_t)(piece * AVX512_BCQ_UNITS * words + unit * own);
}

/* A block in a packed matrix. */
struct avx512_bcq_block {
    const uint8_t *code[BCQ_MAX_BITS]; /* (streams) */
    const uint8_t *rest;
};

AVX512_INLINE struct avx512_bcq_block avx512_bcq_block(const struct avx512_bcq_shape *s,
                                                       const void *packed, int block) {
    struct avx512_bcq_block ret = {.rest = (const uint8_t *)packed + avx512_bcq_rest_at(s, block)};
    for (int i = 0; i < s->streams; i++)
        ret.code[i] = (const uint8_t *)packed + avx512_bcq_code_at(s, i, block);
    return ret;
}

/* Whether bcq_tile.c multiplies n tokens: then there are no tables. */
bool avx512_bcq_takes_tile(const struct bcq_spec *w, int act_bits, int n);

enum avx512_bcq_form avx512_bcq_form(const struct bcq_spec *w);

/* What a token's 128 inputs look like to the kernels. Rounded activations (struct bcq_ops) have
 * entries of one byte, which are exact, and records of half the size. */
struct avx512_bcq_span {
    float scale;    /* of entries; NaN if an input is not finite */
    float sums[15]; /* of 128, 2 of 64, 4 of 32, 8 of 16 inputs: level of c sums begins at c - 1 */
    int32_t run_sums[4]; /* bytes, low of runs 0-3, high of 0-3, low of 4-7, high of 4-7 */
    int32_t unused[12];  /* fills a cache line */
    int8_t table[][64];  /* (runs, parts): low and high bytes, or the entries themselves */
};

/* A token's sums over runs as 254 * high + low, in units of scale. */
struct avx512_bcq_token {
    float scale;
    int32_t low, high; /* totals over all runs */
    int32_t unused;
};

/* For which kernels activations are packed: look-ups, the tile of AVX-512, that of AMX. */
enum avx512_bcq_inputs { AVX512_BCQ_TABLES, AVX512_BCQ_PAIRS, AVX512_BCQ_BYTES };

/* Packed activations: tokens, then spans in blocks of AVX512_BCQ_COLUMNS tokens (the last block
 * has what is left), (span, token) within a block; then for each span struct
 * avx512_bcq_many. The tiles have that, the other kernels have the tables. */
size_t avx512_bcq_act_bytes(int act_bits, int cols, int n);

/* kernels/rounding.h for 128 inputs: whole numbers to out, returns their scale. */
float avx512_bcq_round(float *out, const float *x, int act_bits);

void avx512_bcq_act_pack(enum avx512_bcq_inputs use, void *act, int act_bits,
                         const struct bcq_spec *w, const float *x, size_t ldx, int n, int part,
                         int n_parts);

size_t avx512_bcq_pack_bytes(const struct bcq_spec *w);
void avx512_bcq_pack(void *dst, const struct bcq_view *w, int b0, int b1);

/* One block of rows times one block of tokens. */
struct avx512_bcq_panel {
    const struct avx512_bcq_shape *shape;
    struct avx512_bcq_block block;
    const struct avx512_bcq_span *spans;   /* (spans, n_tokens) */
    const struct avx512_bcq_token *tokens; /* (n_tokens) */
    float *y;                              /* first row, first token */
    size_t ldy;
    int n_rows; /* to write, 1..64 */
};

typedef void avx512_bcq_panel_function(const struct avx512_bcq_panel *c);

/* n: tokens, 1..AVX512_BCQ_COLUMNS; parts: bytes of a table entry, 1 or 2. */
avx512_bcq_panel_function *avx512_bcq_compact(const struct avx512_bcq_shape *s, int n, int parts);
avx512_bcq_panel_function *avx512_bcq_free(const struct avx512_bcq_shape *s, int n, int parts);
avx512_bcq_panel_function *avx512_bcq_odd(int n, int parts);

/* Many tokens of the compact form, all blocks of them; see bcq_tile.c. */
struct avx512_bcq_tile {
    const struct avx512_bcq_shape *shape;
    const uint8_t *packed;
    const void *act;
    int act_bits, n;
    float *y; /* (n, ldy) */
    size_t ldy;
    int rows, b0, b1;
    int u0, u1; /* units of each block; all but for a few tokens on AMX */
};
typedef void avx512_bcq_tile_function(const struct avx512_bcq_tile *c);
avx512_bcq_tile_function avx512_bcq_mul_tile;

/* struct bcq_ops.mul by a tile, of activations packed for it. */
void avx512_bcq_mul_many(avx512_bcq_tile_function *tile, float *y, size_t ldy, const void *packed,
                         const struct bcq_spec *w, const void *act, int act_bits, int n, int b0,
                         int b1);

/* struct bcq_ops.mul, of activations packed for look-ups. */
void avx512_bcq_mul_tables(float *y, size_t ldy, const void *packed, const struct bcq_spec *w,
                           const void *act, int act_bits, int n, int b0, int b1);

AVX512_INLINE int avx512_bcq_parts(int act_bits) { return act_bits > 8 ? 2 : 1; }

AVX512_INLINE size_t avx512_bcq_span_bytes(const int parts) {
    return sizeof(struct avx512_bcq_span) + (size_t)(64 * AVX512_BCQ_RUNS * parts);
}

/* Record i after x. */
AVX512_INLINE const struct avx512_bcq_span *avx512_bcq_at(const struct avx512_bcq_span *x,
                                                          const int parts, size_t i) {
    const void *p = (const uint8_t *)x + i * avx512_bcq_span_bytes(parts);
    return p;
}

AVX512_INLINE size_t avx512_bcq_token_bytes(int n) {
    return ((size_t)n * sizeof(struct avx512_bcq_token) + 63) / 64 * 64;
}

/* Where token t's record of a span is in act, in bytes. */
AVX512_INLINE size_t avx512_bcq_record_at(int act_bits, int n_spans, int n, int t, int span) {
    const int in_block = t % AVX512_BCQ_COLUMNS, block = t - in_block;
    const int width = n - block < AVX512_BCQ_COLUMNS ? n - block : AVX512_BCQ_COLUMNS;
    const size_t i =
        (size_t)block * (size_t)n_spans + (size_t)span * (size_t)width + (size_t)in_block;
    return avx512_bcq_token_bytes(n) + i * avx512_bcq_span_bytes(avx512_bcq_parts(act_bits));
}

/* What the tiles for many tokens need of a span's inputs, side by side. */
struct avx512_bcq_many {
    void *whole; /* pairs: int16 (n, 128); bytes: uint8 (2, n16, 128), low bytes first */
    float *scales;
    int8_t (*sums[2])[64]; /* (n16) low, high bytes of the sums of the runs of a chunk of spans */
};

enum {
    AVX512_BCQ_CHUNK = 8, /* spans whose sums over runs make a row of 64 bytes */
    /* Bytes of a token in a chunk. */
    AVX512_BCQ_MANY = 128 + AVX512_BCQ_CHUNK * (2 * AVX512_BCQ_SPAN + 4)
};

/* Tokens in whole tiles of 16. */
AVX512_INLINE size_t avx512_bcq_n16(int n) { return ((size_t)n + 15) / 16 * 16; }

/* Of act; its end, where span is n_spans in whole chunks. Addresses, so that act may be NULL. */
AVX512_INLINE struct avx512_bcq_many avx512_bcq_many_at(const void *act, int act_bits, int n_spans,
                                                        int n, int span) {
    const size_t n16 = avx512_bcq_n16(n), chunk = (size_t)span / AVX512_BCQ_CHUNK;
    size_t records =
        (size_t)n_spans * (size_t)n * avx512_bcq_span_bytes(avx512_bcq_parts(act_bits));
    uintptr_t sums =
        (uintptr_t)act + avx512_bcq_token_bytes(n) + records + chunk * n16 * AVX512_BCQ_MANY;
    uintptr_t whole =
        sums + n16 * 128 + (size_t)(span % AVX512_BCQ_CHUNK) * n16 * (2 * AVX512_BCQ_SPAN + 4);
    return (struct avx512_bcq_many){
        .whole = (void *)whole,
        .scales = (float *)(whole + n16 * 2 * AVX512_BCQ_SPAN),
        .sums = {(int8_t(*)[64])sums, (int8_t(*)[64])(sums + n16 * 64)}};
}

AVX512_INLINE int avx512_min(int a, int b) { return a < b ? a : b; }

/* The first and last group that has inputs in a run. */
AVX512_INLINE void avx512_bcq_groups_of(const struct avx512_bcq_shape *s, int run, int *first,
                                        int *last) {
    *first = 16 * run / s->group;
    *last = (avx512_min(16 * run + 16, s->cols) - 1) / s->group;
}

AVX512_INLINE __m512i avx512_load(const void *p) { return _mm512_load_si512(p); }

/* FREE: parameter i of a unit's rows. */
AVX512_INLINE __m512 avx512_bcq_parameter(const uint8_t *params, int i, bool wide) {
    if (wide) return _mm512_load_ps((const float *)(const void *)(params + 64 * i));
    return _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)(const void *)(params + 32 * i)));
}

/* For what several instructions need: gcc 12 would have each load it again. */
AVX512_INLINE __m512i avx512_load_once(const void *p) {
    __m512i v = _mm512_load_si512(p);
    __asm__("" : "+v"(v));
    return v;
}

AVX512_INLINE void avx512_bcq_prefetch(const uint8_t *line) {
    _mm_prefetch((const char *)((uintptr_t)line + AVX512_BCQ_FAR), _MM_HINT_T1);
    _mm_prefetch((const char *)((uintptr_t)line + AVX512_BCQ_NEAR), _MM_HINT_T0);
}

/* Table selectors of a code vector's first (half = 0) or second run. */
AVX512_INLINE __m512i avx512_bcq_select(__m512i code, int half) {
    const __m512i nibble = _mm512_set1_epi32(0x0f0f0f0f), table = _mm512_set1_epi32(0x30201000);
    if (half) code = _mm512_srli_epi32(code, 4);
    return _mm512_ternarylogic_epi32(code, nibble, table, 0xea); /* (code & nibble) | table */
}

/* Writes a unit's sums of one token, as many as there are. */
AVX512_INLINE void avx512_bcq_store(const struct avx512_bcq_panel *c, int unit, int token,
                                    __m512 sums) {
    int left = c->n_rows - 16 * unit;
    if (left <= 0) return;
    __mmask16 rows = left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1);
    _mm512_mask_storeu_ps(c->y + (size_t)token * c->ldy + 16 * unit, rows, sums);
}

#endif
