/* activation.h - the non-linear parts between linear layers, and their derivatives.
 *
 * Owns      nothing.
 * Borrows   its arguments during the call.
 * Thread    any, but not inside parallel_for().
 * Fails     never.
 * Cost      one exponential an element at most. */
#ifndef ENGINE_TRAIN_ACTIVATION_H
#define ENGINE_TRAIN_ACTIVATION_H

#include <stddef.h>

#include "kernels/backend.h"

/* y = silu(gate) * up. Outputs may be inputs, at the price of narrow loops. */
void activation_gate(const float *gate, const float *up, float *y, size_t n, int n_threads);
/* dgate, dup from dy. */
void activation_gate_backward(const float *gate, const float *up, const float *dy, float *dgate,
                              float *dup, size_t n, int n_threads);

/* y = act(x). */
void activation_plain(enum activation act, const float *x, float *y, size_t n, int n_threads);
/* dx = act'(x) dy. */
void activation_plain_backward(enum activation act, const float *x, const float *dy, float *dx,
                               size_t n, int n_threads);

#endif
