/* Coding with guided moments (GuidedQuant, arXiv 2505.07004, section 3, algorithm 1): a group of
 * rows has moments of its own, in which every token counts as much as the end loss feels the
 * group's outputs there. The column loop runs on them unchanged. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/quant/blockwise_state.h"
#include "engine/quant/linalg.h"
#include "engine/quant/stack.h"
#include "kernels/error.h"

void guided_moments_free(struct guided_moments *m) {
    for (int i = 0; i < m->n_each; i++) free(m->each[i].h);
}

static int make_room(struct guided_moments *m, struct blockwise *b, struct error *err) {
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
    return 0;
}

struct sums {
    struct guided_moments *m;
    float *scaled; /* (batch * ctx, n) */
};

static int add_windows(struct blockwise *b, const struct blockwise_windows *w, void *arg) {
    const struct sums *s = arg;
    struct guided_moments *m = s->m;
    struct block_weights now = params_block_view(&b->now);
    size_t tokens = (size_t)w->n * (size_t)b->ctx, width = (size_t)m->n;
    block_forward(b->block, &now, w->coded, b->y, w->n, b->ctx, b->cache);
    for (int i = 0; i < m->n_each; i++) {
        const float *x = block_input(b->block, &now, b->cache, m->each[i].role);
        const float *weights = guide_tokens(b->guide, b->layer, m->each[i].role, m->each[i].group) +
                               (size_t)w->first * (size_t)b->ctx;
        for (size_t t = 0; t < tokens; t++) {
            float root = sqrtf(weights[t]);
            for (size_t k = 0; k < width; k++) s->scaled[t * width + k] = root * x[t * width + k];
        }
        int r = linalg_gram_add(m->each[i].h, s->scaled, tokens, m->n, b->n_threads, NULL);
        if (r < 0) return r;
    }
    return 0;
}

int guided_moments_new(struct guided_moments *ret, struct blockwise *b, enum calibrate_input input,
                       struct error *err) {
    double tokens = (double)b->n_windows * b->ctx;
    *ret = (struct guided_moments){.input = input};
    int r = make_room(ret, b, err);
    if (r < 0) return r;
    struct sums s = {
        .m = ret,
        .scaled = malloc((size_t)b->batch * (size_t)b->ctx * (size_t)ret->n * sizeof *s.scaled)};
    r = s.scaled ? blockwise_each(b, PART_ALL, add_windows, &s) : -ENOMEM;
    free(s.scaled);
    if (r < 0) return error_set(err, r, "moments: out of memory");
    for (int i = 0; i < ret->n_each; i++) linalg_symmetrize(ret->each[i].h, ret->n, 1.0 / tokens);
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
    struct guided_moments m;
    struct layer_result pieces[GUIDE_MAX_GROUPS] = {{0}};
    int r = guided_moments_new(&m, b, input, err);
    for (int i = 0; r == 0 && i < m.n_each; i++) {
        enum model_role role = m.each[i].role;
        int group = m.each[i].group, groups = guide_groups(b->guide, role);
        r = code_group(b, m.each[i].h, m.n, role, group, &pieces[group], err);
        if (r == 0 && group + 1 == groups) {
            r = stack_rows(&coded[role], pieces, groups, err);
            for (int k = 0; k < groups; k++) layer_result_free(&pieces[k]);
        }
    }
    for (int k = 0; k < GUIDE_MAX_GROUPS; k++) layer_result_free(&pieces[k]);
    guided_moments_free(&m);
    return r;
}
