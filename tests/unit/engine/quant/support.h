/* support.h - what the quantization suites share: golden cases and random problems.
 *
 * Owns      struct golden: the case's files and its H.
 * Borrows   nothing.
 * Thread    the test's.
 * Fails     by ending the test.
 * Cost      small.
 *
 * Golden cases lie under $GPTQT_FIXTURES/quant; the full set is in $GPTQT_SHARED/fixtures/quant. */
#ifndef TESTS_UNIT_ENGINE_QUANT_SUPPORT_H
#define TESTS_UNIT_ENGINE_QUANT_SUPPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/safetensors.h"

struct golden {
    char folder[512];
    struct safetensors inputs;
    int rows, cols;
    const float *w; /* (rows, cols) */
    double *h;      /* (cols, cols) a copy */
};

/* false when neither place has the case. */
bool support_golden_open(struct golden *ret, const char *name);
void support_golden_close(struct golden *g);

/* H of the case, fresh (it is damped in place by its users). */
void support_golden_reset(struct golden *g);

/* Tensor data, with the number of bytes checked; the test ends when it is missing. */
const void *support_tensor(const struct safetensors *st, const char *name, size_t n_bytes);

/* sum of (w - q) h (w - q)^T over the rows. */
double support_loss(const float *w, const double *q, const double *h, int rows, int cols);

/* A seeded generator: uniform in [0, 1), and nearly normal. */
double support_uniform(uint64_t *state);
double support_normal(uint64_t *state);

/* w: (rows, cols) heavy-tailed; h: (cols, cols) of correlated inputs with outlier channels. */
void support_problem(uint64_t seed, int rows, int cols, float *w, double *h);

#endif
