#include "engine/quant/guide.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/config.h"
#include "engine/quant/backward.h"
#include "engine/quant/spill.h"
#include "engine/source.h"
#include "engine/train/gemm.h"
#include "kernels/error.h"

enum { BATCH_TOKENS = 2048, MARGIN = 1000 /* the part of a row's mean that every weight has */ };

struct guide {
    const struct model_config *config;
    size_t n_tokens;
    int rows[ROLE_COUNT], cols[ROLE_COUNT], groups[ROLE_COUNT]; /* rows 0: no such layer */
    size_t tokens_at[ROLE_COUNT], fisher_at[ROLE_COUNT];        /* within a layer */
    size_t layer_tokens, layer_fisher;                          /* floats of a layer */
    struct spill tokens; /* (layers, role, group, n_tokens) */
    struct spill fisher; /* (layers, role, rows, cols) */
};

/* What the passes over the text need. */
struct run {
    struct guide *g;
    const struct guide_setup *setup;
    struct backward *backward;
    int batch;        /* windows side by side */
    int window;       /* the first being shown */
    float *square[2]; /* (batch * ctx, widest): gradients and inputs, squared */
};

static void lay_out(struct guide *g, const struct guide_setup *setup) {
    const struct model_config *c = g->config;
    for (int role = 0; role < ROLE_COUNT; role++) {
        g->tokens_at[role] = g->layer_tokens;
        g->fisher_at[role] = g->layer_fisher;
        if (role == ROLE_GATE && c->activation != ACT_NONE) continue;
        int q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim;
        g->rows[role] = role == ROLE_Q                         ? q
                        : role <= ROLE_V                       ? kv
                        : role == ROLE_GATE || role == ROLE_UP ? c->intermediate
                                                               : c->hidden;
        g->cols[role] = role == ROLE_O ? q : role == ROLE_DOWN ? c->intermediate : c->hidden;
        int most = g->rows[role] / GUIDE_LEAST_ROWS;
        g->groups[role] = setup->n_groups < most ? setup->n_groups : most;
        if (setup->n_groups > 0 && g->groups[role] < 1) g->groups[role] = 1;
        g->layer_tokens += (size_t)g->groups[role] * g->n_tokens;
        if (setup->fisher) g->layer_fisher += (size_t)g->rows[role] * (size_t)g->cols[role];
    }
}

int guide_groups(const struct guide *g, enum model_role role) { return g->groups[role]; }

/* Borders at multiples of eight rows. */
void guide_rows(const struct guide *g, enum model_role role, int group, int *ret_first,
                int *ret_end) {
    int n = g->groups[role], rows = g->rows[role];
    *ret_first = (int)((int64_t)rows * group / n) / 8 * 8;
    *ret_end = group + 1 == n ? rows : (int)((int64_t)rows * (group + 1) / n) / 8 * 8;
}

static float *tokens_of(const struct guide *g, int layer, int role, int group) {
    return g->tokens.x + (size_t)layer * g->layer_tokens + g->tokens_at[role] +
           (size_t)group * g->n_tokens;
}

static float *fisher_of(const struct guide *g, int layer, int role) {
    return g->fisher.x + (size_t)layer * g->layer_fisher + g->fisher_at[role];
}

const float *guide_tokens(const struct guide *g, int layer, enum model_role role, int group) {
    return tokens_of(g, layer, role, group);
}

const float *guide_fisher(const struct guide *g, int layer, enum model_role role) {
    return fisher_of(g, layer, role);
}

static void see_groups(struct run *r, const struct backward_layer *l) {
    struct guide *g = r->g;
    size_t first_token = (size_t)r->window * (size_t)r->setup->ctx;
    for (int group = 0; group < g->groups[l->role]; group++) {
        int first, end;
        guide_rows(g, l->role, group, &first, &end);
        float *weights = tokens_of(g, l->layer, l->role, group) + first_token;
        for (int t = 0; t < l->n_tokens; t++) {
            double sum = 0.0;
            for (int i = first; i < end; i++) {
                double d = (double)l->dy[(size_t)t * (size_t)l->rows + (size_t)i];
                sum += d * d;
            }
            weights[t] = (float)(sum / (end - first));
        }
    }
}

static int see(void *arg, const struct backward_layer *l, struct error *err) {
    struct run *r = arg;
    size_t n = (size_t)l->n_tokens;
    (void)err;
    if (r->setup->n_groups > 0) see_groups(r, l);
    if (!r->setup->fisher) return 0;
    for (size_t i = 0; i < n * (size_t)l->rows; i++) r->square[0][i] = l->dy[i] * l->dy[i];
    for (size_t i = 0; i < n * (size_t)l->cols; i++) r->square[1][i] = l->x[i] * l->x[i];
    gemm(GEMM_TN, l->rows, l->cols, l->n_tokens, r->square[0], r->square[1], 1.0f,
         fisher_of(r->g, l->layer, l->role), r->setup->n_threads);
    return 0;
}

static int run_open(struct run *r, struct error *err) {
    const struct model_config *c = r->g->config;
    const struct guide_setup *s = r->setup;
    int windows = BATCH_TOKENS / s->ctx, widest = c->hidden, q = c->n_heads * c->head_dim;
    if (c->intermediate > widest) widest = c->intermediate;
    if (q > widest) widest = q;
    r->batch = windows < 1 ? 1 : windows < s->n_windows ? windows : s->n_windows;
    size_t n = (size_t)r->batch * (size_t)s->ctx;
    for (int i = 0; i < 2; i++) {
        r->square[i] = malloc((s->fisher ? n * (size_t)widest : 1) * sizeof *r->square[i]);
        if (!r->square[i]) return error_set(err, -ENOMEM, "sensitivities: out of memory");
    }
    const struct backward_setup setup = {.source = s->source,
                                         .n_windows = r->batch,
                                         .ctx = s->ctx,
                                         .n_threads = s->n_threads,
                                         .memory = s->memory};
    return backward_new(&r->backward, &setup, err);
}

static void run_close(struct run *r) {
    backward_free(r->backward);
    for (int i = 0; i < 2; i++) free(r->square[i]);
}

/* Mean 1; all equal where nothing is felt. */
static void normalize_tokens(struct guide *g, float *weights) {
    double sum = 0.0;
    for (size_t t = 0; t < g->n_tokens; t++) sum += (double)weights[t];
    bool felt = sum > 0.0 && isfinite(sum);
    double factor = felt ? (double)g->n_tokens / sum : 0.0;
    for (size_t t = 0; t < g->n_tokens; t++)
        weights[t] = felt ? (float)((double)weights[t] * factor) : 1.0f;
}

/* Mean 1 in every row, and no weight at nothing: a codebook would forget it. */
static void normalize_row(float *row, int cols) {
    double sum = 0.0;
    for (int k = 0; k < cols; k++) sum += (double)row[k];
    bool felt = sum > 0.0 && isfinite(sum);
    double factor = felt ? cols / sum : 0.0;
    for (int k = 0; k < cols; k++)
        row[k] = felt ? (float)((double)row[k] * factor + 1.0 / MARGIN) : 1.0f;
}

static void normalize(struct guide *g, bool fisher) {
    for (int layer = 0; layer < g->config->n_layers; layer++)
        for (int role = 0; role < ROLE_COUNT; role++) {
            for (int group = 0; group < g->groups[role]; group++)
                normalize_tokens(g, tokens_of(g, layer, role, group));
            for (int row = 0; fisher && row < g->rows[role]; row++)
                normalize_row(fisher_of(g, layer, role) + (size_t)row * (size_t)g->cols[role],
                              g->cols[role]);
        }
}

int guide_open(struct guide **ret, const struct guide_setup *setup, struct error *err) {
    struct guide *g = calloc(1, sizeof *g);
    struct run run = {.g = g, .setup = setup};
    const struct backward_calls calls = {.see = see, .arg = &run};
    if (!g) return error_set(err, -ENOMEM, "sensitivities: out of memory");
    g->config = source_config(setup->source);
    g->n_tokens = (size_t)setup->n_windows * (size_t)setup->ctx;
    lay_out(g, setup);
    size_t layers = (size_t)g->config->n_layers;
    int r = spill_open(&g->tokens, layers * g->layer_tokens, setup->memory, NULL, err);
    if (r == 0) r = spill_open(&g->fisher, layers * g->layer_fisher, setup->memory, NULL, err);
    if (r == 0) r = run_open(&run, err);
    for (int n; r == 0 && run.window < setup->n_windows; run.window += n) {
        n = setup->n_windows - run.window;
        if (n > run.batch) n = run.batch;
        r = backward_run(run.backward, setup->tokens + (size_t)run.window * (size_t)setup->ctx, n,
                         &calls, err);
    }
    if (r == 0) normalize(g, setup->fisher);
    run_close(&run);
    if (r < 0)
        guide_close(g);
    else
        *ret = g;
    return r;
}

void guide_close(struct guide *g) {
    if (!g) return;
    spill_close(&g->tokens);
    spill_close(&g->fisher);
    free(g);
}
