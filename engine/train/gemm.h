/* gemm.h - multiplies fp32 matrices on several threads, with the same bits on any number.
 *
 * Owns      nothing.
 * Borrows   its arguments during the call.
 * Thread    any, but not inside parallel_for().
 * Fails     never.
 * Cost      2 m n k operations.
 *
 * Matrices are row-major. The result is cut into tiles of fixed size, and k is never cut. */
#ifndef ENGINE_TRAIN_GEMM_H
#define ENGINE_TRAIN_GEMM_H

enum gemm_form {
    GEMM_NN, /* a (m, k), b (k, n): the gradient of a linear layer's input */
    GEMM_NT, /* a (m, k), b (n, k): a linear layer's output */
    GEMM_TN  /* a (k, m), b (k, n): the gradient of its weights */
};

/* c (m, n) = product + beta * c, all matrices dense. */
void gemm(enum gemm_form form, int m, int n, int k, const float *a, const float *b, float beta,
          float *c, int n_threads);

#endif
