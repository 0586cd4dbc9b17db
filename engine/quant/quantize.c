#include "engine/quant/quantize.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/checkpoint_writer.h"
#include "engine/config.h"
#include "engine/quant/blockwise.h"
#include "engine/quant/calibrate.h"
#include "engine/quant/carry.h"
#include "engine/quant/examine.h"
#include "engine/quant/linalg.h"
#include "engine/quant/output.h"
#include "engine/quant/quantize_state.h"
#include "engine/quant/shard.h"
#include "engine/sha256.h"
#include "engine/source.h"
#include "engine/source_text.h"
#include "engine/text_file.h"
#include "engine/tokenizer.h"
#include "kernels/error.h"

void quantize_note(const struct quantize *q, const char *text) {
    if (q->events->note) q->events->note(q->events->arg, text);
}

void quantize_progress(const struct quantize *q, double done) {
    if (q->events->progress)
        q->events->progress(q->events->arg, QUANTIZE_BLOCKS, done, (double)q->config->n_layers);
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
        quantize_note(q, line);
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
    quantize_note(q, "no calibration text was given: the model writes its own");
    int r = model_open(&full, q->backend, q->src, &options, err);
    if (r == 0) r = calibrate_generate(q->tokens, full, &text, err);
    model_close(full);
    return r;
}

void quantize_tokens_hash(const struct quantize *q, char hex[SHA256_HEX]) {
    struct sha256 sum;
    sha256_init(&sum);
    sha256_add(&sum, q->tokens, (size_t)q->o.windows * (size_t)q->o.ctx * sizeof *q->tokens);
    sha256_end(&sum, hex);
}

/* What tells this calibration text from others: its tokens, or what it will be drawn with. */
static json_t *text_identity(const struct quantize *q) {
    char hex[SHA256_HEX];
    if (!q->o.calibration) return json_sprintf("seed %llu", (unsigned long long)q->o.seed);
    quantize_tokens_hash(q, hex);
    return json_string(hex);
}

/* The settings, the source's bytes and the calibration text make a run what it is. */
static int open_writer(struct quantize *q, const char *out, struct error *err) {
    char model[SHA256_HEX];
    source_hash(q->src, model);
    json_t *o = quantize_describe(q);
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

static enum moments_reference reference_of(const struct quantize *q) {
    static const enum moments_reference of[] = {[QUANTIZE_WEIGHTS] = MOMENTS_ALONE,
                                                [QUANTIZE_OUTPUT] = MOMENTS_INPUTS,
                                                [QUANTIZE_BLOCK] = MOMENTS_STATES};
    return of[q->o.target];
}

static int moments_bits(const struct quantize *q) {
    return q->o.moments == QUANTIZE_MOMENTS_ROUNDED ? q->o.act_bits : 16;
}

static int open_model(struct quantize *q, struct error *err) {
    int n_streams = reference_of(q) == MOMENTS_ALONE ? 1 : 2;
    struct model_options options = {.kv_type = DTYPE_F32,
                                    .max_batch_tokens = CALIBRATE_BATCH,
                                    .max_logit_rows = 1,
                                    .n_kv_blocks = n_streams * calibrate_kv_blocks(q->o.ctx),
                                    .layers_on_demand = true};
    struct calibrate_options states = {.n_threads = q->o.layer.n_threads,
                                       .reference = reference_of(q),
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
    if (r == 0 && q->o.moments_folder) r = quantize_find_moments(q, err);
    if (r < 0 || !blockwise_wanted(&q->o.blockwise)) return r;
    struct blockwise_setup setup = {.model = q->model,
                                    .source = q->src,
                                    .calibrate = q->calibrate,
                                    .tokens = q->tokens,
                                    .options = &q->o.blockwise,
                                    .layer = &q->o.layer,
                                    .bits = q->bits,
                                    .is_static = q->o.is_static,
                                    .memory = q->o.state_memory};
    return blockwise_open(&q->blockwise, &setup, err);
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
    if (r == 0 && sensitivity_wanted(&q->o.mixed)) r = choose_bits(q, err);
    if (r == 0) r = open_model(q, err);
    if (r == 0 && q->o.calibration) r = examine_layers(q->model, q->config->n_layers, err);
    return r;
}

/* Of a part, the one that has what belongs to no block. */
static int make_output(struct quantize *q, struct error *err) {
    char name[QUANTIZE_NAME_SIZE], line[QUANTIZE_NAME_SIZE + 96];
    struct output_result made;
    model_output_name(q->model, name, sizeof name);
    if (q->o.output_bits >= 16 || !shard_owns(&q->shard, name)) return 0;
    int r =
        output_write(&made, q->writer, q->src, name, q->o.output_bits, q->o.layer.n_threads, err);
    if (r < 0) return r;
    snprintf(line, sizeof line, "output matrix %s [%d, %d]: %.2f bits per weight", name, made.rows,
             made.cols, made.bits_per_weight);
    if (made.decibels < 0.0)
        snprintf(line + strlen(line), sizeof line - strlen(line), ", %.2f dB of its weights",
                 made.decibels);
    quantize_note(q, line);
    return 0;
}

int quantize_run(struct quantize_summary *ret, const char *out, struct source *src,
                 const struct quantize_options *options, const struct quantize_events *events,
                 struct error *err) {
    struct quantize_summary summary;
    struct quantize q = {.src = src, .config = source_config(src), .o = *options, .events = events};
    linalg_init();
    int r = quantize_settle(&q, err);
    if (r == 0) r = backend_open(&q.backend, &q.o.backend, err);
    if (r == 0) r = prepare(&q, out, err);
    if (r == 0) r = quantize_blocks(&q, err);
    if (r == 0) r = make_output(&q, err);
    if (r == 0) r = carry_tensors(q.writer, src, quantize_leaves_out, &q, err);
    if (r == 0) {
        quantize_summarize(&q, &summary);
        quantize_note_saved(&q, &summary);
        r = quantize_write_texts(&q, &summary, err);
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
