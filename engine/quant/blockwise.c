#include "engine/quant/blockwise.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/checkpoint_writer.h"
#include "engine/config.h"
#include "engine/map.h"
#include "engine/quant/block_tune.h"
#include "engine/quant/blockwise_state.h"
#include "engine/quant/guide.h"
#include "engine/source.h"
#include "kernels/error.h"
#include "kernels/expand.h"

enum { HELD_EVERY = 8 /* one window in so many judges */, DEFAULT_GROUPS = 4, TWEAK_EPOCHS = 2 };

const char *blockwise_tweak_name(enum blockwise_tweak tweak) {
    static const char *const names[] = {"none", "moments", "fit", "train"};
    return (size_t)tweak < sizeof names / sizeof *names ? names[tweak] : NULL;
}

const char *blockwise_transform_name(enum blockwise_transform transform) {
    static const char *const names[] = {"none", "grid", "train"};
    return (size_t)transform < sizeof names / sizeof *names ? names[transform] : NULL;
}

const char *blockwise_hessian_name(enum blockwise_hessian hessian) {
    static const char *const names[] = {"plain", "fisher", "guided"};
    return (size_t)hessian < sizeof names / sizeof *names ? names[hessian] : NULL;
}

bool blockwise_wanted(const struct blockwise_options *o) {
    return o->tweak != TWEAK_NONE || o->transform != TRANSFORM_NONE ||
           o->hessian != HESSIAN_PLAIN || o->clip_epochs > 0 || o->tune_epochs > 0;
}

static int check_hessian(const struct blockwise_options *o, const struct layer_options *layer,
                         struct error *err) {
    if (o->groups < 0 || o->groups > GUIDE_MAX_GROUPS)
        return error_set(err, -EINVAL, "hessian groups: %d is not in 0..%d", o->groups,
                         GUIDE_MAX_GROUPS);
    if (o->hessian == HESSIAN_FISHER && layer->method != LAYER_GPTQT)
        return error_set(err, -EINVAL,
                         "hessian fisher weighs the codebook search, which method gptqt alone has");
    if (o->hessian == HESSIAN_FISHER && o->transform != TRANSFORM_NONE)
        return error_set(err, -EINVAL,
                         "hessian fisher holds for the weights as they are, learn-transform "
                         "scales them");
    if (o->hessian == HESSIAN_FISHER && layer->incoherence != LAYER_NATURAL)
        return error_set(err, -EINVAL,
                         "hessian fisher weighs single weights, which incoherence mixes with one "
                         "another: use either");
    if (o->hessian == HESSIAN_GUIDED && (layer->method == LAYER_RTN || layer->method == LAYER_BCQ))
        return error_set(err, -EINVAL,
                         "hessian guided steers the column loop, which this method lacks");
    if (o->hessian == HESSIAN_GUIDED && layer->outliers > 0.0)
        return error_set(err, -EINVAL,
                         "hessian guided codes a matrix in groups of rows, whose outliers would "
                         "be chosen apart: use either");
    if (o->hessian == HESSIAN_GUIDED && layer->incoherence != LAYER_NATURAL)
        return error_set(err, -EINVAL,
                         "hessian guided codes a matrix in groups of rows, incoherence turns it as "
                         "a whole: use either");
    return 0;
}

static int check_training(const struct blockwise_options *o, const struct layer_options *layer,
                          struct error *err) {
    if (o->tune_epochs < 0 || o->tune_epochs > 1000 || o->clip_epochs < 0 || o->clip_epochs > 1000)
        return error_set(err, -EINVAL, "epochs: not in 0..1000");
    if ((o->tune_epochs > 0 || o->clip_epochs > 0) && layer->outliers > 0.0)
        return error_set(err, -EINVAL,
                         "tune-block and learn-clip train codes, which outliers stand beside: use "
                         "either");
    if ((o->tune_epochs > 0 || o->clip_epochs > 0) && layer->incoherence != LAYER_NATURAL)
        return error_set(err, -EINVAL,
                         "tune-block and learn-clip train codes in the natural basis, incoherence "
                         "stores turned ones: use either");
    if ((o->tune_epochs > 0 || o->clip_epochs > 0) && layer->pow2)
        return error_set(err, -EINVAL,
                         "tune-block and learn-clip move scales off the powers of two that pow2 "
                         "asks for: use either");
    if (o->clip_epochs > 0 && layer->method != LAYER_GPTQT)
        return error_set(err, -EINVAL,
                         "learn-clip goes on from the range search, which method gptqt alone has");
    if (o->clip_epochs > 0 && o->hessian == HESSIAN_GUIDED)
        return error_set(err, -EINVAL,
                         "learn-clip trains the ranges that guided moments would choose anew for "
                         "groups of rows: use either");
    if (o->clip_epochs > 0 && layer->explore > 0)
        return error_set(err, -EINVAL,
                         "learn-clip trains the ranges that explore would choose among: use "
                         "either");
    return 0;
}

int blockwise_check(const struct blockwise_options *o, const struct layer_options *layer,
                    bool is_static, struct error *err) {
    if (o->tweak != TWEAK_NONE && is_static)
        return error_set(err, -EINVAL,
                         "norm-tweak follows the coded model's states, which static does without");
    int r = check_training(o, layer, err);
    return r < 0 ? r : check_hessian(o, layer, err);
}

int blockwise_check_moments(const struct blockwise_options *o, bool output_target,
                            bool weighs_tokens, struct error *err) {
    if (output_target && o->transform != TRANSFORM_NONE)
        return error_set(err, -EINVAL,
                         "learn-transform scales the coded model's inputs, which another target "
                         "sets against the original's: use either");
    if (output_target && o->hessian == HESSIAN_GUIDED)
        return error_set(err, -EINVAL,
                         "hessian guided has no cross moments, which another target needs");
    if (weighs_tokens && o->hessian == HESSIAN_GUIDED)
        return error_set(err, -EINVAL,
                         "hessian guided weighs the tokens itself: it goes with tokens all alone");
    return 0;
}

/* Whether the original block's output is asked for. */
static bool has_target(const struct blockwise_options *o) {
    return o->tweak != TWEAK_NONE || o->clip_epochs > 0 || o->tune_epochs > 0;
}

static int groups_of(const struct blockwise_options *o) {
    if (o->hessian != HESSIAN_GUIDED) return 0;
    return o->groups ? o->groups : DEFAULT_GROUPS;
}

int blockwise_describe(const struct blockwise_options *o, json_t *settings) {
    int r = 0;
    if (o->tweak != TWEAK_NONE)
        r |= json_object_set_new(settings, "norm_tweak",
                                 json_string(blockwise_tweak_name(o->tweak)));
    if (o->transform != TRANSFORM_NONE)
        r |= json_object_set_new(settings, "learn_transform",
                                 json_string(blockwise_transform_name(o->transform)));
    if (o->hessian != HESSIAN_PLAIN)
        r |= json_object_set_new(settings, "hessian",
                                 json_string(blockwise_hessian_name(o->hessian)));
    if (o->clip_epochs > 0)
        r |= json_object_set_new(settings, "learn_clip", json_integer(o->clip_epochs));
    if (o->tune_epochs > 0)
        r |= json_object_set_new(settings, "tune_block", json_integer(o->tune_epochs));
    if (o->hessian == HESSIAN_GUIDED)
        r |= json_object_set_new(settings, "hessian_groups", json_integer(groups_of(o)));
    return r;
}

static int make_streams(struct blockwise *b, size_t memory, struct error *err) {
    size_t hidden = (size_t)b->config->hidden, tokens = (size_t)b->n_windows * (size_t)b->ctx;
    int r = spill_open(&b->before, tokens * hidden, memory, NULL, err);
    if (r == 0) r = spill_open(&b->after, tokens * hidden, memory, NULL, err);
    if (r < 0) return r;
    memcpy(b->before.x, calibrate_states(b->calibrate), b->before.n_bytes);
    b->y = malloc(2 * (size_t)b->batch * (size_t)b->ctx * hidden * sizeof *b->y);
    return b->y ? 0 : error_set(err, -ENOMEM, "block: out of memory");
}

static int make_guide(struct blockwise *b, const struct blockwise_setup *setup, struct error *err) {
    struct guide_setup guide = {.source = setup->source,
                                .tokens = setup->tokens,
                                .n_windows = b->n_windows,
                                .ctx = b->ctx,
                                .n_groups = groups_of(b->o),
                                .fisher = b->o->hessian == HESSIAN_FISHER,
                                .n_threads = b->n_threads,
                                .memory = setup->memory};
    return guide_open(&b->guide, &guide, err);
}

int blockwise_open(struct blockwise **ret, const struct blockwise_setup *setup, struct error *err) {
    struct blockwise *b = calloc(1, sizeof *b);
    if (!b) return error_set(err, -ENOMEM, "block: out of memory");
    b->o = setup->options;
    b->layer_options = setup->layer;
    b->bits = setup->bits;
    b->n_threads = setup->layer->n_threads;
    b->is_static = setup->is_static;
    b->config = source_config(setup->source);
    b->model = setup->model;
    b->calibrate = setup->calibrate;
    if (b->o->tweak != TWEAK_NONE && b->config->post_norm) {
        blockwise_close(b);
        return error_set(err, -EINVAL,
                         "norm-tweak: this model's norms follow the sums, where the residual "
                         "stream itself would be scaled");
    }
    calibrate_windows(b->calibrate, &b->n_windows, &b->ctx);
    b->batch = b->ctx < CALIBRATE_BATCH ? CALIBRATE_BATCH / b->ctx : 1;
    if (b->batch > b->n_windows) b->batch = b->n_windows;
    int r = params_open(&b->params, setup->source, err);
    if (r == 0) r = block_new(&b->block, b->config, b->batch, b->ctx, b->n_threads, err);
    if (r == 0) r = block_cache_new(&b->cache, b->block, err);
    if (r == 0) r = make_streams(b, setup->memory, err);
    if (r == 0 && b->o->hessian != HESSIAN_PLAIN) r = make_guide(b, setup, err);
    if (r < 0)
        blockwise_close(b);
    else
        *ret = b;
    return r;
}

static void drop_block(struct blockwise *b) {
    params_block_free(&b->original);
    params_block_free(&b->now);
    b->original = b->now = (struct params_block){0};
    for (int role = 0; role < ROLE_COUNT; role++) layer_result_free(&b->clipped[role]);
}

void blockwise_close(struct blockwise *b) {
    if (!b) return;
    drop_block(b);
    guide_close(b->guide);
    for (int i = 0; i < 2; i++) free(b->final_norm[i]);
    spill_close(&b->before);
    spill_close(&b->after);
    free(b->y);
    block_cache_free(b->cache);
    block_free(b->block);
    params_close(b->params);
    free(b);
}

/* With fewer windows than HELD_EVERY none is held out: every part is all of them. */
static bool is_in(const struct blockwise *b, enum blockwise_part part, int window) {
    if (part == PART_ALL || b->n_windows < HELD_EVERY) return true;
    bool held = window % HELD_EVERY == HELD_EVERY - 1;
    return part == PART_HELD ? held : !held;
}

int blockwise_each(struct blockwise *b, enum blockwise_part part, blockwise_visit *visit,
                   void *arg) {
    size_t stride = (size_t)b->ctx * (size_t)b->config->hidden;
    const float *coded = b->is_static ? b->before.x : calibrate_states(b->calibrate);
    int r = 0;
    for (int first = 0, n; r == 0 && first < b->n_windows; first += n) {
        n = 1;
        if (!is_in(b, part, first)) continue;
        while (n < b->batch && first + n < b->n_windows && is_in(b, part, first + n)) n++;
        struct blockwise_windows w = {.first = first,
                                      .n = n,
                                      .coded = coded + (size_t)first * stride,
                                      .original = b->before.x + (size_t)first * stride,
                                      .wanted = b->after.x + (size_t)first * stride};
        r = visit(b, &w, arg);
    }
    return r;
}

struct distance {
    struct block_weights weights;
    double error, energy;
};

static int add_distance(struct blockwise *b, const struct blockwise_windows *w, void *arg) {
    struct distance *d = arg;
    size_t n = (size_t)w->n * (size_t)b->ctx * (size_t)b->config->hidden;
    block_forward(b->block, &d->weights, w->coded, b->y, w->n, b->ctx, NULL);
    for (size_t i = 0; i < n; i++) {
        double e = (double)b->y[i] - (double)w->wanted[i];
        d->error += e * e;
        d->energy += (double)w->wanted[i] * (double)w->wanted[i];
    }
    return 0;
}

double blockwise_error(struct blockwise *b, const struct params_block *weights) {
    struct distance d = {.weights = params_block_view(weights)};
    blockwise_each(b, PART_HELD, add_distance, &d);
    return d.energy > 0.0 ? d.error / d.energy : 0.0;
}

static int run_original(struct blockwise *b, const struct blockwise_windows *w, void *arg) {
    const struct block_weights *weights = arg;
    float *y = b->after.x + (size_t)w->first * (size_t)b->ctx * (size_t)b->config->hidden;
    block_forward(b->block, weights, w->original, y, w->n, b->ctx, NULL);
    return 0;
}

int blockwise_begin(struct blockwise *b, int layer, struct error *err) {
    drop_block(b);
    memset(b->changed, 0, sizeof b->changed);
    b->layer = layer;
    int r = params_block_read(&b->original, b->params, layer, err);
    if (r == 0) r = params_block_read(&b->now, b->params, layer, err);
    if (r < 0) return r;
    /* Moments alone need no original output, but with static inputs it is the next block's. */
    if (!has_target(b->o) && !b->is_static) return 0;
    struct block_weights weights = params_block_view(&b->original);
    return blockwise_each(b, PART_ALL, run_original, &weights);
}

void blockwise_end(struct blockwise *b) {
    struct spill other = b->before;
    b->before = b->after;
    b->after = other;
}

float *blockwise_vector(struct params_block *block, enum model_vector v) {
    if (v >= VECTOR_BIAS) return block->bias[v - VECTOR_BIAS];
    switch (v) {
    case VECTOR_ATTN_NORM:
        return block->norm_w[BLOCK_ATTN_NORM];
    case VECTOR_ATTN_NORM_BIAS:
        return block->norm_b[BLOCK_ATTN_NORM];
    case VECTOR_FFN_NORM:
        return block->norm_w[BLOCK_FFN_NORM];
    case VECTOR_FFN_NORM_BIAS:
        return block->norm_b[BLOCK_FFN_NORM];
    default:
        return NULL;
    }
}

int blockwise_change(struct blockwise *b, enum model_vector v, struct error *err) {
    const float *values = blockwise_vector(&b->now, v);
    if (!values) return 0;
    b->changed[v] = true;
    return model_replace_vector(b->model, b->layer, v, values, err);
}

const float *blockwise_linear(const struct blockwise *b, enum model_role role) {
    return b->now.linear[role];
}

int blockwise_input(struct blockwise *b, struct error *err) {
    return b->o->tweak != TWEAK_NONE && b->o->tweak != TWEAK_TRAIN ? norm_tweak_input(b, err) : 0;
}

int blockwise_transform(struct blockwise *b, struct error *err) {
    int r = b->o->transform != TRANSFORM_NONE ? transform_block(b, err) : 0;
    return r == 0 && b->o->clip_epochs > 0 ? clip_block(b, err) : r;
}

const struct bcq_view *blockwise_given(const struct blockwise *b, enum model_role role) {
    return b->clipped[role].block ? &b->clipped[role].view : NULL;
}

const float *blockwise_row_weights(const struct blockwise *b, enum model_role role) {
    return b->o->hessian == HESSIAN_FISHER ? guide_fisher(b->guide, b->layer, role) : NULL;
}

int blockwise_code(struct blockwise *b, enum calibrate_input input,
                   struct layer_result coded[ROLE_COUNT], struct error *err) {
    return b->o->hessian == HESSIAN_GUIDED ? guided_input(b, input, coded, err) : 1;
}

/* The dense values that the codes stand for, which the block runs on from now on. */
static int expand(struct blockwise *b, const struct layer_result coded[ROLE_COUNT],
                  struct error *err) {
    int r = 0;
    for (int role = 0; r == 0 && role < ROLE_COUNT; role++) {
        struct weight_view view = layer_view(&coded[role]);
        if (coded[role].block) r = weight_expand(&view, 0, view.rows, b->now.linear[role], err);
    }
    return r;
}

int blockwise_copy(const struct blockwise *b, enum model_role role, float **ret,
                   struct error *err) {
    int rows, cols;
    if (!b->now.linear[role]) return 0;
    block_shape(b->block, role, &rows, &cols);
    size_t bytes = (size_t)rows * (size_t)cols * sizeof **ret;
    *ret = malloc(bytes);
    if (!*ret) return error_set(err, -ENOMEM, "block: out of memory");
    memcpy(*ret, b->now.linear[role], bytes);
    return 0;
}

int blockwise_codes(struct blockwise *b, struct layer_result coded[ROLE_COUNT], struct error *err) {
    int r = 0;
    struct block_tune tune = {
        .params = true, .codes = true, .recode = true, .epochs = b->o->tune_epochs};
    struct block_tune norms = {.norms = true, .moments = true, .epochs = TWEAK_EPOCHS};
    struct params_block weights = {0};
    /* The weights before coding are what the codes' own begin at. */
    for (int role = 0; r == 0 && b->o->tune_epochs > 0 && role < ROLE_COUNT; role++)
        r = blockwise_copy(b, (enum model_role)role, &weights.linear[role], err);
    if (r == 0) r = expand(b, coded, err);
    if (r == 0 && b->o->tune_epochs > 0) r = block_tune(b, &tune, coded, &weights, err);
    params_block_free(&weights);
    if (r == 0 && b->o->tweak == TWEAK_TRAIN) r = block_tune(b, &norms, coded, NULL, err);
    if (r == 0 && b->o->tweak != TWEAK_NONE && b->o->tweak != TWEAK_TRAIN)
        r = norm_tweak_inside(b, err);
    if (r == 0 && b->o->tweak != TWEAK_NONE && b->layer + 1 == b->config->n_layers)
        r = norm_tweak_final(b, err);
    return r;
}

static int store_vector(struct blockwise *b, struct checkpoint_writer *writer, enum model_vector v,
                        const float *values, struct error *err) {
    char name[BLOCKWISE_NAME_SIZE];
    int n = model_vector_size(b->model, v);
    model_vector_name(b->model, b->layer, v, name, sizeof name);
    struct safetensors_tensor t = {.name = name,
                                   .type = SAFETENSORS_F32,
                                   .n_dims = 1,
                                   .shape = {(uint64_t)n},
                                   .data = values,
                                   .n_bytes = (uint64_t)n * sizeof *values};
    return checkpoint_writer_add(writer, &t, err);
}

int blockwise_store(struct blockwise *b, struct checkpoint_writer *writer, struct error *err) {
    int r = 0;
    for (int v = 0; r == 0 && v < VECTOR_COUNT; v++)
        if (b->changed[v])
            r = store_vector(b, writer, (enum model_vector)v,
                             blockwise_vector(&b->now, (enum model_vector)v), err);
    for (int i = 0; r == 0 && i < 2; i++)
        if (b->final_norm[i])
            r = store_vector(b, writer, (enum model_vector)(VECTOR_FINAL_NORM + i),
                             b->final_norm[i], err);
    return r;
}

static int restore_vector(struct blockwise *b, struct checkpoint_writer *writer,
                          enum model_vector v, const char *name, struct error *err) {
    struct map map;
    struct safetensors st = {0};
    size_t n = (size_t)model_vector_size(b->model, v);
    int r = checkpoint_writer_map(writer, name, &map, err);
    if (r < 0) return r;
    r = safetensors_parse(&st, map.bytes, map.size, err);
    const struct safetensors_tensor *t = r == 0 ? safetensors_find(&st, name) : NULL;
    float *values = blockwise_vector(&b->now, v);
    /* What has another type was carried over as it is. */
    if (r == 0 && t && values && t->type == SAFETENSORS_F32 && t->n_bytes == n * sizeof *values) {
        memcpy(values, t->data, n * sizeof *values);
        r = blockwise_change(b, v, err);
    }
    safetensors_close(&st);
    map_close(&map);
    return r < 0 ? error_prefix(err, r, "%s", name) : 0;
}

int blockwise_restore(struct blockwise *b, struct checkpoint_writer *writer, struct error *err) {
    int r = 0;
    /* Static inputs are those of the original block. */
    if (b->is_static) return 0;
    for (int v = 0; r == 0 && v < VECTOR_COUNT; v++) {
        char name[BLOCKWISE_NAME_SIZE];
        if (v == VECTOR_FINAL_NORM || v == VECTOR_FINAL_NORM_BIAS) continue;
        if (!model_vector_size(b->model, (enum model_vector)v)) continue;
        model_vector_name(b->model, b->layer, (enum model_vector)v, name, sizeof name);
        if (checkpoint_writer_has(writer, name))
            r = restore_vector(b, writer, (enum model_vector)v, name, err);
    }
    return r;
}
