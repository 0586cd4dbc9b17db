/* Matrices of few inputs, as fp32 weights. The rounding of table entries averages out over many
 * inputs; in a short row, one entry can be a large part of a small result. */
#include "kernels/avx2/bcq.h"

void avx2_bcq_mul_few(const struct avx2_bcq_mul *c) {
    struct avx2_bcq_shape s;
    avx2_bcq_shape(&s, c->w);
    const int cols = c->w->cols;
    const float *inputs = c->act;
    for (int b = c->b0; b < c->b1; b++) {
        const float *block = (const float *)(const void *)(c->packed + (size_t)b * s.block_bytes);
        int row0 = b * AVX2_BCQ_ROWS;
        for (int token = 0; token < c->n; token++) {
            const float *x = inputs + (size_t)token * (size_t)cols, *w = block;
            _Alignas(32) float y[AVX2_BCQ_ROWS];
            __m256 t[4];
            for (int k = 0; k < 4; k++) t[k] = _mm256_setzero_ps();
            for (int i = 0; i < cols; i++, w += AVX2_BCQ_ROWS) {
                const __m256 in = _mm256_broadcast_ss(x + i);
                for (int k = 0; k < 4; k++)
                    t[k] = _mm256_fmadd_ps(in, _mm256_load_ps(w + 8 * k), t[k]);
            }
            for (int k = 0; k < 4; k++) _mm256_store_ps(y + 8 * k, t[k]);
            avx2_bcq_store(c->y + (size_t)token * c->ldy + row0, y, c->w->rows - row0);
        }
    }
}
