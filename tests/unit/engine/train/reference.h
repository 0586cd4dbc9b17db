/* reference.h - a block's forward pass in fp64, one obvious loop per sum, for tests.
 *
 * Owns      what reference_new() gives, until reference_free().
 * Borrows   its arguments during the call.
 * Thread    one.
 * Fails     fails the running test.
 * Cost      slow.
 *
 * Written from the definitions (README.md of engine/train), not from the code under test. */
#ifndef TESTS_UNIT_ENGINE_TRAIN_REFERENCE_H
#define TESTS_UNIT_ENGINE_TRAIN_REFERENCE_H

#include "engine/config.h"
#include "engine/train/block.h"

/* Every parameter of a block in one array, and where each tensor begins; -1: there is none. */
struct reference {
    struct model_config config;
    int n_seqs, ctx;
    int rows[ROLE_COUNT], cols[ROLE_COUNT];
    int linear[ROLE_COUNT], bias[ROLE_COUNT], norm_w[BLOCK_NORMS], norm_b[BLOCK_NORMS];
    int n_params, n_x; /* n_x: of the state */
    double *params;    /* (n_params) */
    float *narrow;     /* (n_params) the same, which they equal: values are exact in fp32 */
};

struct reference *reference_new(const struct model_config *config, int n_seqs, int ctx,
                                unsigned seed);
void reference_free(struct reference *ref);

/* y: (n_x) from x: (n_x) and ref->params. */
void reference_forward(const struct reference *ref, const double *x, double *y);

/* The same parameters as block_forward() takes them, or a gradient's buffers laid out alike. */
struct block_weights reference_weights(const struct reference *ref);
struct block_grads reference_grads(const struct reference *ref, float *grads);

/* Small models of every family. */
enum { REFERENCE_FAMILIES = 7 };
struct model_config reference_family(int i, const char **ret_name);

#endif
