#include "engine/quant/quantize_state.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "engine/checkpoint_writer.h"
#include "engine/config.h"
#include "engine/json_guard.h"
#include "engine/map.h"
#include "engine/quant/blockwise.h"
#include "engine/quant/calibrate.h"
#include "engine/quant/parts.h"
#include "engine/quant/target.h"
#include "kernels/error.h"
#include "kernels/expand.h"

/* 0.05 of the mean diagonal, as in the recipe of our prototype; a tenth of it overfits. */
/* Between 0.05 and 0.2 SmolLM2 gained, and the story model lost, half a per cent of KL. */
static const double target_ridge = 0.2;

/* Kept beside the tensors while blocks are made, and part of the checkpoint in the end. */
static const char errors_file[] = "layer_errors.json";

/* What an earlier run has written of the errors; a damaged file costs that run's blocks only. */
static int read_errors(struct quantize *q, struct error *err) {
    static const struct json_guard_limits limits = {.max_depth = 4, .max_items = 1u << 18};
    struct map map;
    if (checkpoint_writer_has(q->writer, errors_file)) {
        int r = checkpoint_writer_map(q->writer, errors_file, &map, err);
        if (r < 0) return r;
        r = json_guard_parse(&q->errors, map.bytes, map.size, &limits, errors_file, NULL);
        map_close(&map);
        if (r == 0 && json_is_object(q->errors)) return 0;
        if (r == 0) json_decref(q->errors);
    }
    q->errors = json_object();
    return q->errors ? 0 : error_set(err, -ENOMEM, "errors: out of memory");
}

static int write_errors(struct quantize *q, struct error *err) {
    char *text = json_dumps(q->errors, JSON_INDENT(1) | JSON_SORT_KEYS);
    if (!text) return error_set(err, -ENOMEM, "errors: out of memory");
    int r = checkpoint_writer_add_file(q->writer, errors_file, text, strlen(text), err);
    free(text);
    return r;
}

/* Whether an earlier run has made the whole block: the errors are written after its matrices. */
static bool block_is_made(const struct quantize *q, int layer) {
    for (int role = 0; role < ROLE_COUNT; role++) {
        int rows, cols;
        char name[QUANTIZE_NAME_SIZE];
        if (!model_linear_shape(q->model, (enum model_role)role, &rows, &cols)) continue;
        model_linear_name(q->model, layer, (enum model_role)role, name, sizeof name);
        if (!json_object_get(q->errors, name) || !parts_there(q->writer, name, &q->o.layer))
            return false;
    }
    return true;
}

double quantize_error_value(const struct quantize *q, const char *name, const char *key) {
    return json_number_value(json_object_get(json_object_get(q->errors, name), key));
}

static void show_matrix(const struct quantize *q, int layer, enum model_role role, bool resumed) {
    struct quantize_matrix m = {.layer = layer, .resumed = resumed};
    char name[QUANTIZE_NAME_SIZE];
    model_linear_shape(q->model, role, &m.rows, &m.cols);
    model_linear_name(q->model, layer, role, name, sizeof name);
    m.name = name;
    m.decibels = quantize_error_value(q, name, "decibels");
    if (q->events->matrix) q->events->matrix(q->events->arg, &m);
}

/* From now on the block runs on the coded matrix: as the dense one it stands for, which prompts run
 * fastest on, unless its inputs will be rounded. */
static int replace(struct quantize *q, int layer, enum model_role role,
                   const struct weight_view *coded, struct error *err) {
    if (q->o.act_bits < 16) {
        struct weight_view as_run = *coded;
        as_run.act_bits = q->o.act_bits;
        return model_replace_linear(q->model, layer, role, &as_run, err);
    }
    int r = weight_expand(coded, 0, coded->rows, q->w, err);
    if (r < 0) return r;
    struct weight_view view = {
        .type = DTYPE_F32, .rows = coded->rows, .cols = coded->cols, .data = q->w};
    return model_replace_linear(q->model, layer, role, &view, err);
}

static int store(struct quantize *q, const char *name, const struct layer_result *result,
                 struct error *err) {
    size_t saved = 0;
    const struct bcq_spec *spec = &result->view.spec;
    int r = parts_write(q->writer, name, result, q->o.codec, &saved, err);
    if (r < 0) return r;
    double less = 8.0 * (double)saved / ((double)spec->rows * (double)spec->cols);
    json_t *entry = json_pack("{s:f, s:f, s:f, s:f}", "decibels", result->decibels, "loss",
                              result->loss, "energy", result->energy, "bits_per_weight",
                              layer_bits_per_weight(result) - less);
    if (entry && saved) json_object_set_new(entry, "saved_bytes", json_integer((json_int_t)saved));
    if (!entry || json_object_set_new(q->errors, name, entry) < 0)
        return error_set(err, -ENOMEM, "errors: out of memory");
    return 0;
}

/* Lets a matrix go to the checkpoint, and the block run on it. */
static int finish_matrix(struct quantize *q, int layer, enum model_role role, struct error *err) {
    char name[QUANTIZE_NAME_SIZE];
    struct layer_result *result = &q->coded[role];
    model_linear_name(q->model, layer, role, name, sizeof name);
    int r = store(q, name, result, err);
    struct weight_view view = layer_view(result);
    if (r == 0 && !q->o.is_static) r = replace(q, layer, role, &view, err);
    layer_result_free(result);
    if (r < 0) return error_prefix(err, r, "%s", name);
    show_matrix(q, layer, role, false);
    return 0;
}

static int make_matrix(struct quantize *q, const struct layer_input *in,
                       const struct target *target, int layer, enum model_role role,
                       struct error *err) {
    char name[QUANTIZE_NAME_SIZE];
    int rows, cols, r = 0;
    const float *w = q->w;
    model_linear_shape(q->model, role, &rows, &cols);
    model_linear_name(q->model, layer, role, name, sizeof name);
    if (q->blockwise)
        w = blockwise_linear(q->blockwise, role);
    else
        r = model_read_linear(q->model, layer, role, q->w, err);
    if (r == 0 && target) {
        if (w != q->w) memcpy(q->w, w, (size_t)rows * (size_t)cols * sizeof *w);
        w = q->w;
        r = target_apply(target, q->w, rows, q->o.layer.n_threads, err);
    }
    struct layer_options o = q->o.layer;
    if (q->bits) o.bits = q->bits[layer * ROLE_COUNT + role];
    if (q->blockwise) o.row_weights = blockwise_row_weights(q->blockwise, role);
    if (q->blockwise) o.given = blockwise_given(q->blockwise, role);
    if (r == 0) r = layer_quantize(&q->coded[role], in, w, rows, &o, err);
    if (r < 0) return error_prefix(err, r, "%s", name);
    return q->blockwise ? 0 : finish_matrix(q, layer, role, err);
}

static int new_target(struct target **ret, const struct quantize *q, enum calibrate_input input,
                      const double *h, int n, struct error *err) {
    const double *cross = calibrate_cross(q->calibrate, input);
    struct target_way way = {q->o.target_share, target_ridge};
    int n_threads = q->o.layer.n_threads;
    if (!cross) return 0;
    if (q->o.target == QUANTIZE_BLOCK && input == INPUT_DOWN)
        return target_new_of_states(ret, h, cross, q->config->hidden, n, &way, n_threads, err);
    return target_new(ret, h, cross, n, &way, n_threads, err);
}

/* The matrices that read one input; the factor is theirs in common. */
static int make_input(struct quantize *q, int layer, enum calibrate_input input,
                      struct error *err) {
    struct layer_input *in = NULL;
    struct target *target = NULL;
    int n, r = 0;
    int other = q->blockwise ? blockwise_code(q->blockwise, input, q->coded, err) : 1;
    if (other <= 0) return other < 0 ? error_prefix(err, other, "block %d", layer) : 0;
    double *h = calibrate_moments(q->calibrate, input, &n);
    r = new_target(&target, q, input, h, n, err);
    if (r == 0) r = layer_input_new(&in, h, n, &q->o.layer, err);
    if (r < 0) {
        target_free(target);
        return error_prefix(err, r, "block %d", layer);
    }
    for (int role = 0; r == 0 && role < ROLE_COUNT; role++) {
        int rows, cols;
        if (calibrate_input_of((enum model_role)role) != input) continue;
        if (!model_linear_shape(q->model, (enum model_role)role, &rows, &cols)) continue;
        r = make_matrix(q, in, target, layer, (enum model_role)role, err);
    }
    layer_input_free(in);
    target_free(target);
    return r;
}

/* The block as a whole, before its matrices may go. */
static int finish_block(struct quantize *q, int layer, struct error *err) {
    int r = blockwise_codes(q->blockwise, q->coded, err);
    for (int role = 0; r == 0 && role < ROLE_COUNT; role++)
        if (q->coded[role].block) r = finish_matrix(q, layer, (enum model_role)role, err);
    return r == 0 ? blockwise_store(q->blockwise, q->writer, err) : r;
}

static int make_block(struct quantize *q, int layer, struct error *err) {
    /* Shares of the time, roughly: the forward pass a third, then the inputs. */
    int r = q->blockwise ? blockwise_input(q->blockwise, err) : 0;
    if (r == 0 && q->has_moments)
        r = quantize_load_moments(q, layer, err);
    else if (r == 0)
        r = calibrate_run(q->calibrate, layer, true, q->o.is_static, err);
    if (r == 0 && q->o.moments_folder && !q->has_moments) r = quantize_keep_moments(q, layer, err);
    if (r == 0 && q->blockwise) r = blockwise_transform(q->blockwise, err);
    for (int input = 0; r == 0 && input < INPUT_COUNT; input++) {
        quantize_progress(q, layer + 0.4 + 0.1 * input);
        r = make_input(q, layer, (enum calibrate_input)input, err);
    }
    if (r == 0 && q->blockwise) r = finish_block(q, layer, err);
    return r == 0 ? write_errors(q, err) : r;
}

static int restore_matrix(struct quantize *q, int layer, enum model_role role, struct error *err) {
    char name[QUANTIZE_NAME_SIZE];
    struct parts parts;
    int rows, cols;
    model_linear_shape(q->model, role, &rows, &cols);
    model_linear_name(q->model, layer, role, name, sizeof name);
    int r = parts_open(&parts, q->writer, name, rows, cols, &q->o.layer, err);
    if (r < 0) return error_prefix(err, r, "%s", name);
    r = replace(q, layer, role, &parts.view, err);
    parts_close(&parts);
    return r < 0 ? error_prefix(err, r, "%s", name) : 0;
}

/* A block that is there already only has to move the states on. */
static int restore_block(struct quantize *q, int layer, struct error *err) {
    int r = 0;
    for (int role = 0; r == 0 && role < ROLE_COUNT; role++) {
        int rows, cols;
        if (!model_linear_shape(q->model, (enum model_role)role, &rows, &cols)) continue;
        if (!q->o.is_static) r = restore_matrix(q, layer, (enum model_role)role, err);
        if (r == 0) show_matrix(q, layer, (enum model_role)role, true);
    }
    return r == 0 && q->blockwise ? blockwise_restore(q->blockwise, q->writer, err) : r;
}

/* A block of another part only moves the states on. */
static int do_block(struct quantize *q, int layer, struct error *err) {
    bool last = layer + 1 == q->shard.end, ours = layer >= q->shard.first;
    bool made = ours && block_is_made(q, layer);
    int r = model_load_layer(q->model, layer, err);
    if (r == 0 && q->blockwise) r = blockwise_begin(q->blockwise, layer, err);
    /* Making a block takes the reference along. */
    if (r == 0 && (made || !ours)) r = calibrate_run_reference(q->calibrate, layer, err);
    if (r < 0) return r;
    if (ours) r = made ? restore_block(q, layer, err) : make_block(q, layer, err);
    /* With static inputs the pass that collected has moved the states as well. */
    bool moved = q->has_moments || (q->o.is_static && ours && !made);
    if (r == 0 && !last && !moved) r = calibrate_run(q->calibrate, layer, false, true, err);
    model_drop_layer(q->model, layer);
    if (q->blockwise) blockwise_end(q->blockwise);
    if (r == 0) quantize_progress(q, layer + 1);
    return r;
}

int quantize_blocks(struct quantize *q, struct error *err) {
    int r = read_errors(q, err);
    for (int layer = 0; r == 0 && layer < q->shard.end; layer++) {
        if (q->o.stop_after > 0 && layer - q->shard.first >= q->o.stop_after)
            return error_set(err, -ECANCELED, "stopped after %d blocks, as asked", q->o.stop_after);
        r = do_block(q, layer, err);
    }
    return r;
}
