#include "kernels/avx512/avx512.h"

#include <immintrin.h>
#include <stddef.h>
#include <string.h>

#include "kernels/avx512/math.h"
#include "kernels/ops.h"

/* Packed form: panels of 32 rows, k by k, so that one broadcast of x[k] meets two vectors of
 * weights in their stored type. Every output is one chain of multiply-adds over k = 0, 1, 2...,
 * whichever way it is computed: a token's result is the same bits alone and in a batch.
 *
 * One token: two panels side by side make the four chains that hide the latency of an addition.
 * More: 12 tokens x 32 rows of sums in registers. The tokens' x is copied for 256 inputs at a
 * time, because rows of x at a stride of 4 KiB would all fall into the same few sets of the
 * first cache; a strip of panels then shares the copy. */
enum {
    LANES = 16,
    ROWS = 2 * LANES,
    TOKENS = 12,
    SPAN = 256,
    LDX = SPAN + 16,
    STRIP = 8,
    AHEAD = 2048
};

#define INLINE static inline __attribute__((always_inline))

static size_t panel_bytes(enum dtype type, int cols) {
    return (size_t)cols * ROWS * dtype_size(type);
}

static size_t pack_bytes(enum dtype type, int rows, int cols) {
    return ((size_t)rows + ROWS - 1) / ROWS * panel_bytes(type, cols);
}

/* Transposes row by row; size is a constant in each use. */
INLINE void pack_panel(char *dst, const char *src, int n_rows, size_t cols, size_t size) {
    for (int r = 0; r < n_rows; r++)
        for (size_t k = 0; k < cols; k++)
            memcpy(dst + (k * ROWS + (size_t)r) * size, src + ((size_t)r * cols + k) * size, size);
}

static void pack(void *dst, enum dtype type, const void *src, int rows, int cols, int b0, int b1) {
    for (int b = b0; b < b1; b++) {
        int r0 = b * ROWS, n_rows = rows - r0 < ROWS ? rows - r0 : ROWS;
        char *to = (char *)dst + (size_t)b * panel_bytes(type, cols);
        const char *from = (const char *)src + (size_t)r0 * (size_t)cols * dtype_size(type);
        if (type == DTYPE_F32)
            pack_panel(to, from, n_rows, (size_t)cols, 4);
        else
            pack_panel(to, from, n_rows, (size_t)cols, 2);
    }
}

/* Sixteen weights from index i of the packed form. */
INLINE __m512 load(enum dtype type, const void *w, size_t i) {
    if (type == DTYPE_F32) return _mm512_loadu_ps((const float *)w + i);
    __m256i v = _mm256_loadu_si256((const __m256i *)(const void *)((const uint16_t *)w + i));
    if (type == DTYPE_F16) return _mm512_cvtph_ps(v);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
}

INLINE void prefetch(const char *p, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 64) _mm_prefetch(p + i + AHEAD, _MM_HINT_T0);
}

/* Writes lanes of rows r.. below n_rows. */
INLINE void store(float *y, int r, int n_rows, __m512 sum) {
    if (r < n_rows) _mm512_mask_storeu_ps(y + r, avx512_mask((size_t)(n_rows - r)), sum);
}

/* y: n_rows rows of the panels w and next for one token. */
INLINE void vector_panels(float *y, enum dtype type, const char *w, const char *next, int n_rows,
                          const float *x, int cols) {
    size_t bytes = ROWS * dtype_size(type);
    __m512 a0 = _mm512_setzero_ps(), a1 = a0, b0 = a0, b1 = a0;
    for (size_t k = 0; k < (size_t)cols; k++, w += bytes, next += bytes) {
        __m512 v = _mm512_set1_ps(x[k]);
        prefetch(w, bytes);
        prefetch(next, bytes);
        a0 = _mm512_fmadd_ps(load(type, w, 0), v, a0);
        a1 = _mm512_fmadd_ps(load(type, w, LANES), v, a1);
        b0 = _mm512_fmadd_ps(load(type, next, 0), v, b0);
        b1 = _mm512_fmadd_ps(load(type, next, LANES), v, b1);
    }
    store(y, 0, n_rows, a0);
    store(y, LANES, n_rows, a1);
    store(y, 2 * LANES, n_rows, b0);
    store(y, 3 * LANES, n_rows, b1);
}

INLINE void vector(float *y, enum dtype type, const char *packed, int rows, int cols,
                   const float *x, int b0, int b1) {
    size_t panel = panel_bytes(type, cols);
    for (int b = b0; b < b1; b += 2) {
        const char *w = packed + (size_t)b * panel;
        int last = b + 2 < b1 ? b + 2 : b1, end = last * ROWS < rows ? last * ROWS : rows;
        /* A panel without a neighbour is computed twice and written once. */
        vector_panels(y + b * ROWS, type, w, b + 1 < b1 ? w + panel : w, end - b * ROWS, x, cols);
    }
}

/* The tile's sums are named variables: compilers keep arrays of them in memory. */
#define EACH_2(f)  f(0) f(1)
#define EACH_4(f)  EACH_2(f) f(2) f(3)
#define EACH_8(f)  EACH_4(f) f(4) f(5) f(6) f(7)
#define EACH_12(f) EACH_8(f) f(8) f(9) f(10) f(11)

#define SUMS(t)                                                                                    \
    __m512 a##t = _mm512_load_ps(sum + t * ROWS), b##t = _mm512_load_ps(sum + t * ROWS + LANES);
#define STEP(t)                                                                                    \
    v = _mm512_set1_ps(x[t * LDX + k]);                                                            \
    a##t = _mm512_fmadd_ps(w0, v, a##t);                                                           \
    b##t = _mm512_fmadd_ps(w1, v, b##t);
#define KEEP(t)                                                                                    \
    _mm512_store_ps(sum + t * ROWS, a##t);                                                         \
    _mm512_store_ps(sum + t * ROWS + LANES, b##t);

/* sum (n, ROWS) += W x over n_k inputs; w begins at the first of them. */
#define DEFINE_TILE(n)                                                                             \
    INLINE void tile_##n(float *sum, enum dtype type, const char *w, const float *x, int n_k) {    \
        size_t bytes = ROWS * dtype_size(type);                                                    \
        __m512 v;                                                                                  \
        EACH_##n(SUMS);                                                                            \
        for (int k = 0; k < n_k; k++, w += bytes) {                                                \
            __m512 w0 = load(type, w, 0), w1 = load(type, w, LANES);                               \
            prefetch(w, bytes);                                                                    \
            EACH_##n(STEP);                                                                        \
        }                                                                                          \
        EACH_##n(KEEP);                                                                            \
    }
DEFINE_TILE(2)
DEFINE_TILE(4)
DEFINE_TILE(8)
DEFINE_TILE(12)

INLINE void tile(float *sum, enum dtype type, const char *w, const float *x, int n_k, int n) {
    if (n == 2) tile_2(sum, type, w, x, n_k);
    if (n == 4) tile_4(sum, type, w, x, n_k);
    if (n == 8) tile_8(sum, type, w, x, n_k);
    if (n == 12) tile_12(sum, type, w, x, n_k);
}

/* Sums of panels [b0, b1) for up to TOKENS tokens. n_tile >= n tokens are computed, the excess on
 * zeros. */
INLINE void strip(float *y, size_t ldy, enum dtype type, const char *packed, int rows, int cols,
                  const float *x, size_t ldx, int n, int n_tile, int b0, int b1) {
    _Alignas(64) float sums[STRIP][TOKENS * ROWS], copy[TOKENS * LDX];
    memset(sums, 0, (size_t)(b1 - b0) * sizeof *sums);
    memset(copy, 0, (size_t)n_tile * LDX * sizeof *copy);
    for (int k = 0; k < cols; k += SPAN) {
        int n_k = cols - k < SPAN ? cols - k : SPAN;
        for (int t = 0; t < n; t++)
            memcpy(copy + t * LDX, x + (size_t)t * ldx + k, (size_t)n_k * sizeof *copy);
        for (int b = b0; b < b1; b++)
            tile(sums[b - b0], type,
                 packed + (size_t)b * panel_bytes(type, cols) + (size_t)k * ROWS * dtype_size(type),
                 copy, n_k, n_tile);
    }
    for (int b = b0; b < b1; b++) {
        int r0 = b * ROWS, n_rows = rows - r0 < ROWS ? rows - r0 : ROWS;
        for (int t = 0; t < n; t++)
            memcpy(y + (size_t)t * ldy + r0, sums[b - b0] + t * ROWS, (size_t)n_rows * sizeof *y);
    }
}

INLINE void matrix(float *y, size_t ldy, enum dtype type, const char *packed, int rows, int cols,
                   const float *x, size_t ldx, int n, int b0, int b1) {
    /* Few tokens: each panel is read once, from end to end. */
    int step = n > TOKENS ? STRIP : 1;
    for (int b = b0; b < b1; b += step) {
        int end = b + step < b1 ? b + step : b1;
        for (int t = 0; t < n; t += TOKENS) {
            int m = n - t < TOKENS ? n - t : TOKENS;
            float *to = y + (size_t)t * ldy;
            const float *from = x + (size_t)t * ldx;
            if (m <= 2)
                strip(to, ldy, type, packed, rows, cols, from, ldx, m, 2, b, end);
            else if (m <= 4)
                strip(to, ldy, type, packed, rows, cols, from, ldx, m, 4, b, end);
            else if (m <= 8)
                strip(to, ldy, type, packed, rows, cols, from, ldx, m, 8, b, end);
            else
                strip(to, ldy, type, packed, rows, cols, from, ldx, m, 12, b, end);
        }
    }
}

INLINE void mul_type(float *y, size_t ldy, const void *packed, enum dtype type, int rows, int cols,
                     const float *x, size_t ldx, int n, int b0, int b1) {
    if (n == 1)
        vector(y, type, packed, rows, cols, x, b0, b1);
    else
        matrix(y, ldy, type, packed, rows, cols, x, ldx, n, b0, b1);
}

static void mul(float *y, size_t ldy, const void *packed, enum dtype type, int rows, int cols,
                const float *x, size_t ldx, int n, int b0, int b1) {
    if (type == DTYPE_F32)
        mul_type(y, ldy, packed, DTYPE_F32, rows, cols, x, ldx, n, b0, b1);
    else if (type == DTYPE_F16)
        mul_type(y, ldy, packed, DTYPE_F16, rows, cols, x, ldx, n, b0, b1);
    else
        mul_type(y, ldy, packed, DTYPE_BF16, rows, cols, x, ldx, n, b0, b1);
}

void avx512_dense_init(struct dense_ops *dense) {
    *dense =
        (struct dense_ops){.row_block = ROWS, .pack_bytes = pack_bytes, .pack = pack, .mul = mul};
}
