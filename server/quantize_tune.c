#include "server/quantize_tune.h"

#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/atomic_file.h"
#include "engine/checkpoint_writer.h"
#include "engine/sha256.h"
#include "engine/source.h"
#include "engine/text_file.h"
#include "kernels/error.h"
#include "server/cli.h"
#include "server/progress.h"
#include "server/quantize_args.h"

enum { PATH_SIZE = 2048 };

enum { OPT_TUNE = 1024, OPT_FROM, OPT_STEPS, OPT_RATE, OPT_TOKENS, OPT_CTX, OPT_STOP_AFTER };

static const struct argp_option options[] = {
    {NULL, 0, NULL, 0, "Tuning end to end against the original:", 5},
    {"tune", OPT_TUNE, "WHAT", 0,
     "none (default), block (as --tune-block, which goes with the others), scales (of groups, and "
     "their biases) or e2e (super-scales and norms as well)",
     5},
    {"tune-from", OPT_FROM, "DIR", 0,
     "Tune this checkpoint of MODEL; without it one is made first, at OUT.untuned", 5},
    {"tune-steps", OPT_STEPS, "N", 0, "Steps (80)", 5},
    {"tune-rate", OPT_RATE, "X", 0,
     "Largest relative change in a step (0.005 up to 2 bits, 0.003 above)", 5},
    {"tune-tokens", OPT_TOKENS, "N", 0, "Tokens of a step (1024)", 5},
    {"tune-ctx", OPT_CTX, "N", 0, "Tokens of a window (512)", 5},
    {"tune-stop-after", OPT_STOP_AFTER, "N", 0, "Stop after N steps; the next run goes on there",
     5},
    {0},
};

static int pick_mode(enum tune_mode *ret, const char *text, struct error *err) {
    for (int i = 0; tune_mode_name((enum tune_mode)i); i++) {
        if (strcmp(tune_mode_name((enum tune_mode)i), text) != 0) continue;
        *ret = (enum tune_mode)i;
        return 0;
    }
    return error_set(err, -1, "--tune '%.40s': none, block, scales or e2e is needed", text);
}

static int take(struct quantize_tune *t, int key, const char *value, struct error *err) {
    float number;
    int r;
    switch (key) {
    case OPT_TUNE:
        t->block = !strcmp(value, "block");
        return t->block ? 0 : pick_mode(&t->o.mode, value, err);
    case OPT_FROM:
        t->from = value;
        return 0;
    case OPT_STEPS:
        return cli_int(&t->o.steps, "--tune-steps", value, 1, 1 << 20, err);
    case OPT_RATE:
        r = cli_float(&number, "--tune-rate", value, 1e-6f, 1.0f, err);
        /* The decimal that was typed, not its nearest float. */
        t->o.rate = strtod(value, NULL);
        return r;
    case OPT_TOKENS:
        return cli_int(&t->o.tokens, "--tune-tokens", value, 2, 1 << 20, err);
    case OPT_CTX:
        return cli_int(&t->o.ctx, "--tune-ctx", value, 2, 1 << 20, err);
    case OPT_STOP_AFTER:
        return cli_int(&t->o.stop_after, "--tune-stop-after", value, 1, 1 << 20, err);
    default:
        return 1;
    }
}

static error_t parse(int key, char *value, struct argp_state *state) {
    struct quantize_args *args = state->input;
    struct quantize_tune *t = &args->tune;
    struct error err;
    if (key == ARGP_KEY_END) {
        if (t->from && t->o.mode == TUNE_NONE) argp_error(state, "--tune-from needs --tune");
        return 0;
    }
    quantize_typed_add(&args->typed, options, key);
    int r = take(t, key, value, &err);
    return cli_parsed(r, state, &err);
}

const struct argp quantize_tune_argp = {options, parse, NULL, NULL, NULL, NULL, NULL};

struct display {
    struct progress progress;
    bool writing, begun, quiet, plain; /* plain: a line for each measurement instead of a bar */
};

static void show_step(void *arg, int step, int steps, double loss, double held_out) {
    struct display *d = arg;
    if (!d->begun) {
        progress_begin(&d->progress, "tune", "steps", (double)steps, cli_now(), d->quiet);
        d->begun = true;
    }
    progress_update(&d->progress, (double)step, cli_now());
    if (held_out < 0.0 || d->quiet || !d->plain) return;
    if (step == 0)
        fprintf(stderr, "before tuning: KL %.4f held out\n", held_out);
    else
        fprintf(stderr, "step %d of %d: KL %.4f, held out %.4f\n", step, steps, loss, held_out);
}

static void show_text(void *arg, int64_t done, int64_t total) {
    struct display *d = arg;
    if (!d->writing)
        progress_begin(&d->progress, "writing text", "tokens", (double)total, cli_now(), d->quiet);
    d->writing = true;
    progress_update(&d->progress, (double)done, cli_now());
    if (done >= total) progress_end(&d->progress, (double)total, cli_now());
}

static void show_note(void *arg, const char *text) {
    (void)arg;
    fprintf(stderr, "gptqt-quantize: %s\n", text);
}

static void print_result(const struct quantize_args *args, const struct tune_summary *s,
                         double seconds) {
    if (!args->json) {
        printf("KL to the original on %d windows of %d held out: %.4f before, %.4f after tuning "
               "(step %d of %d, %.0f s)\n",
               s->held_out_windows, s->ctx, s->before, s->after, s->best_step, s->steps, seconds);
        return;
    }
    json_t *o = json_pack("{s:{s:i, s:i, s:i, s:i, s:f, s:f, s:i, s:f}}", "tune", "steps", s->steps,
                          "windows", s->windows, "held_out_windows", s->held_out_windows, "ctx",
                          s->ctx, "before", s->before, "after", s->after, "best_step", s->best_step,
                          "seconds", seconds);
    json_dumpf(o, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(8));
    putchar('\n');
    json_decref(o);
}

static int tune(const struct quantize_args *args, const char *from, struct error *err) {
    struct display display = {.quiet = args->json, .plain = isatty(STDERR_FILENO) != 1};
    struct tune_events events = {show_step, show_text, show_note, &display};
    struct tune_options o = args->tune.o;
    struct tune_summary summary;
    struct source *model = NULL, *coded = NULL;
    double started = cli_now();
    o.calibration = args->o.calibration;
    o.seed = args->o.seed;
    o.n_threads = args->o.layer.n_threads;
    o.force = args->o.force;
    int r = source_open(&model, args->model, err);
    if (r == 0) r = source_open(&coded, from, err);
    if (r == 0) r = tune_run(&summary, args->out, model, coded, &o, &events, err);
    source_close(coded);
    source_close(model);
    if (display.begun)
        progress_end(&display.progress, r == 0 ? display.progress.total : 0.0, cli_now());
    if (r == 0) print_result(args, &summary, cli_now() - started);
    return r;
}

/* -- A checkpoint made first ----------------------------------------------------------------- */

/* Says what a checkpoint to tune was made from: the command line, the model, the text. */
static int key_of(const struct quantize_args *args, char hex[SHA256_HEX], struct error *err) {
    struct sha256 sum;
    struct source *model;
    char hash[SHA256_HEX], *text = NULL;
    size_t n = 0;
    int r = source_open(&model, args->model, err);
    if (r < 0) return r;
    source_hash(model, hash);
    source_close(model);
    if (args->o.calibration) r = text_file_read(&text, &n, args->o.calibration, err);
    if (r < 0) return r;
    sha256_init(&sum);
    sha256_add(&sum, GPTQT_VERSION, sizeof GPTQT_VERSION);
    for (int i = 1; i < args->argc; i++) sha256_add(&sum, args->argv[i], strlen(args->argv[i]) + 1);
    sha256_add(&sum, hash, sizeof hash);
    if (text) sha256_add(&sum, text, n);
    sha256_end(&sum, hex);
    free(text);
    return 0;
}

static const char key_file[] = "made_with.txt";

static bool is_made(const char *dir, const char *key) {
    char path[PATH_SIZE], found[SHA256_HEX];
    snprintf(path, sizeof path, "%s/%s", dir, key_file);
    FILE *f = fopen(path, "re");
    bool same = f && fread(found, 1, sizeof found, f) == sizeof found &&
                memcmp(found, key, sizeof found) == 0;
    if (f) fclose(f);
    return same;
}

static int mark_made(const char *dir, const char *key, struct error *err) {
    char path[PATH_SIZE];
    snprintf(path, sizeof path, "%s/%s", dir, key_file);
    return atomic_file_save(path, key, SHA256_HEX, err);
}

/* A flat directory that carries our key. */
static void remove_made(const char *dir) {
    char path[2 * PATH_SIZE];
    DIR *list = opendir(dir);
    if (!list) return;
    for (const struct dirent *e; (e = readdir(list));) {
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        unlink(path);
    }
    closedir(list);
    rmdir(dir);
}

int quantize_tune_run(const struct quantize_args *args,
                      int (*make)(const struct quantize_args *args, struct error *err),
                      struct error *err) {
    if (args->tune.from) return tune(args, args->tune.from, err);
    char untuned[PATH_SIZE - 64], key[SHA256_HEX];
    size_t n = strlen(args->out);
    while (n > 1 && args->out[n - 1] == '/') n--;
    if (n > PATH_SIZE / 2) return error_set(err, -ENAMETOOLONG, "%s: too long a name", args->out);
    snprintf(untuned, sizeof untuned, "%.*s.untuned", (int)n, args->out);
    int r = checkpoint_writer_check(args->out, args->o.force, err);
    if (r == 0) r = key_of(args, key, err);
    if (r == 0 && !is_made(untuned, key)) {
        struct quantize_args first = *args;
        first.out = untuned;
        r = make(&first, err);
        if (r == 0) r = mark_made(untuned, key, err);
    }
    if (r == 0) r = tune(args, untuned, err);
    if (r == 0) remove_made(untuned);
    return r;
}
