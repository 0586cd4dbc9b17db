/* The windows of a text: each is used once in an epoch, those held out lie in the last tenth and are
 * never trained on, and orders depend on the seed alone. */
#include "engine/train/windows.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/source.h"
#include "engine/source_text.h"
#include "engine/text_file.h"
#include "engine/tokenizer.h"
#include "kernels/error.h"
#include "tests/support/scratch.h"

enum { CTX = 20 };

static char folder[SCRATCH_PATH], text[SCRATCH_PATH];
static struct source *src;
static int32_t *ids; /* the text's tokens, in order */
static size_t n_ids;

static void make(void) {
    char path[SCRATCH_PATH], *bytes;
    struct tokenizer *t;
    struct error err;
    size_t n;
    scratch_make(folder);
    FILE *f = fopen(scratch_join(text, folder, "text"), "we");
    cr_assert(f);
    for (int i = 0; i < 400; i++) fprintf(f, "%d cats and %d dogs.\n", i, i * 7 % 31);
    fclose(f);
    snprintf(path, sizeof path, "%s/deploy/models/stories", getenv("GPTQT_SOURCE"));
    cr_assert_eq(source_open(&src, path, &err), 0, "%s", err.text);
    cr_assert_eq(source_text_tokenizer(&t, src, &err), 0, "%s", err.text);
    cr_assert_eq(text_file_read(&bytes, &n, text, &err), 0);
    cr_assert_eq(tokenizer_encode(t, bytes, n, 0, &ids, &n_ids, &err), 0);
    free(bytes);
    tokenizer_free(t);
}

static void clear(void) {
    free(ids);
    source_close(src);
    scratch_remove(folder);
}

static struct windows open_windows(uint64_t seed) {
    struct windows w;
    struct error err;
    struct windows_options o = {.calibration = text, .ctx = CTX, .seed = seed, .n_threads = 1};
    cr_assert_eq(windows_open(&w, src, &o, &err), 0, "%s", err.text);
    return w;
}

/* Which of the text's windows this is; ever other numbers make each its own. */
static int place(const struct windows *w, int window) {
    for (size_t i = 0; (i + 1) * CTX <= n_ids; i++)
        if (!memcmp(ids + i * CTX, w->tokens + (size_t)window * CTX, CTX * sizeof *ids))
            return (int)i;
    return -1;
}

Test(windows, each_is_used_once_in_an_epoch, .init = make, .fini = clear) {
    struct windows w = open_windows(3);
    int all = (int)(n_ids / CTX);
    cr_assert_eq(w.n_train, all - all / 10);
    for (int epoch = 0; epoch < 3; epoch++) {
        char *used = calloc((size_t)w.n_train, 1);
        cr_assert(used);
        for (int i = 0; i < w.n_train; i++) {
            int at = windows_at(&w, (int64_t)epoch * w.n_train + i);
            cr_assert(at >= 0 && at < w.n_train && !used[at]);
            used[at] = 1;
        }
        free(used);
    }
    windows_close(&w);
}

Test(windows, those_held_out_are_the_texts_end, .init = make, .fini = clear) {
    struct windows w = open_windows(3);
    int first = (int)(n_ids / CTX) - (int)(n_ids / CTX) / 10, last = first - 1;
    cr_assert_eq(w.n_held, 8);
    for (int i = 0; i < w.n_train; i++) {
        int at = place(&w, i);
        cr_assert(at >= 0 && at < first);
    }
    for (int i = 0; i < w.n_held; i++) {
        int at = place(&w, w.n_train + i);
        cr_assert_gt(at, last);
        last = at;
    }
    windows_close(&w);
}

Test(windows, order_is_the_seeds, .init = make, .fini = clear) {
    struct windows a = open_windows(3), b = open_windows(3), c = open_windows(4);
    size_t bytes = (size_t)(a.n_train + a.n_held) * CTX * sizeof *a.tokens;
    cr_assert_arr_eq(a.tokens, b.tokens, bytes);
    cr_assert_neq(memcmp(a.tokens, c.tokens, bytes), 0);
    /* Whoever goes on in the middle sees the same numbers. */
    int64_t later = 2 * (int64_t)a.n_train + 5;
    for (int64_t i = 0; i < later; i++) windows_at(&a, i);
    cr_assert_eq(windows_at(&a, later), windows_at(&b, later));
    windows_close(&a);
    windows_close(&b);
    windows_close(&c);
}
