/* Whole models against JAX's automatic differentiation in fp64 (tests/fixtures/gradients, made by the
 * make.py beside them): the loss, and the gradient of every parameter of the blocks. */
#include "engine/train/network.h"

#include <criterion/criterion.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/config.h"
#include "engine/source.h"
#include "engine/train/loss.h"
#include "kernels/error.h"

enum { SEQS = 2, CTX = 24, N = SEQS * CTX, MAX_LAYERS = 4 };

struct model {
    struct source *src;
    const struct model_config *config;
    struct params *params;
    struct params_ends ends;
    struct params_block blocks[MAX_LAYERS];
    struct params_block grads[MAX_LAYERS]; /* buffers of the same shapes */
    float *final_w, *final_b;
    struct network *net;
    int done;
};

static float *zeros(size_t n) {
    float *x = calloc(n, sizeof *x);
    cr_assert(x);
    return x;
}

static int give_weights(void *arg, int layer, struct block_weights *ret, struct error *err) {
    struct model *m = arg;
    (void)err;
    *ret = params_block_view(&m->blocks[layer]);
    return 0;
}

static void want_grads(void *arg, int layer, struct block_grads *ret) {
    const struct params_block *g = &((struct model *)arg)->grads[layer];
    for (int role = 0; role < ROLE_COUNT; role++) {
        ret->linear[role] = g->linear[role];
        ret->bias[role] = g->bias[role];
    }
    for (int i = 0; i < BLOCK_NORMS; i++) {
        ret->norm_w[i] = g->norm_w[i];
        ret->norm_b[i] = g->norm_b[i];
    }
}

static void count_done(void *arg, int layer) {
    struct model *m = arg;
    m->done++;
    cr_assert_eq(layer, m->config->n_layers - m->done, "%d of %d, %d", layer, m->config->n_layers,
                 m->done);
}

static void open_model(struct model *m, const char *name, size_t cache_bytes) {
    char path[512];
    struct error err;
    *m = (struct model){0};
    snprintf(path, sizeof path, "%s/models/%s", getenv("GPTQT_FIXTURES"), name);
    cr_assert_eq(source_open(&m->src, path, &err), 0, "%s", err.text);
    m->config = source_config(m->src);
    size_t hidden = (size_t)m->config->hidden;
    cr_assert_leq(m->config->n_layers, MAX_LAYERS);
    cr_assert_eq(params_open(&m->params, m->src, &err), 0, "%s", err.text);
    cr_assert_eq(params_ends_read(&m->ends, m->params, &err), 0, "%s", err.text);
    cr_assert_eq(network_new(&m->net, m->config, &m->ends, SEQS, CTX, 2, cache_bytes, &err), 0);
    for (int i = 0; i < m->config->n_layers; i++) {
        struct params_block *b = &m->blocks[i], *g = &m->grads[i];
        cr_assert_eq(params_block_read(b, m->params, i, &err), 0, "%s", err.text);
        for (int role = 0; role < ROLE_COUNT; role++) {
            int rows, cols;
            block_shape(network_block(m->net), (enum model_role)role, &rows, &cols);
            if (b->linear[role]) g->linear[role] = zeros((size_t)rows * (size_t)cols);
            if (b->bias[role]) g->bias[role] = zeros((size_t)rows);
        }
        for (int k = 0; k < BLOCK_NORMS; k++) {
            if (b->norm_w[k]) g->norm_w[k] = zeros(hidden);
            if (b->norm_b[k]) g->norm_b[k] = zeros(hidden);
        }
    }
    m->final_w = zeros(hidden);
    m->final_b = zeros(hidden);
}

static void close_model(struct model *m) {
    for (int i = 0; i < m->config->n_layers; i++) {
        params_block_free(&m->blocks[i]);
        params_block_free(&m->grads[i]);
    }
    network_free(m->net);
    params_ends_free(&m->ends);
    params_close(m->params);
    source_close(m->src);
    free(m->final_w);
    free(m->final_b);
}

static double run(struct model *m) {
    size_t width = (size_t)m->config->embed_dim;
    float *hidden = zeros(N * width), *dhidden = zeros(N * width);
    int32_t ids[N], targets[N];
    struct error err;
    struct loss *loss;
    struct network_blocks blocks = {give_weights, want_grads, count_done, m};
    for (int s = 0; s < SEQS; s++)
        for (int i = 0; i < CTX; i++) ids[s * CTX + i] = (i * 37 + s * 101 + 11) % m->config->vocab;
    for (int i = 0; i < N; i++) targets[i] = i % CTX == CTX - 1 ? -1 : ids[i + 1];
    cr_assert_eq(loss_new(&loss, m->ends.head, NULL, m->config->vocab, (int)width, 2, &err), 0);
    cr_assert_eq(network_forward(m->net, &blocks, ids, SEQS, CTX, hidden, &err), 0);
    double value = loss_cross_entropy(loss, targets, hidden, N, dhidden);
    cr_assert_eq(network_backward(m->net, &blocks, dhidden, m->final_w, m->final_b, &err), 0);
    cr_assert_eq(m->done, m->config->n_layers);
    loss_free(loss);
    free(hidden);
    free(dhidden);
    return value;
}

static int n_checked;

/* Of fp32, where a gradient is 0: that of K's bias, which moves all scores of a query alike. */
static const double noise = 1e-6;

static void check_tensor(const json_t *all, const char *name, const float *grad) {
    const json_t *entry = json_object_get(all, name);
    if (!grad) return;
    cr_assert(entry, "%s", name);
    const json_t *at = json_object_get(entry, "at"), *values = json_object_get(entry, "values");
    double norm = json_number_value(json_object_get(entry, "norm"));
    size_t samples = json_array_size(at);
    cr_assert_gt(samples, 5);
    for (size_t i = 0; i < samples; i++) {
        json_int_t k = json_integer_value(json_array_get(at, i));
        double want = json_number_value(json_array_get(values, i));
        cr_assert_lt(fabs((double)grad[k] - want), noise + 2e-6 * norm + 1e-4 * fabs(want),
                     "%s[%lld] is %.8g, JAX says %.8g", name, (long long)k, (double)grad[k], want);
    }
    n_checked++;
}

static void check_norm(const json_t *all, const char *name, const float *grad, size_t n) {
    double sum = 0.0;
    check_tensor(all, name, grad);
    for (size_t i = 0; grad && i < n; i++) sum += (double)grad[i] * (double)grad[i];
    if (!grad) return;
    double want = json_number_value(json_object_get(json_object_get(all, name), "norm"));
    cr_assert_float_eq(sqrt(sum), want, noise + 1e-5 * want, "%s", name);
}

static void check_layer(struct model *m, const json_t *all, int layer) {
    const struct params_block *g = &m->grads[layer];
    char name[256];
    for (int role = 0; role < ROLE_COUNT; role++) {
        int rows, cols;
        if (!g->linear[role]) continue;
        block_shape(network_block(m->net), (enum model_role)role, &rows, &cols);
        params_linear_name(m->params, layer, (enum model_role)role, name, sizeof name - 8);
        size_t base = strlen(name);
        strcpy(name + base, ".weight");
        check_norm(all, name, g->linear[role], (size_t)rows * (size_t)cols);
        strcpy(name + base, ".bias");
        check_norm(all, name, g->bias[role], (size_t)rows);
    }
    for (int i = 0; i < BLOCK_NORMS; i++) {
        size_t n = (size_t)m->config->hidden;
        params_norm_name(m->params, layer, (enum block_norm)i, ".weight", name, sizeof name);
        check_norm(all, name, g->norm_w[i], n);
        params_norm_name(m->params, layer, (enum block_norm)i, ".bias", name, sizeof name);
        check_norm(all, name, g->norm_b[i], n);
    }
}

static void check_model(const char *name, size_t cache_bytes) {
    char path[512], norm[256];
    struct model m;
    json_error_t where;
    snprintf(path, sizeof path, "%s/gradients/%s.json", getenv("GPTQT_FIXTURES"), name);
    json_t *golden = json_load_file(path, 0, &where);
    cr_assert(golden, "%s: %s", path, where.text);
    const json_t *all = json_object_get(golden, "grads");
    open_model(&m, name, cache_bytes);
    double loss = run(&m);
    cr_assert_float_eq(loss, json_number_value(json_object_get(golden, "loss")), 1e-5);
    n_checked = 0;
    for (int i = 0; i < m.config->n_layers; i++) check_layer(&m, all, i);
    if (m.ends.final_norm_w) {
        params_final_norm_name(m.params, ".weight", norm, sizeof norm);
        check_tensor(all, norm, m.final_w);
        params_final_norm_name(m.params, ".bias", norm, sizeof norm);
        if (m.ends.final_norm_b) check_tensor(all, norm, m.final_b);
    }
    cr_assert_eq(n_checked, (int)json_object_size(all), "every golden tensor was met");
    close_model(&m);
    json_decref(golden);
}

static const char *const names[] = {"llama-gqa",     "llama-bias",    "llama3",
                                    "opt-125m-like", "opt-350m-like", "bloom"};

Test(network, gradients_are_those_of_automatic_differentiation) {
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        check_model(names[i], (size_t)1 << 28);
}

/* Room for one cache: every block runs forward again. */
Test(network, gradients_are_the_same_without_room_for_all_caches) {
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) check_model(names[i], 1);
}
