/* block_rig.h - a block of a fixture's model, as the methods that look at whole blocks meet it.
 *
 * Owns      everything that it has opened, until block_rig_close().
 * Borrows   the options until then.
 * Thread    the test's.
 * Fails     by ending the test.
 * Cost      a forward pass over a few windows. */
#ifndef TESTS_UNIT_ENGINE_QUANT_BLOCK_RIG_H
#define TESTS_UNIT_ENGINE_QUANT_BLOCK_RIG_H

#include "engine/quant/blockwise_state.h"
#include "tests/unit/engine/train/reference.h"

enum { BLOCK_RIG_WINDOWS = 2, BLOCK_RIG_CTX = 6, BLOCK_RIG_TOKENS = 12 };

struct block_rig {
    struct source *src;
    struct backend *backend;
    struct model *model;
    struct calibrate *calibrate;
    struct layer_options layer;
    struct blockwise_options o;
    int32_t tokens[BLOCK_RIG_TOKENS];
    struct blockwise *b; /* begun at the layer, with its moments collected */
};

/* name: of a folder of fixtures/models. r->layer and r->o were set before. */
void block_rig_open(struct block_rig *r, const char *name, int layer);
void block_rig_close(struct block_rig *r);

/* The block's matrices as a search and the column loop code them. */
void block_rig_code(struct block_rig *r, struct layer_result coded[ROLE_COUNT]);

/* All windows at once. */
struct blockwise_windows block_rig_windows(struct block_rig *r);

/* fp64 loops on the parameters that b->now has at this time; to be freed by reference_free(). */
struct reference *block_rig_reference(struct block_rig *r);

/* Its output for the windows, (BLOCK_RIG_TOKENS, hidden). */
void block_rig_forward(struct block_rig *r, const struct reference *ref, double *y);

#endif
