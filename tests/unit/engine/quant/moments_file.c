#include "engine/quant/moments_file.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/quant/quantize.h"
#include "engine/source.h"
#include "kernels/error.h"
#include "tests/support/scratch.h"

static const char model[] = "models/llama-gqa"; /* three blocks */

static struct quantize_options quick(const char *folder) {
    struct quantize_options o;
    quantize_defaults(&o);
    o.layer.n_ranges = 4;
    o.layer.n_threads = 2;
    o.windows = 6;
    o.ctx = 32;
    o.is_static = true;
    o.moments_folder = folder;
    return o;
}

static int run(const char *out, const struct quantize_options *o, struct error *err) {
    char path[SCRATCH_PATH];
    struct quantize_summary summary;
    struct quantize_events events = {0};
    struct source *src;
    int r = source_open(&src, scratch_fixture(path, model), err);
    if (r < 0) return r;
    r = quantize_run(&summary, out, src, o, &events, err);
    source_close(src);
    return r;
}

static void count(const char *path, const char *name, void *arg) {
    (void)path;
    *(int *)arg += strstr(name, ".moments") != NULL;
}

static int files_in(const char *folder) {
    int n = 0;
    scratch_each(folder, count, &n);
    return n;
}

/* Runs with the folder and without; both must give the same. */
static void expect_same(const char *folder, struct quantize_options o) {
    char with[SCRATCH_PATH], without[SCRATCH_PATH];
    struct error err;
    o.force = true;
    cr_assert_eq(run(scratch_join(with, folder, "with"), &o, &err), 0, "%s", err.text);
    o.moments_folder = NULL;
    cr_assert_eq(run(scratch_join(without, folder, "without"), &o, &err), 0, "%s", err.text);
    cr_assert_geq(scratch_each(without, scratch_see_same, with), 3);
}

Test(moments_file, a_run_on_kept_moments_gives_the_same_bytes) {
    char folder[SCRATCH_PATH], kept[SCRATCH_PATH];
    scratch_make(folder);
    scratch_join(kept, folder, "kept");
    struct quantize_options o = quick(kept);
    expect_same(folder, o);
    cr_expect_eq(files_in(kept), 3);
    o.layer.bits = 2;
    o.layer.refine = 1;
    expect_same(folder, o);
    o.layer.incoherence = LAYER_TURN_INPUT;
    expect_same(folder, o);
    cr_expect_eq(files_in(kept), 3, "other flags make no other moments");
    o.tokens = MOMENTS_BY_STATE;
    expect_same(folder, o);
    cr_expect_eq(files_in(kept), 6);
    o.seed = 5;
    expect_same(folder, o);
    cr_expect_eq(files_in(kept), 9);
    scratch_remove(folder);
}

struct find {
    char path[SCRATCH_PATH];
};

static void find_first(const char *path, const char *name, void *arg) {
    struct find *f = arg;
    if (strstr(name, "-001.moments")) snprintf(f->path, sizeof f->path, "%s", path);
}

Test(moments_file, kept_moments_are_what_later_runs_rest_on) {
    char folder[SCRATCH_PATH], kept[SCRATCH_PATH], out[SCRATCH_PATH];
    struct error err;
    struct find found = {{0}};
    scratch_make(folder);
    scratch_join(kept, folder, "kept");
    struct quantize_options o = quick(kept);
    o.force = true;
    cr_assert_eq(run(scratch_join(out, folder, "out"), &o, &err), 0, "%s", err.text);
    scratch_each(kept, find_first, &found);
    size_t n;
    unsigned char *bytes = scratch_load(found.path, &n);
    /* A file cut short is made anew, one that lies is refused by name. */
    scratch_save(found.path, bytes, n - 8);
    cr_assert_eq(run(out, &o, &err), 0, "%s", err.text);
    free(bytes);
    bytes = scratch_load(found.path, &n);
    bytes[n - 1] ^= 1;
    scratch_save(found.path, bytes, n);
    cr_expect_eq(run(out, &o, &err), -EINVAL);
    cr_expect_not_null(strstr(err.text, found.path), "%s", err.text);
    cr_expect_not_null(strstr(err.text, "damaged"), "%s", err.text);
    bytes[8] ^= 2;
    scratch_save(found.path, bytes, n);
    cr_expect_eq(run(out, &o, &err), -EINVAL);
    cr_expect_not_null(strstr(err.text, "not the moments of block 1"), "%s", err.text);
    free(bytes);
    scratch_remove(folder);
}

Test(moments_file, what_cannot_be_is_refused) {
    char folder[SCRATCH_PATH], kept[SCRATCH_PATH], out[SCRATCH_PATH];
    struct error err;
    scratch_make(folder);
    struct quantize_options o = quick(scratch_join(kept, folder, "kept"));
    scratch_join(out, folder, "out");
    o.is_static = false;
    cr_expect_eq(run(out, &o, &err), -EINVAL);
    cr_expect_not_null(strstr(err.text, "static"), "%s", err.text);
    o.is_static = true;
    o.blockwise.transform = TRANSFORM_GRID;
    cr_expect_eq(run(out, &o, &err), -EINVAL);
    cr_expect_not_null(strstr(err.text, "moments"), "%s", err.text);
    o = quick("/proc/no/such");
    cr_expect_lt(run(out, &o, &err), 0);
    cr_expect_not_null(strstr(err.text, "/proc/no/such"), "%s", err.text);
    scratch_remove(folder);
}
