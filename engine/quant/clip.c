/* Learned weight clipping (OmniQuant, arXiv 2308.13137, section 3.2) on binary codes. OmniQuant
 * trains two factors a group that shrink its range; on a codebook of a fixed shape a range is a
 * scale and a bias, so these are what is trained, from the range search's result on, inside the
 * stored form. Weights stay and codes are their nearest throughout; the column loop comes after
 * and runs on the ranges learned. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/quant/block_tune.h"
#include "engine/quant/blockwise_state.h"
#include "kernels/error.h"

/* The search alone: what a code is matters here only as the nearest to its weight. The moments are
 * copied, since a factor damps them. */
static int search_input(struct blockwise *b, enum calibrate_input input, struct error *err) {
    struct layer_options o = *b->layer_options;
    struct layer_input *in = NULL;
    int n;
    const double *h = calibrate_moments(b->calibrate, input, &n);
    size_t bytes = (size_t)n * (size_t)n * sizeof *h;
    double *copy = malloc(bytes);
    if (!copy) return error_set(err, -ENOMEM, "clipping: out of memory");
    memcpy(copy, h, bytes);
    o.refine = o.explore = 0;
    o.codes.search = CODES_LOOP;
    int r = layer_input_new(&in, copy, n, &o, err);
    for (int role = 0; r == 0 && role < ROLE_COUNT; role++) {
        int rows, cols;
        if (!b->now.linear[role] || calibrate_input_of((enum model_role)role) != input) continue;
        block_shape(b->block, (enum model_role)role, &rows, &cols);
        o.row_weights = blockwise_row_weights(b, (enum model_role)role);
        r = layer_quantize(&b->clipped[role], in, b->now.linear[role], rows, &o, err);
    }
    layer_input_free(in);
    free(copy);
    return r;
}

int clip_block(struct blockwise *b, struct error *err) {
    const struct block_tune tune = {.params = true, .recode = true, .epochs = b->o->clip_epochs};
    struct params_block dense = b->now, weights = {0};
    int r = 0;
    for (int input = 0; r == 0 && input < INPUT_COUNT; input++)
        r = search_input(b, (enum calibrate_input)input, err);
    /* Training writes what codes stand for into `now`, whose own weights are still to be coded. */
    for (int role = 0; r == 0 && role < ROLE_COUNT; role++) {
        if (!dense.linear[role]) continue;
        r = blockwise_copy(b, (enum model_role)role, &weights.linear[role], err);
        b->now.linear[role] = r == 0 ? weights.linear[role] : dense.linear[role];
    }
    if (r == 0) r = block_tune(b, &tune, b->clipped, &dense, err);
    memcpy(b->now.linear, dense.linear, sizeof dense.linear);
    params_block_free(&weights);
    return r < 0 ? error_prefix(err, r, "block %d", b->layer) : 0;
}
