#include "engine/checkpoint_writer.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine/config.h"
#include "engine/source.h"
#include "kernels/error.h"
#include "tests/support/scratch.h"

static const char config[] =
    "{\"model_type\":\"llama\",\"hidden_size\":8,\"num_hidden_layers\":1,"
    "\"num_attention_heads\":2,\"intermediate_size\":16,\"vocab_size\":10,\"rms_norm_eps\":1e-05}";
static const char quantization[] =
    "{\"quant_method\":\"gptqt\",\"method\":\"rtn\",\"bits\":1,\"group_size\":32}";

enum { N_TENSORS = 6, N_STEPS = N_TENSORS + 2 };

static struct safetensors_tensor tensors[N_TENSORS];
static float values[N_TENSORS][32];

/* Five dense tensors and one block. */
static void make_tensors(void) {
    static const char *const names[] = {"model.norm.weight", "lm_head.weight", "a.bias", "z",
                                        "m.h"};
    for (int i = 0; i < N_TENSORS - 1; i++) {
        for (int k = 0; k < 32; k++) values[i][k] = (float)(100 * i + k);
        bool half = i == 4;
        tensors[i] = (struct safetensors_tensor){
            names[i],       half ? SAFETENSORS_F16 : SAFETENSORS_F32, 2, {4, 8}, values[i],
            half ? 64 : 128};
    }
    struct bcq_spec spec = {.kind = BCQ_FREE, .rows = 1, .cols = 32, .bits = 1, .group = 32};
    struct bcq_layout layout;
    struct bcq_view v;
    bcq_layout(&layout, &spec);
    void *block = aligned_alloc(64, layout.total);
    memset(block, 0, layout.total);
    bcq_format(&v, block, &spec);
    tensors[N_TENSORS - 1] = (struct safetensors_tensor){
        "up.bcq", SAFETENSORS_U8, 1, {layout.total}, block, layout.total};
}

static struct checkpoint_writer *open_writer(const char *dir, uint64_t shard_bytes) {
    struct checkpoint_writer_options options = {.settings = "{\"bits\":1}",
                                                .shard_bytes = shard_bytes};
    struct checkpoint_writer *w = NULL;
    struct error err = {""};
    cr_assert_eq(checkpoint_writer_open(&w, dir, &options, &err), 0, "%s", err.text);
    return w;
}

/* The i-th thing a quantizer would add; skipped when it is there. */
static void add_step(struct checkpoint_writer *w, int i) {
    struct error err = {""};
    int r = 0;
    if (i < N_TENSORS) {
        if (!checkpoint_writer_has(w, tensors[i].name))
            r = checkpoint_writer_add(w, &tensors[i], &err);
    } else if (i == N_TENSORS) {
        r = checkpoint_writer_add_config(w, config, strlen(config), quantization, &err);
    } else {
        r = checkpoint_writer_add_file(w, "tokenizer.json", "{}", 2, &err);
    }
    cr_assert_eq(r, 0, "%s", err.text);
}

static void finish(struct checkpoint_writer *w) {
    struct error err = {""};
    cr_assert_eq(checkpoint_writer_finish(w, &err), 0, "%s", err.text);
    checkpoint_writer_close(w);
}

static void write_checkpoint(const char *dir, uint64_t shard_bytes) {
    struct checkpoint_writer *w = open_writer(dir, shard_bytes);
    for (int i = 0; i < N_STEPS; i++) add_step(w, i);
    finish(w);
}

static void check_checkpoint(const char *dir) {
    struct source *src;
    struct error err = {""};
    cr_assert_eq(source_open(&src, dir, &err), 0, "%s", err.text);
    cr_expect_eq(source_count(src), N_TENSORS);
    cr_expect_str_eq(source_config(src)->quantization.method, "rtn");
    cr_expect_eq(source_config(src)->norm_eps, 1e-5f);
    for (int i = 0; i < N_TENSORS; i++) {
        struct source_tensor t;
        cr_assert_eq(source_find(src, tensors[i].name, &t), 0, "%s", tensors[i].name);
        cr_expect_eq(t.n_bytes, tensors[i].n_bytes);
        cr_expect_eq(memcmp(t.stored, tensors[i].data, t.n_bytes), 0);
        cr_expect(t.is_bcq || t.data, "%s is not aligned", t.name);
    }
    source_close(src);
}

struct collected {
    char *bytes;
    size_t n;
    int n_files;
};

static void collect_file(const char *path, const char *name, void *arg) {
    struct collected *c = arg;
    size_t n;
    char *bytes = scratch_load(path, &n);
    c->bytes = realloc(c->bytes, c->n + n + strlen(name));
    memcpy(c->bytes + c->n, name, strlen(name));
    memcpy(c->bytes + c->n + strlen(name), bytes, n);
    c->n += strlen(name) + n;
    c->n_files++;
    free(bytes);
}

static struct collected collect(const char *dir) {
    struct collected c = {0};
    scratch_each(dir, collect_file, &c);
    return c;
}

static bool exists(const char *path) { return access(path, F_OK) == 0; }

Test(checkpoint_writer, what_is_written_reads_back, .init = make_tensors) {
    char folder[SCRATCH_PATH], dir[SCRATCH_PATH], partial[SCRATCH_PATH];
    scratch_make(folder);
    scratch_join(dir, folder, "out");
    scratch_join(partial, folder, "out.partial");
    write_checkpoint(dir, 0);
    check_checkpoint(dir);
    cr_expect_not(exists(partial), "clutter is left");
    write_checkpoint(dir, 0);
    check_checkpoint(dir);
    scratch_remove(folder);
}

Test(checkpoint_writer, a_run_killed_anywhere_resumes_to_the_same_bytes, .init = make_tensors) {
    char folder[SCRATCH_PATH], dir[SCRATCH_PATH], path[SCRATCH_PATH];
    scratch_make(folder);
    write_checkpoint(scratch_join(dir, folder, "whole"), 0);
    struct collected want = collect(dir);
    cr_assert_eq(want.n_files, 3);
    for (int killed = 0; killed <= N_STEPS; killed++) {
        scratch_join(dir, folder, "out");
        struct checkpoint_writer *w = open_writer(dir, 0);
        /* In another order than the whole run's. */
        for (int i = 0; i < killed; i++) add_step(w, N_STEPS - 1 - i);
        checkpoint_writer_close(w);
        cr_assert_not(exists(dir));
        /* A kill within a write and within finish() leaves these. */
        scratch_save(scratch_join(path, folder, "out.partial/tensors/z.tmp.77"), "half", 4);
        scratch_save(scratch_join(path, folder, "out.partial/files/a.tmp.77"), "half", 4);
        cr_assert_eq(mkdir(scratch_join(path, folder, "out.partial/done"), 0777), 0);
        scratch_save(scratch_join(path, folder, "out.partial/done/model.safetensors"), "x", 1);
        w = open_writer(dir, 0);
        for (int i = 0; i < N_TENSORS; i++)
            cr_expect_eq(checkpoint_writer_has(w, tensors[i].name), i >= N_STEPS - killed,
                         "%d of %d", i, killed);
        for (int i = 0; i < N_STEPS; i++) add_step(w, i);
        finish(w);
        struct collected got = collect(dir);
        cr_expect(got.n == want.n && !memcmp(got.bytes, want.bytes, got.n), "killed at %d", killed);
        free(got.bytes);
        scratch_remove(dir);
        cr_expect_not(exists(scratch_join(path, folder, "out.partial")));
    }
    free(want.bytes);
    scratch_remove(folder);
}

Test(checkpoint_writer, other_settings_start_afresh, .init = make_tensors) {
    char folder[SCRATCH_PATH], dir[SCRATCH_PATH];
    scratch_make(folder);
    scratch_join(dir, folder, "out");
    struct checkpoint_writer *w = open_writer(dir, 0);
    add_step(w, 0);
    checkpoint_writer_close(w);
    struct checkpoint_writer_options options = {.settings = "{\"bits\":10}"};
    cr_assert_eq(checkpoint_writer_open(&w, dir, &options, NULL), 0);
    cr_expect_not(checkpoint_writer_has(w, tensors[0].name));
    add_step(w, 1);
    checkpoint_writer_close(w);
    options.settings = "{\"bits\":1}";
    cr_assert_eq(checkpoint_writer_open(&w, dir, &options, NULL), 0);
    cr_expect_not(checkpoint_writer_has(w, tensors[1].name), "a prefix is another text");
    checkpoint_writer_close(w);
    scratch_remove(folder);
}

Test(checkpoint_writer, large_checkpoints_are_sharded, .init = make_tensors) {
    char folder[SCRATCH_PATH], dir[SCRATCH_PATH], path[SCRATCH_PATH];
    scratch_make(folder);
    scratch_join(dir, folder, "out");
    write_checkpoint(dir, 300);
    check_checkpoint(dir);
    cr_expect(exists(scratch_join(path, dir, "model.safetensors.index.json")));
    cr_expect(exists(scratch_join(path, dir, "model-00001-of-00004.safetensors")));
    cr_expect(exists(scratch_join(path, dir, "model-00004-of-00004.safetensors")));
    scratch_remove(folder);
}

Test(checkpoint_writer, other_directories_are_not_overwritten, .init = make_tensors) {
    char folder[SCRATCH_PATH], dir[SCRATCH_PATH], path[SCRATCH_PATH];
    scratch_make(folder);
    scratch_join(dir, folder, "out");
    cr_assert_eq(mkdir(dir, 0777), 0);
    write_checkpoint(dir, 0);
    scratch_remove(dir);

    cr_assert_eq(mkdir(dir, 0777), 0);
    scratch_save(scratch_join(path, dir, "precious"), "x", 1);
    struct checkpoint_writer_options options = {.settings = "{}"};
    struct checkpoint_writer *w = NULL;
    struct error err = {""}, early = {""};
    cr_assert_eq(checkpoint_writer_check(dir, false, &early), -EEXIST);
    cr_assert_eq(checkpoint_writer_check(dir, true, &early), 0);
    cr_assert_eq(checkpoint_writer_open(&w, dir, &options, &err), -EEXIST);
    cr_expect_not_null(strstr(err.text, "not a checkpoint"), "%s", err.text);
    cr_expect_str_eq(err.text, early.text);
    cr_assert_null(w);

    options.force = true;
    cr_assert_eq(checkpoint_writer_open(&w, dir, &options, &err), 0, "%s", err.text);
    for (int i = 0; i < N_STEPS; i++) add_step(w, i);
    finish(w);
    check_checkpoint(dir);
    cr_expect(exists(scratch_join(path, folder, "out.old/precious")), "moved aside, not removed");
    scratch_remove(folder);
}

Test(checkpoint_writer, a_kill_between_the_renames_is_mended, .init = make_tensors) {
    char folder[SCRATCH_PATH], dir[SCRATCH_PATH], old[SCRATCH_PATH];
    scratch_make(folder);
    scratch_join(dir, folder, "out");
    write_checkpoint(dir, 0);
    struct checkpoint_writer *w = open_writer(dir, 0);
    checkpoint_writer_close(w);
    cr_assert_eq(rename(dir, scratch_join(old, folder, "out.partial/old")), 0);
    w = open_writer(dir, 0);
    check_checkpoint(dir);
    for (int i = 0; i < N_STEPS; i++) add_step(w, i);
    finish(w);
    check_checkpoint(dir);
    scratch_remove(folder);
}

Test(checkpoint_writer, two_processes_cannot_write_one_checkpoint, .init = make_tensors) {
    char folder[SCRATCH_PATH], dir[SCRATCH_PATH];
    scratch_make(folder);
    struct checkpoint_writer *w = open_writer(scratch_join(dir, folder, "out"), 0);
    pid_t child = fork();
    if (child == 0) {
        struct checkpoint_writer_options options = {.settings = "{}"};
        struct checkpoint_writer *other;
        _exit(checkpoint_writer_open(&other, dir, &options, NULL) == -EBUSY ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    cr_expect_eq(status, 0);
    checkpoint_writer_close(w);
    scratch_remove(folder);
}

Test(checkpoint_writer, names_that_leave_the_directory_are_refused, .init = make_tensors) {
    static const char *const names[] = {"", ".", "..", ".x", "a/b", "../x", "a b", "x.tmp.1", "\n"};
    char folder[SCRATCH_PATH], dir[SCRATCH_PATH];
    scratch_make(folder);
    struct checkpoint_writer *w = open_writer(scratch_join(dir, folder, "out"), 0);
    struct error err = {""};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct safetensors_tensor t = tensors[0];
        t.name = names[i];
        cr_expect_eq(checkpoint_writer_add(w, &t, &err), -EINVAL, "'%s'", names[i]);
        cr_expect_eq(checkpoint_writer_add_file(w, names[i], "", 0, &err), -EINVAL);
        cr_expect_not(checkpoint_writer_has(w, names[i]));
    }
    add_step(w, 0);
    cr_expect_eq(checkpoint_writer_finish(w, &err), -EINVAL);
    cr_expect_not_null(strstr(err.text, "config.json"), "%s", err.text);
    checkpoint_writer_close(w);
    scratch_remove(folder);
}

Test(checkpoint_writer, a_full_disk_is_reported_and_leaves_no_half_file, .init = make_tensors) {
    char folder[SCRATCH_PATH], dir[SCRATCH_PATH];
    scratch_make(folder);
    struct checkpoint_writer *w = open_writer(scratch_join(dir, folder, "out"), 0);
    struct rlimit before, small = {200, 200};
    getrlimit(RLIMIT_FSIZE, &before);
    small.rlim_max = before.rlim_max;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    struct error err = {""};
    int r = checkpoint_writer_add(w, &tensors[0], &err);
    setrlimit(RLIMIT_FSIZE, &before);
    cr_expect_eq(r, -EFBIG, "%s", err.text);
    cr_expect_not_null(strstr(err.text, "out.partial/tensors/model.norm.weight: cannot write"),
                       "%s", err.text);
    cr_expect_not(checkpoint_writer_has(w, tensors[0].name));
    for (int i = 0; i < N_STEPS; i++) add_step(w, i);
    finish(w);
    check_checkpoint(dir);
    scratch_remove(folder);
}

Test(checkpoint_writer, the_worked_example_of_the_format_is_true) {
    char path[SCRATCH_PATH];
    size_t n;
    void *block = scratch_load(scratch_fixture(path, "../fuzz/corpus/bcq/worked-example.bcq"), &n);
    struct bcq_view v;
    float row[32];
    cr_assert_eq(n, 448);
    cr_assert_eq(bcq_parse(&v, block, n, NULL), 0);
    cr_expect(v.layout.planes == 0x80 && v.layout.q == 0xc0 && v.layout.p == 0x100);
    cr_expect(v.layout.shape == 0x140 && v.layout.row_scale == 0x180);
    bcq_expand_row(&v, 0, row);
    cr_expect(row[0] == -2.75f && row[8] == 0.25f);
    bcq_expand_row(&v, 1, row);
    cr_expect_eq(row[17], -7.75f);
    free(block);
}
