/* check.h - what the parts of the kernel check share.
 *
 * Owns      nothing.
 * Borrows   the tables of operations.
 * Thread    one.
 * Fails     a failed expectation is counted and its first text kept; the check goes on.
 * Cost      the whole check takes seconds per instruction set.
 *
 * Binary-coded and dense products are compared with sums in fp64 over the stored values; the
 * other operations with kernels/ref, which tests/unit/kernels/backend.c compares with plain
 * formulas. Buffers are fenced (tests/support/fence.h). */
#ifndef TESTS_KERNELS_CHECK_H
#define TESTS_KERNELS_CHECK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/ops.h"
#include "tests/support/fence.h"

struct check {
    const struct ops *ops, *ref;
    int every; /* of binary-coded matrices one in so many is checked: emulators are slow */
    long n_expectations;
    int n_failures;
    char first[200];
};

/* Counts; keeps the text of the first failure. */
void check_expect(struct check *c, bool good, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Sizes around every vector length, and two of real models. */
enum { CHECK_N_SIZES = 18 };
extern const int check_sizes[CHECK_N_SIZES];

/* What x can be made of: the hard cases for integer tables and for sums. */
enum check_input {
    INPUT_NORMAL,
    INPUT_OUTLIERS, /* a few values of 20 sigma */
    INPUT_ZERO,
    INPUT_ONE_HOT, /* 1e4 at one place */
    INPUT_ONES,    /* all equal: sums reach their limits */
    INPUT_TINY,    /* 1e-20 */
    INPUT_NOT_FINITE,
    CHECK_N_INPUTS,
    /* For products alone; norms and gates promise nothing for some of them. */
    INPUT_MINUS = CHECK_N_INPUTS, /* all -1: the other limit of sums */
    INPUT_HUGE,                   /* +-1e30 */
    INPUT_GIANT,                  /* a 1e8 now and then among ordinary ones */
    INPUT_FAINT,                  /* 1e-31 */
    INPUT_DENORMAL,
    INPUT_HALF_STEPS, /* a 1e4 now and then, the rest just too small beside it for 16 bits to hold
                         one of them, a sum of 4 or a sum of 16 */
    INPUT_NAN,        /* a NaN now and then among ordinary ones */
    INPUT_INFINITE,   /* the same with +-Inf */
    CHECK_N_PRODUCT_INPUTS
};
bool check_finite(enum check_input input);
void check_fill(float *x, size_t n, enum check_input input, uint64_t seed);

struct fence check_floats(size_t n, enum check_input input, uint64_t seed);

/* The same bits, NaN included. */
bool check_same(const float *a, const float *b, size_t n);
/* The same bits, but any NaN for a NaN. */
bool check_alike(const float *a, const float *b, size_t n);

/* One table entry, or a few that belong together. */
void check_bcq(struct check *c);
void check_whole(struct check *c);
void check_bcq_act8(struct check *c);
void check_bcq_act4(struct check *c);
void check_dense(struct check *c);
void check_outliers(struct check *c);
void check_rotate(struct check *c);
void check_attention(struct check *c);
void check_kv_store(struct check *c);
void check_norm(struct check *c);
void check_rope(struct check *c);
void check_activation(struct check *c);
void check_add(struct check *c);
void check_widen(struct check *c);

/* Timings as CSV on stdout, of one level and of the matrices whose name contains a word; NULL means
 * all. 0 or 1 for the exit status. */
int check_bench(const char *level, const char *only);

#endif
