/* nftw() is an XSI function. */
#define _XOPEN_SOURCE 700
#include "tests/support/scratch.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void scratch_make(char path[SCRATCH_PATH]) {
    const char *base = getenv("TMPDIR");
    snprintf(path, SCRATCH_PATH, "%s/gptqt-test-XXXXXX", base && *base ? base : "/tmp");
    cr_assert_not_null(mkdtemp(path), "cannot create %s", path);
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *at) {
    (void)st;
    (void)kind;
    (void)at;
    return remove(path);
}

void scratch_remove(const char *path) { nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS); }

const char *scratch_join(char dst[SCRATCH_PATH], const char *folder, const char *name) {
    int n = snprintf(dst, SCRATCH_PATH, "%s/%s", folder, name);
    cr_assert(n > 0 && n < SCRATCH_PATH);
    return dst;
}

const char *scratch_fixture(char dst[SCRATCH_PATH], const char *name) {
    const char *base = getenv("GPTQT_FIXTURES");
    return scratch_join(dst, base ? base : "tests/fixtures", name);
}

void *scratch_load(const char *path, size_t *ret_n) {
    FILE *f = fopen(path, "rb");
    cr_assert_not_null(f, "cannot open %s", path);
    cr_assert_eq(fseek(f, 0, SEEK_END), 0);
    size_t n = (size_t)ftell(f), room = (n / 64 + 1) * 64;
    rewind(f);
    void *bytes = aligned_alloc(64, room);
    cr_assert_not_null(bytes);
    cr_assert_eq(fread(bytes, 1, n, f), n);
    fclose(f);
    *ret_n = n;
    return bytes;
}

void scratch_save(const char *path, const void *bytes, size_t n) {
    FILE *f = fopen(path, "wb");
    cr_assert_not_null(f, "cannot create %s", path);
    cr_assert_eq(fwrite(bytes, 1, n, f), n);
    cr_assert_eq(fclose(f), 0);
}

static int is_visible(const struct dirent *e) { return *e->d_name != '.'; }

int scratch_each(const char *folder, void (*visit)(const char *path, const char *name, void *arg),
                 void *arg) {
    struct dirent **entries;
    int n = scandir(folder, &entries, is_visible, alphasort);
    cr_assert_geq(n, 0, "cannot read %s", folder);
    for (int i = 0; i < n; i++) {
        char path[SCRATCH_PATH];
        visit(scratch_join(path, folder, entries[i]->d_name), entries[i]->d_name, arg);
        free(entries[i]);
    }
    free(entries);
    return n;
}

void scratch_see_same(const char *path, const char *name, void *arg) {
    char other[SCRATCH_PATH];
    size_t n, m;
    void *a = scratch_load(path, &n), *b = scratch_load(scratch_join(other, arg, name), &m);
    cr_assert(n == m && memcmp(a, b, n) == 0, "%s differs", name);
    free(a);
    free(b);
}
