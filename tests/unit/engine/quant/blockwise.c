/* Folding must not change what a model computes; fits against normal equations solved on the
 * spot; whole runs with the methods on, interrupted and not. */
#include "engine/quant/blockwise.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/config.h"
#include "engine/offline.h"
#include "engine/quant/fold.h"
#include "engine/quant/guide.h"
#include "engine/quant/norm_fit.h"
#include "engine/quant/quantize.h"
#include "engine/quant/stack.h"
#include "engine/source.h"
#include "engine/train/params.h"
#include "kernels/error.h"
#include "tests/support/offline_fixture.h"
#include "tests/support/scratch.h"
#include "tests/unit/engine/quant/support.h"

enum { TOKENS = 24 };

static const char *const models[] = {"models/llama-gqa",     "models/llama-mha",
                                     "models/llama-bias",    "models/opt-125m-like",
                                     "models/opt-350m-like", "models/bloom"};
enum { N_MODELS = sizeof models / sizeof *models };

static float *logits_of(struct offline *o, size_t *ret_n) {
    int32_t tokens[TOKENS], positions[TOKENS], seqs[TOKENS] = {0}, blocks[2] = {0, 1};
    struct error err;
    size_t vocab = (size_t)model_get_config(o->model)->vocab;
    float *logits = malloc(TOKENS * vocab * sizeof *logits);
    cr_assert(logits);
    for (int i = 0; i < TOKENS; i++) {
        tokens[i] = 20 + 9 * i;
        positions[i] = i;
    }
    struct batch batch = {.n_tokens = TOKENS,
                          .n_seqs = 1,
                          .tokens = tokens,
                          .positions = positions,
                          .seqs = seqs,
                          .blocks = blocks,
                          .max_blocks = 2};
    model_forward(o->model, &batch);
    cr_assert_eq(model_logits(o->model, logits, positions, TOKENS, &err), 0);
    *ret_n = TOKENS * vocab;
    return logits;
}

static float *vector_of(const struct params_block *p, int v) {
    float *const vectors[] = {p->norm_w[BLOCK_ATTN_NORM], p->norm_b[BLOCK_ATTN_NORM],
                              p->norm_w[BLOCK_FFN_NORM], p->norm_b[BLOCK_FFN_NORM]};
    return v < VECTOR_FINAL_NORM ? vectors[v] : v < VECTOR_BIAS ? NULL : p->bias[v - VECTOR_BIAS];
}

/* Folds random scales at every place of a block and lets the model run on the result. */
static int fold_block(struct offline *o, struct params *params, int layer, uint64_t *seed) {
    const struct model_config *c = model_get_config(o->model);
    struct params_block block = {0};
    bool marks[VECTOR_COUNT] = {false};
    struct error err;
    int places = 0;
    cr_assert_eq(params_block_read(&block, params, layer, &err), 0, "%s", err.text);
    for (int input = 0; input < INPUT_COUNT; input++) {
        int width = fold_width(c, (enum calibrate_input)input);
        if (!width) continue;
        float *s = malloc((size_t)width * sizeof *s);
        cr_assert(s);
        for (int i = 0; i < width; i++) s[i] = (float)exp(support_normal(seed));
        fold_apply(&block, c, (enum calibrate_input)input, s);
        fold_marks(&block, (enum calibrate_input)input, marks);
        free(s);
        places++;
    }
    for (int role = 0; role < ROLE_COUNT; role++) {
        struct weight_view view = {.type = DTYPE_F32, .data = block.linear[role]};
        if (!model_linear_shape(o->model, (enum model_role)role, &view.rows, &view.cols)) continue;
        cr_assert_eq(model_replace_linear(o->model, layer, (enum model_role)role, &view, &err), 0);
    }
    for (int v = 0; v < VECTOR_COUNT; v++)
        if (marks[v])
            cr_assert_eq(model_replace_vector(o->model, layer, (enum model_vector)v,
                                              vector_of(&block, v), &err),
                         0, "%s", err.text);
    params_block_free(&block);
    return places;
}

Test(fold, the_model_computes_what_it_did) {
    /* Places: with a norm of their own and with an activation that lets factors through. */
    static const int places[N_MODELS] = {4, 4, 4, 4, 2, 3};
    for (int i = 0; i < N_MODELS; i++) {
        struct offline o;
        struct params *params;
        struct error err;
        uint64_t seed = 5;
        size_t n;
        double worst = 0.0, moved = 0.0;
        offline_fixture_open(&o, models[i], TOKENS);
        float *before = logits_of(&o, &n);
        cr_assert_eq(params_open(&params, o.source, &err), 0, "%s", err.text);
        for (int layer = 0; layer < model_get_config(o.model)->n_layers; layer++)
            cr_assert_eq(fold_block(&o, params, layer, &seed), places[i], "%s", models[i]);
        float *after = logits_of(&o, &n);
        for (size_t k = 0; k < n; k++) {
            worst = fmax(worst, fabs((double)before[k] - (double)after[k]));
            moved += before[k] != after[k];
        }
        cr_assert_lt(worst, 1e-4, "%s: logits differ by %g", models[i], worst);
        cr_assert_gt(moved, 0.0, "%s: nothing was folded", models[i]);
        free(before);
        free(after);
        params_close(params);
        offline_close(&o);
    }
}

Test(fold, heads_that_share_values_share_scales) {
    struct model_config c = {.n_heads = 6, .n_kv_heads = 2, .head_dim = 4, .hidden = 24};
    cr_assert_eq(fold_width(&c, INPUT_O), 8);
    cr_assert_eq(fold_index(&c, INPUT_O, 0), 0);
    cr_assert_eq(fold_index(&c, INPUT_O, 11), 3, "head 2 reads the first value head");
    cr_assert_eq(fold_index(&c, INPUT_O, 13), 5, "head 3 reads the second");
    cr_assert_eq(fold_index(&c, INPUT_QKV, 13), 13);
    c.post_norm = true;
    cr_assert_eq(fold_width(&c, INPUT_QKV), 0);
    c.activation = ACT_GELU_TANH;
    cr_assert_eq(fold_width(&c, INPUT_DOWN), 0);
}

enum { ROWS = 200, WIDTH = 6 };

static void make_rows(float *now, float *wanted) {
    uint64_t seed = 3;
    for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < WIDTH; c++) {
            double x = 0.5 * c + support_normal(&seed);
            now[r * WIDTH + c] = c == 5 ? 0.25f : (float)x;
            wanted[r * WIDTH + c] =
                c == 5 ? 1.0f : (float)((0.7 + 0.1 * c) * x + 0.3 + 0.2 * support_normal(&seed));
        }
}

static double distance(const float *now, const float *wanted, int c, double factor, double offset) {
    double sum = 0.0;
    for (int r = 0; r < ROWS; r++) {
        double e = factor * (double)now[r * WIDTH + c] + offset - (double)wanted[r * WIDTH + c];
        sum += e * e;
    }
    return sum;
}

static void fit_rows(enum norm_fit_form form, bool has_bias, const float *now, const float *wanted,
                     float *factor, float *offset) {
    struct norm_fit *f;
    struct error err;
    cr_assert_eq(norm_fit_new(&f, WIDTH, &err), 0);
    norm_fit_add(f, now, wanted, 77);
    norm_fit_add(f, now + 77 * WIDTH, wanted + 77 * WIDTH, ROWS - 77);
    norm_fit_solve(f, form, has_bias, factor, offset);
    norm_fit_free(f);
}

Test(norm_fit, squares_are_the_least_of_a_fine_grid) {
    float now[ROWS * WIDTH], wanted[ROWS * WIDTH], factor[WIDTH], offset[WIDTH];
    make_rows(now, wanted);
    for (int bias = 0; bias < 2; bias++) {
        fit_rows(NORM_FIT_SQUARES, bias, now, wanted, factor, offset);
        for (int c = 0; c < WIDTH - 1; c++) {
            double least =
                distance(now, wanted, c, (double)factor[c], (double)offset[c]) * (1.0 - 1e-6);
            for (int i = -5; i <= 5; i++)
                for (int j = bias ? -5 : 0; j <= (bias ? 5 : 0); j++)
                    cr_assert_geq(distance(now, wanted, c, (double)factor[c] + 0.01 * i,
                                           (double)offset[c] + 0.01 * j),
                                  least);
        }
        cr_assert_eq(factor[5], bias ? 1.0f : 2.0f, "no spread, or a factor at its limit");
        cr_assert_float_eq(offset[5], bias ? 0.75f : 0.0f, 1e-6);
    }
}

Test(norm_fit, moments_become_the_wanted_ones) {
    float now[ROWS * WIDTH], wanted[ROWS * WIDTH], factor[WIDTH], offset[WIDTH];
    make_rows(now, wanted);
    fit_rows(NORM_FIT_MOMENTS, true, now, wanted, factor, offset);
    for (int c = 0; c < WIDTH; c++) {
        double sum[2] = {0}, square[2] = {0};
        for (int r = 0; r < ROWS; r++) {
            double x[2] = {(double)factor[c] * (double)now[r * WIDTH + c] + (double)offset[c],
                           (double)wanted[r * WIDTH + c]};
            for (int i = 0; i < 2; i++) {
                sum[i] += x[i] / ROWS;
                square[i] += x[i] * x[i] / ROWS;
            }
        }
        cr_assert_float_eq(sum[0], sum[1], 1e-5);
        cr_assert_float_eq(square[0] - sum[0] * sum[0], square[1] - sum[1] * sum[1], 1e-5);
    }
}

static void ignore_progress(void *arg, enum quantize_stage stage, double done, double total) {
    (void)arg, (void)stage, (void)done, (void)total;
}

static int run(const char *model, const char *out, const struct quantize_options *o,
               struct error *err) {
    char path[SCRATCH_PATH];
    struct source *src;
    struct quantize_summary summary;
    struct quantize_events events = {.progress = ignore_progress};
    int r = source_open(&src, model[0] == '/' ? model : scratch_fixture(path, model), err);
    if (r == 0) r = quantize_run(&summary, out, src, o, &events, err);
    source_close(src);
    return r;
}

static struct quantize_options quick(void) {
    struct quantize_options o;
    quantize_defaults(&o);
    o.layer.n_ranges = 4;
    o.layer.n_threads = 2;
    o.layer.bits = 2;
    o.windows = 16;
    o.ctx = 32;
    return o;
}

/* Whole, and in three runs with another number of threads: equal bytes, and a checkpoint that
 * opens with the vectors that were changed. */
static void check_run(const char *model, struct quantize_options o, const char *changed) {
    char folder[SCRATCH_PATH], whole[SCRATCH_PATH], broken[SCRATCH_PATH];
    struct source *src;
    struct source_tensor t;
    struct offline loaded;
    struct error err;
    scratch_make(folder);
    scratch_join(whole, folder, "whole");
    scratch_join(broken, folder, "broken");
    cr_assert_eq(run(model, whole, &o, &err), 0, "%s: %s", model, err.text);
    for (o.stop_after = 1; o.stop_after <= 2; o.stop_after++) {
        o.layer.n_threads = o.stop_after;
        int r = run(model, broken, &o, &err);
        cr_assert(r == -ECANCELED || r == 0, "%s: %s", model, err.text);
        if (r == 0) break;
    }
    o.stop_after = 0;
    cr_assert_eq(run(model, broken, &o, &err), 0, "%s: %s", model, err.text);
    cr_assert_geq(scratch_each(whole, scratch_see_same, broken), 3);
    cr_assert_eq(source_open(&src, whole, &err), 0, "%s", err.text);
    if (changed) {
        cr_assert_eq(source_find(src, changed, &t), 0, "%s: %s is missing", model, changed);
        cr_assert_str_eq(t.type_name, "F32");
    }
    struct offline_options options = {
        .backend = {.name = "cpu", .n_threads = 1},
        .model = {.kv_type = DTYPE_F32, .max_batch_tokens = TOKENS, .max_logit_rows = TOKENS},
        .context = TOKENS};
    cr_assert_eq(offline_open(&loaded, src, &options, &err), 0, "%s", err.text);
    offline_close(&loaded);
    scratch_remove(folder);
}

Test(blockwise, norm_tweak_is_resumed_to_the_same_bytes) {
    static const enum blockwise_tweak forms[] = {TWEAK_FIT, TWEAK_MOMENTS};
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        struct quantize_options o = quick();
        o.blockwise.tweak = forms[i];
        check_run("models/llama-gqa", o, "model.norm.weight");
        check_run("models/bloom", o, "ln_f.bias");
        check_run("models/opt-125m-like", o, "model.decoder.final_layer_norm.bias");
    }
}

Test(blockwise, learn_transform_is_resumed_to_the_same_bytes) {
    static const bool is_static[] = {false, true};
    for (size_t i = 0; i < sizeof is_static / sizeof *is_static; i++) {
        struct quantize_options o = quick();
        o.blockwise.transform = i ? TRANSFORM_TRAIN : TRANSFORM_GRID;
        o.is_static = is_static[i];
        check_run("models/llama-gqa", o, NULL);
        check_run("models/bloom", o, NULL);
        check_run("models/opt-350m-like", o, NULL);
    }
}

Test(blockwise, what_makes_no_sense_is_refused_with_the_reason) {
    struct quantize_options o = quick();
    struct error err;
    char folder[SCRATCH_PATH], out[SCRATCH_PATH];
    scratch_make(folder);
    scratch_join(out, folder, "out");
    o.blockwise.tweak = TWEAK_FIT;
    o.is_static = true;
    cr_assert_eq(run("models/llama-gqa", out, &o, &err), -EINVAL);
    cr_assert(strstr(err.text, "static"), "%s", err.text);
    o.is_static = false;
    cr_assert_eq(run("models/opt-350m-like", out, &o, &err), -EINVAL);
    cr_assert(strstr(err.text, "norm"), "%s", err.text);
    o.blockwise.tweak = TWEAK_NONE;
    o.blockwise.hessian = HESSIAN_GUIDED;
    o.layer.method = LAYER_RTN;
    cr_assert_eq(run("models/llama-gqa", out, &o, &err), -EINVAL);
    cr_assert(strstr(err.text, "column loop"), "%s", err.text);
    o.blockwise.hessian = HESSIAN_FISHER;
    o.layer.method = LAYER_GPTQ;
    cr_assert_eq(run("models/llama-gqa", out, &o, &err), -EINVAL);
    cr_assert(strstr(err.text, "codebook"), "%s", err.text);
    o = quick();
    o.blockwise.tune_epochs = 1;
    o.layer.outliers = 0.5;
    cr_assert_eq(run("models/llama-gqa", out, &o, &err), -EINVAL);
    cr_assert(strstr(err.text, "outliers"), "%s", err.text);
    o = quick();
    o.blockwise.transform = TRANSFORM_GRID;
    o.target = QUANTIZE_OUTPUT;
    cr_assert_eq(run("models/llama-gqa", out, &o, &err), -EINVAL);
    cr_assert(strstr(err.text, "target"), "%s", err.text);
    scratch_remove(folder);
}

Test(blockwise, options_that_cannot_meet_are_refused_with_both_names) {
    static const struct {
        struct blockwise_options b;
        struct layer_options l;
        const char *names[2];
    } bad[] = {
        {{.hessian = HESSIAN_FISHER}, {.incoherence = LAYER_TURN_INPUT}, {"fisher", "incoherence"}},
        {{.hessian = HESSIAN_FISHER}, {.incoherence = LAYER_TURN_BOTH}, {"fisher", "incoherence"}},
        {{.clip_epochs = 1}, {.pow2 = true}, {"learn-clip", "pow2"}},
        {{.tune_epochs = 1}, {.pow2 = true}, {"tune-block", "pow2"}},
        {{.clip_epochs = 1}, {.explore = 2}, {"learn-clip", "explore"}},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct layer_options l = quick().layer;
        struct error err;
        l.incoherence = bad[i].l.incoherence;
        l.pow2 = bad[i].l.pow2;
        l.explore = bad[i].l.explore;
        cr_assert_eq(layer_check(&l, &err), 0, "%s", err.text);
        cr_assert_eq(blockwise_check(&bad[i].b, &l, false, &err), -EINVAL, "%zu", i);
        cr_expect(strstr(err.text, bad[i].names[0]) && strstr(err.text, bad[i].names[1]), "%s",
                  err.text);
    }
}

/* Two pieces coded apart against the same rows coded as one: rows are independent given H. */
Test(stack, pieces_are_the_whole) {
    enum { HEIGHT = 96, COLS = 80, CUT = 40 };
    static const enum bcq_kind kinds[] = {BCQ_COMPACT, BCQ_COMPACT_GROUP, BCQ_FREE};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        struct layer_options o;
        struct layer_input *in;
        struct layer_result whole = {0}, pieces[2] = {{0}}, stacked = {0};
        struct error err;
        static float w[HEIGHT * COLS];
        static double h[COLS * COLS];
        layer_defaults(&o);
        o.kind = kinds[i];
        support_problem(11, HEIGHT, COLS, w, h);
        cr_assert_eq(layer_input_new(&in, h, COLS, &o, &err), 0, "%s", err.text);
        cr_assert_eq(layer_quantize(&whole, in, w, HEIGHT, &o, &err), 0, "%s", err.text);
        cr_assert_eq(layer_quantize(&pieces[0], in, w, CUT, &o, &err), 0);
        cr_assert_eq(layer_quantize(&pieces[1], in, w + CUT * COLS, HEIGHT - CUT, &o, &err), 0);
        cr_assert_eq(stack_rows(&stacked, pieces, 2, &err), 0, "%s", err.text);
        cr_assert_eq(stacked.n_bytes, whole.n_bytes);
        cr_assert_arr_eq(stacked.block, whole.block, whole.n_bytes);
        cr_assert_float_eq(stacked.loss, whole.loss, 1e-5 * whole.loss);
        pieces[1].view.spec.bits = 2;
        cr_assert_eq(stack_rows(&stacked, pieces, 2, &err), -EINVAL);
        layer_result_free(&whole);
        layer_result_free(&stacked);
        for (int k = 0; k < 2; k++) layer_result_free(&pieces[k]);
        layer_input_free(in);
    }
}

/* -log p(second | first) by the forward pass that serves. */
static double loss_of(struct offline *o, const int32_t tokens[2]) {
    int32_t positions[] = {0, 1}, seqs[] = {0, 0}, blocks[] = {0};
    struct error err;
    size_t vocab = (size_t)model_get_config(o->model)->vocab;
    float *logits = malloc(vocab * sizeof *logits);
    double sum = 0.0;
    cr_assert(logits);
    struct batch batch = {.n_tokens = 2,
                          .n_seqs = 1,
                          .tokens = tokens,
                          .positions = positions,
                          .seqs = seqs,
                          .blocks = blocks,
                          .max_blocks = 1};
    model_forward(o->model, &batch);
    cr_assert_eq(model_logits(o->model, logits, positions, 1, &err), 0);
    for (size_t v = 0; v < vocab; v++) sum += exp((double)logits[v]);
    double loss = log(sum) - (double)logits[tokens[1]];
    free(logits);
    return loss;
}

static double loss_with(struct offline *o, float *w, size_t at, float value, struct weight_view *v,
                        const int32_t *tokens) {
    struct error err;
    float old = w[at];
    w[at] = value;
    cr_assert_eq(model_replace_linear(o->model, 1, ROLE_O, v, &err), 0);
    w[at] = old;
    return loss_of(o, tokens);
}

/* Where one token alone predicts, Fisher's diagonal is the square of the gradient, which
 * differences of losses give as well. */
Test(guide, sensitivities_are_squared_gradients) {
    static const char *const names[] = {"models/opt-125m-like", "models/llama-gqa"};
    static const int32_t tokens[] = {23, 41};
    enum { ROW = 5 };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct offline o;
        struct guide *g;
        struct error err;
        struct weight_view v = {.type = DTYPE_F32};
        offline_fixture_open(&o, names[i], TOKENS);
        struct guide_setup setup = {.source = o.source,
                                    .tokens = tokens,
                                    .n_windows = 1,
                                    .ctx = 2,
                                    .n_groups = 2,
                                    .fisher = true,
                                    .n_threads = 1,
                                    .memory = 1 << 30};
        cr_assert_eq(guide_open(&g, &setup, &err), 0, "%s", err.text);
        cr_assert_eq(guide_tokens(g, 1, ROLE_O, 0)[0], 2.0f);
        cr_assert_eq(guide_tokens(g, 1, ROLE_O, 0)[1], 0.0f, "the last token predicts nothing");
        cr_assert(model_linear_shape(o.model, ROLE_O, &v.rows, &v.cols));
        size_t cols = (size_t)v.cols, first = ROW * cols;
        float *w = malloc((size_t)v.rows * cols * sizeof *w);
        double *square = malloc(cols * sizeof *square), sum = 0.0;
        cr_assert(w && square);
        cr_assert_eq(model_read_linear(o.model, 1, ROLE_O, w, &err), 0);
        v.data = w;
        for (size_t k = 0; k < cols; k++) {
            float at = w[first + k], step = 0.02f;
            double d = loss_with(&o, w, first + k, at + step, &v, tokens) -
                       loss_with(&o, w, first + k, at - step, &v, tokens);
            square[k] = d * d;
            sum += square[k];
        }
        cr_assert_gt(sum, 0.0);
        for (size_t k = 0; k < cols; k++) {
            double wanted = square[k] / sum * (double)cols;
            double got = (double)guide_fisher(g, 1, ROLE_O)[first + k] - 1e-3;
            cr_assert(fabs(got - wanted) < 0.02 + 0.05 * wanted, "%s column %zu: %g, not %g",
                      names[i], k, got, wanted);
        }
        free(w);
        free(square);
        guide_close(g);
        offline_close(&o);
    }
}

Test(blockwise, sensitivities_are_resumed_to_the_same_bytes) {
    static const enum blockwise_hessian kinds[] = {HESSIAN_FISHER, HESSIAN_GUIDED};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        struct quantize_options o = quick();
        o.blockwise.hessian = kinds[i];
        check_run("models/llama-gqa", o, NULL);
        check_run("models/bloom", o, NULL);
        o.is_static = true;
        check_run("models/opt-350m-like", o, NULL);
    }
}

/* Error of the last block's output as eval would feel it: distance of the logits to the
 * original's. */
static double logits_off(const char *original, const char *coded) {
    struct offline o;
    size_t n;
    double sum = 0.0;
    offline_fixture_open(&o, original, TOKENS);
    float *wanted = logits_of(&o, &n);
    offline_close(&o);
    offline_fixture_open(&o, coded, TOKENS);
    float *got = logits_of(&o, &n);
    offline_close(&o);
    for (size_t i = 0; i < n; i++) {
        double d = (double)wanted[i] - (double)got[i];
        sum += d * d;
    }
    free(wanted);
    free(got);
    return sum;
}

/* Training for the blocks' outputs must show in what a real model computes in the end. */
Test(blockwise, trained_blocks_come_nearer) {
    char folder[SCRATCH_PATH], plain[SCRATCH_PATH], tuned[SCRATCH_PATH], model[SCRATCH_PATH];
    struct quantize_options o = quick();
    struct error err;
    scratch_make(folder);
    scratch_join(plain, folder, "plain");
    scratch_join(tuned, folder, "tuned");
    snprintf(model, sizeof model, "%s/deploy/models/stories", getenv("GPTQT_SOURCE"));
    o.windows = 48;
    o.ctx = 64;
    cr_assert_eq(run(model, plain, &o, &err), 0, "%s", err.text);
    o.blockwise.tune_epochs = 4;
    cr_assert_eq(run(model, tuned, &o, &err), 0, "%s", err.text);
    double before = logits_off(model, plain), after = logits_off(model, tuned);
    cr_assert_lt(after, 0.9 * before, "%g, not below %g", after, before);
    scratch_remove(folder);
}

Test(blockwise, training_is_resumed_to_the_same_bytes) {
    static const struct blockwise_options kinds[] = {
        {.tune_epochs = 2}, {.clip_epochs = 2}, {.tweak = TWEAK_TRAIN}};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        struct quantize_options o = quick();
        o.blockwise = kinds[i];
        check_run("models/llama-gqa", o, NULL);
        o.layer.kind = i == 1 ? BCQ_COMPACT_GROUP : BCQ_FREE;
        check_run("models/bloom", o, NULL);
    }
}
