#include "engine/source.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/config.h"
#include "engine/gguf.h"
#include "engine/gguf_vocab.h"
#include "engine/safetensors.h"
#include "kernels/error.h"
#include "kernels/float16.h"
#include "tests/support/scratch.h"

static const char config[] =
    "{\"model_type\":\"llama\",\"hidden_size\":8,\"num_hidden_layers\":1,"
    "\"num_attention_heads\":2,\"intermediate_size\":16,\"vocab_size\":10}";

/* A coded matrix of 2 x 40, group 32: kind FREE, 2 bits, every parameter its own. */
static void *make_block(size_t *ret_n) {
    struct bcq_spec spec = {.kind = BCQ_FREE, .rows = 2, .cols = 40, .bits = 2, .group = 32};
    struct bcq_layout layout;
    struct bcq_view v;
    bcq_layout(&layout, &spec);
    void *block = aligned_alloc(64, layout.total);
    memset(block, 0, layout.total);
    bcq_format(&v, block, &spec);
    for (int i = 0; i < 2 * 2 * 2; i++) {
        ((uint32_t *)(uintptr_t)v.planes)[i] = 0x93a5c27eu * (uint32_t)(i + 1);
        ((uint16_t *)(uintptr_t)v.alpha)[i] = f32_to_f16(0.25f * (float)(i + 1));
    }
    /* Bits past the 40 columns are clear. */
    for (int i = 1; i < 8; i += 2) ((uint32_t *)(uintptr_t)v.planes)[i] &= 0xff;
    for (int i = 0; i < 4; i++) ((uint16_t *)(uintptr_t)v.beta)[i] = f32_to_f16(0.5f - (float)i);
    *ret_n = layout.total;
    return block;
}

/* A directory with one dense tensor of each type and a coded one. */
static void make_model(const char *folder) {
    char path[SCRATCH_PATH];
    size_t n_block;
    void *block = make_block(&n_block);
    static const float wide[6] = {1, -2, 3, -4, 5, -6};
    static const uint16_t half[4] = {0x3c00, 0xc000, 0x0001, 0x7bff};
    static const uint16_t brain[4] = {0x3f80, 0xc000, 0x0001, 0x7f7f};
    struct safetensors_tensor tensors[] = {
        {"f32", SAFETENSORS_F32, 2, {2, 3}, wide, 24},
        {"f16", SAFETENSORS_F16, 1, {4}, half, 8},
        {"bf16", SAFETENSORS_BF16, 2, {4, 1}, brain, 8},
        {"ids", SAFETENSORS_I32, 1, {1}, wide, 4},
        {"layer.bcq", SAFETENSORS_U8, 1, {n_block}, block, n_block},
    };
    scratch_save(scratch_join(path, folder, "config.json"), config, strlen(config));
    scratch_save(scratch_join(path, folder, "tokenizer.json"), "{}", 2);
    struct error err = {""};
    scratch_join(path, folder, "model.safetensors");
    cr_assert_eq(safetensors_write(path, tensors, 5, &err), 0, "%s", err.text);
    free(block);
}

static void check_model(struct source *src) {
    struct source_tensor t;
    float x[80];
    enum dtype type;
    cr_assert_eq(source_config(src)->hidden, 8);
    cr_assert_eq(source_count(src), 5);
    cr_expect_str_eq(source_at(src, 0)->name, "bf16");
    cr_assert_eq(source_find(src, "f32", &t), 0);
    cr_expect(t.kind == SOURCE_F32 && t.rows == 2 && t.cols == 3 && t.n_dims == 2);
    cr_expect(source_dense_type(&t, &type) && type == DTYPE_F32);
    cr_expect_eq(((const float *)t.data)[5], -6);
    cr_expect_eq(source_read_rows(src, &t, 1, 1, x, NULL), 0);
    cr_expect(x[0] == -4 && x[1] == 5 && x[2] == -6);
    cr_expect_eq(source_read_rows(src, &t, 1, 2, x, NULL), -EINVAL);

    cr_assert_eq(source_find(src, "f16", &t), 0);
    cr_expect_eq(source_read_rows(src, &t, 0, 1, x, NULL), 0);
    cr_expect(x[0] == 1 && x[1] == -2 && x[2] == 0x1p-24f && x[3] == 65504);
    cr_assert_eq(source_find(src, "bf16", &t), 0);
    cr_expect(t.rows == 4 && t.cols == 1);
    cr_expect_eq(source_read_rows(src, &t, 0, 4, x, NULL), 0);
    cr_expect(x[0] == 1 && x[1] == -2 && float_bits(x[3]) == 0x7f7f0000);

    struct error err = {""};
    cr_assert_eq(source_find(src, "ids", &t), 0);
    cr_expect_not(source_dense_type(&t, &type));
    cr_expect_eq(source_read_rows(src, &t, 0, 1, x, &err), -ENOTSUP);
    cr_expect_not_null(strstr(err.text, "'ids'"));
    cr_expect_eq(source_find(src, "none", &t), -ENOENT);

    cr_assert_eq(source_find(src, "layer.bcq", &t), 0);
    cr_assert(t.is_bcq && t.kind == SOURCE_CODED && t.rows == 2 && t.cols == 40);
    float want[80];
    bcq_expand_row(&t.bcq, 0, want);
    bcq_expand_row(&t.bcq, 1, want + 40);
    cr_expect_eq(source_read_rows(src, &t, 0, 2, x, NULL), 0);
    cr_expect_eq(memcmp(x, want, sizeof x), 0);
    source_release(src, &t);
    cr_expect_eq(source_read_rows(src, &t, 0, 2, x, NULL), 0);
    cr_expect_eq(memcmp(x, want, sizeof x), 0, "released pages come back");

    const char *text;
    size_t n;
    cr_expect_eq(source_file_text(src, "tokenizer.json", &text, &n), 0);
    cr_expect(n == 2 && !memcmp(text, "{}", 2));
    cr_expect_eq(source_file_text(src, "tokenizer_config.json", &text, &n), -ENOENT);
    cr_expect_eq(source_file_text(src, "../secret", &text, &n), -ENOENT);
    cr_expect_null(source_vocab(src));
}

Test(source, a_directory_and_its_memory_images_read_alike) {
    char folder[SCRATCH_PATH], path[SCRATCH_PATH], hashes[2][SHA256_HEX];
    scratch_make(folder);
    make_model(folder);
    struct source *src;
    struct error err = {""};
    cr_assert_eq(source_open(&src, folder, &err), 0, "%s", err.text);
    check_model(src);
    source_hash(src, hashes[0]);
    source_close(src);

    static const char *const names[] = {"config.json", "tokenizer.json", "model.safetensors"};
    struct source_file files[3];
    void *bytes[3];
    for (int i = 0; i < 3; i++) {
        files[i].name = names[i];
        bytes[i] = scratch_load(scratch_join(path, folder, names[i]), &files[i].n);
        files[i].bytes = bytes[i];
    }
    cr_assert_eq(source_open_memory(&src, files, 3, &err), 0, "%s", err.text);
    check_model(src);
    source_hash(src, hashes[1]);
    cr_expect_str_eq(hashes[0], hashes[1]);
    source_close(src);

    cr_expect_eq(source_open_memory(&src, files, 2, &err), -ENOENT);
    cr_expect_not_null(strstr(err.text, "model.safetensors"), "%s", err.text);
    for (int i = 0; i < 3; i++) free(bytes[i]);
    scratch_remove(folder);
}

Test(source, what_is_no_model_is_refused_by_name) {
    char folder[SCRATCH_PATH], path[SCRATCH_PATH];
    scratch_make(folder);
    struct source *src = NULL;
    struct error err = {""};
    cr_expect_eq(source_open(&src, scratch_join(path, folder, "none"), &err), -ENOENT);
    cr_expect_eq(strncmp(err.text, path, strlen(path)), 0, "%s", err.text);
    cr_expect_eq(source_open(&src, folder, &err), -ENOENT);
    cr_expect_not_null(strstr(err.text, "config.json"), "%s", err.text);
    make_model(folder);
    unlink(scratch_join(path, folder, "model.safetensors"));
    cr_expect_eq(source_open(&src, folder, &err), -ENOENT);
    cr_expect_not_null(strstr(err.text, "model.safetensors"), "%s", err.text);
    scratch_save(scratch_join(path, folder, "x.bin"), "x", 1);
    cr_expect_eq(source_open(&src, path, &err), -EINVAL);
    cr_assert_null(src);
    scratch_remove(folder);
}

Test(source, shards_are_found_through_the_index) {
    char folder[SCRATCH_PATH], path[SCRATCH_PATH];
    scratch_make(folder);
    scratch_save(scratch_join(path, folder, "config.json"), config, strlen(config));
    struct safetensors_tensor a = {"a", SAFETENSORS_F32, 1, {1}, "\0\0\200?", 4};
    struct safetensors_tensor b = {"b", SAFETENSORS_F32, 1, {1}, "\0\0\0@", 4};
    cr_assert_eq(safetensors_write(scratch_join(path, folder, "one.safetensors"), &a, 1, NULL), 0);
    cr_assert_eq(safetensors_write(scratch_join(path, folder, "two.safetensors"), &b, 1, NULL), 0);
    static const char good[] =
        "{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\"}}";
    static const char swapped[] =
        "{\"weight_map\":{\"a\":\"two.safetensors\",\"b\":\"one.safetensors\"}}";
    static const char absent[] = "{\"weight_map\":{\"a\":\"three.safetensors\"}}";
    struct source *src = NULL;
    struct error err = {""};
    scratch_join(path, folder, "model.safetensors.index.json");

    scratch_save(path, good, strlen(good));
    cr_assert_eq(source_open(&src, folder, &err), 0, "%s", err.text);
    struct source_tensor t;
    float x;
    cr_assert_eq(source_find(src, "b", &t), 0);
    cr_expect(!source_read_rows(src, &t, 0, 1, &x, NULL) && x == 2);
    cr_expect_eq(source_bytes(src), 8);
    source_close(src);

    scratch_save(path, swapped, strlen(swapped));
    cr_expect_eq(source_open(&src, folder, &err), -EBADMSG);
    cr_expect_not_null(strstr(err.text, "weight_map"), "%s", err.text);
    scratch_save(path, absent, strlen(absent));
    cr_expect_eq(source_open(&src, folder, &err), -ENOENT);
    cr_expect_not_null(strstr(err.text, "three.safetensors"), "%s", err.text);
    scratch_remove(folder);
}

/* Row 1 gets 3 at column 7. */
static void *make_outliers(int cols, size_t *ret_n) {
    struct outliers_view v;
    *ret_n = outliers_bytes(2, cols, 1);
    void *block = aligned_alloc(OUTLIERS_ALIGN, *ret_n);
    cr_assert(block);
    memset(block, 0, *ret_n);
    outliers_format(&v, block, 2, cols, 1);
    ((uint16_t *)(uintptr_t)v.counts)[1] = 1;
    ((uint16_t *)(uintptr_t)v.values)[0] = f32_to_f16(3);
    outliers_put_column(&v, 0, 7);
    return block;
}

Test(source, outliers_belong_to_the_codes_of_their_name) {
    static const struct {
        const char *name, *why;
        int cols, cut;
    } cases[] = {
        {"layer.outliers", NULL, 40, 0},
        {"other.outliers", "no coded matrix", 40, 0},
        {"layer.outliers", "[2, 41] beside a matrix of [2, 40]", 41, 0},
        {"layer.outliers", "not as long", 40, 64},
    };
    char folder[SCRATCH_PATH], path[SCRATCH_PATH];
    scratch_make(folder);
    scratch_save(scratch_join(path, folder, "config.json"), config, strlen(config));
    scratch_join(path, folder, "model.safetensors");
    size_t n_block, n_side;
    void *block = make_block(&n_block);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        void *side = make_outliers(cases[i].cols, &n_side);
        n_side -= (size_t)cases[i].cut;
        struct safetensors_tensor tensors[] = {
            {"layer.bcq", SAFETENSORS_U8, 1, {n_block}, block, n_block},
            {cases[i].name, SAFETENSORS_U8, 1, {n_side}, side, n_side},
        };
        struct source *src = NULL;
        struct source_tensor t, s;
        struct error err = {""};
        float row[40], codes[40];
        cr_assert_eq(safetensors_write(path, tensors, 2, &err), 0, "%s", err.text);
        int r = source_open(&src, folder, &err);
        free(side);
        if (cases[i].why) {
            cr_expect_eq(r, -EBADMSG);
            cr_expect(strstr(err.text, cases[i].why), "%s", err.text);
            cr_expect(strstr(err.text, cases[i].name), "%s", err.text);
            continue;
        }
        cr_assert_eq(r, 0, "%s", err.text);
        cr_assert_eq(source_find(src, "layer.bcq", &t), 0);
        bcq_expand_row(&t.bcq, 1, codes);
        cr_assert_eq(source_read_rows(src, &t, 1, 1, row, NULL), 0);
        for (int k = 0; k < 40; k++) cr_expect_eq(row[k], codes[k] + (k == 7 ? 3 : 0));
        cr_assert_eq(source_find(src, "layer.outliers", &s), 0);
        cr_expect_eq(s.kind, SOURCE_SIDE);
        cr_expect_eq(source_read_rows(src, &s, 0, 1, row, &err), -ENOTSUP);
        source_close(src);
    }
    free(block);
    scratch_remove(folder);
}

/* The original's row r of a head of d: first half even places, second half odd ones. */
Test(source, gguf_rows_of_q_and_k_are_put_back) {
    char path[SCRATCH_PATH];
    struct source *src;
    struct gguf g;
    struct error err = {""};
    scratch_fixture(path, "gguf/model-Q8_0.gguf");
    cr_assert_eq(source_open(&src, path, &err), 0, "%s", err.text);
    cr_assert_eq(gguf_open(&g, path, &err), 0);
    const struct model_config *c = source_config(src);
    cr_expect(c->n_heads == 8 && c->n_kv_heads == 2 && c->head_dim == 32 && c->vocab == 272);
    static const struct {
        const char *stored, *original;
        bool turned;
    } names[] = {{"blk.0.attn_q.weight", "model.layers.0.self_attn.q_proj.weight", true},
                 {"blk.0.attn_k.weight", "model.layers.0.self_attn.k_proj.weight", true},
                 {"blk.0.attn_v.weight", "model.layers.0.self_attn.v_proj.weight", false},
                 {"output.weight", "lm_head.weight", false}};
    for (size_t i = 0; i < 4; i++) {
        struct source_tensor t;
        const struct gguf_tensor *stored = gguf_find_tensor(&g, names[i].stored);
        cr_assert_eq(source_find(src, names[i].original, &t), 0);
        cr_assert_eq(t.rows, (int64_t)stored->dims[1]);
        size_t stride = stored->n_bytes / stored->dims[1];
        for (int64_t row = 0; row < t.rows; row++) {
            float got[256], want[256];
            int64_t head = row / 32, in = row % 32;
            int64_t at = names[i].turned ? head * 32 + (in < 16 ? 2 * in : 2 * (in - 16) + 1) : row;
            cr_assert_eq(source_read_rows(src, &t, row, 1, got, NULL), 0);
            gguf_quants_row(stored->type, want, stored->data + (size_t)at * stride, 256);
            cr_assert_eq(memcmp(got, want, sizeof got), 0, "%s row %d", t.name, (int)row);
        }
    }
    gguf_close(&g);
    source_close(src);
}

Test(source, gguf_vocabulary_is_taken_out) {
    char path[SCRATCH_PATH];
    struct source *src;
    struct error err = {""};
    scratch_fixture(path, "gguf/model-Q4_0.gguf");
    cr_assert_eq(source_open(&src, path, &err), 0, "%s", err.text);
    const struct gguf_vocab *v = source_vocab(src);
    cr_assert_not_null(v);
    cr_expect(v->n_tokens == 272 && v->n_merges == 8 && v->bos == 1 && v->eos == 2);
    cr_expect(v->add_bos == 0 && v->add_eos == -1 && v->add_space_prefix == 0);
    cr_expect(v->pre.n == 6 && !memcmp(v->pre.bytes, "smollm", 6));
    cr_expect(v->tokens[1].n == 12 && !memcmp(v->tokens[1].bytes, "<|im_start|>", 12));
    cr_expect(v->types[0] == GGUF_VOCAB_CONTROL && v->types[3] == GGUF_VOCAB_NORMAL);
    cr_expect(v->merges[1].n == 3 && !memcmp(v->merges[1].bytes, "h e", 3));
    cr_expect(v->chat_template.n > 100 && v->scores == NULL);
    cr_expect(source_config(src)->n_eos == 1 && source_config(src)->eos[0] == 2);
    source_close(src);
}

Test(source, a_gguf_file_equals_the_model_it_was_made_from) {
    const char *shared = getenv("GPTQT_SHARED");
    if (!shared) cr_skip_test("GPTQT_SHARED is not set");
    char path[SCRATCH_PATH];
    struct source *hf, *g;
    struct error err = {""};
    scratch_join(path, shared, "fixtures/gguf/source-hf");
    cr_assert_eq(source_open(&hf, path, &err), 0, "%s", err.text);
    scratch_join(path, shared, "fixtures/gguf/model-F32.gguf");
    cr_assert_eq(source_open(&g, path, &err), 0, "%s", err.text);
    cr_assert_eq(source_count(hf), source_count(g));
    for (size_t i = 0; i < source_count(hf); i++) {
        const struct source_tensor *want = source_at(hf, i);
        struct source_tensor got;
        cr_assert_eq(source_find(g, want->name, &got), 0, "%s", want->name);
        cr_assert(got.rows == want->rows && got.cols == want->cols && got.n_dims == want->n_dims);
        size_t n = (size_t)(want->rows * want->cols);
        float *a = malloc(n * sizeof *a), *b = malloc(n * sizeof *b);
        cr_assert_eq(source_read_rows(hf, want, 0, want->rows, a, NULL), 0);
        cr_assert_eq(source_read_rows(g, &got, 0, got.rows, b, NULL), 0);
        cr_expect_eq(memcmp(a, b, n * sizeof *a), 0, "%s", want->name);
        free(a);
        free(b);
    }
    source_close(hf);
    source_close(g);
}

Test(source, shared_models_open_and_other_architectures_are_named) {
    static const struct {
        const char *name;
        int code;
    } models[] = {{"llama-mha", 0},     {"llama-gqa", 0},   {"llama3", 0},
                  {"llama-wide", 0},    {"llama-bias", 0},  {"opt-125m-like", 0},
                  {"opt-350m-like", 0}, {"bloom", 0},       {"mistral", -ENOTSUP},
                  {"qwen2", -ENOTSUP},  {"gpt2", -ENOTSUP}, {"phi3", -ENOTSUP}};
    const char *shared = getenv("GPTQT_SHARED");
    if (!shared) cr_skip_test("GPTQT_SHARED is not set");
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        char name[64], path[SCRATCH_PATH];
        snprintf(name, sizeof name, "fixtures/models/%s", models[i].name);
        struct source *src = NULL;
        struct error err = {""};
        int r = source_open(&src, scratch_join(path, shared, name), &err);
        cr_expect_eq(r, models[i].code, "%s: %s", name, err.text);
        if (r < 0) cr_expect_not_null(strstr(err.text, models[i].name), "%s", err.text);
        source_close(src);
    }
}
