/* grid.h - lays uniform integer grids over weights.
 *
 * Owns      nothing.
 * Borrows   its arguments during the call.
 * Thread    any.
 * Fails     never; all-zero weights get the grid -1..1 so that 0 is a level.
 * Cost      min-max O(n), min-mse O(40 n).
 *
 * A grid of m bits has the levels scale * (c - zero), c in 0..2^m-1. It always covers 0. */
#ifndef ENGINE_QUANT_GRID_H
#define ENGINE_QUANT_GRID_H

#include <stddef.h>
#include <stdint.h>

struct grid {
    double scale, zero;
    int bits;
};

/* w: n values. The zero point is an integer. */
struct grid grid_minmax(const double *w, size_t n, int bits);

/* The range, shrunk by the factor 1, 0.98, .. 0.22 with the least sum of h * error^2;
 * h: (n) or NULL for all 1. */
struct grid grid_min_mse(const double *w, const double *h, size_t n, int bits);

/* The integer nearest to w (ties to even), and the weight it stands for. */
unsigned grid_code(const struct grid *grid, double w);
double grid_value(const struct grid *grid, unsigned code);

/* The same grid with its step and its middle rounded to what fp16 can hold: alpha_1 = step / 2 and
 * beta = middle of a binary-coded group. */
void grid_round_f16(struct grid *grid);

/* Middle of the levels. */
double grid_middle(const struct grid *grid);

#endif
