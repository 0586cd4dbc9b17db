#include "engine/quant/quantize.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/checkpoint_writer.h"
#include "engine/config.h"
#include "engine/json_guard.h"
#include "engine/map.h"
#include "engine/model_arch.h"
#include "engine/quant/blockwise.h"
#include "engine/quant/calibrate.h"
#include "engine/quant/carry.h"
#include "engine/quant/codebook.h"
#include "engine/quant/examine.h"
#include "engine/quant/linalg.h"
#include "engine/quant/parallel.h"
#include "engine/quant/parts.h"
#include "engine/quant/shard.h"
#include "engine/quant/summary.h"
#include "engine/quant/target.h"
#include "engine/quant/texts.h"
#include "engine/sha256.h"
#include "engine/source.h"
#include "engine/source_text.h"
#include "engine/text_file.h"
#include "engine/tokenizer.h"
#include "kernels/error.h"
#include "kernels/expand.h"

enum { NAME_SIZE = 192, TEXT_CTX = 1024, OWN_CTX = 512, WINDOWS = 64, MAX_WINDOWS = 1 << 16 };

/* 0.05 of the mean diagonal, as in the recipe of our prototype; a tenth of it overfits. */
static const double target_ridge = 0.05;

/* Kept beside the tensors while blocks are made, and part of the checkpoint in the end. */
static const char errors_file[] = "layer_errors.json";

struct quantize {
    struct source *src;
    const struct model_config *config;
    struct quantize_options o; /* with every default put in */
    const struct quantize_events *events;
    struct backend *backend;
    struct model *model;
    struct checkpoint_writer *writer;
    struct calibrate *calibrate;
    int32_t *tokens;             /* (windows, ctx) */
    float *w;                    /* the largest matrix */
    struct blockwise *blockwise; /* NULL: no method looks at whole blocks */
    struct layer_result coded[ROLE_COUNT];
    json_t *errors; /* matrix name -> {decibels, loss, energy, bits_per_weight} */
    struct shard shard;
    int *bits; /* (n_layers, ROLE_COUNT) of each matrix; NULL: layer.bits */
};

const char *quantize_method_name(enum layer_method method) {
    static const char *const names[] = {"rtn", "gptq", "bcq", "gptq-bcq", "gptqt"};
    return (size_t)method < sizeof names / sizeof *names ? names[method] : NULL;
}

const char *quantize_kind_name(enum bcq_kind kind) {
    static const char *const names[] = {"", "compact", "compact-group", "free"};
    return (size_t)kind < sizeof names / sizeof *names ? names[kind] : NULL;
}

const char *quantize_weighting_name(enum layer_weighting weighting) {
    static const char *const names[] = {"diag", "none", "u"};
    return (size_t)weighting < sizeof names / sizeof *names ? names[weighting] : NULL;
}

const char *quantize_target_name(enum quantize_target target) {
    static const char *const names[] = {"weights", "output"};
    return (size_t)target < sizeof names / sizeof *names ? names[target] : NULL;
}

const char *quantize_tokens_name(enum moments_tokens tokens) {
    static const char *const names[] = {"equal", "state"};
    return (size_t)tokens < sizeof names / sizeof *names ? names[tokens] : NULL;
}

const char *quantize_moments_name(enum quantize_moments moments) {
    static const char *const names[] = {"auto", "plain", "rounded"};
    return (size_t)moments < sizeof names / sizeof *names ? names[moments] : NULL;
}

const char *quantize_incoherence_name(enum layer_incoherence incoherence) {
    static const char *const names[] = {"none", "input", "both"};
    return (size_t)incoherence < sizeof names / sizeof *names ? names[incoherence] : NULL;
}

const char *quantize_role_name(enum model_role role) {
    static const char *const names[] = {"q", "k", "v", "o", "gate", "up", "down"};
    return (size_t)role < sizeof names / sizeof *names ? names[role] : NULL;
}

void quantize_defaults(struct quantize_options *o) {
    *o = (struct quantize_options){0};
    layer_defaults(&o->layer);
}

static void note(const struct quantize *q, const char *text) {
    if (q->events->note) q->events->note(q->events->arg, text);
}

static void progress(const struct quantize *q, double done) {
    if (q->events->progress)
        q->events->progress(q->events->arg, QUANTIZE_BLOCKS, done, (double)q->config->n_layers);
}

static int settle_shard(struct quantize *q, struct error *err) {
    const struct quantize_options *o = &q->o;
    int n = q->config->n_layers;
    q->shard = (struct shard){o->first_block, o->end_block ? o->end_block : n, n};
    int r = shard_check(&q->shard, err);
    if (r == 0 && !shard_is_whole(&q->shard) && !o->is_static)
        r = error_set(err, -EINVAL,
                      "layers: without static inputs a block is quantized on what the "
                      "coded blocks before it give, so it cannot be made on its own");
    if (r == 0 && !shard_is_whole(&q->shard) && o->mixed.budget > 0.0)
        r = error_set(err, -EINVAL,
                      "layers: the bits of a mixed model depend on all of its blocks");
    if (r == 0 && !shard_is_whole(&q->shard) && blockwise_wanted(&o->blockwise))
        r = error_set(
            err, -EINVAL,
            "layers: norm-tweak and learn-transform follow a block's output into the next");
    return r;
}

/* Puts the defaults in and refuses what cannot be. */
static int settle_options(struct quantize *q, struct error *err) {
    struct quantize_options *o = &q->o;
    int r = layer_check(&o->layer, err);
    if (r == 0 && o->codec == PARTS_PVQ && o->layer.kind == BCQ_FREE)
        r = error_set(err, -EINVAL,
                      "codec pvq: params free stores fp16 scales, which are no vectors "
                      "of small integers");
    if (r == 0) r = sensitivity_check(&o->mixed, &o->layer, err);
    if (r == 0 && o->mixed.budget > 0.0 &&
        (o->blockwise.transform != TRANSFORM_NONE || o->blockwise.clip_epochs > 0))
        r = error_set(err, -EINVAL,
                      "mixed: learn-transform and learn-clip fit scales for one number of bits");
    if (r == 0) r = blockwise_check(&o->blockwise, &o->layer, o->is_static, err);
    if (r == 0)
        r = blockwise_check_moments(&o->blockwise, o->target == QUANTIZE_OUTPUT,
                                    o->tokens != MOMENTS_EQUAL, err);
    if (r < 0) return r;
    o->layer.n_threads = parallel_threads(o->layer.n_threads);
    o->backend.n_threads = o->layer.n_threads;
    /* A checkpoint is the same bytes on a machine with a GPU as on one without. */
    if (!o->backend.name) o->backend.name = "cpu";
    int limit = q->config->max_positions, ctx = o->calibration ? TEXT_CTX : OWN_CTX;
    if (o->ctx == 0) o->ctx = ctx < limit ? ctx : limit;
    if (o->ctx < 2 || o->ctx > limit)
        return error_set(err, -EINVAL, "ctx: %d is not in 2..%d, the model's positions", o->ctx,
                         limit);
    if (o->windows == 0) o->windows = WINDOWS;
    if (o->windows < 1 || o->windows > MAX_WINDOWS)
        return error_set(err, -EINVAL, "windows: %d is not in 1..%d", o->windows, MAX_WINDOWS);
    if (o->target == QUANTIZE_OUTPUT && o->is_static)
        return error_set(err, -EINVAL,
                         "target output: static inputs are the original's own, nothing can differ");
    if (o->target == QUANTIZE_OUTPUT && o->blockwise.transform != TRANSFORM_NONE)
        return error_set(err, -EINVAL,
                         "target output: learn-transform scales inputs, the original's stay");
    if (o->act_bits == 0) o->act_bits = 16;
    if (o->act_bits != 16 && o->act_bits != 8 && o->act_bits != 4)
        return error_set(err, -EINVAL, "act bits: %d is not 16, 8 or 4", o->act_bits);
    if (o->act_bits == 16 && o->moments != QUANTIZE_MOMENTS_DEFAULT)
        return error_set(err, -EINVAL, "act moments: nothing is rounded at 16 act bits");
    if (o->moments == QUANTIZE_MOMENTS_DEFAULT)
        o->moments = o->act_bits == 8 && o->layer.incoherence == LAYER_NATURAL
                         ? QUANTIZE_MOMENTS_ROUNDED
                         : QUANTIZE_MOMENTS_PLAIN;
    if (o->moments == QUANTIZE_MOMENTS_ROUNDED && o->layer.incoherence != LAYER_NATURAL)
        return error_set(
            err, -EINVAL,
            "act moments rounded: with incoherence it is turned inputs that are rounded");
    if (o->state_memory == 0) o->state_memory = (size_t)2 << 30;
    r = settle_shard(q, err);
    if (r < 0) return r;
    for (size_t i = 0; i < source_count(q->src); i++)
        if (source_at(q->src, i)->is_bcq)
            return error_set(err, -ENOTSUP, "tensor '%s': the model is binary-coded already",
                             source_at(q->src, i)->name);
    return 0;
}

static int tokens_from_file(struct quantize *q, struct error *err) {
    struct tokenizer *t = NULL;
    char *text = NULL;
    int32_t *ids = NULL;
    size_t n_text, n_ids = 0;
    int r = text_file_read(&text, &n_text, q->o.calibration, err);
    if (r == 0) r = source_text_tokenizer(&t, q->src, err);
    if (r == 0) r = tokenizer_encode(t, text, n_text, 0, &ids, &n_ids, err);
    for (size_t i = 0; r == 0 && i < n_ids; i++)
        if (ids[i] < 0 || ids[i] >= q->config->vocab)
            r = error_set(err, -EINVAL, "calibration text: token %d is not in the model's %d",
                          (int)ids[i], q->config->vocab);
    int asked = q->o.windows;
    if (r == 0) r = calibrate_spread(q->tokens, &q->o.windows, q->o.ctx, ids, n_ids, err);
    if (r == 0 && q->o.windows < asked) {
        char line[160];
        snprintf(line, sizeof line, "the calibration text has %zu tokens: %d windows of %d", n_ids,
                 q->o.windows, q->o.ctx);
        note(q, line);
    }
    free(ids);
    free(text);
    tokenizer_free(t);
    return r;
}

static void text_progress(void *arg, int64_t done, int64_t total) {
    const struct quantize *q = arg;
    if (q->events->progress)
        q->events->progress(q->events->arg, QUANTIZE_WRITING_TEXT, (double)done, (double)total);
}

static int tokens_from_model(struct quantize *q, struct error *err) {
    const struct model_config *c = q->config;
    struct model *full = NULL;
    struct model_options options = {.kv_type = DTYPE_F32,
                                    .max_batch_tokens = CALIBRATE_SEQUENCES,
                                    .max_logit_rows = CALIBRATE_SEQUENCES,
                                    .n_kv_blocks = calibrate_generate_blocks(q->o.ctx)};
    struct calibrate_text text = {.n_windows = q->o.windows,
                                  .ctx = q->o.ctx,
                                  .start = c->bos >= 0 ? c->bos
                                           : c->n_eos  ? c->eos[0]
                                                       : 0,
                                  .seed = q->o.seed,
                                  .progress = text_progress,
                                  .progress_arg = q};
    note(q, "no calibration text was given: the model writes its own");
    int r = model_open(&full, q->backend, q->src, &options, err);
    if (r == 0) r = calibrate_generate(q->tokens, full, &text, err);
    model_close(full);
    return r;
}

static json_t *describe_mixed(const struct sensitivity_options *o) {
    return json_pack("{s:f, s:s, s:s}", "budget", o->budget, "by", sensitivity_by_name(o->by),
                     "per", sensitivity_per_name(o->per));
}

/* The settings that a reader may want to know; all that decide about the codes. */
static json_t *describe(const struct quantize *q) {
    const struct layer_options *l = &q->o.layer;
    bool compact = l->kind != BCQ_FREE, gptqt = l->method == LAYER_GPTQT;
    json_t *o = json_pack(
        "{s:s, s:s, s:i, s:i, s:s}", "quant_method", "gptqt", "method",
        quantize_method_name(l->method), "bits", l->bits, "group_size", l->group, "params",
        l->kind == BCQ_COMPACT_GROUP ? "compact_group" : quantize_kind_name(l->kind));
    if (!o) return NULL;
    if (compact) json_object_set_new(o, "scale_bits", json_integer(l->scale_bits));
    if (compact) json_object_set_new(o, "bias_bits", json_integer(l->bias_bits));
    if (gptqt) {
        int step = l->step_bits ? l->step_bits : codebook_step_bits(l->bits);
        json_object_set_new(o, "step_bits", json_integer(step));
        json_object_set_new(o, "ranges", json_integer(l->n_ranges));
        json_object_set_new(o, "explore", json_integer(l->explore));
        json_object_set_new(o, "asymmetric", json_boolean(l->asymmetric));
    } else {
        json_object_set_new(o, "min_mse", json_boolean(l->min_mse));
        json_object_set_new(o, "bcq_bias", json_boolean(l->bcq_bias));
    }
    if (l->pow2) json_object_set_new(o, "pow2", json_true());
    json_object_set_new(o, "act_bits", json_integer(q->o.act_bits));
    if (q->o.act_bits < 16)
        json_object_set_new(o, "act_moments", json_string(quantize_moments_name(q->o.moments)));
    json_object_set_new(o, "weighting", json_string(quantize_weighting_name(l->weighting)));
    json_object_set_new(o, "act_order", json_boolean(l->act_order));
    if (l->group_order) json_object_set_new(o, "group_order", json_true());
    json_object_set_new(o, "damp", json_real(l->damp));
    json_object_set_new(o, "codes", json_string(codes_name(l->codes.search)));
    if (l->codes.search == CODES_BEAM || l->codes.search == CODES_ADDITIVE)
        json_object_set_new(o, "beam", json_integer(l->codes.beam));
    json_object_set_new(o, "refine", json_integer(l->refine));
    if (l->incoherence != LAYER_NATURAL)
        json_object_set_new(o, "incoherence",
                            json_string(quantize_incoherence_name(l->incoherence)));
    if (l->outliers > 0.0) json_object_set_new(o, "outliers", json_real(l->outliers));
    if (l->whole_outliers) json_object_set_new(o, "outlier_form", json_string("columns"));
    blockwise_describe(&q->o.blockwise, o);
    if (q->o.codec != PARTS_PLAIN)
        json_object_set_new(o, "codec", json_string(parts_codec_name(q->o.codec)));
    if (q->o.mixed.budget > 0.0) json_object_set_new(o, "mixed", describe_mixed(&q->o.mixed));
    json_object_set_new(o, "calibration",
                        json_pack("{s:s, s:i, s:i, s:b}", "text",
                                  q->o.calibration ? "file" : "self-generated", "windows",
                                  q->o.windows, "ctx", q->o.ctx, "static", (int)q->o.is_static));
    json_object_set_new(o, "target", json_string(quantize_target_name(q->o.target)));
    json_object_set_new(o, "tokens_weigh", json_string(quantize_tokens_name(q->o.tokens)));
    return o;
}

static void tokens_hash(const struct quantize *q, char hex[SHA256_HEX]) {
    struct sha256 sum;
    sha256_init(&sum);
    sha256_add(&sum, q->tokens, (size_t)q->o.windows * (size_t)q->o.ctx * sizeof *q->tokens);
    sha256_end(&sum, hex);
}

/* What tells this calibration text from others: its tokens, or what it will be drawn with. */
static json_t *text_identity(const struct quantize *q) {
    char hex[SHA256_HEX];
    if (!q->o.calibration) return json_sprintf("seed %llu", (unsigned long long)q->o.seed);
    tokens_hash(q, hex);
    return json_string(hex);
}

/* The settings, the source's bytes and the calibration text make a run what it is. */
static int open_writer(struct quantize *q, const char *out, struct error *err) {
    char model[SHA256_HEX];
    source_hash(q->src, model);
    json_t *o = describe(q);
    json_object_set_new(o, "model", json_string(model));
    json_object_set_new(o, "tokens", text_identity(q));
    json_object_set_new(o, "version", json_string(GPTQT_VERSION));
    if (!shard_is_whole(&q->shard))
        json_object_set_new(o, "layers", json_pack("[i, i]", q->shard.first, q->shard.end));
    char *settings = o ? json_dumps(o, JSON_INDENT(1)) : NULL;
    json_decref(o);
    if (!settings) return error_set(err, -ENOMEM, "settings: out of memory");
    struct checkpoint_writer_options options = {.settings = settings, .force = q->o.force};
    int r = checkpoint_writer_open(&q->writer, out, &options, err);
    free(settings);
    return r;
}

static bool has_reference(const struct quantize *q) { return q->o.target == QUANTIZE_OUTPUT; }

static int moments_bits(const struct quantize *q) {
    return q->o.moments == QUANTIZE_MOMENTS_ROUNDED ? q->o.act_bits : 16;
}

static int open_model(struct quantize *q, struct error *err) {
    struct model_options options = {.kv_type = DTYPE_F32,
                                    .max_batch_tokens = CALIBRATE_BATCH,
                                    .max_logit_rows = 1,
                                    .n_kv_blocks =
                                        (has_reference(q) ? 2 : 1) * calibrate_kv_blocks(q->o.ctx),
                                    .layers_on_demand = true};
    struct calibrate_options states = {.n_threads = q->o.layer.n_threads,
                                       .has_reference = has_reference(q),
                                       .tokens = q->o.tokens,
                                       .memory = q->o.state_memory,
                                       .act_bits = moments_bits(q)};
    size_t largest = 1;
    int r = model_open(&q->model, q->backend, q->src, &options, err);
    if (r < 0) return r;
    for (int role = 0; role < ROLE_COUNT; role++) {
        int rows, cols;
        if (!model_linear_shape(q->model, (enum model_role)role, &rows, &cols)) continue;
        size_t n = (size_t)rows * (size_t)cols;
        if (n > largest) largest = n;
    }
    q->w = malloc(largest * sizeof *q->w);
    if (!q->w) return error_set(err, -ENOMEM, "weights: out of memory");
    r = calibrate_open(&q->calibrate, q->model, q->tokens, q->o.windows, q->o.ctx, &states, err);
    if (r < 0 || !blockwise_wanted(&q->o.blockwise)) return r;
    struct blockwise_setup setup = {.model = q->model,
                                    .source = q->src,
                                    .calibrate = q->calibrate,
                                    .tokens = q->tokens,
                                    .options = &q->o.blockwise,
                                    .layer = &q->o.layer,
                                    .is_static = q->o.is_static,
                                    .memory = q->o.state_memory};
    return blockwise_open(&q->blockwise, &setup, err);
}

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
        char name[NAME_SIZE];
        if (!model_linear_shape(q->model, (enum model_role)role, &rows, &cols)) continue;
        model_linear_name(q->model, layer, (enum model_role)role, name, sizeof name);
        if (!json_object_get(q->errors, name) || !parts_there(q->writer, name, &q->o.layer))
            return false;
    }
    return true;
}

static double error_value(const struct quantize *q, const char *name, const char *key) {
    return json_number_value(json_object_get(json_object_get(q->errors, name), key));
}

static void show_matrix(const struct quantize *q, int layer, enum model_role role, bool resumed) {
    struct quantize_matrix m = {.layer = layer, .resumed = resumed};
    char name[NAME_SIZE];
    model_linear_shape(q->model, role, &m.rows, &m.cols);
    model_linear_name(q->model, layer, role, name, sizeof name);
    m.name = name;
    m.decibels = error_value(q, name, "decibels");
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
    char name[NAME_SIZE];
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
    char name[NAME_SIZE];
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

/* The matrices that read one input; the factor is theirs in common. */
static int make_input(struct quantize *q, int layer, enum calibrate_input input,
                      struct error *err) {
    struct layer_input *in = NULL;
    struct target *target = NULL;
    int n, r = 0;
    int other = q->blockwise ? blockwise_code(q->blockwise, input, q->coded, err) : 1;
    if (other <= 0) return other < 0 ? error_prefix(err, other, "block %d", layer) : 0;
    double *h = calibrate_moments(q->calibrate, input, &n);
    const double *cross = calibrate_cross(q->calibrate, input);
    if (cross) r = target_new(&target, h, cross, n, target_ridge, q->o.layer.n_threads, err);
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
    if (r == 0) r = calibrate_run(q->calibrate, layer, true, q->o.is_static, err);
    if (r == 0 && q->blockwise) r = blockwise_transform(q->blockwise, err);
    for (int input = 0; r == 0 && input < INPUT_COUNT; input++) {
        progress(q, layer + 0.4 + 0.1 * input);
        r = make_input(q, layer, (enum calibrate_input)input, err);
    }
    if (r == 0 && q->blockwise) r = finish_block(q, layer, err);
    return r == 0 ? write_errors(q, err) : r;
}

static int restore_matrix(struct quantize *q, int layer, enum model_role role, struct error *err) {
    char name[NAME_SIZE];
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
    bool moved = q->o.is_static && ours && !made;
    if (r == 0 && !last && !moved) r = calibrate_run(q->calibrate, layer, false, true, err);
    model_drop_layer(q->model, layer);
    if (q->blockwise) blockwise_end(q->blockwise);
    if (r == 0) progress(q, layer + 1);
    return r;
}

static int do_blocks(struct quantize *q, struct error *err) {
    int r = read_errors(q, err);
    for (int layer = 0; r == 0 && layer < q->shard.end; layer++) {
        if (q->o.stop_after > 0 && layer - q->shard.first >= q->o.stop_after)
            return error_set(err, -ECANCELED, "stopped after %d blocks, as asked", q->o.stop_after);
        r = do_block(q, layer, err);
    }
    return r;
}

static bool ends_with(const char *text, const char *end) {
    size_t n = strlen(text), m = strlen(end);
    return n >= m && !strcmp(text + n - m, end);
}

/* Whether a tensor is what a fused pattern ("h.%d.x") names in some block, under any prefix. */
static bool is_fused_weight(const struct quantize *q, const char *name) {
    const struct arch_row *arch = model_arch_find(q->config->arch);
    if (!arch || !arch->fused_qkv) return false;
    const char *hole = strstr(arch->fused_qkv, "%d");
    if (!hole) return false;
    for (int layer = 0; layer < q->config->n_layers; layer++) {
        char full[NAME_SIZE];
        snprintf(full, sizeof full, "%.*s%d%s.weight", (int)(hole - arch->fused_qkv),
                 arch->fused_qkv, layer, hole + 2);
        if (ends_with(name, full)) return true;
    }
    return false;
}

/* Tensors whose place the coded matrices take, that nothing reads or that another part has. */
static bool is_left_out(void *arg, const char *name) {
    const struct quantize *q = arg;
    char linear[NAME_SIZE];
    if (!shard_owns(&q->shard, name)) return true;
    if (q->config->tie_embeddings && !strcmp(name, "lm_head.weight")) return true;
    if (!strcmp(name, "rope_freqs.weight")) return true; /* in the config from now on */
    if (!ends_with(name, ".weight")) return false;
    size_t n = strlen(name) - strlen(".weight");
    for (int layer = 0; layer < q->config->n_layers; layer++) {
        for (int role = 0; role < ROLE_COUNT; role++) {
            int rows, cols;
            if (!model_linear_shape(q->model, (enum model_role)role, &rows, &cols)) continue;
            model_linear_name(q->model, layer, (enum model_role)role, linear, sizeof linear);
            if (strlen(linear) == n && !memcmp(linear, name, n)) return true;
        }
    }
    return is_fused_weight(q, name);
}

/* Calls visit for the matrices that were made: role by role, block by block. */
static void each_matrix(const struct quantize *q,
                        void (*visit)(const struct quantize *q, enum model_role role, int layer,
                                      const char *name, void *arg),
                        void *arg) {
    for (int role = 0; role < ROLE_COUNT; role++) {
        int rows, cols;
        if (!model_linear_shape(q->model, (enum model_role)role, &rows, &cols)) continue;
        for (int layer = q->shard.first; layer < q->shard.end; layer++) {
            char name[NAME_SIZE];
            model_linear_name(q->model, layer, (enum model_role)role, name, sizeof name);
            visit(q, (enum model_role)role, layer, name, arg);
        }
    }
}

static void sum_matrix(const struct quantize *q, enum model_role role, int layer, const char *name,
                       void *arg) {
    int rows, cols;
    (void)layer;
    model_linear_shape(q->model, role, &rows, &cols);
    summary_add(arg, role, (int64_t)rows * cols, json_object_get(q->errors, name));
}

static void summarize(const struct quantize *q, struct quantize_summary *s) {
    *s = (struct quantize_summary){.n_layers = q->shard.end - q->shard.first,
                                   .windows = q->o.windows,
                                   .ctx = q->o.ctx,
                                   .own_text = !q->o.calibration};
    each_matrix(q, sum_matrix, s);
    summary_end(s);
}

static void list_matrix(const struct quantize *q, enum model_role role, int layer, const char *name,
                        void *arg) {
    (void)q;
    shard_add_matrix(arg, name, quantize_role_name(role), layer);
}

static json_t *describe_shard(const struct quantize *q) {
    char model[SHA256_HEX], tokens[SHA256_HEX];
    source_hash(q->src, model);
    tokens_hash(q, tokens);
    json_t *shard = shard_describe(&q->shard, model, tokens);
    each_matrix(q, list_matrix, shard);
    return shard;
}

static void list_bits(const struct quantize *q, enum model_role role, int layer, const char *name,
                      void *arg) {
    json_object_set_new(arg, name, json_integer(q->bits[layer * ROLE_COUNT + role]));
}

/* The bits that were chosen, and as the checkpoint's own those of most weights. */
static void describe_bits(const struct quantize *q, json_t *o) {
    double weights[BCQ_MAX_BITS + 1] = {0};
    int most = 1;
    json_t *list = json_object();
    each_matrix(q, list_bits, list);
    json_object_set_new(json_object_get(o, "mixed"), "bits", list);
    for (int i = 0; i < q->config->n_layers * ROLE_COUNT; i++) {
        int rows, cols;
        if (model_linear_shape(q->model, (enum model_role)(i % ROLE_COUNT), &rows, &cols))
            weights[q->bits[i]] += (double)rows * cols;
    }
    for (int bits = 2; bits <= BCQ_MAX_BITS; bits++)
        if (weights[bits] > weights[most]) most = bits;
    json_object_set_new(o, "bits", json_integer(most));
}

struct saved {
    double bytes;
    int matrices, of;
};

static void count_saved(const struct quantize *q, enum model_role role, int layer, const char *name,
                        void *arg) {
    struct saved *saved = arg;
    double bytes = error_value(q, name, "saved_bytes");
    (void)role;
    (void)layer;
    saved->bytes += bytes;
    saved->matrices += bytes > 0.0;
    saved->of++;
}

static void note_saved(const struct quantize *q, const struct quantize_summary *s) {
    struct saved saved = {0};
    char line[160];
    if (q->o.codec == PARTS_PLAIN) return;
    each_matrix(q, count_saved, &saved);
    snprintf(line, sizeof line,
             "codec %s saves %.0f bytes, %.4f bits per weight; %d of %d matrices are smaller so",
             parts_codec_name(q->o.codec), saved.bytes, 8.0 * saved.bytes / (double)s->n_weights,
             saved.matrices, saved.of);
    note(q, line);
}

static int write_texts(struct quantize *q, const struct quantize_summary *s, struct error *err) {
    json_t *o = describe(q);
    if (q->bits) describe_bits(q, o);
    if (shard_is_whole(&q->shard))
        summary_describe(o, s);
    else
        json_object_set_new(o, "shard", describe_shard(q));
    char *text = o ? json_dumps(o, JSON_COMPACT) : NULL;
    json_decref(o);
    int r = text ? texts_write(q->writer, q->src, text, err)
                 : error_set(err, -ENOMEM, "config: out of memory");
    free(text);
    return r;
}

static void sensitivity_progress(void *arg, double done, double total) {
    const struct quantize *q = arg;
    if (q->events->progress)
        q->events->progress(q->events->arg, QUANTIZE_SENSITIVITIES, done, total);
}

static int choose_bits(struct quantize *q, struct error *err) {
    struct sensitivity_job job = {.backend = q->backend,
                                  .source = q->src,
                                  .writer = q->writer,
                                  .options = &q->o.mixed,
                                  .layer = &q->o.layer,
                                  .tokens = q->tokens,
                                  .n_windows = q->o.windows,
                                  .ctx = q->o.ctx,
                                  .progress = sensitivity_progress,
                                  .arg = q};
    q->bits = calloc((size_t)q->config->n_layers * ROLE_COUNT, sizeof *q->bits);
    if (!q->bits) return error_set(err, -ENOMEM, "mixed: out of memory");
    return sensitivity_find(q->bits, &job, err);
}

/* The writer comes before the slow parts, so that a path that cannot be written shows at once. A
 * model that writes its own text has shown by then that it is whole. */
static int prepare(struct quantize *q, const char *out, struct error *err) {
    q->tokens = calloc((size_t)q->o.windows * (size_t)q->o.ctx, sizeof *q->tokens);
    if (!q->tokens) return error_set(err, -ENOMEM, "calibration: out of memory");
    int r = q->o.calibration ? tokens_from_file(q, err) : 0;
    if (r == 0) r = examine_values(q->src, err);
    if (r == 0) r = open_writer(q, out, err);
    if (r == 0 && !q->o.calibration) r = tokens_from_model(q, err);
    if (r == 0 && q->o.mixed.budget > 0.0) r = choose_bits(q, err);
    if (r == 0) r = open_model(q, err);
    if (r == 0 && q->o.calibration) r = examine_layers(q->model, q->config->n_layers, err);
    return r;
}

int quantize_run(struct quantize_summary *ret, const char *out, struct source *src,
                 const struct quantize_options *options, const struct quantize_events *events,
                 struct error *err) {
    struct quantize_summary summary;
    struct quantize q = {.src = src, .config = source_config(src), .o = *options, .events = events};
    linalg_init();
    int r = settle_options(&q, err);
    if (r == 0) r = backend_open(&q.backend, &q.o.backend, err);
    if (r == 0) r = prepare(&q, out, err);
    if (r == 0) r = do_blocks(&q, err);
    if (r == 0) r = carry_tensors(q.writer, src, is_left_out, &q, err);
    if (r == 0) {
        summarize(&q, &summary);
        note_saved(&q, &summary);
        r = write_texts(&q, &summary, err);
    }
    if (r == 0) r = checkpoint_writer_finish(q.writer, err);
    if (r == 0) *ret = summary;
    blockwise_close(q.blockwise);
    calibrate_close(q.calibrate);
    model_close(q.model);
    checkpoint_writer_close(q.writer);
    backend_close(q.backend);
    for (int role = 0; role < ROLE_COUNT; role++) layer_result_free(&q.coded[role]);
    json_decref(q.errors);
    free(q.tokens);
    free(q.bits);
    free(q.w);
    return r;
}
