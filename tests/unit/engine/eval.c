#include "engine/eval.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/config.h"
#include "engine/offline.h"
#include "engine/safetensors.h"
#include "engine/source.h"
#include "kernels/error.h"

enum { CTX = 100 };

static void path_of(char *path, size_t size, const char *file) {
    snprintf(path, size, "%s/models/llama-gqa%s", getenv("GPTQT_FIXTURES"), file);
}

static void open_model(struct offline *o) {
    char path[512];
    struct error err;
    struct source *src;
    path_of(path, sizeof path, "");
    cr_assert_eq(source_open(&src, path, &err), 0, "%s", err.text);
    struct offline_options options = {.model = {.kv_type = DTYPE_F32,
                                                .max_batch_tokens = EVAL_BATCH_TOKENS,
                                                .max_logit_rows = EVAL_LOGIT_ROWS},
                                      .context = CTX};
    cr_assert_eq(offline_open(o, src, &options, &err), 0, "%s", err.text);
}

static struct eval_result run(const struct eval_options *options, struct model *m,
                              struct model *reference, const int32_t *tokens, size_t n) {
    struct eval_result result;
    struct error err;
    cr_assert_eq(eval_run(&result, m, reference, tokens, n, options, &err), 0, "%s", err.text);
    return result;
}

struct golden {
    struct safetensors file;
    const int32_t *ids;
    const float *log_probs; /* (CTX - 1) */
};

static struct golden open_golden(void) {
    struct golden g;
    struct error err;
    char path[512];
    path_of(path, sizeof path, "/golden.safetensors");
    cr_assert_eq(safetensors_open(&g.file, path, &err), 0);
    g.ids = safetensors_find(&g.file, "prompt.3.ids")->data;
    g.log_probs = safetensors_find(&g.file, "prompt.3.logprobs")->data;
    return g;
}

Test(eval, every_token_but_the_first_of_a_window_counts) {
    struct offline o;
    open_model(&o);
    struct golden g = open_golden();
    double sum = 0;
    for (int i = 0; i < CTX - 1; i++) sum += (double)g.log_probs[i];
    struct eval_options options = {.protocol = EVAL_GPTQ, .ctx = CTX, .bos = -1};
    struct eval_result r = run(&options, o.model, NULL, g.ids, CTX);
    cr_expect_eq(r.tokens, CTX - 1);
    cr_expect_eq(r.positions, 0);
    cr_expect_float_eq(r.nll, -sum / (CTX - 1), 1e-5);
    cr_expect_float_eq(r.perplexity, exp(r.nll), 1e-9);
    offline_close(&o);
    safetensors_close(&g.file);
}

Test(eval, a_continuation_is_as_likely_as_its_tokens) {
    struct offline o;
    struct error err;
    open_model(&o);
    struct golden g = open_golden();
    for (size_t context = 1; context <= CTX; context += 33) {
        double sum = 0;
        for (size_t i = context - 1; i < CTX - 1; i++) sum += (double)g.log_probs[i];
        struct eval_continuation c;
        int r = eval_continuation(&c, o.model, g.ids, CTX, context, &err);
        cr_assert_eq(r, 0, "%s", err.text);
        cr_expect_eq(c.tokens, (int64_t)(CTX - context));
        cr_expect_float_eq(c.log_likelihood, sum, 1e-3);
        cr_expect_eq(c.greedy, context == CTX);
    }
    struct eval_continuation c = {.tokens = -1};
    cr_expect_eq(eval_continuation(&c, o.model, g.ids, CTX, 0, &err), -EINVAL);
    cr_expect_eq(eval_continuation(&c, o.model, g.ids, 4, 5, &err), -EINVAL);
    int32_t outside[] = {1, INT32_MAX};
    cr_expect_eq(eval_continuation(&c, o.model, outside, 2, 1, &err), -EINVAL);
    cr_expect_eq(c.tokens, -1, "written on failure");
    offline_close(&o);
    safetensors_close(&g.file);
}

Test(eval, llama_cpp_counts_the_second_half) {
    struct offline o;
    open_model(&o);
    struct golden g = open_golden();
    double sum = 0;
    for (int i = CTX / 2; i < CTX - 1; i++) sum += (double)g.log_probs[i];
    struct eval_options options = {.protocol = EVAL_LLAMA_CPP, .ctx = CTX, .bos = -1};
    struct eval_result r = run(&options, o.model, NULL, g.ids, CTX);
    cr_expect_eq(r.tokens, CTX - CTX / 2 - 1);
    cr_expect_float_eq(r.nll, -sum / (double)r.tokens, 1e-5);
    offline_close(&o);
    safetensors_close(&g.file);
}

Test(eval, windows_do_not_see_each_other_and_are_limited) {
    struct offline o;
    open_model(&o);
    struct golden g = open_golden();
    int32_t twice[2 * CTX + 7];
    for (int i = 0; i < 2 * CTX + 7; i++) twice[i] = g.ids[i % CTX];
    struct eval_options options = {.protocol = EVAL_GPTQ, .ctx = CTX, .bos = -1};
    struct eval_result one = run(&options, o.model, NULL, g.ids, CTX);
    struct eval_result two = run(&options, o.model, NULL, twice, 2 * CTX + 7);
    cr_expect_eq(two.chunks, 2);
    cr_expect_float_eq(two.nll, one.nll, 1e-12); /* the sums round differently */
    options.chunks = 1;
    cr_expect_eq(run(&options, o.model, NULL, twice, 2 * CTX).tokens, CTX - 1);
    offline_close(&o);
    safetensors_close(&g.file);
}

Test(eval, a_model_does_not_diverge_from_itself) {
    struct offline o, reference;
    open_model(&o);
    open_model(&reference);
    struct golden g = open_golden();
    struct eval_options options = {.protocol = EVAL_GPTQ, .ctx = CTX, .bos = -1};
    struct eval_result r = run(&options, o.model, reference.model, g.ids, CTX);
    cr_expect_eq(r.positions, CTX);
    cr_expect_eq(r.kl_mean, 0);
    cr_expect_eq(r.kl_p99, 0);
    cr_expect_eq(r.top1_agreement, 1);
    offline_close(&o);
    offline_close(&reference);
    safetensors_close(&g.file);
}

static const char base_path[] = "eval_base.tmp";

/* Distributions of the fixture's model over its own prompt, and another model to compare. */
static struct eval_result save_base(const struct golden *g, struct offline *o) {
    open_model(o);
    struct eval_options options = {
        .protocol = EVAL_GPTQ, .ctx = CTX / 2, .bos = -1, .save_base = base_path};
    return run(&options, o->model, NULL, g->ids, CTX);
}

/* Attention that looks at everything alike: a model that differs. */
static void without_queries(struct model *m) {
    int rows, cols;
    struct error err;
    cr_assert(model_linear_shape(m, ROLE_Q, &rows, &cols));
    float *zeros = calloc((size_t)rows * (size_t)cols, sizeof *zeros);
    struct weight_view view = {.type = DTYPE_F32, .rows = rows, .cols = cols, .data = zeros};
    cr_assert_eq(model_replace_linear(m, 0, ROLE_Q, &view, &err), 0, "%s", err.text);
    free(zeros);
}

Test(eval, a_base_stands_for_the_reference) {
    struct offline reference, other;
    struct golden g = open_golden();
    struct eval_result saved = save_base(&g, &reference);
    cr_expect_eq(saved.positions, 0);
    open_model(&other);
    without_queries(other.model);
    struct eval_options options = {.protocol = EVAL_GPTQ, .ctx = CTX / 2, .bos = -1};
    struct eval_result direct = run(&options, other.model, reference.model, g.ids, CTX);
    options.base = base_path;
    struct eval_result kept = run(&options, other.model, NULL, g.ids, CTX);
    cr_expect_eq(kept.positions, direct.positions);
    cr_expect_gt(direct.kl_mean, 0.01);
    cr_expect_float_eq(kept.kl_mean, direct.kl_mean, 1e-4 * direct.kl_mean);
    cr_expect_eq(kept.top1_agreement, direct.top1_agreement);
    cr_expect_eq(kept.nll, direct.nll);
    struct eval_result self = run(&options, reference.model, NULL, g.ids, CTX);
    cr_expect_lt(self.kl_mean, 1e-6);
    cr_expect_eq(self.top1_agreement, 1);
    remove(base_path);
    offline_close(&other);
    offline_close(&reference);
    safetensors_close(&g.file);
}

static void expect_refused(struct offline *o, const struct eval_options *options,
                           const int32_t *tokens, const char *word) {
    struct error err;
    struct eval_result result = {.chunks = -1};
    cr_expect_eq(eval_run(&result, o->model, NULL, tokens, CTX, options, &err), -EINVAL);
    cr_expect_not_null(strstr(err.text, word), "%s", err.text);
    cr_expect_eq(result.chunks, -1, "written on failure");
}

static void cut(long size) {
    FILE *f = fopen(base_path, "r+");
    cr_assert_not_null(f);
    cr_assert_eq(ftruncate(fileno(f), size), 0);
    fclose(f);
}

Test(eval, another_or_damaged_base_is_refused) {
    struct offline o;
    struct golden g = open_golden();
    int32_t changed[CTX];
    save_base(&g, &o);
    memcpy(changed, g.ids, sizeof changed);
    changed[CTX - 1] ^= 1;
    struct eval_options options = {
        .protocol = EVAL_GPTQ, .ctx = CTX / 2, .bos = -1, .base = base_path};
    expect_refused(&o, &options, changed, "another text");
    options.ctx = CTX / 4;
    expect_refused(&o, &options, g.ids, "2 windows of 50");
    options.ctx = CTX / 2;
    cut(5000);
    expect_refused(&o, &options, g.ids, "5000 bytes");
    cut(10);
    expect_refused(&o, &options, g.ids, "header");
    FILE *f = fopen(base_path, "w");
    for (int i = 0; i < 5000; i++) putc('x', f);
    fclose(f);
    expect_refused(&o, &options, g.ids, "--save-base");
    remove(base_path);
    struct error err;
    struct eval_result result;
    cr_expect_eq(eval_run(&result, o.model, NULL, g.ids, CTX, &options, &err), -ENOENT);
    options.base = NULL;
    options.save_base = "no/such/folder/base";
    cr_expect_eq(eval_run(&result, o.model, NULL, g.ids, CTX, &options, &err), -ENOENT);
    offline_close(&o);
    safetensors_close(&g.file);
}

Test(eval, a_short_text_is_refused) {
    struct offline o;
    open_model(&o);
    int32_t tokens[CTX] = {0};
    struct eval_options options = {.protocol = EVAL_GPTQ, .ctx = CTX, .bos = -1};
    struct eval_result result;
    struct error err;
    cr_expect_lt(eval_run(&result, o.model, NULL, tokens, CTX - 1, &options, &err), 0);
    cr_expect_not_null(strstr(err.text, "one window"));
    tokens[3] = 1 << 20;
    cr_expect_lt(eval_run(&result, o.model, NULL, tokens, CTX, &options, &err), 0);
    cr_expect_not_null(strstr(err.text, "vocabulary"));
    offline_close(&o);
}
