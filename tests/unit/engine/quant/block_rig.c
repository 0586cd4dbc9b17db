#include "tests/unit/engine/quant/block_rig.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "engine/config.h"
#include "engine/quant/linalg.h"
#include "engine/source.h"
#include "kernels/error.h"
#include "tests/support/scratch.h"

static void open_model(struct block_rig *r, const char *name) {
    char file[SCRATCH_PATH], path[SCRATCH_PATH];
    struct error err;
    struct backend_options backend = {.name = "cpu", .n_threads = 1};
    struct model_options options = {.kv_type = DTYPE_F32,
                                    .max_batch_tokens = CALIBRATE_BATCH,
                                    .max_logit_rows = 1,
                                    .n_kv_blocks = 2 * calibrate_kv_blocks(BLOCK_RIG_CTX),
                                    .layers_on_demand = true};
    linalg_init();
    scratch_join(file, "models", name);
    cr_assert_eq(source_open(&r->src, scratch_fixture(path, file), &err), 0, "%s", err.text);
    cr_assert_eq(backend_open(&r->backend, &backend, &err), 0, "%s", err.text);
    cr_assert_eq(model_open(&r->model, r->backend, r->src, &options, &err), 0, "%s", err.text);
}

static void go_to(struct block_rig *r, int layer) {
    struct error err;
    for (int i = 0; i <= layer; i++) {
        bool there = i == layer;
        cr_assert_eq(model_load_layer(r->model, i, &err), 0, "%s", err.text);
        cr_assert_eq(blockwise_begin(r->b, i, &err), 0, "%s", err.text);
        cr_assert_eq(calibrate_run(r->calibrate, i, there, !there, &err), 0, "%s", err.text);
        if (there) return;
        model_drop_layer(r->model, i);
        blockwise_end(r->b);
    }
}

void block_rig_open(struct block_rig *r, const char *name, int layer) {
    struct error err;
    struct calibrate_options states = {.n_threads = 1, .memory = 1 << 30};
    open_model(r, name);
    int vocab = source_config(r->src)->vocab;
    for (int i = 0; i < BLOCK_RIG_TOKENS; i++) r->tokens[i] = (i * 37 + 11) % vocab;
    cr_assert_eq(calibrate_open(&r->calibrate, r->model, r->tokens, BLOCK_RIG_WINDOWS,
                                BLOCK_RIG_CTX, &states, &err),
                 0, "%s", err.text);
    struct blockwise_setup setup = {.model = r->model,
                                    .source = r->src,
                                    .calibrate = r->calibrate,
                                    .tokens = r->tokens,
                                    .options = &r->o,
                                    .layer = &r->layer,
                                    .memory = 1 << 30};
    cr_assert_eq(blockwise_open(&r->b, &setup, &err), 0, "%s", err.text);
    go_to(r, layer);
}

void block_rig_close(struct block_rig *r) {
    blockwise_close(r->b);
    calibrate_close(r->calibrate);
    model_close(r->model);
    backend_close(r->backend);
    source_close(r->src);
}

/* The moments are copied, since a factor damps them. */
static struct layer_input *input_of(struct block_rig *r, enum calibrate_input input) {
    struct layer_input *in;
    struct error err;
    int n;
    const double *h = calibrate_moments(r->calibrate, input, &n);
    size_t bytes = (size_t)n * (size_t)n * sizeof *h;
    double *copy = malloc(bytes);
    cr_assert(copy);
    memcpy(copy, h, bytes);
    cr_assert_eq(layer_input_new(&in, copy, n, &r->layer, &err), 0, "%s", err.text);
    free(copy);
    return in;
}

void block_rig_code(struct block_rig *r, struct layer_result coded[ROLE_COUNT]) {
    for (int role = 0; role < ROLE_COUNT; role++) {
        struct error err;
        int rows, cols;
        coded[role] = (struct layer_result){0};
        block_shape(r->b->block, (enum model_role)role, &rows, &cols);
        if (!rows) continue;
        struct layer_input *in = input_of(r, calibrate_input_of((enum model_role)role));
        cr_assert_eq(
            layer_quantize(&coded[role], in, r->b->now.linear[role], rows, &r->layer, &err), 0,
            "%s", err.text);
        layer_input_free(in);
    }
}

static int take_windows(struct blockwise *b, const struct blockwise_windows *w, void *arg) {
    (void)b;
    cr_assert_eq(w->n, BLOCK_RIG_WINDOWS);
    *(struct blockwise_windows *)arg = *w;
    return 0;
}

struct blockwise_windows block_rig_windows(struct block_rig *r) {
    struct blockwise_windows w = {0};
    blockwise_each(r->b, PART_ALL, take_windows, &w);
    return w;
}

static void fill(double *to, const float *from, int n) {
    for (int i = 0; i < n; i++) to[i] = (double)from[i];
}

struct reference *block_rig_reference(struct block_rig *r) {
    struct reference *ref = reference_new(r->b->config, BLOCK_RIG_WINDOWS, BLOCK_RIG_CTX, 1);
    const struct params_block *now = &r->b->now;
    for (int role = 0; role < ROLE_COUNT; role++) {
        cr_assert_eq(ref->linear[role] >= 0, now->linear[role] != NULL);
        cr_assert_eq(ref->bias[role] >= 0, now->bias[role] != NULL);
        if (now->linear[role])
            fill(ref->params + ref->linear[role], now->linear[role],
                 ref->rows[role] * ref->cols[role]);
        if (now->bias[role]) fill(ref->params + ref->bias[role], now->bias[role], ref->rows[role]);
    }
    for (int i = 0; i < BLOCK_NORMS; i++) {
        fill(ref->params + ref->norm_w[i], now->norm_w[i], r->b->config->hidden);
        if (now->norm_b[i])
            fill(ref->params + ref->norm_b[i], now->norm_b[i], r->b->config->hidden);
    }
    return ref;
}

void block_rig_forward(struct block_rig *r, const struct reference *ref, double *y) {
    struct blockwise_windows w = block_rig_windows(r);
    double *x = malloc((size_t)ref->n_x * sizeof *x);
    cr_assert(x);
    fill(x, w.coded, ref->n_x);
    reference_forward(ref, x, y);
    free(x);
}
