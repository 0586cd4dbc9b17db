/* Sensitivities by what a forward pass with one unit coded gives, or by the unit's own loss. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/config.h"
#include "engine/quant/probe.h"
#include "engine/quant/sensitivity_state.h"
#include "kernels/error.h"
#include "kernels/expand.h"

struct run {
    struct sensitivity *s;
    struct probe *probe;
    float *w, *q; /* the largest matrix, twice */
    bool compares;
};

/* Codes one matrix; with compares the block runs on it from then on. */
static int code_matrix(struct run *run, const struct layer_input *in, int layer,
                       enum model_role role, int bits, double *loss, struct error *err) {
    struct model *m = run->s->model;
    struct layer_options o = sensitivity_cheap(run->s, bits);
    struct layer_result result = {0};
    int rows, cols;
    model_linear_shape(m, role, &rows, &cols);
    int r = model_read_linear(m, layer, role, run->w, err);
    if (r == 0) r = layer_quantize(&result, in, run->w, rows, &o, err);
    if (r < 0) return r;
    if (result.energy > 0.0) *loss += result.loss / result.energy;
    if (run->compares) {
        struct weight_view coded = layer_view(&result);
        r = weight_expand(&coded, 0, rows, run->q, err);
        struct weight_view view = {.type = DTYPE_F32, .rows = rows, .cols = cols, .data = run->q};
        if (r == 0) r = model_replace_linear(m, layer, role, &view, err);
    }
    layer_result_free(&result);
    return r;
}

static int measure_at(struct run *run, const struct layer_input *in, size_t unit, int bits,
                      struct error *err) {
    const struct sensitivity_unit *u = &run->s->units[unit];
    double loss = 0.0, harm = 0.0;
    int r = 0;
    for (int role = 0; r == 0 && role < ROLE_COUNT; role++)
        if (u->roles >> role & 1)
            r = code_matrix(run, in, u->layer, (enum model_role)role, bits, &loss, err);
    if (r == 0 && run->compares) r = probe_divergence(run->probe, &harm, err);
    run->s->table[unit].harm[bits - 1] = run->compares ? harm : loss;
    return r;
}

static int measure(struct run *run, size_t unit, struct error *err) {
    const struct sensitivity *s = run->s;
    const struct sensitivity_unit *u = &s->units[unit];
    struct layer_input *in = NULL;
    int n;
    const double *moments = probe_moments(run->probe, u->input, &n);
    size_t cells = (size_t)n * (size_t)n;
    double *h = malloc(cells * sizeof *h); /* the input damps it in place */
    if (!h) return error_set(err, -ENOMEM, "moments: out of memory");
    memcpy(h, moments, cells * sizeof *h);
    int r = layer_input_new(&in, h, n, s->job->layer, err);
    for (int bits = 1; r == 0 && bits <= BCQ_MAX_BITS; bits++)
        r = measure_at(run, in, unit, bits, err);
    layer_input_free(in);
    free(h);
    if (r < 0) return error_prefix(err, r, "%s", u->name);
    if (run->compares) {
        model_drop_layer(s->model, u->layer);
        r = model_load_layer(s->model, u->layer, err);
    }
    return r == 0 ? sensitivity_keep(run->s, unit, err) : r;
}

/* The units of one block, which begin at *unit. */
static int do_block(struct run *run, int layer, size_t *unit, struct error *err) {
    struct sensitivity *s = run->s;
    bool collected = false;
    int r = run->compares ? 0 : model_load_layer(s->model, layer, err);
    for (; r == 0 && *unit < s->n_units && s->units[*unit].layer == layer; (*unit)++) {
        if (sensitivity_found(s, *unit)) continue;
        if (!collected) r = probe_collect(run->probe, err);
        collected = true;
        if (r == 0) r = measure(run, *unit, err);
    }
    if (r == 0) r = probe_advance(run->probe, err);
    if (!run->compares) model_drop_layer(s->model, layer);
    return r;
}

int sensitivity_by_probe(struct sensitivity *s, struct error *err) {
    const struct sensitivity_job *job = s->job;
    struct run run = {.s = s, .compares = job->options->by == SENSITIVITY_KL};
    int n_layers = s->config->n_layers, r = 0;
    size_t unit = 0;
    run.w = malloc(s->largest * sizeof *run.w);
    run.q = malloc(s->largest * sizeof *run.q);
    if (!run.w || !run.q) r = error_set(err, -ENOMEM, "mixed: out of memory");
    for (int layer = 0; run.compares && r == 0 && layer < n_layers; layer++)
        r = model_load_layer(s->model, layer, err);
    if (r == 0)
        r = probe_open(&run.probe, s->model, job->tokens, job->n_windows, job->ctx,
                       job->layer->n_threads, run.compares, err);
    for (int layer = 0; r == 0 && layer < n_layers; layer++) {
        r = do_block(&run, layer, &unit, err);
        if (r == 0 && job->progress) job->progress(job->arg, layer + 1, n_layers);
    }
    probe_close(run.probe);
    free(run.w);
    free(run.q);
    return r;
}
