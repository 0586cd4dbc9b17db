/* blockwise_state.h - what the parts of blockwise.h share.
 *
 * Owns      see struct blockwise.
 * Borrows   see blockwise.h.
 * Thread    one.
 * Fails     as blockwise.h.
 * Cost      blockwise_each() a forward pass over the windows it is asked for. */
#ifndef ENGINE_QUANT_BLOCKWISE_STATE_H
#define ENGINE_QUANT_BLOCKWISE_STATE_H

#include "engine/quant/blockwise.h"
#include "engine/quant/guide.h"
#include "engine/quant/spill.h"
#include "engine/train/block.h"
#include "engine/train/params.h"

struct model_config;

enum { BLOCKWISE_NAME_SIZE = 192 };

struct blockwise {
    const struct blockwise_options *o;
    const struct layer_options *layer_options;
    const int *bits; /* see struct blockwise_setup */
    const struct model_config *config;
    struct model *model;
    struct calibrate *calibrate;
    struct params *params;
    struct block *block;
    struct block_cache *cache;
    int n_windows, ctx, batch, n_threads; /* batch: windows side by side */
    bool is_static;                       /* the calibration states are the original ones */

    struct guide *guide; /* NULL with plain moments */

    struct spill before, after; /* (n_tokens, hidden) the original block's input and output */
    float *y;                   /* twice (batch * ctx, hidden): scratch */

    int layer;                    /* being made */
    struct params_block original; /* as the source has it */
    struct params_block now;      /* after what was changed; dense values of codes once coded */
    bool changed[VECTOR_COUNT];   /* vectors of `now` that differ from the source's */
    struct layer_result clipped[ROLE_COUNT]; /* learned group parameters */
    float *final_norm[2];                    /* (hidden) weight and bias, when changed */
};

/* Which windows a pass is over. */
enum blockwise_part { PART_FIT, PART_HELD, PART_ALL };

/* Some windows at the block: what enters it in the coded model and in the original. */
struct blockwise_windows {
    int first, n;
    const float *coded, *original; /* (n * ctx, hidden) */
    const float *wanted;           /* (n * ctx, hidden) the original block's output */
};

/* Calls each(arg) for runs of windows until one fails. With few windows all are held out as well
 * as fitted to. */
typedef int blockwise_visit(struct blockwise *b, const struct blockwise_windows *w, void *arg);
int blockwise_each(struct blockwise *b, enum blockwise_part part, blockwise_visit *visit,
                   void *arg);

/* Squared distance to the wanted output on the held-out windows, relative to its energy. */
double blockwise_error(struct blockwise *b, const struct params_block *weights);

/* A vector of a block's parameters; NULL where it has none. */
float *blockwise_vector(struct params_block *block, enum model_vector v);

/* A copy of a matrix of `now`; nothing where there is none. */
int blockwise_copy(const struct blockwise *b, enum model_role role, float **ret, struct error *err);

/* Marks a vector of `now` and lets the model run on it. */
int blockwise_change(struct blockwise *b, enum model_vector v, struct error *err);

/* -- The methods ----------------------------------------------------------------------------- */

/* norm_tweak.c: the norm before attention fitted to the block's inputs; after coding the one
 * before the feed-forward part, and after the last block the final one. */
int norm_tweak_input(struct blockwise *b, struct error *err);
int norm_tweak_inside(struct blockwise *b, struct error *err);
int norm_tweak_final(struct blockwise *b, struct error *err);

/* guided.c: fills coded[] for the matrices that read the input. */
int guided_input(struct blockwise *b, enum calibrate_input input,
                 struct layer_result coded[ROLE_COUNT], struct error *err);

/* What it codes on: moments of the input for every group of rows of every matrix that reads it. */
struct guided_moments {
    enum calibrate_input input;
    int n; /* columns */
    struct {
        enum model_role role;
        int group;
        double *h; /* (n, n) mean over the tokens of weight x x^T */
    } each[3 * GUIDE_MAX_GROUPS];
    int n_each;
};
int guided_moments_new(struct guided_moments *ret, struct blockwise *b, enum calibrate_input input,
                       struct error *err);
void guided_moments_free(struct guided_moments *m); /* also after a failure */

/* clip.c: ranges learned before coding, from the search's own. */
int clip_block(struct blockwise *b, struct error *err);

/* transform.c */
int transform_block(struct blockwise *b, struct error *err);

/* What a candidate s (fold_width()) of an input is judged by: the error of the coded output, and
 * in share (fold_width()) the part of it that each scale's columns make. */
int transform_error(struct blockwise *b, enum calibrate_input input, const float *s, double *ret,
                    double *share, struct error *err);

#endif
