/* gpu.h - what the parts of gpu_check share.
 *
 * Owns      the plugin's back end, the count of expectations.
 * Borrows   nothing.
 * Thread    one.
 * Fails     what cannot be made ends the check with "Bail out!".
 * Cost      see gpu.c. */
#ifndef TESTS_KERNELS_GPU_H
#define TESTS_KERNELS_GPU_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/backend.h"
#include "kernels/error.h"
#include "kernels/expand.h"
#include "kernels/float16.h"
#include "kernels/ops.h"
#include "tests/support/beside.h"
#include "tests/support/matrix.h"
#include "tests/support/random.h"

enum { MAX_N = 400, N_BLOCKS = 64 };

extern struct backend *be;
extern struct ops ref;

/* Of the emulation: graphs made and launched so far; NULL on a GPU. */
extern void (*graph_counts)(long *captures, long *replays);

/* Whether a case belongs to another eighth than the one asked for. */
bool is_left_out(int turn);
/* Whether small cases are asked for. */
bool is_small(void);
void expect(bool good, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* (n) of the normal distribution; to be freed. */
float *normal(size_t n, uint64_t seed);
/* x NULL: as made. */
struct buffer *buffer_of(const float *x, size_t n);
float *read_all(const struct buffer *b, size_t n);
struct weight *weight_of(enum weight_use use, const struct weight_view *view);
/* ||a - b|| / ||b||; NaN is infinity. */
double distance(const float *a, const float *b, size_t n);

/* n tokens of two sequences, the first of positions from..., with blocks out of order. */
struct some_batch {
    struct batch batch;
    int32_t tokens[MAX_N], positions[MAX_N], seqs[MAX_N], blocks[2 * N_BLOCKS];
};
void batch_of(struct some_batch *b, int n, int from);

/* Products. */
void check_dense(void);
void check_forms(void);
void check_whole(void);
void check_compact(void);
void check_shapes(void);
void check_free(void);
void check_room(void);
void check_sets(void);
void check_sections(void);
void check_outliers(void);
void check_rotations(void);
void check_not_finite(void);
/* Whole steps. */
void check_steps(void);
void check_graphs(void);
void check_attention(void);
/* The rest. */
void check_norm(void);
void check_elements(void);
void check_embed(void);
void check_upload(void);
void check_rope(void);
void check_best(void);
void check_top(void);

#endif
