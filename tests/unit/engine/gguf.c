#include "engine/gguf.h"

#include <criterion/criterion.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/sha256.h"
#include "engine/source.h"
#include "kernels/error.h"
#include "tests/support/scratch.h"

/* Names say the verdict; what the container cannot know is refused when the model is opened. */
static void judge(const char *path, const char *name, void *arg) {
    int *n_bad = arg;
    struct source *src = NULL;
    struct error err = {""};
    int r = source_open(&src, path, &err);
    if (!strncmp(name, "ok-", 3)) cr_expect_eq(r, 0, "%s: %s", name, err.text);
    if (!strncmp(name, "bad-", 4)) {
        cr_expect_lt(r, 0, "%s was accepted", name);
        cr_expect(strlen(err.text) > strlen(path) + 10, "%s: '%s'", name, err.text);
        cr_expect_null(src, "%s: the output was written", name);
        ++*n_bad;
    }
    source_close(src);

    size_t n;
    void *bytes = scratch_load(path, &n);
    struct source_file file = {name, bytes, n};
    struct source *image = NULL;
    cr_expect_eq(source_open_memory(&image, &file, 1, &err), r, "%s: from memory", name);
    source_close(image);
    free(bytes);
}

Test(gguf, malformed_files_are_refused_and_odd_ones_survived) {
    char folder[SCRATCH_PATH];
    int n_bad = 0;
    cr_assert_eq(scratch_each(scratch_fixture(folder, "malformed/gguf"), judge, &n_bad), 76);
    cr_assert_eq(n_bad, 66);
}

static const struct {
    const char *file, *text;
} messages[] = {
    {"bad-version-99", "version 99"},
    {"bad-big-endian", "big-endian"},
    {"bad-kv-count-huge", "metadata: a count"},
    {"bad-duplicate-key", "'llama.block_count': occurs twice"},
    {"bad-value-type-13", "'x': value type 13"},
    {"bad-array-of-arrays-deep", "array of arrays"},
    {"bad-alignment-not-power-of-two", "'general.alignment' 24"},
    {"bad-dims-product-wraps-to-256", "tensor 'blk.0.attn_q.weight': dimension 1"},
    {"bad-tensor-type-unknown", "tensor 'blk.0.attn_q.weight': type 999"},
    {"bad-quant-row-not-multiple-of-block", "Q4_K needs multiples of 256"},
    {"bad-offset-unaligned", "tensor 'blk.0.attn_k.weight': offset 33"},
    {"bad-overlapping-tensors", "overlaps"},
    {"bad-missing-tensor", "tensor 'blk.0.ffn_up.weight' is missing"},
    {"bad-wrong-tensor-shape", "tensor 'blk.0.attn_q.weight': dimensions 16 x 4"},
    {"bad-missing-head-count", "llama.attention.head_count is missing"},
    {"bad-embedding-length-string", "llama.embedding_length is not an integer"},
    {"bad-bos-id-out-of-range", "tokenizer.ggml.bos_token_id 1000000000: 0..258"},
    {"bad-token-count-differs-from-embedding", "tokenizer.ggml.tokens has 200"},
    {"bad-block-count-huge", "llama.block_count 4294967295: 1..1024"},
    {"bad-unknown-architecture", "'nosucharch': llama is supported"},
};

Test(gguf, messages_name_the_key_or_tensor) {
    for (size_t i = 0; i < sizeof messages / sizeof *messages; i++) {
        char name[128], path[SCRATCH_PATH];
        snprintf(name, sizeof name, "malformed/gguf/%s.gguf", messages[i].file);
        struct source *src = NULL;
        struct error err = {""};
        cr_assert_lt(source_open(&src, scratch_fixture(path, name), &err), 0);
        cr_expect_not_null(strstr(err.text, messages[i].text), "%s: %s", messages[i].file,
                           err.text);
    }
}

Test(gguf, metadata_of_every_type_read_back) {
    char path[SCRATCH_PATH];
    scratch_fixture(path, "malformed/gguf/ok-unknown-keys-of-every-type.gguf");
    struct gguf g;
    struct error err = {""};
    cr_assert_eq(gguf_open(&g, path, &err), 0, "%s", err.text);
    static const struct {
        const char *key;
        int64_t value;
    } ints[] = {{"x.u8", 1},    {"x.i8", -1},  {"x.u16", 513},
                {"x.i16", 513}, {"x.i64", -1}, {"llama.context_length", 64}};
    int64_t v;
    for (size_t i = 0; i < sizeof ints / sizeof *ints; i++) {
        cr_assert(gguf_get_int(&v, gguf_find(&g, ints[i].key), 0), "%s", ints[i].key);
        cr_expect_eq(v, ints[i].value, "%s", ints[i].key);
    }
    double x;
    bool b = false;
    struct gguf_text text;
    cr_expect_not(gguf_get_int(&v, gguf_find(&g, "x.u64"), 0), "2^63 is no int64");
    cr_expect(gguf_get_real(&x, gguf_find(&g, "x.f64"), 0) && x == 1.5);
    cr_expect(gguf_get_real(&x, gguf_find(&g, "x.f32s"), 1) && x == 2);
    cr_expect_not(gguf_get_real(&x, gguf_find(&g, "x.f32s"), 2));
    cr_expect(gguf_get_bool(&b, gguf_find(&g, "x.bool")) && b);
    cr_expect_not(gguf_get_bool(&b, gguf_find(&g, "x.u8")));
    cr_expect_eq(gguf_find(&g, "x.empty")->n, 0);
    cr_expect(gguf_get_text(&text, gguf_find(&g, "general.architecture")));
    cr_expect(text.n == 5 && !memcmp(text.bytes, "llama", 5));
    cr_expect_null(gguf_find(&g, "x.none"));
    gguf_close(&g);
}

static void hash_tensor(const struct gguf_tensor *t, char hex[SHA256_HEX]) {
    float *row = malloc(t->dims[0] * sizeof *row);
    size_t stride = t->n_bytes / t->dims[1];
    struct sha256 state;
    sha256_init(&state);
    for (uint64_t i = 0; i < t->dims[1]; i++) {
        gguf_quants_row(t->type, row, t->data + i * stride, (int64_t)t->dims[0]);
        sha256_add(&state, row, t->dims[0] * sizeof *row);
    }
    sha256_end(&state, hex);
    free(row);
}

/* Every tensor of a file against the digests of outside software's expansion: bit for bit. */
static int check_file(const char *path, const json_t *digests) {
    struct gguf g;
    struct error err = {""};
    cr_assert_eq(gguf_open(&g, path, &err), 0, "%s", err.text);
    cr_assert_eq(g.n_tensors, json_object_size(digests), "%s", path);
    for (size_t i = 0; i < g.n_tensors; i++) {
        const struct gguf_tensor *t = &g.tensors[i];
        const json_t *want = json_object_get(digests, t->name);
        char hex[SHA256_HEX];
        hash_tensor(t, hex);
        cr_expect_str_eq(hex, json_string_value(json_object_get(want, "sha256_f32")), "%s: %s %s",
                         path, t->name, t->type->name);
    }
    int n = (int)g.n_tensors;
    gguf_close(&g);
    return n;
}

static int check_folder(const char *folder, const char *const *types) {
    char path[SCRATCH_PATH], name[64];
    json_t *checks = json_load_file(scratch_join(path, folder, "checks.json"), 0, NULL);
    cr_assert_not_null(checks);
    int n = 0;
    for (; *types; types++) {
        snprintf(name, sizeof name, "model-%s.gguf", *types);
        n += check_file(scratch_join(path, folder, name), json_object_get(checks, *types));
    }
    json_decref(checks);
    return n;
}

Test(gguf, quantized_types_expand_bit_for_bit) {
    static const char *const types[] = {"Q4_0", "Q4_1", "Q5_0", "Q5_1",   "Q8_0",   "Q2_K", "Q3_K",
                                        "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", NULL};
    char folder[SCRATCH_PATH];
    cr_assert_eq(check_folder(scratch_fixture(folder, "gguf"), types), 12 * 12);
}

Test(gguf, float_types_and_mixtures_expand_bit_for_bit) {
    static const char *const types[] = {"F32", "F16", "BF16", "Q4_K_M", NULL};
    const char *shared = getenv("GPTQT_SHARED");
    if (!shared) cr_skip_test("GPTQT_SHARED is not set");
    char folder[SCRATCH_PATH];
    cr_assert_eq(check_folder(scratch_join(folder, shared, "fixtures/gguf"), types), 4 * 12);
}

Test(gguf, digests_are_sha256) {
    static const struct {
        const char *text, *digest;
    } cases[] = {
        {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
        {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
        {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
         "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
    };
    for (size_t i = 0; i < 3; i++) {
        struct sha256 state;
        char hex[SHA256_HEX];
        sha256_init(&state);
        for (const char *p = cases[i].text; *p; p++) sha256_add(&state, p, 1);
        sha256_end(&state, hex);
        cr_expect_str_eq(hex, cases[i].digest);
    }
}
