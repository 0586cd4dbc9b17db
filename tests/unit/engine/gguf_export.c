/* Exported models read back by our own reader, which the files in tests/fixtures/gguf (made by
 * llama.cpp's tools) hold to that format. */
#include "engine/gguf_export.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/config.h"
#include "engine/eval.h"
#include "engine/offline.h"
#include "engine/source.h"
#include "engine/source_text.h"
#include "engine/tokenizer.h"
#include "kernels/error.h"
#include "kernels/float16.h"
#include "tests/support/scratch.h"
#include "tests/support/tiny_source.h"

enum { MAX_FILES = 8, CTX = 48 };

/* A model's directory in memory, with a tokenizer; the images live as long as the source. */
struct images {
    struct source_file files[MAX_FILES];
    char names[MAX_FILES][64];
    int n;
};

static void load_file(const char *path, const char *name, void *arg) {
    struct images *im = arg;
    if (strncmp(name, "model", 5) && strcmp(name, "config.json")) return;
    cr_assert_lt(im->n, MAX_FILES - 1);
    struct source_file *f = &im->files[im->n];
    f->bytes = scratch_load(path, &f->n);
    f->name = strcpy(im->names[im->n++], name);
}

static void open_images(struct images *im, const char *folder, const char *tokenizer) {
    *im = (struct images){.n = 0};
    scratch_each(folder, load_file, im);
    if (tokenizer)
        im->files[im->n++] = (struct source_file){"tokenizer.json", tokenizer, strlen(tokenizer)};
}

static void close_images(struct images *im) {
    for (int i = 0; i < im->n; i++)
        if (strcmp(im->files[i].name, "tokenizer.json") != 0)
            free((void *)(uintptr_t)im->files[i].bytes);
}

static struct source *open_source(const struct images *im) {
    struct source *src = NULL;
    struct error err = {""};
    cr_assert_eq(source_open_memory(&src, im->files, im->n, &err), 0, "%s", err.text);
    return src;
}

static struct source *open_file(const char *path) {
    struct source *src = NULL;
    struct error err = {""};
    cr_assert_eq(source_open(&src, path, &err), 0, "%s", err.text);
    return src;
}

/* malloc'ed (rows, cols); a coded matrix is found under the name of the dense one. */
static float *read_all(const struct source *src, const char *name, size_t *ret_n) {
    struct source_tensor t;
    char coded[160];
    if (source_find(src, name, &t) < 0) {
        snprintf(coded, sizeof coded, "%.*s.bcq", (int)(strrchr(name, '.') - name), name);
        cr_assert_eq(source_find(src, coded, &t), 0, "%s is not there", name);
    }
    *ret_n = (size_t)t.rows * (size_t)t.cols;
    float *x = malloc(*ret_n * sizeof *x);
    cr_assert_eq(source_read_rows(src, &t, 0, t.rows, x, NULL), 0);
    return x;
}

static float rounded(float x, enum dtype type) {
    if (type == DTYPE_F16) return f16_to_f32(f32_to_f16(x));
    return type == DTYPE_BF16 ? bf16_to_f32(f32_to_bf16(x)) : x;
}

static void check_tensors(const struct source *want, const struct source *got, enum dtype type) {
    int compared = 0;
    for (size_t i = 0; i < source_count(got); i++) {
        const struct source_tensor *t = source_at(got, i);
        size_t n, n_want;
        if (!strcmp(t->name, "rope_freqs.weight")) continue;
        float *a = read_all(got, t->name, &n), *b = read_all(want, t->name, &n_want);
        cr_assert_eq(n, n_want, "%s", t->name);
        for (size_t k = 0; k < n; k++) {
            float x = t->n_dims > 1 ? rounded(b[k], type) : b[k];
            cr_assert_eq(float_bits(a[k]), float_bits(x), "%s[%zu]: %g, not %g", t->name, k,
                         (double)a[k], (double)x);
        }
        free(a);
        free(b);
        compared++;
    }
    cr_expect_geq(compared, (int)source_count(want) - 1); /* a tied output matrix */
}

static void check_config(const struct model_config *want, const struct model_config *got) {
    cr_expect(got->hidden == want->hidden && got->n_layers == want->n_layers &&
              got->n_heads == want->n_heads && got->n_kv_heads == want->n_kv_heads &&
              got->head_dim == want->head_dim && got->intermediate == want->intermediate);
    cr_expect(got->vocab == want->vocab && got->max_positions == want->max_positions &&
              got->tie_embeddings == want->tie_embeddings && got->bos == want->bos);
    cr_expect_eq(got->norm_eps, want->norm_eps);
    cr_expect_eq((float)got->rope.theta, (float)want->rope.theta);
    cr_expect_eq(got->n_eos, want->n_eos);
    cr_expect_eq(memcmp(got->eos, want->eos, (size_t)want->n_eos * sizeof *want->eos), 0);
}

static void check_tokenizers(const struct source *want, const struct source *got) {
    static const char text[] = "It cost 1234 \xc3\xa9"
                               "cus,\n\n  didn't it? <|im_end|> \xf0\x9f\x90\xb1";
    struct tokenizer *t[2];
    struct error err = {""};
    int32_t *ids[2];
    size_t n[2];
    cr_assert_eq(source_text_tokenizer(&t[0], want, &err), 0, "%s", err.text);
    cr_assert_eq(source_text_tokenizer(&t[1], got, &err), 0, "%s", err.text);
    for (unsigned flags = 0; flags < 4; flags++) {
        for (int i = 0; i < 2; i++)
            cr_assert_eq(tokenizer_encode(t[i], text, strlen(text), flags, &ids[i], &n[i], &err),
                         0);
        cr_expect_eq(n[0], n[1]);
        cr_expect_eq(memcmp(ids[0], ids[1], n[0] * sizeof **ids), 0, "flags %u", flags);
        free(ids[0]);
        free(ids[1]);
    }
    tokenizer_free(t[0]);
    tokenizer_free(t[1]);
}

/* Takes the source. */
static void open_model(struct offline *o, struct source *src) {
    struct error err = {""};
    struct offline_options options = {.model = {.kv_type = DTYPE_F32,
                                                .max_batch_tokens = EVAL_BATCH_TOKENS,
                                                .max_logit_rows = EVAL_LOGIT_ROWS},
                                      .context = CTX};
    cr_assert_eq(offline_open(o, src, &options, &err), 0, "%s", err.text);
}

/* Takes both sources. */
static struct eval_result compare(struct source *want, struct source *got) {
    struct offline a, b;
    int32_t tokens[2 * CTX];
    struct eval_result result;
    struct error err = {""};
    struct eval_options options = {.protocol = EVAL_GPTQ, .ctx = CTX, .bos = -1};
    open_model(&a, want);
    open_model(&b, got);
    for (int i = 0; i < 2 * CTX; i++)
        tokens[i] = (i * 37 + i * i) % model_get_config(a.model)->vocab;
    int r = eval_run(&result, b.model, a.model, tokens, 2 * CTX, &options, &err);
    cr_assert_eq(r, 0, "%s", err.text);
    offline_close(&a);
    offline_close(&b);
    return result;
}

/* Exports what is in the folder with that tokenizer, and compares everything. */
static void round_trip(const char *folder, const char *tokenizer, enum dtype type, double max_kl) {
    char scratch[SCRATCH_PATH], path[SCRATCH_PATH];
    struct images im;
    struct error err = {""};
    scratch_make(scratch);
    scratch_join(path, scratch, "x.gguf");
    open_images(&im, folder, tokenizer);
    struct source *src = open_source(&im);
    cr_assert_eq(gguf_export(path, src, type, &err), 0, "%s: %s", folder, err.text);
    struct source *got = open_file(path);
    check_config(source_config(src), source_config(got));
    check_tensors(src, got, type);
    check_tokenizers(src, got);
    struct eval_result result = compare(src, got);
    cr_expect(fabs(result.kl_mean) <= max_kl, "%s: KL %g", folder, result.kl_mean);
    close_images(&im);
    scratch_remove(scratch);
}

static void fixture_round_trip(const char *name, enum dtype type, double max_kl) {
    char folder[SCRATCH_PATH], inner[64];
    snprintf(inner, sizeof inner, "models/%s", name);
    round_trip(scratch_fixture(folder, inner), tiny_source_tokenizer(), type, max_kl);
}

/* Grouped heads, tied and untied output, three shards with Llama 3's scaling, which becomes a
 * tensor of divisors in fp32. */
Test(gguf_export, dense_models_come_back_whole) {
    fixture_round_trip("llama-gqa", DTYPE_F32, 0);
    fixture_round_trip("llama-mha", DTYPE_F32, 0);
    /* The sum over the words is rounded, too: -1.2e-9 on AVX2 without optimisation. */
    fixture_round_trip("llama3", DTYPE_F32, 1e-8);
}

/* The bytes alone: for a model of 256 tokens. */
static char *bytes_tokenizer(void) {
    char *json = strdup(tiny_source_tokenizer());
    char *from = strchr(strstr(json, "\"added_tokens\""), '[') + 1;
    memset(from, ' ', (size_t)(strstr(from, "], \"normalizer\"") - from));
    return json;
}

/* The elements of Q's and K's biases turn with the rows. */
Test(gguf_export, biases_come_along) {
    char folder[SCRATCH_PATH], *tokenizer = bytes_tokenizer();
    round_trip(scratch_fixture(folder, "models/llama-bias"), tokenizer, DTYPE_F32, 0);
    free(tokenizer);
}

Test(gguf_export, other_types_round_the_matrices_alone) {
    fixture_round_trip("llama-gqa", DTYPE_F16, 1e-5);
    fixture_round_trip("llama-gqa", DTYPE_BF16, 1e-3);
}

Test(gguf_export, a_coded_checkpoint_becomes_the_dense_model_it_stands_for) {
    const char *coded = getenv("GPTQT_CODED");
    if (!coded) cr_skip_test("there is no quantizer in this build");
    round_trip(coded, tiny_source_tokenizer(), DTYPE_F32, 1e-5);
}

Test(gguf_export, a_gguf_file_comes_back_whole) {
    char scratch[SCRATCH_PATH], path[SCRATCH_PATH], fixture[SCRATCH_PATH];
    struct error err = {""};
    scratch_make(scratch);
    scratch_join(path, scratch, "x.gguf");
    struct source *src = open_file(scratch_fixture(fixture, "gguf/model-Q4_K.gguf"));
    cr_assert_eq(gguf_export(path, src, DTYPE_F32, &err), 0, "%s", err.text);
    struct source *got = open_file(path);
    check_config(source_config(src), source_config(got));
    check_tensors(src, got, DTYPE_F32);
    check_tokenizers(src, got);
    source_close(src);
    source_close(got);
    scratch_remove(scratch);
}

static void expect_refused(const char *fixture, const char *tokenizer, int code, const char *text) {
    char scratch[SCRATCH_PATH], path[SCRATCH_PATH], folder[SCRATCH_PATH];
    struct images im;
    struct error err = {""};
    scratch_make(scratch);
    scratch_join(path, scratch, "x.gguf");
    open_images(&im, scratch_fixture(folder, fixture), tokenizer);
    struct source *src = open_source(&im);
    cr_expect_eq(gguf_export(path, src, DTYPE_F16, &err), code, "%s", err.text);
    cr_expect_not_null(strstr(err.text, text), "'%s'", err.text);
    source_close(src);
    close_images(&im);
    cr_expect_eq(rmdir(scratch), 0, "%s left a file", fixture);
}

/* The pre-tokenizer turned into something that llama.cpp has no name for. */
static char *odd_tokenizer(void) {
    char *json = strdup(tiny_source_tokenizer());
    char *flag = strstr(json, "\"add_prefix_space\": false");
    memcpy(flag, "\"add_prefix_space\": true ", 25);
    return json;
}

Test(gguf_export, what_the_format_cannot_say_is_refused) {
    char *odd = odd_tokenizer();
    expect_refused("models/bloom", tiny_source_tokenizer(), -ENOTSUP, "architecture 'bloom'");
    expect_refused("models/llama-gqa", NULL, -ENOENT, "tokenizer.json");
    expect_refused("models/llama-gqa", odd, -ENOTSUP, "no name for how it splits");
    free(odd);
}

Test(gguf_export, a_place_that_cannot_be_written_is_named) {
    struct images im;
    struct error err = {""};
    char folder[SCRATCH_PATH];
    open_images(&im, scratch_fixture(folder, "models/llama-gqa"), tiny_source_tokenizer());
    struct source *src = open_source(&im);
    cr_expect_eq(gguf_export("/nowhere/x.gguf", src, DTYPE_F16, &err), -ENOENT);
    cr_expect_not_null(strstr(err.text, "/nowhere/x.gguf"));
    source_close(src);
    close_images(&im);
}
