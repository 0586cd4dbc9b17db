/* Tuning on the small model that comes along: it helps, is the same to the byte however it was cut up
 * and on any number of threads, never ends worse than it began, and says what it refuses. */
#include "engine/train/tune.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/quant/quantize.h"
#include "engine/source.h"
#include "kernels/error.h"
#include "tests/support/scratch.h"

static char folder[SCRATCH_PATH], coded[SCRATCH_PATH], text[SCRATCH_PATH];

static const char *stories(void) {
    static char path[SCRATCH_PATH];
    snprintf(path, sizeof path, "%s/deploy/models/stories", getenv("GPTQT_SOURCE"));
    return path;
}

/* Windows that differ: the same few sentences about ever other things. */
static void write_text(const char *path, int n) {
    static const char *const things[] = {"cat", "ball", "tree", "boat", "bird", "star", "cake"};
    static const char *const names[] = {"Tom", "Lily", "Ben", "Anna", "Max"};
    FILE *f = fopen(path, "we");
    cr_assert(f);
    for (int i = 0; i < n; i++)
        fprintf(f,
                "One day, %s saw a big %s. It was very %s. %s said, \"Can I play with the %s?\"\n",
                names[i % 5], things[i % 7], i % 3 ? "happy" : "red", names[i * 3 % 5],
                things[i * 5 % 7]);
    fclose(f);
}

static void quantize(const char *out, const char *params, int output_bits) {
    struct quantize_options o;
    struct quantize_events none = {0};
    struct quantize_summary summary;
    struct source *src;
    struct error err;
    quantize_defaults(&o);
    o.layer.method = LAYER_RTN;
    o.layer.bits = 2;
    o.output_bits = output_bits;
    o.layer.kind = strcmp(params, "free") ? BCQ_COMPACT : BCQ_FREE;
    o.layer.n_threads = 2;
    o.calibration = text;
    o.windows = 1;
    o.ctx = 16;
    o.is_static = true;
    cr_assert_eq(source_open(&src, stories(), &err), 0, "%s", err.text);
    cr_assert_eq(quantize_run(&summary, out, src, &o, &none, &err), 0, "%s", err.text);
    source_close(src);
}

static void make(void) {
    scratch_make(folder);
    scratch_join(coded, folder, "coded");
    scratch_join(text, folder, "text");
    write_text(text, 60);
    quantize(coded, "compact", 16);
}

static void clear(void) { scratch_remove(folder); }

static struct tune_options quick(void) {
    return (struct tune_options){.mode = TUNE_E2E,
                                 .steps = 6,
                                 .tokens = 96, /* two parts: a window at a time would be one */
                                 .ctx = 32,
                                 .rate = 0.01,
                                 .calibration = text,
                                 .seed = 5,
                                 .n_threads = 2};
}

static char notes[1024];

static void keep_note(void *arg, const char *line) {
    (void)arg;
    strncat(notes, line, sizeof notes - strlen(notes) - 2);
    strcat(notes, "\n");
}

static int tune(const char *out, const char *from, const struct tune_options *o,
                struct tune_summary *ret, struct error *err) {
    struct tune_events events = {.note = keep_note};
    struct source *model, *src;
    cr_assert_eq(source_open(&model, stories(), err), 0, "%s", err->text);
    cr_assert_eq(source_open(&src, from, err), 0, "%s", err->text);
    *notes = 0;
    int r = tune_run(ret, out, model, src, o, &events, err);
    source_close(src);
    source_close(model);
    return r;
}

static void compare(const char *path, const char *name, void *arg) {
    char other[SCRATCH_PATH];
    size_t n, m;
    void *a = scratch_load(path, &n), *b = scratch_load(scratch_join(other, arg, name), &m);
    cr_assert_eq(n, m, "%s", name);
    cr_assert_arr_eq(a, b, n, "%s", name);
    free(a);
    free(b);
}

static bool exists(const char *path) { return access(path, F_OK) == 0; }

static const char *at(char path[SCRATCH_PATH], const char *name) {
    return scratch_join(path, folder, name);
}

Test(tune, helps_and_is_the_same_however_it_is_cut, .init = make, .fini = clear) {
    char whole[SCRATCH_PATH], parts[SCRATCH_PATH], state[SCRATCH_PATH];
    struct tune_options o = quick();
    struct tune_summary s, again;
    struct error err;
    cr_assert_eq(tune(at(whole, "whole"), coded, &o, &s, &err), 0, "%s", err.text);
    cr_assert_lt(s.after, 0.9 * s.before);
    cr_assert_gt(s.best_step, 0);
    o.n_threads = 1;
    o.stop_after = 2;
    at(state, "parts.tune");
    for (int i = 0; i < 2; i++) {
        cr_assert_eq(tune(at(parts, "parts"), coded, &o, &again, &err), -ECANCELED);
        cr_assert(exists(state));
        cr_assert_eq(strstr(notes, "going on") != NULL, i > 0);
    }
    o.n_threads = 3;
    cr_assert_eq(tune(parts, coded, &o, &again, &err), 0, "%s", err.text);
    cr_assert_not(exists(state));
    cr_assert_eq(scratch_each(whole, compare, parts), scratch_each(parts, compare, whole));
    cr_assert_eq(s.after, again.after);
}

/* Only the parameters' sections differ from what was tuned: codes are the same. */
Test(tune, codes_stay, .init = make, .fini = clear) {
    char out[SCRATCH_PATH];
    struct tune_options o = quick();
    struct tune_summary s;
    struct error err;
    struct source *a, *b;
    o.mode = TUNE_SCALES;
    o.rate = 0.02;
    o.tokens = 512;
    o.steps = 8;
    cr_assert_eq(tune(at(out, "out"), coded, &o, &s, &err), 0, "%s", err.text);
    cr_assert_eq(source_open(&a, coded, &err), 0);
    cr_assert_eq(source_open(&b, out, &err), 0, "%s", err.text);
    cr_assert_eq(source_count(a), source_count(b));
    int changed = 0;
    for (size_t i = 0; i < source_count(a); i++) {
        const struct source_tensor *x = source_at(a, i), *y = source_at(b, i);
        cr_assert_str_eq(x->name, y->name);
        cr_assert_eq(x->n_bytes, y->n_bytes);
        if (!x->is_bcq) {
            cr_assert_arr_eq(x->stored, y->stored, x->n_bytes, "%s: scales alone", x->name);
            continue;
        }
        const struct bcq_view *v = &x->bcq, *w = &y->bcq;
        size_t rows = (size_t)v->spec.rows, bits = (size_t)v->spec.bits;
        cr_assert_arr_eq(v->planes, w->planes, rows * bits * (size_t)v->layout.plane_words * 4);
        cr_assert_arr_eq(v->shape, w->shape, rows * bits);
        cr_assert_arr_eq(v->row_scale, w->row_scale, rows * 4);
        changed += memcmp(v->q, w->q, rows * v->layout.q_stride) != 0;
    }
    cr_assert_gt(changed, 0);
    source_close(a);
    source_close(b);
}

Test(tune, a_coded_output_matrix_stays, .init = make, .fini = clear) {
    char from[SCRATCH_PATH], out[SCRATCH_PATH];
    struct tune_options o = quick();
    struct tune_summary s;
    struct error err;
    struct source *a, *b;
    int n_whole = 0;
    quantize(at(from, "whole"), "compact", 8);
    o.steps = 1;
    cr_assert_eq(tune(at(out, "out"), from, &o, &s, &err), 0, "%s", err.text);
    cr_assert_eq(source_open(&a, from, &err), 0);
    cr_assert_eq(source_open(&b, out, &err), 0, "%s", err.text);
    cr_assert_eq(source_count(a), source_count(b));
    for (size_t i = 0; i < source_count(a); i++) {
        const struct source_tensor *x = source_at(a, i), *y = source_at(b, i);
        cr_assert_str_eq(x->name, y->name);
        if (!x->is_bcq || x->bcq.spec.kind != BCQ_WHOLE) continue;
        cr_assert_eq(x->n_bytes, y->n_bytes);
        cr_assert_arr_eq(x->stored, y->stored, x->n_bytes, "%s", x->name);
        n_whole++;
    }
    cr_assert_eq(n_whole, 1);
    source_close(a);
    source_close(b);
}

Test(tune, never_ends_worse_than_it_began, .init = make, .fini = clear) {
    char out[SCRATCH_PATH];
    struct tune_options o = quick();
    struct tune_summary s;
    struct error err;
    o.rate = 1.0; /* breaks everything */
    cr_assert_eq(tune(at(out, "out"), coded, &o, &s, &err), 0, "%s", err.text);
    cr_assert_eq(s.after, s.before);
    cr_assert_eq(s.best_step, 0);
    struct source *a, *b;
    cr_assert_eq(source_open(&a, coded, &err), 0);
    cr_assert_eq(source_open(&b, out, &err), 0);
    char one[SHA256_HEX], two[SHA256_HEX];
    source_hash(a, one);
    source_hash(b, two);
    cr_assert_str_eq(one, two);
    source_close(a);
    source_close(b);
}

Test(tune, free_parameters_too, .init = make, .fini = clear) {
    char out[SCRATCH_PATH], from[SCRATCH_PATH];
    struct tune_options o = quick();
    struct tune_summary s;
    struct error err;
    quantize(at(from, "free"), "free", 16);
    cr_assert_eq(tune(at(out, "out"), from, &o, &s, &err), 0, "%s", err.text);
    cr_assert_lt(s.after, s.before);
}

Test(tune, text_of_the_models_own, .init = make, .fini = clear) {
    char out[SCRATCH_PATH];
    struct tune_options o = quick();
    struct tune_summary s;
    struct error err;
    o.calibration = NULL;
    o.ctx = 16;
    o.tokens = 256;
    cr_assert_eq(tune(at(out, "out"), coded, &o, &s, &err), 0, "%s", err.text);
    cr_assert(strstr(notes, "writes its own"));
    cr_assert_lt(s.after, s.before);
    cr_assert_eq(s.windows, 58);
    cr_assert_eq(s.held_out_windows, 6);
}

Test(tune, damaged_state_is_none, .init = make, .fini = clear) {
    char whole[SCRATCH_PATH], out[SCRATCH_PATH], state[SCRATCH_PATH];
    struct tune_options o = quick();
    struct tune_summary s;
    struct error err;
    o.steps = 3;
    cr_assert_eq(tune(at(whole, "whole"), coded, &o, &s, &err), 0, "%s", err.text);
    o.stop_after = 1;
    cr_assert_eq(tune(at(out, "out"), coded, &o, &s, &err), -ECANCELED);
    size_t n;
    char *bytes = scratch_load(at(state, "out.tune"), &n);
    const size_t cuts[] = {0, 7, n / 2, n};
    for (int i = 0; i < 4; i++) {
        char *bad = malloc(n);
        cr_assert(bad);
        memcpy(bad, bytes, n);
        bad[n / 3] ^= 1;
        scratch_save(state, bad, cuts[i]);
        free(bad);
        cr_assert_eq(tune(out, coded, &o, &s, &err), -ECANCELED);
        cr_assert_null(strstr(notes, "going on"));
    }
    free(bytes);
    o.stop_after = 0;
    cr_assert_eq(tune(out, coded, &o, &s, &err), 0, "%s", err.text);
    scratch_each(whole, compare, out);
}

/* Another seed is another run: its state is not taken. */
Test(tune, state_of_other_options_is_none, .init = make, .fini = clear) {
    char out[SCRATCH_PATH];
    struct tune_options o = quick();
    struct tune_summary s;
    struct error err;
    o.stop_after = 1;
    cr_assert_eq(tune(at(out, "out"), coded, &o, &s, &err), -ECANCELED);
    o.seed++;
    cr_assert_eq(tune(out, coded, &o, &s, &err), -ECANCELED);
    cr_assert_null(strstr(notes, "going on"));
    cr_assert_eq(tune(out, coded, &o, &s, &err), -ECANCELED);
    cr_assert(strstr(notes, "going on"));
}

static void refuse(const struct tune_options *o, const char *from, int code, const char *word) {
    char out[SCRATCH_PATH];
    struct tune_summary s;
    struct error err;
    cr_assert_eq(tune(at(out, "refused"), from, o, &s, &err), code, "%s", word);
    cr_assert(strstr(err.text, word), "'%s' has no '%s'", err.text, word);
    cr_assert_not(exists(out));
}

Test(tune, says_what_it_refuses, .init = make, .fini = clear) {
    char brief[SCRATCH_PATH], other[SCRATCH_PATH];
    struct tune_options good = quick(), o = good;
    o.ctx = 513;
    refuse(&o, coded, -EINVAL, "513");
    o = good;
    o.rate = NAN;
    refuse(&o, coded, -EINVAL, "rate");
    o = good;
    o.mode = TUNE_NONE;
    refuse(&o, coded, -EINVAL, "named");
    o = good;
    o.calibration = "/no/such/text";
    refuse(&o, coded, -ENOENT, "/no/such/text");
    o = good;
    write_text(at(brief, "brief"), 1);
    o.calibration = brief;
    refuse(&o, coded, -EINVAL, "two windows");
    refuse(&good, stories(), -ENOTSUP, "binary-coded");
    refuse(&good, scratch_fixture(other, "models/llama-gqa"), -EINVAL, "hidden size");
}
