/* Coding with guided moments (GuidedQuant, arXiv 2505.07004, section 3, algorithm 1): a group of
 * rows has moments of its own, in which every token counts as much as the end loss feels the
 * group's outputs there. The column loop runs on them unchanged. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/quant/blockwise_state.h"
#include "engine/quant/guide.h"
#include "engine/quant/linalg.h"
#include "engine/quant/stack.h"
#include "kernels/error.h"

struct sums {
    enum calibrate_input input;
    int n; /* columns */
    struct {
        enum model_role role;
        int group;
        double *h; /* (n, n) */
    } each[3 * GUIDE_MAX_GROUPS];
    int n_each;
    float *scaled; /* (batch * ctx, n) */
    int failed;
};

static void sums_free(struct sums *m) {
    for (int i = 0; i < m->n_each; i++) free(m->each[i].h);
    free(m->scaled);
}

static int sums_init(struct sums *m, struct blockwise *b, struct error *err) {
    for (int role = 0; role < ROLE_COUNT; role++) {
        int rows;
        if (!b->now.linear[role] || calibrate_input_of((enum model_role)role) != m->input) continue;
        block_shape(b->block, (enum model_role)role, &rows, &m->n);
        for (int group = 0; group < guide_groups(b->guide, (enum model_role)role); group++) {
            m->each[m->n_each].role = (enum model_role)role;
            m->each[m->n_each].group = group;
            m->each[m->n_each].h = calloc((size_t)m->n * (size_t)m->n, sizeof(double));
            if (!m->each[m->n_each++].h) return error_set(err, -ENOMEM, "moments: out of memory");
        }
    }
    m->scaled = malloc((size_t)b->batch * (size_t)b->ctx * (size_t)m->n * sizeof *m->scaled);
    return m->scaled ? 0 : error_set(err, -ENOMEM, "moments: out of memory");
}

static int add_windows(struct blockwise *b, const struct blockwise_windows *w, void *arg) {
    struct sums *m = arg;
    struct block_weights now = params_block_view(&b->now);
    size_t tokens = (size_t)w->n * (size_t)b->ctx, width = (size_t)m->n;
    block_forward(b->block, &now, w->coded, b->y, w->n, b->ctx, b->cache);
    for (int i = 0; i < m->n_each; i++) {
        const float *x = block_input(b->block, &now, b->cache, m->each[i].role);
        const float *weights = guide_tokens(b->guide, b->layer, m->each[i].role, m->each[i].group) +
                               (size_t)w->first * (size_t)b->ctx;
        for (size_t t = 0; t < tokens; t++) {
            float root = sqrtf(weights[t]);
            for (size_t k = 0; k < width; k++) m->scaled[t * width + k] = root * x[t * width + k];
        }
        m->failed = linalg_gram_add(m->each[i].h, m->scaled, tokens, m->n, b->n_threads, NULL);
        if (m->failed) return m->failed;
    }
    return 0;
}

static int code_group(struct blockwise *b, double *h, int n, enum model_role role, int group,
                      struct layer_result *ret, struct error *err) {
    int first, end;
    struct layer_input *in = NULL;
    struct layer_options o = *b->layer_options;
    if (b->bits) o.bits = b->bits[b->layer * ROLE_COUNT + (int)role];
    guide_rows(b->guide, role, group, &first, &end);
    int r = layer_input_new(&in, h, n, &o, err);
    if (r == 0)
        r = layer_quantize(ret, in, b->now.linear[role] + (size_t)first * (size_t)n, end - first,
                           &o, err);
    layer_input_free(in);
    return r;
}

int guided_input(struct blockwise *b, enum calibrate_input input,
                 struct layer_result coded[ROLE_COUNT], struct error *err) {
    struct sums m = {.input = input};
    struct layer_result pieces[GUIDE_MAX_GROUPS] = {{0}};
    double tokens = (double)b->n_windows * b->ctx;
    int r = sums_init(&m, b, err);
    if (r == 0) r = blockwise_each(b, PART_ALL, add_windows, &m);
    if (m.failed) error_set(err, r, "moments: out of memory");
    for (int i = 0; r == 0 && i < m.n_each; i++) {
        enum model_role role = m.each[i].role;
        int group = m.each[i].group, groups = guide_groups(b->guide, role);
        linalg_symmetrize(m.each[i].h, m.n, 1.0 / tokens);
        r = code_group(b, m.each[i].h, m.n, role, group, &pieces[group], err);
        if (r == 0 && group + 1 == groups) {
            r = stack_rows(&coded[role], pieces, groups, err);
            for (int k = 0; k < groups; k++) layer_result_free(&pieces[k]);
        }
    }
    for (int k = 0; k < GUIDE_MAX_GROUPS; k++) layer_result_free(&pieces[k]);
    sums_free(&m);
    return r;
}
