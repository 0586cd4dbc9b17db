/* adam.h - Adam over arrays of variables that each move in a unit of their own.
 *
 * Owns      the arrays until adam_free().
 * Borrows   nothing.
 * Thread    any, but not inside parallel_for(); one at a time for a set of variables.
 * Fails     adam_new() with -ENOMEM.
 * Cost      five floats a variable; a step some ten operations each.
 *
 * A variable moves by rate * unit in a step at most, about: Adam sees x / unit (Kingma and Ba 2015,
 * 1412.6980, algorithm 1, with the rate times the unit). A variable of unit 0 stays. */
#ifndef ENGINE_TRAIN_ADAM_H
#define ENGINE_TRAIN_ADAM_H

#include <stddef.h>

struct error;

struct adam {
    size_t n;
    float *x, *m, *v; /* (n) variables and moments, one array after the other: (3, n) at x */
    float *g;         /* (n) gradient, added up by whoever has it; a step clears it */
    float *unit;      /* (n) */
};

int adam_new(struct adam *ret, size_t n, struct error *err);
void adam_free(struct adam *a); /* zeroed is allowed */

struct adam_step {
    float rate;
    int step; /* 1, 2, ... since the moments were 0 */
    int n_threads;
};
void adam_move(struct adam *a, const struct adam_step *step);

/* Forgets the moments. */
void adam_reset(struct adam *a);

#endif
