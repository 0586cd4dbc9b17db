#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/quant/linalg.h"
#include "engine/quant/merge.h"
#include "engine/quant/quantize.h"
#include "engine/source.h"
#include "kernels/error.h"
#include "server/cli.h"
#include "server/progress.h"
#include "server/quantize_args.h"
#include "server/quantize_tune.h"

static const char name[] = "gptqt-quantize";

const char *argp_program_version = "gptqt-quantize " GPTQT_VERSION;

/* What is shown while the work goes on. */
struct display {
    struct progress progress;
    int stage; /* -1 before the first */
    bool quiet, line_open;
    int n_resumed;
};

static void show_progress(void *arg, enum quantize_stage stage, double done, double total) {
    struct display *d = arg;
    static const char *const labels[] = {"writing text", "quantize", "sensitivities"};
    bool tokens = stage == QUANTIZE_WRITING_TEXT;
    if (d->stage != (int)stage) {
        if (d->stage >= 0) progress_end(&d->progress, d->progress.total, cli_now());
        progress_begin(&d->progress, labels[stage], tokens ? "tokens" : "blocks", total, cli_now(),
                       d->quiet);
        d->stage = (int)stage;
    }
    progress_update(&d->progress, done, cli_now());
}

/* Plain lines only: on a terminal the bar is enough until the table at the end. */
static void show_matrix(void *arg, const struct quantize_matrix *m) {
    struct display *d = arg;
    d->n_resumed += m->resumed;
    if (!d->quiet && isatty(STDERR_FILENO) != 1)
        fprintf(stderr, "%s [%d, %d]: %.2f dB%s\n", m->name, m->rows, m->cols, m->decibels,
                m->resumed ? " (from an earlier run)" : "");
}

static void show_note(void *arg, const char *text) {
    (void)arg;
    fprintf(stderr, "%s: %s\n", name, text);
}

static void print_json(const struct quantize_summary *s, double seconds) {
    json_t *o = json_pack("{s:i, s:i, s:i, s:b, s:I, s:f, s:f}", "layers", s->n_layers, "windows",
                          s->windows, "ctx", s->ctx, "own_text", (int)s->own_text, "weights",
                          (json_int_t)s->n_weights, "bits_per_weight", s->bits_per_weight,
                          "seconds", seconds);
    json_t *decibels = json_object();
    for (int role = 0; role < ROLE_COUNT; role++)
        if (s->has_role[role])
            json_object_set_new(decibels, quantize_role_name((enum model_role)role),
                                json_real(s->decibels[role]));
    json_object_set_new(o, "decibels", decibels);
    json_dumpf(o, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(8));
    putchar('\n');
    json_decref(o);
}

static void print_text(const struct quantize_args *args, const struct quantize_summary *s,
                       const struct display *d, double seconds) {
    printf("%lld weights in %d blocks, %.3f bits each, %.0f s; calibrated on %d windows of %d%s\n",
           (long long)s->n_weights, s->n_layers, s->bits_per_weight, seconds, s->windows, s->ctx,
           s->own_text ? " that the model wrote" : "");
    printf("mean loss relative to the output:");
    for (int role = 0; role < ROLE_COUNT; role++)
        if (s->has_role[role])
            printf(" %s %.2f", quantize_role_name((enum model_role)role), s->decibels[role]);
    printf(" dB (each matrix: %s/layer_errors.json)\n", args->out);
    if (d->n_resumed) printf("%d matrices came from an earlier run\n", d->n_resumed);
}

static int merge(const struct quantize_args *args, struct error *err) {
    struct display display = {.quiet = args->json};
    struct quantize_summary summary;
    double started = cli_now();
    int r = merge_parts(&summary, args->out, args->parts, args->n_parts, args->o.force, err);
    if (r < 0) return r;
    if (args->json)
        print_json(&summary, cli_now() - started);
    else
        print_text(args, &summary, &display, cli_now() - started);
    return 0;
}

static int run(const struct quantize_args *args, struct error *err) {
    struct display display = {.stage = -1, .quiet = args->json};
    struct quantize_events events = {show_progress, show_matrix, show_note, &display};
    struct quantize_summary summary;
    struct source *src;
    double started = cli_now();
    int r = source_open(&src, args->model, err);
    if (r < 0) return r;
    r = quantize_run(&summary, args->out, src, &args->o, &events, err);
    source_close(src);
    double now = cli_now();
    if (display.stage >= 0)
        progress_end(&display.progress, r == 0 ? display.progress.total : 0.0, now);
    if (r < 0) return r;
    if (args->json)
        print_json(&summary, now - started);
    else
        print_text(args, &summary, &display, now - started);
    return 0;
}

/* The library has read the variable by now, so the program starts anew. One that is set is the user's
 * wish, and ends the second start here; without /proc the work is slow, no more. */
static void choose_kernels(char **argv) {
    const char *core = linalg_better_core();
    char path[4096];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
    if (!core || n < 0 || getenv("OPENBLAS_CORETYPE") || setenv("OPENBLAS_CORETYPE", core, 1))
        return;
    path[n] = '\0';
    execv(path, argv);
}

int main(int argc, char **argv) {
    choose_kernels(argv);
    struct quantize_args args;
    quantize_args_parse(&args, argc, argv);
    /* A limit on the size of files is an error like a full disk, told with the file's name. */
    signal(SIGXFSZ, SIG_IGN);
    struct error err = {{0}};
    int r = args.merge                      ? merge(&args, &err)
            : args.tune.o.mode != TUNE_NONE ? quantize_tune_run(&args, run, &err)
                                            : run(&args, &err);
    return r < 0 ? cli_end(CLI_FAILED, name, &err) : 0;
}
