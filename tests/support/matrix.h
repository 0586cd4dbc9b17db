/* matrix.h - makes random matrices for tests, dense and binary-coded.
 *
 * Owns      nothing; blocks are the caller's to free().
 * Borrows   arguments during the call.
 * Thread    any.
 * Fails     with NULL when memory is short.
 * Cost      O(size of the matrix).
 *
 * Equal seeds give equal matrices. Every value that a format can hold can occur. */
#ifndef TESTS_SUPPORT_MATRIX_H
#define TESTS_SUPPORT_MATRIX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/weights.h"

/* Uniform in [-1, 1). */
float matrix_uniform(uint64_t *state);
/* About normal, sigma 1. */
float matrix_normal(uint64_t *state);

/* Every byte of planes, q, p, shape indices random; shapes with a sum of at most
 * BCQ_MAX_SHAPE_SUM; scales so that weights are of the order of 0.1. */
void *matrix_bcq(struct bcq_view *ret, const struct bcq_spec *spec, uint64_t seed);

/* Every shape, q and p at the end of its range that makes weights largest; every plane +1, or,
 * minus, -1. */
void *matrix_bcq_extreme(struct bcq_view *ret, const struct bcq_spec *spec, bool minus);

/* (rows, cols) of type, normal with sigma 0.1. */
void *matrix_dense(struct weight_view *ret, enum dtype type, int rows, int cols, uint64_t seed);

/* out: (cols) fp32 of one row of either kind. */
void matrix_row(const struct weight_view *w, int row, float *out);

#endif
