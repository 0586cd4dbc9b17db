#include "engine/safetensors.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/error.h"
#include "tests/support/scratch.h"

/* Names say the verdict: ok-*, bad-*, odd-* (either). */
static void judge(const char *path, const char *name, void *arg) {
    int *n_bad = arg;
    struct safetensors st = {0};
    struct error err = {""};
    size_t n;
    void *bytes = scratch_load(path, &n);
    int r = safetensors_parse(&st, bytes, n, &err);
    if (!strncmp(name, "ok-", 3)) cr_expect_eq(r, 0, "%s: %s", name, err.text);
    if (!strncmp(name, "bad-", 4)) {
        cr_expect_lt(r, 0, "%s was accepted", name);
        cr_expect(strlen(err.text) > 10, "%s: '%s'", name, err.text);
        cr_expect_null(st.tensors, "%s: the output was written", name);
        ++*n_bad;
    }
    safetensors_close(&st);

    struct safetensors opened = {0};
    int s = safetensors_open(&opened, path, &err);
    cr_expect_eq(s, r, "%s: open and parse differ", name);
    safetensors_close(&opened);
    free(bytes);
}

Test(safetensors, malformed_files_are_refused_and_odd_ones_survived) {
    char folder[SCRATCH_PATH];
    int n_bad = 0;
    int n = scratch_each(scratch_fixture(folder, "malformed/safetensors"), judge, &n_bad);
    cr_assert_eq(n, 68);
    cr_assert_eq(n_bad, 59);
}

/* What the message about a fixture must contain. */
static const struct {
    const char *file, *text;
} messages[] = {
    {"bad-dtype-number", "tensor 'a': dtype"},
    {"bad-missing-shape", "tensor 'a': shape is missing"},
    {"bad-shape-negative", "tensor 'a': shape[0]"},
    {"bad-shape-product-overflow", "tensor 'a': shape overflows"},
    {"bad-offset-past-end", "tensor 'a': data_offsets end at 128"},
    {"bad-size-differs-from-shape", "shape and dtype need 40"},
    {"bad-overlapping-ranges", "tensor 'b': data_offsets begin at 16, overlapping"},
    {"bad-hole-in-middle", "tensor 'b': data_offsets begin at 64, leaving a hole"},
    {"bad-data-past-declared", "of which tensors use 96"},
    {"bad-header-length-over-100MB", "header length 100000001: 1..100000000"},
    {"bad-header-deep-arrays", "nested deeper"},
    {"bad-duplicate-name", "duplicate"},
    {"bad-metadata-not-strings", "__metadata__ 'n'"},
};

Test(safetensors, messages_name_the_tensor_and_the_field) {
    for (size_t i = 0; i < sizeof messages / sizeof *messages; i++) {
        char name[128], path[SCRATCH_PATH];
        snprintf(name, sizeof name, "malformed/safetensors/%s.safetensors", messages[i].file);
        struct safetensors st;
        struct error err = {""};
        cr_assert_lt(safetensors_open(&st, scratch_fixture(path, name), &err), 0);
        cr_expect_not_null(strstr(err.text, messages[i].text), "%s: %s", messages[i].file,
                           err.text);
        cr_expect_eq(strncmp(err.text, path, strlen(path)), 0, "no path in: %s", err.text);
    }
}

Test(safetensors, writes_aligned_tensors_that_read_back) {
    char folder[SCRATCH_PATH], path[SCRATCH_PATH];
    scratch_make(folder);
    static const uint8_t block[128] = {66, 67}, odd[3] = {1, 2, 3};
    static const float wide[6] = {1, 2, 3, 4, 5, 6};
    static const uint16_t half[5] = {9, 8, 7, 6, 5};
    struct safetensors_tensor tensors[] = {
        {"odd \"name\"\n", SAFETENSORS_U8, 1, {3}, odd, 3},
        {"half", SAFETENSORS_F16, 1, {5}, half, 10},
        {"wide", SAFETENSORS_F32, 2, {2, 3}, wide, 24},
        {"layer.bcq", SAFETENSORS_U8, 1, {128}, block, 128},
        {"nothing", SAFETENSORS_F32, 2, {0, 7}, "", 0},
        {"scalar", SAFETENSORS_I64, 0, {0}, "12345678", 8},
    };
    size_t n = sizeof tensors / sizeof *tensors;
    struct error err = {""};
    cr_assert_eq(safetensors_write(scratch_join(path, folder, "t"), tensors, n, &err), 0, "%s",
                 err.text);

    struct safetensors st;
    cr_assert_eq(safetensors_open(&st, path, &err), 0, "%s", err.text);
    cr_assert_eq(st.n_tensors, n);
    for (size_t i = 0; i < n; i++) {
        const struct safetensors_tensor *want = &tensors[i];
        const struct safetensors_tensor *got = safetensors_find(&st, want->name);
        cr_assert_not_null(got, "%s", want->name);
        cr_expect_eq(got->type, want->type);
        cr_expect_eq(got->n_dims, want->n_dims);
        cr_expect_eq(memcmp(got->shape, want->shape, sizeof got->shape), 0);
        cr_expect_eq(got->n_bytes, want->n_bytes);
        cr_expect_eq(memcmp(got->data, want->data, want->n_bytes), 0);
        cr_expect_eq((uintptr_t)got->data % safetensors_type_size(got->type), 0, "%s", want->name);
    }
    cr_expect_eq((uintptr_t)safetensors_find(&st, "layer.bcq")->data % SAFETENSORS_ALIGN, 0);
    cr_expect_null(safetensors_find(&st, "none"));
    safetensors_close(&st);
    scratch_remove(folder);
}

static void count_one(const char *path, const char *name, void *arg) {
    (void)path;
    (void)name;
    ++*(int *)arg;
}

Test(safetensors, a_failed_write_leaves_what_was_there) {
    char folder[SCRATCH_PATH], path[SCRATCH_PATH];
    scratch_make(folder);
    scratch_join(path, folder, "t");
    scratch_save(path, "before", 6);
    struct safetensors_tensor wrong = {"a", SAFETENSORS_F32, 1, {3}, "abcdefgh", 8};
    struct error err = {""};
    cr_assert_eq(safetensors_write(path, &wrong, 1, &err), -EINVAL);
    cr_assert_not_null(strstr(err.text, "tensor 'a'"), "%s", err.text);
    size_t n;
    char *bytes = scratch_load(path, &n);
    cr_assert(n == 6 && !memcmp(bytes, "before", 6));
    free(bytes);
    cr_assert_eq(safetensors_write("/nonexistent/t", NULL, 0, &err), -ENOENT);

    int files = 0;
    scratch_each(folder, count_one, &files);
    cr_assert_eq(files, 1, "a temporary was left");
    scratch_remove(folder);
}

Test(safetensors, index_files_cannot_leave_the_directory) {
    static const char *const bad[] = {
        "[]",
        "{}",
        "{\"weight_map\": []}",
        "{\"weight_map\": {\"a\": 5}}",
        "{\"weight_map\": {\"a\": \"\"}}",
        "{\"weight_map\": {\"a\": \"..\"}}",
        "{\"weight_map\": {\"a\": \"../x.safetensors\"}}",
        "{\"weight_map\": {\"a\": \"/etc/passwd\"}}",
        "{\"weight_map\": {\"a\": \"sub/x.safetensors\"}}",
        "{\"weight_map\": {\"a\": \".hidden\"}}",
        "{\"weight_map\": {\"a\": \"b\\\\c\"}}",
        "{\"weight_map\": {\"a\": \"x\", \"a\": \"y\"}}",
    };
    struct safetensors_index index;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct error err = {""};
        cr_expect_lt(safetensors_index_parse(&index, bad[i], strlen(bad[i]), &err), 0, "%s",
                     bad[i]);
        cr_expect_not_null(strstr(err.text, "index.json"), "%s", err.text);
    }
    static const char good[] =
        "{\"metadata\":{},\"weight_map\":{\"x\":\"b.safetensors\",\"y\":\"a.safetensors\","
        "\"z\":\"b.safetensors\"}}";
    cr_assert_eq(safetensors_index_parse(&index, good, strlen(good), NULL), 0);
    cr_assert_eq(index.n_files, 2);
    cr_assert_str_eq(index.files[0], "a.safetensors");
    cr_assert_eq(index.n_places, 3);
    for (size_t i = 0; i < 3; i++)
        cr_expect_eq(index.places[i].file, index.places[i].tensor[0] == 'y' ? 0 : 1);
    safetensors_index_free(&index);
}
