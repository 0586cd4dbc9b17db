#include "engine/gguf_write.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "engine/gguf.h"
#include "kernels/error.h"
#include "tests/support/scratch.h"

static const float matrix[6] = {1, -2, 3, -4, 5, -6};
static const uint16_t halves[3] = {0x3c00, 0xc000, 0x0001};

/* Every kind of pair, a tensor that needs filling up after it and one that follows. */
static void collect(struct gguf_write *w) {
    static const int32_t ids[3] = {0, -1, 0x12345678};
    gguf_write_text(w, "general.architecture", "llama", 5);
    gguf_write_text(w, "empty", "", 0);
    gguf_write_u32(w, "a.number", 4000000000u);
    gguf_write_f32(w, "a.real", -0.75f);
    gguf_write_bool(w, "a.truth", true);
    gguf_write_i32s(w, "some.ids", ids, 3);
    gguf_write_texts(w, "some.texts", 2);
    gguf_write_element(w, "a\0b", 3);
    gguf_write_element(w, "\xff", 1);
    gguf_write_tensor(w, "second", gguf_quants_find(GGUF_F16), 1, (uint64_t[]){3});
    gguf_write_tensor(w, "first", gguf_quants_find(GGUF_F32), 2, (uint64_t[]){3, 2});
}

static int write_all(struct gguf_write *w, const char *path, struct error *err) {
    int r = gguf_write_begin(w, path, err);
    if (r == 0) r = gguf_write_data(w, halves, sizeof halves, err);
    if (r == 0) r = gguf_write_end(w, err);
    if (r == 0) r = gguf_write_data(w, matrix, 12, err);
    if (r == 0) r = gguf_write_data(w, matrix + 3, 12, err);
    if (r == 0) r = gguf_write_end(w, err);
    return r == 0 ? gguf_write_commit(w, err) : r;
}

static void check_pairs(const struct gguf *g) {
    struct gguf_text text, texts[2];
    int64_t number;
    double real;
    bool truth;
    cr_assert_eq(g->n_pairs, 7);
    cr_assert(gguf_get_text(&text, gguf_find(g, "general.architecture")));
    cr_expect(text.n == 5 && !memcmp(text.bytes, "llama", 5));
    cr_assert(gguf_get_text(&text, gguf_find(g, "empty")));
    cr_expect_eq(text.n, 0);
    cr_assert(gguf_get_int(&number, gguf_find(g, "a.number"), 0));
    cr_expect_eq(number, 4000000000);
    cr_assert(gguf_get_real(&real, gguf_find(g, "a.real"), 0));
    cr_expect_eq(real, -0.75);
    cr_assert(gguf_get_bool(&truth, gguf_find(g, "a.truth")));
    cr_expect(truth);
    const struct gguf_pair *ids = gguf_find(g, "some.ids");
    cr_assert_eq(ids->n, 3);
    cr_assert(gguf_get_int(&number, ids, 1));
    cr_expect_eq(number, -1);
    cr_assert(gguf_get_int(&number, ids, 2));
    cr_expect_eq(number, 0x12345678);
    cr_assert(gguf_get_texts(texts, gguf_find(g, "some.texts")));
    cr_expect(texts[0].n == 3 && !memcmp(texts[0].bytes, "a\0b", 3));
    cr_expect(texts[1].n == 1 && texts[1].bytes[0] == '\xff');
}

Test(gguf_write, what_is_written_is_read_back) {
    char folder[SCRATCH_PATH], path[SCRATCH_PATH];
    struct gguf_write w = GGUF_WRITE_INIT;
    struct gguf g;
    struct error err = {""};
    scratch_make(folder);
    scratch_join(path, folder, "x.gguf");
    collect(&w);
    cr_assert_eq(write_all(&w, path, &err), 0, "%s", err.text);
    gguf_write_close(&w);
    cr_assert_eq(gguf_open(&g, path, &err), 0, "%s", err.text);
    check_pairs(&g);
    const struct gguf_tensor *t = gguf_find_tensor(&g, "first");
    cr_assert_not_null(t);
    cr_expect(t->n_dims == 2 && t->dims[0] == 3 && t->dims[1] == 2 && t->type->type == GGUF_F32);
    cr_expect_eq(memcmp(t->data, matrix, sizeof matrix), 0);
    t = gguf_find_tensor(&g, "second");
    cr_assert_not_null(t);
    cr_expect(t->n_dims == 1 && t->dims[0] == 3 && t->type->type == GGUF_F16);
    cr_expect_eq(memcmp(t->data, halves, sizeof halves), 0);
    gguf_close(&g);
    scratch_remove(folder);
}

Test(gguf_write, data_that_are_not_the_declared_ones_leave_no_file) {
    char folder[SCRATCH_PATH], path[SCRATCH_PATH];
    struct gguf_write w = GGUF_WRITE_INIT;
    struct error err = {""};
    static const char much[256];
    scratch_make(folder);
    scratch_join(path, folder, "x.gguf");
    collect(&w);
    cr_assert_eq(gguf_write_begin(&w, path, &err), 0, "%s", err.text);
    cr_expect_eq(gguf_write_data(&w, much, sizeof much, &err), -EINVAL);
    cr_expect_eq(gguf_write_data(&w, much, 32, &err), 0);
    cr_expect_eq(gguf_write_commit(&w, &err), -EINVAL);
    cr_expect_not_null(strstr(err.text, "x.gguf"));
    gguf_write_close(&w);
    cr_expect_neq(access(path, F_OK), 0);
    cr_expect_eq(rmdir(folder), 0, "something was left behind");
}

Test(gguf_write, a_full_disk_is_told_and_leaves_no_file) {
    char folder[SCRATCH_PATH], path[SCRATCH_PATH];
    struct gguf_write w = GGUF_WRITE_INIT;
    struct error err = {""};
    scratch_make(folder);
    scratch_join(path, folder, "x.gguf");
    collect(&w);
    struct rlimit before, limit;
    getrlimit(RLIMIT_FSIZE, &before);
    limit = before;
    limit.rlim_cur = 200;
    signal(SIGXFSZ, SIG_IGN);
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    cr_expect_eq(write_all(&w, path, &err), -EFBIG);
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &before), 0);
    cr_expect_not_null(strstr(err.text, "x.gguf"));
    gguf_write_close(&w);
    cr_expect_eq(rmdir(folder), 0, "something was left behind");
}
