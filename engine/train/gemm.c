#include "engine/train/gemm.h"

#include <cblas.h>
#include <stdbool.h>
#include <stddef.h>

#include "engine/quant/parallel.h"

/* Large enough that packing a tile's operands is a small share, small enough to share out the
 * narrow products of small models. */
enum { TILE_ROWS = 256, TILE_COLS = 256 };

struct product {
    enum gemm_form form;
    int m, n, k, n_wide; /* tiles in a row */
    const float *a, *b;
    float beta, *c;
};

static int part(int n, int tile, int index) {
    return n - index * tile < tile ? n - index * tile : tile;
}

static void multiply_tile(void *arg, size_t index) {
    const struct product *p = arg;
    int row = (int)(index / (size_t)p->n_wide), col = (int)(index % (size_t)p->n_wide);
    size_t r = (size_t)row * TILE_ROWS, c = (size_t)col * TILE_COLS;
    bool across = p->form == GEMM_TN, flipped = p->form == GEMM_NT;
    const float *a = p->a + (across ? r : r * (size_t)p->k);
    const float *b = p->b + (flipped ? c * (size_t)p->k : c);
    cblas_sgemm(CblasRowMajor, across ? CblasTrans : CblasNoTrans,
                flipped ? CblasTrans : CblasNoTrans, part(p->m, TILE_ROWS, row),
                part(p->n, TILE_COLS, col), p->k, 1.0f, a, across ? p->m : p->k, b,
                flipped ? p->k : p->n, p->beta, p->c + r * (size_t)p->n + c, p->n);
}

void gemm(enum gemm_form form, int m, int n, int k, const float *a, const float *b, float beta,
          float *c, int n_threads) {
    size_t high = ((size_t)m + TILE_ROWS - 1) / TILE_ROWS;
    size_t wide = ((size_t)n + TILE_COLS - 1) / TILE_COLS;
    struct product p = {.form = form,
                        .m = m,
                        .n = n,
                        .k = k,
                        .n_wide = (int)wide,
                        .a = a,
                        .b = b,
                        .beta = beta,
                        .c = c};
    parallel_for(n_threads, high * wide, multiply_tile, &p);
}
