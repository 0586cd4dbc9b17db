/* guide.h - how much the end loss feels each output of each linear layer, on the calibration text.
 *
 * Owns      the sensitivities until guide_close().
 * Borrows   source and tokens during guide_open().
 * Thread    one; work inside is spread over n_threads.
 * Fails     -ENOMEM, errno of a spill file, -EBADMSG (a tensor), -EDOM (a gradient that is not
 *           finite).
 * Cost      one forward and one backward pass of the whole model over the text; a float per token
 *           and group of rows, and per weight for Fisher's diagonal.
 *
 * The loss is the cross-entropy of the text's own tokens. For GuidedQuant (arXiv 2505.07004,
 * section 3) the squared gradients at a layer's outputs are averaged over a few groups of
 * rows, which gives each token a weight in the group's second moments. For SqueezeLLM (arXiv
 * 2306.07629, section 4.1) the diagonal of the empirical Fisher matrix weighs every weight on
 * its own. Both are of the model before anything is coded. */
#ifndef ENGINE_QUANT_GUIDE_H
#define ENGINE_QUANT_GUIDE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/model.h"

struct error;
struct guide;
struct source;

enum { GUIDE_MAX_GROUPS = 16, GUIDE_LEAST_ROWS = 64 /* of a group */ };

struct guide_setup {
    struct source *source;
    const int32_t *tokens; /* (n_windows, ctx) */
    int n_windows, ctx;
    int n_groups; /* of a layer's rows; fewer where they would be small; 0: no token weights */
    bool fisher;  /* Fisher's diagonal is wanted */
    int n_threads;
    size_t memory; /* bytes of either array kept in memory at most */
};
int guide_open(struct guide **ret, const struct guide_setup *setup, struct error *err);
void guide_close(struct guide *g); /* NULL is allowed */

/* Groups are runs of rows: first to end - 1. */
int guide_groups(const struct guide *g, enum model_role role);
void guide_rows(const struct guide *g, enum model_role role, int group, int *ret_first,
                int *ret_end);

/* (n_windows * ctx) weights of the tokens, mean 1. */
const float *guide_tokens(const struct guide *g, int layer, enum model_role role, int group);

/* (rows, cols) of a matrix; never all 0 in a row. */
const float *guide_fisher(const struct guide *g, int layer, enum model_role role);

#endif
