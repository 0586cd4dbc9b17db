/* linalg.h - does the dense linear algebra of quantization, over BLAS and LAPACK.
 *
 * Owns      nothing.
 * Borrows   its arguments during the call.
 * Thread    any; linalg_init() once, before the others.
 * Fails     -ENOMEM; -EDOM where a matrix is not positive definite.
 * Cost      gram n_rows * n^2 / 2 multiply-adds in fp32, factor 2/3 n^3 in fp64.
 *
 * Matrices are row-major. The library runs on one thread; parallel work is cut here into tiles of
 * fixed size, so that a machine gives the same bits whatever the number of threads. */
#ifndef ENGINE_QUANT_LINALG_H
#define ENGINE_QUANT_LINALG_H

#include <stdbool.h>
#include <stddef.h>

struct error;

/* Keeps the library from starting threads of its own under ours. */
void linalg_init(void);

/* OpenBLAS older than a processor takes it for a Prescott and uses SSE: a fifth of the speed (0.3.21
 * on Emerald Rapids). The kernels it should have been told of in OPENBLAS_CORETYPE, which it reads
 * before main(); NULL where its choice is good. */
const char *linalg_better_core(void);

/* h: (n, n), upper triangle += x^T x, x: (n_rows, n). Products are summed in fp32 over at most
 * LINALG_GRAM_ROWS rows, beyond that in fp64. */
enum { LINALG_GRAM_ROWS = 512 };
int linalg_gram_add(double *h, const float *x, size_t n_rows, int n, int n_threads,
                    struct error *err);

/* c: (m, n) += y^T x, y: (n_rows, m), x: (n_rows, n), summed likewise. */
int linalg_cross_add(double *c, const float *y, int m, const float *x, int n, size_t n_rows,
                     int n_threads, struct error *err);

/* Multiplies the upper triangle by factor and mirrors it into the lower one. */
void linalg_symmetrize(double *h, int n, double factor);

/* u: (n, n) upper triangular, lower part 0, with inverse(h) = u^T u. h must be symmetric, and is
 * used up: with 11008 inputs a copy is a gigabyte. u may not overlap it, and is scratch on failure. */
int linalg_inverse_factor(double *u, double *h, int n, int n_threads, struct error *err);

/* a: (m, n) becomes a * inverse(h); h: (n, n) symmetric. a is scratch on failure. */
int linalg_divide(double *a, int m, const double *h, int n, int n_threads, struct error *err);

/* c (m, n) = alpha * a (m, k) * b (k, n) + beta * c; ld is the distance between rows. */
struct linalg_shape {
    int m, n, k;
    int lda, ldb, ldc;
};
void linalg_gemm_f32(float *c, const float *a, const float *b, const struct linalg_shape *shape,
                     float alpha, float beta);
void linalg_gemm_f64(double *c, const double *a, const double *b, const struct linalg_shape *shape,
                     double alpha, double beta);

/* Solves a x = b for a symmetric positive definite a (n, n), n up to LINALG_SMALL; a is
 * destroyed, b becomes x. False when a is singular to working precision: b is then scratch. */
enum { LINALG_SMALL = 8 };
bool linalg_solve_small(double *a, double *b, int n);

/* The same of any size, by LAPACK. */
bool linalg_solve(double *a, double *b, int n);

#endif
