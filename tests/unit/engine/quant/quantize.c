#define _GNU_SOURCE /* sched_getaffinity() */
#include "engine/quant/parallel.h"
#include "engine/quant/quantize.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <sched.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/config.h"
#include "engine/offline.h"
#include "engine/source.h"
#include "engine/tokenizer.h"
#include "kernels/error.h"
#include "tests/support/densify.h"
#include "tests/support/scratch.h"

/* What the events of a run have told. */
struct seen {
    int matrices, resumed, notes;
    double progress;
};

static void see_progress(void *arg, enum quantize_stage stage, double done, double total) {
    struct seen *seen = arg;
    if (stage != QUANTIZE_BLOCKS) return;
    cr_assert(done >= seen->progress && done <= total);
    seen->progress = done;
}

static void see_matrix(void *arg, const struct quantize_matrix *m) {
    struct seen *seen = arg;
    seen->matrices++;
    seen->resumed += m->resumed;
    cr_assert(m->rows > 0 && m->cols > 0 && *m->name);
    cr_assert(m->decibels < 0.0 && m->decibels > -100.0, "%s: %g", m->name, m->decibels);
}

static void see_note(void *arg, const char *text) {
    struct seen *seen = arg;
    cr_assert(*text);
    seen->notes++;
}

static struct quantize_options quick(void) {
    struct quantize_options o;
    quantize_defaults(&o);
    o.layer.n_ranges = 4;
    o.layer.n_threads = 2;
    o.windows = 6;
    o.ctx = 32;
    return o;
}

static int run(const char *model, const char *out, const struct quantize_options *o,
               struct seen *seen, struct quantize_summary *summary, struct error *err) {
    char path[SCRATCH_PATH];
    struct source *src;
    struct seen unused;
    if (!seen) seen = &unused;
    *seen = (struct seen){0};
    struct quantize_events events = {see_progress, see_matrix, see_note, seen};
    int r = source_open(&src, model[0] == '/' ? model : scratch_fixture(path, model), err);
    if (r < 0) return r;
    r = quantize_run(summary, out, src, o, &events, err);
    source_close(src);
    return r;
}

/* Logits of a few fixed tokens. */
static float *logits_of(const char *path, int *ret_n) {
    enum { N = 12 };
    struct source *src;
    struct offline o;
    struct error err;
    struct offline_options options = {
        .backend = {.name = "cpu", .n_threads = 1},
        .model = {.kv_type = DTYPE_F32, .max_batch_tokens = N, .max_logit_rows = N},
        .context = 32};
    cr_assert_eq(source_open(&src, path, &err), 0, "%s", err.text);
    cr_assert_eq(offline_open(&o, src, &options, &err), 0, "%s", err.text);
    int vocab = model_get_config(o.model)->vocab;
    int32_t tokens[N], positions[N], seqs[N] = {0}, blocks[2] = {0, 1};
    for (int i = 0; i < N; i++) {
        tokens[i] = 20 + 17 * i;
        positions[i] = i;
    }
    struct batch batch = {.n_tokens = N,
                          .n_seqs = 1,
                          .tokens = tokens,
                          .positions = positions,
                          .seqs = seqs,
                          .blocks = blocks,
                          .max_blocks = 2};
    float *logits = malloc(sizeof *logits * N * (size_t)vocab);
    cr_assert(logits);
    model_forward(o.model, &batch);
    cr_assert_eq(model_logits(o.model, logits, positions, N, &err), 0);
    offline_close(&o);
    *ret_n = N * vocab;
    return logits;
}

/* Cosine of the logits of two models, each around its mean. */
static double likeness(const char *a, const char *b) {
    int n, m;
    float *x = logits_of(a, &n), *y = logits_of(b, &m);
    double mx = 0, my = 0, xx = 0, yy = 0, xy = 0;
    cr_assert_eq(n, m);
    for (int i = 0; i < n; i++) {
        mx += (double)x[i] / n;
        my += (double)y[i] / n;
    }
    for (int i = 0; i < n; i++) {
        xx += ((double)x[i] - mx) * ((double)x[i] - mx);
        yy += ((double)y[i] - my) * ((double)y[i] - my);
        xy += ((double)x[i] - mx) * ((double)y[i] - my);
    }
    free(x);
    free(y);
    return xy / sqrt(xx * yy);
}

Test(quantize, every_architecture_becomes_a_checkpoint_that_runs) {
    static const char *const models[] = {"models/llama-gqa",     "models/llama-bias",
                                         "models/llama3",        "models/opt-125m-like",
                                         "models/opt-350m-like", "models/bloom"};
    char folder[SCRATCH_PATH], out[SCRATCH_PATH], model[SCRATCH_PATH];
    scratch_make(folder);
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        struct quantize_options o = quick();
        struct quantize_summary summary;
        struct seen seen;
        struct error err;
        o.layer.bits = 4;
        o.windows = 24;
        snprintf(model, sizeof model, "%zu", i);
        scratch_join(out, folder, model);
        cr_assert_eq(run(models[i], out, &o, &seen, &summary, &err), 0, "%s: %s", models[i],
                     err.text);
        cr_assert_eq(seen.notes, 1, "the model wrote its own text");
        cr_assert_eq(seen.progress, summary.n_layers);
        cr_assert(summary.own_text && summary.bits_per_weight > 4.0);
        scratch_fixture(model, models[i]);
        double same = likeness(model, out);
        cr_assert(same > 0.85, "%s: cosine %.4f", models[i], same);
    }
    scratch_remove(folder);
}

static void check_resumption(bool is_static, double outliers, enum quantize_target target,
                             int act_bits, enum layer_incoherence turn) {
    char folder[SCRATCH_PATH], whole[SCRATCH_PATH], broken[SCRATCH_PATH];
    struct quantize_options o = quick();
    struct quantize_summary summary;
    struct seen seen;
    struct error err;
    scratch_make(folder);
    scratch_join(whole, folder, "whole");
    scratch_join(broken, folder, "broken");
    o.is_static = is_static;
    o.layer.outliers = outliers;
    o.target = target;
    o.tokens = target != QUANTIZE_WEIGHTS ? MOMENTS_BY_STATE : MOMENTS_EQUAL;
    o.act_bits = act_bits;
    o.layer.incoherence = turn;
    cr_assert_eq(run("models/llama-gqa", whole, &o, &seen, &summary, &err), 0, "%s", err.text);
    cr_assert_eq(seen.matrices, 21);
    for (o.stop_after = 1; o.stop_after <= 2; o.stop_after++) {
        cr_assert_eq(run("models/llama-gqa", broken, &o, &seen, &summary, &err), -ECANCELED);
        cr_assert_eq(seen.resumed, 7 * (o.stop_after - 1));
    }
    o.stop_after = 0;
    o.layer.n_threads = 1;
    cr_assert_eq(run("models/llama-gqa", broken, &o, &seen, &summary, &err), 0, "%s", err.text);
    cr_assert_eq(seen.resumed, 14);
    cr_assert_eq(seen.matrices, 21);
    cr_assert_geq(scratch_each(whole, scratch_see_same, broken), 3);
    scratch_remove(folder);
}

Test(quantize, interrupted_runs_give_the_same_bytes) {
    check_resumption(false, 0.0, QUANTIZE_WEIGHTS, 16, LAYER_NATURAL);
    check_resumption(true, 0.0, QUANTIZE_WEIGHTS, 16, LAYER_NATURAL);
    check_resumption(false, 1.0, QUANTIZE_OUTPUT, 8, LAYER_NATURAL);
    check_resumption(false, 0.0, QUANTIZE_OUTPUT, 16, LAYER_TURN_BOTH);
    check_resumption(false, 0.0, QUANTIZE_BLOCK, 16, LAYER_NATURAL);
}

Test(quantize, static_inputs_leave_outputs_nothing_to_make_up_for) {
    struct quantize_options o = quick();
    struct quantize_summary summary;
    struct seen seen;
    struct error err;
    o.is_static = true;
    o.target = QUANTIZE_OUTPUT;
    cr_assert_eq(run("models/llama-gqa", "unused", &o, &seen, &summary, &err), -EINVAL);
    cr_assert(strstr(err.text, "target"), "%s", err.text);
}

Test(quantize, a_share_needs_a_way_and_is_no_more_than_it) {
    static const double shares[] = {0.5, 1.5, -0.1};
    static const enum quantize_target targets[] = {QUANTIZE_WEIGHTS, QUANTIZE_OUTPUT,
                                                   QUANTIZE_BLOCK};
    for (int i = 0; i < 3; i++) {
        struct quantize_options o = quick();
        struct quantize_summary summary;
        struct seen seen;
        struct error err;
        o.target = targets[i];
        o.target_share = shares[i];
        cr_assert_eq(run("models/llama-gqa", "unused", &o, &seen, &summary, &err), -EINVAL);
        cr_assert(strstr(err.text, "target share"), "%s", err.text);
    }
}

/* Distance of the logits of two models, relative to those of b. */
static double distance(const char *a, const char *b) {
    int n, m;
    float *x = logits_of(a, &n), *y = logits_of(b, &m);
    double d = 0, all = 0;
    cr_assert_eq(n, m);
    for (int i = 0; i < n; i++) {
        d += ((double)x[i] - (double)y[i]) * ((double)x[i] - (double)y[i]);
        all += (double)y[i] * (double)y[i];
    }
    free(x);
    free(y);
    return sqrt(d / all);
}

/* The model runs as the dense one whose weights are the codes' values and what lies beside them. */
Test(quantize, outliers_and_rotations_are_part_of_the_model) {
    static const char *const models[] = {"models/llama-gqa", "models/opt-125m-like"};
    static const char *const levels[] = {"ref", "avx2", "auto"};
    char folder[SCRATCH_PATH], out[SCRATCH_PATH], dense[SCRATCH_PATH], name[32];
    scratch_make(folder);
    for (int i = 0; i < 6; i++) {
        const char *model = models[i % 2];
        struct quantize_options o = quick();
        struct quantize_summary summary;
        struct error err;
        o.layer.bits = 2;
        o.layer.incoherence = (enum layer_incoherence)(i / 2);
        o.layer.outliers = i < 2 ? 2.0 : 0.0;
        o.layer.whole_outliers = i == 1;
        snprintf(name, sizeof name, "%d", i);
        scratch_join(out, folder, name);
        cr_assert_eq(run(model, out, &o, NULL, &summary, &err), 0, "%s", err.text);
        snprintf(name, sizeof name, "dense%d", i);
        densify(out, scratch_join(dense, folder, name));
        for (int l = 0; l < 3; l++) {
            cr_assert_eq(setenv("GPTQT_CPU", levels[l], 1), 0);
            double far = distance(out, dense);
            cr_assert(far < 2e-3, "%d, %s: %g", i, levels[l], far);
        }
        unsetenv("GPTQT_CPU");
    }
    scratch_remove(folder);
}

/* The checkpoint says how its inputs are rounded; every level rounds them alike, but for numbers that
 * lie so near to a tie that the last bits of the block before decide. */
Test(quantize, act_bits_are_part_of_the_model) {
    static const char *const levels[] = {"avx2", "auto"};
    static const double least[] = {1e-4, 1e-2}, most[] = {0.15, 0.6};
    char folder[SCRATCH_PATH], plain[SCRATCH_PATH], out[SCRATCH_PATH], name[32];
    scratch_make(folder);
    scratch_join(plain, folder, "plain");
    struct quantize_options o = quick();
    struct quantize_summary summary;
    struct error err;
    o.layer.bits = 4;
    o.is_static = true;
    cr_assert_eq(run("models/llama-gqa", plain, &o, NULL, &summary, &err), 0, "%s", err.text);
    for (int i = 0; i < 2; i++) {
        o.act_bits = i ? 4 : 8;
        o.moments = QUANTIZE_MOMENTS_PLAIN; /* and static: the codes are those of plain */
        snprintf(name, sizeof name, "%d", o.act_bits);
        scratch_join(out, folder, name);
        cr_assert_eq(run("models/llama-gqa", out, &o, NULL, &summary, &err), 0, "%s", err.text);
        cr_assert_eq(setenv("GPTQT_CPU", "ref", 1), 0);
        double far = distance(out, plain);
        cr_expect(far > least[i] && far < most[i], "%d bits: %g", o.act_bits, far);
        int n;
        float *want = logits_of(out, &n);
        for (int l = 0; l < 2; l++) {
            cr_assert_eq(setenv("GPTQT_CPU", levels[l], 1), 0);
            float *got = logits_of(out, &n);
            double d = 0, all = 0;
            for (int k = 0; k < n; k++) {
                d += pow((double)got[k] - (double)want[k], 2);
                all += pow((double)want[k], 2);
            }
            cr_expect(sqrt(d / all) < far / 2, "%s: %g", levels[l], sqrt(d / all));
            free(got);
        }
        free(want);
    }
    unsetenv("GPTQT_CPU");
    o.act_bits = 6;
    cr_assert_eq(run("models/llama-gqa", out, &o, NULL, &summary, &err), -EINVAL);
    cr_expect_str_eq(err.text, "act bits: 6 is not 16, 8 or 4");
    scratch_remove(folder);
}

/* Tied and not, projected or not: the model is the dense one of the coded matrix's values, on every level;
 * nothing else changes, and eight bits are near the model with the matrix as it was. */
Test(quantize, the_output_matrix_may_be_of_whole_numbers) {
    static const char *const models[] = {"models/llama-gqa", "models/llama-bias",
                                         "models/opt-350m-like", "models/bloom"};
    static const char *const levels[] = {"ref", "avx2", "auto"};
    static const double most[] = {0.05, 0.15, 0.4};
    char folder[SCRATCH_PATH], plain[SCRATCH_PATH], out[SCRATCH_PATH], dense[SCRATCH_PATH];
    struct quantize_summary summary;
    struct error err;
    char name[32];
    scratch_make(folder);
    for (int i = 0; i < 4; i++) {
        struct quantize_options o = quick();
        snprintf(name, sizeof name, "plain%d", i);
        scratch_join(plain, folder, name);
        cr_assert_eq(run(models[i], plain, &o, NULL, &summary, &err), 0, "%s", err.text);
        for (int b = 0; b < 3; b++) {
            o.output_bits = 8 - 2 * b;
            snprintf(name, sizeof name, "out%d-%d", i, b);
            scratch_join(out, folder, name);
            struct seen seen;
            cr_assert_eq(run(models[i], out, &o, &seen, &summary, &err), 0, "%s", err.text);
            cr_expect_eq(seen.notes, 2, "the text and the matrix");
            double far = distance(out, plain);
            cr_expect(far > 1e-4 && far < most[b], "%s, %d bits: %g", models[i], o.output_bits,
                      far);
            if (i == 3) continue; /* BLOOM's fused matrices have no dense form */
            densify(out, scratch_join(dense, folder, b ? "dense" : "first"));
            for (int l = 0; l < 3; l++) {
                cr_assert_eq(setenv("GPTQT_CPU", levels[l], 1), 0);
                far = distance(out, dense);
                cr_expect(far < 1e-3, "%s, %s: %g", models[i], levels[l], far);
            }
            unsetenv("GPTQT_CPU");
            scratch_remove(scratch_join(dense, folder, b ? "dense" : "first"));
        }
    }
    struct quantize_options o = quick();
    o.output_bits = 5;
    cr_assert_eq(run("models/llama-gqa", out, &o, NULL, &summary, &err), -EINVAL);
    cr_expect_str_eq(err.text, "output bits: 5 is not 16, 8, 6 or 4");
    scratch_remove(folder);
}

/* A matrix of another kind in the output's place would be no table. */
Test(quantize, an_output_matrix_of_another_kind_is_refused) {
    char folder[SCRATCH_PATH], out[SCRATCH_PATH];
    struct quantize_options o = quick();
    struct quantize_summary summary;
    struct error err;
    struct source *src;
    struct offline model;
    struct offline_options options = {
        .model = {.kv_type = DTYPE_F32, .max_batch_tokens = 8, .max_logit_rows = 1}, .context = 16};
    scratch_make(folder);
    scratch_join(out, folder, "out");
    o.output_bits = 4;
    cr_assert_eq(run("models/llama-gqa", out, &o, NULL, &summary, &err), 0, "%s", err.text);
    cr_assert_eq(source_open(&src, out, &err), 0, "%s", err.text);
    /* As a file would say it. */
    for (size_t i = 0; i < source_count(src); i++) {
        const struct source_tensor *t = source_at(src, i);
        if (t->is_bcq && t->bcq.spec.kind == BCQ_WHOLE)
            ((struct source_tensor *)(uintptr_t)t)->bcq.spec.kind = BCQ_FREE;
    }
    cr_assert_eq(offline_open(&model, src, &options, &err), -EBADMSG);
    cr_expect(strstr(err.text, ".bcq': kind 3, whole numbers (kind 4) are needed"), "%s", err.text);
    scratch_remove(folder);
}

Test(quantize, a_codec_changes_the_bytes_alone) {
    char folder[SCRATCH_PATH], plain[SCRATCH_PATH], packed[SCRATCH_PATH], again[SCRATCH_PATH];
    struct quantize_options o = quick();
    struct quantize_summary summary, smaller;
    struct seen seen;
    struct error err;
    int n, m;
    scratch_make(folder);
    scratch_join(plain, folder, "plain");
    scratch_join(packed, folder, "packed");
    scratch_join(again, folder, "again");
    cr_assert_eq(run("models/llama-gqa", plain, &o, &seen, &summary, &err), 0, "%s", err.text);
    o.codec = PARTS_PVQ;
    cr_assert_eq(run("models/llama-gqa", packed, &o, &seen, &smaller, &err), 0, "%s", err.text);
    cr_assert_leq(smaller.bits_per_weight, summary.bits_per_weight);
    float *x = logits_of(plain, &n), *y = logits_of(packed, &m);
    cr_assert(n == m && memcmp(x, y, (size_t)n * sizeof *x) == 0);
    free(x);
    free(y);
    o.stop_after = 2;
    cr_assert_eq(run("models/llama-gqa", again, &o, &seen, &smaller, &err), -ECANCELED);
    o.stop_after = 0;
    cr_assert_eq(run("models/llama-gqa", again, &o, &seen, &smaller, &err), 0, "%s", err.text);
    scratch_each(packed, scratch_see_same, again);
    o.layer.kind = BCQ_FREE;
    cr_assert_eq(run("models/llama-gqa", again, &o, &seen, &smaller, &err), -EINVAL);
    cr_assert(strstr(err.text, "params free"), "%s", err.text);
    scratch_remove(folder);
}

/* Runs without a product by weights on the reference level, and on the others with products. */
Test(quantize, powers_of_two_run_by_shifts_as_they_do_by_products) {
    char folder[SCRATCH_PATH], out[SCRATCH_PATH];
    struct quantize_options o = quick();
    struct quantize_summary summary;
    struct error err;
    int n;
    o.layer.pow2 = true;
    o.act_bits = 8;
    scratch_make(folder);
    scratch_join(out, folder, "out");
    cr_assert_eq(run("models/llama-gqa", out, &o, NULL, &summary, &err), 0, "%s", err.text);
    cr_assert_eq(setenv("GPTQT_CPU", "ref", 1), 0);
    float *shifts = logits_of(out, &n);
    cr_assert_eq(setenv("GPTQT_CPU", "auto", 1), 0);
    float *products = logits_of(out, &n);
    unsetenv("GPTQT_CPU");
    double d = 0, all = 0;
    for (int k = 0; k < n; k++) {
        d += pow((double)shifts[k] - (double)products[k], 2);
        all += pow((double)shifts[k], 2);
    }
    cr_expect(sqrt(d / all) < 0.05, "%g", sqrt(d / all));
    free(shifts);
    free(products);
    static const struct {
        const char *part;
        struct layer_options o;
    } bad[] = {{"method", {.method = LAYER_GPTQ, .kind = BCQ_COMPACT}},
               {"params", {.method = LAYER_GPTQT, .kind = BCQ_FREE}},
               {"refine", {.method = LAYER_GPTQT, .kind = BCQ_COMPACT, .refine = 1}},
               {"explore", {.method = LAYER_GPTQT, .kind = BCQ_COMPACT, .explore = 2}}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct layer_options l = quick().layer;
        l.pow2 = true;
        l.method = bad[i].o.method;
        l.kind = bad[i].o.kind;
        l.refine = bad[i].o.refine;
        l.explore = bad[i].o.explore;
        cr_assert_eq(layer_check(&l, &err), -EINVAL);
        cr_expect(strstr(err.text, "pow2: ") && strstr(err.text, bad[i].part), "%s", err.text);
    }
    scratch_remove(folder);
}

Test(quantize, other_settings_do_not_resume) {
    char folder[SCRATCH_PATH], out[SCRATCH_PATH];
    struct quantize_options o = quick();
    struct quantize_summary summary;
    struct seen seen;
    struct error err;
    scratch_make(folder);
    scratch_join(out, folder, "out");
    o.stop_after = 1;
    cr_assert_eq(run("models/llama-gqa", out, &o, &seen, &summary, &err), -ECANCELED);
    o.stop_after = 0;
    o.layer.bits = 2;
    cr_assert_eq(run("models/llama-gqa", out, &o, &seen, &summary, &err), 0, "%s", err.text);
    cr_assert_eq(seen.resumed, 0);
    scratch_remove(folder);
}

static const char *check_tensor(const struct source *src, const char *name, const char *type) {
    struct source_tensor t;
    cr_assert_eq(source_find(src, name, &t), 0, "%s is missing", name);
    cr_assert_str_eq(t.type_name, type, "%s", name);
    return name;
}

Test(quantize, gguf_models_get_texts_and_f16) {
    char folder[SCRATCH_PATH], out[SCRATCH_PATH], text[SCRATCH_PATH], model[SCRATCH_PATH];
    static const char words[] = "The quick brown fox jumps over the lazy dog. ";
    struct quantize_options o = quick();
    struct quantize_summary summary;
    struct seen seen;
    struct source *src;
    struct source_tensor t;
    struct error err;
    char *long_text = malloc(200 * sizeof words);
    cr_assert(long_text);
    *long_text = 0;
    for (int i = 0; i < 200; i++) strcat(long_text, words);
    scratch_make(folder);
    scratch_save(scratch_join(text, folder, "text"), long_text, strlen(long_text));
    free(long_text);
    scratch_join(out, folder, "out");
    o.calibration = text;
    o.windows = 60;
    cr_assert_eq(run("gguf/model-Q8_0.gguf", out, &o, &seen, &summary, &err), 0, "%s", err.text);
    cr_assert_eq(seen.notes, 0);
    cr_assert_eq(source_open(&src, out, &err), 0, "%s", err.text);
    check_tensor(src, "model.layers.0.self_attn.q_proj.bcq", "BCQ");
    check_tensor(src, "model.embed_tokens.weight", "F16");
    check_tensor(src, "lm_head.weight", "F16");
    check_tensor(src, "model.norm.weight", "F32");
    cr_assert_lt(source_find(src, "model.layers.0.self_attn.q_proj.weight", &t), 0);
    const struct model_config *c = source_config(src);
    cr_assert_eq(c->quantization.bits, 3);
    cr_assert_eq(c->quantization.group, 16);
    cr_assert_str_eq(c->quantization.params, "compact");
    const char *file;
    size_t n;
    cr_assert_eq(source_file_text(src, "tokenizer.json", &file, &n), 0);
    cr_assert_eq(source_file_text(src, "tokenizer_config.json", &file, &n), 0);
    cr_assert(strstr(file, "chat_template"));
    source_close(src);
    cr_assert_gt(likeness(scratch_fixture(model, "gguf/model-Q8_0.gguf"), out), 0.8);

    struct quantize_options again = quick();
    scratch_join(text, folder, "again");
    cr_assert_eq(run(out, text, &again, &seen, &summary, &err), -ENOTSUP);
    cr_assert(strstr(err.text, "already"), "%s", err.text);
    scratch_remove(folder);
}

Test(quantize, wrong_input_is_refused_and_nothing_is_written) {
    char folder[SCRATCH_PATH], out[SCRATCH_PATH], file[SCRATCH_PATH];
    struct quantize_options o = quick();
    struct quantize_summary summary;
    struct seen seen;
    struct error err;
    scratch_make(folder);
    scratch_join(out, folder, "out");
    o.ctx = 1 << 19;
    cr_assert_eq(run("models/llama-gqa", out, &o, &seen, &summary, &err), -EINVAL);
    cr_assert(strstr(err.text, "ctx"));
    o = quick();
    o.layer.bits = 0;
    cr_assert_eq(run("models/llama-gqa", out, &o, &seen, &summary, &err), -EINVAL);
    o = quick();
    o.calibration = "/nowhere/text";
    cr_assert_eq(run("models/llama-gqa", out, &o, &seen, &summary, &err), -ENOENT);
    cr_assert_lt(scratch_each(folder, scratch_see_same, folder), 1, "nothing at the output path");
    scratch_save(scratch_join(file, folder, "out"), "x", 1);
    o = quick();
    cr_assert_eq(run("models/llama-gqa", out, &o, &seen, &summary, &err), -EEXIST);
    scratch_remove(folder);
}

Test(quantize, all_processors_work_unless_told_otherwise) {
    struct quantize_options o;
    cpu_set_t set;
    quantize_defaults(&o);
    cr_assert_eq(sched_getaffinity(0, sizeof set, &set), 0);
    cr_expect_eq(parallel_threads(o.layer.n_threads), CPU_COUNT(&set));
    cr_expect_eq(parallel_threads(1), 1);
}
