#include "engine/train/tune.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "engine/atomic_file.h"
#include "engine/checkpoint_writer.h"
#include "engine/config.h"
#include "engine/quant/carry.h"
#include "engine/quant/parallel.h"
#include "engine/quant/texts.h"
#include "engine/sha256.h"
#include "engine/source.h"
#include "engine/train/loss.h"
#include "engine/train/network.h"
#include "engine/train/params.h"
#include "engine/train/student.h"
#include "engine/train/teacher.h"
#include "engine/train/tune_state.h"
#include "engine/train/windows.h"
#include "kernels/error.h"

enum {
    STEPS = 80,
    TOKENS = 1024,
    CTX = 512,
    WARM_UP = 5,
    MAX_STEPS = 1 << 20,
    MAX_TOKENS = 1 << 20,
    AT_ONCE = 1024, /* tokens that go through the network together */
    MEASURES = 10,  /* in a run, and */
    APART = 8,      /* steps between two at least: one costs as much as a step and a half */
    SAVE_SECONDS = 60,
    MAX_HALVINGS = 3
};

static const size_t cache_bytes = (size_t)768 << 20;

/* One of the two models: its parameters, ends, and a network on them. */
struct side {
    struct params *params;
    struct params_ends ends;
    struct network *net;
};

struct tune {
    const char *out;
    char *state_path;
    struct source *model, *coded;
    const struct model_config *config;
    struct tune_options o; /* with every default put in */
    const struct tune_events *events;
    struct side original, student_side;
    struct student *student;
    struct teacher *teacher;
    struct loss *loss;
    struct checkpoint_writer *writer;
    char settings[SHA256_HEX];

    struct windows windows;
    int n_seqs; /* windows at a time */
    int windows_per_step;
    float *want, *got, *grad; /* (n_seqs, ctx, embed_dim) */
    struct tune_progress now;
    double saved; /* when, in seconds */
};

const char *tune_mode_name(enum tune_mode mode) {
    static const char *const names[] = {"none", "scales", "e2e"};
    return (size_t)mode < sizeof names / sizeof *names ? names[mode] : NULL;
}

static void note(const struct tune *t, const char *text) {
    if (t->events->note) t->events->note(t->events->arg, text);
}

/* -- Options --------------------------------------------------------------------------------- */

static int check_models(const struct tune *t, struct error *err) {
    const struct model_config *a = source_config(t->model), *b = t->config;
    const struct {
        const char *what;
        int model, coded;
    } same[] = {
        {"architecture", (int)a->arch, (int)b->arch},
        {"hidden size", a->hidden, b->hidden},
        {"blocks", a->n_layers, b->n_layers},
        {"heads", a->n_heads, b->n_heads},
        {"key heads", a->n_kv_heads, b->n_kv_heads},
        {"head size", a->head_dim, b->head_dim},
        {"inner size", a->intermediate, b->intermediate},
        {"vocabulary", a->vocab, b->vocab},
        {"embedding size", a->embed_dim, b->embed_dim},
    };
    for (size_t i = 0; i < sizeof same / sizeof *same; i++)
        if (same[i].model != same[i].coded)
            return error_set(err, -EINVAL,
                             "tune: the original's %s is %d, that of the model to tune %d",
                             same[i].what, same[i].model, same[i].coded);
    return 0;
}

static int settle_options(struct tune *t, struct error *err) {
    struct tune_options *o = &t->o;
    int limit = t->config->max_positions;
    if (o->steps == 0) o->steps = STEPS;
    if (o->tokens == 0) o->tokens = TOKENS;
    if (o->ctx == 0) o->ctx = CTX < limit ? CTX : limit;
    if (o->rate == 0.0) o->rate = t->config->quantization.bits <= 2 ? 0.005 : 0.003;
    o->n_threads = parallel_threads(o->n_threads);
    if (o->mode != TUNE_SCALES && o->mode != TUNE_E2E)
        return error_set(err, -EINVAL, "tune: nothing to tune was named");
    if (o->steps < 1 || o->steps > MAX_STEPS)
        return error_set(err, -EINVAL, "tune: %d steps are not in 1..%d", o->steps, MAX_STEPS);
    if (o->ctx < 2 || o->ctx > limit)
        return error_set(err, -EINVAL, "tune: windows of %d tokens are not in 2..%d", o->ctx,
                         limit);
    if (o->tokens < 2 || o->tokens > MAX_TOKENS)
        return error_set(err, -EINVAL, "tune: %d tokens a step are not in 2..%d", o->tokens,
                         MAX_TOKENS);
    if (!(o->rate > 0.0 && o->rate <= 1.0))
        return error_set(err, -EINVAL, "tune: rate %g is not in 0..1", o->rate);
    t->windows_per_step = (o->tokens + o->ctx - 1) / o->ctx;
    t->n_seqs = o->ctx < AT_ONCE ? AT_ONCE / o->ctx : 1;
    if (t->n_seqs > t->windows_per_step) t->n_seqs = t->windows_per_step;
    return 0;
}

/* -- Settings -------------------------------------------------------------------------------- */

static json_t *describe(const struct tune *t) {
    const struct tune_options *o = &t->o;
    return json_pack("{s:s, s:i, s:f, s:i, s:i, s:I}", "mode", tune_mode_name(o->mode), "steps",
                     o->steps, "rate", o->rate, "tokens", t->windows_per_step * o->ctx, "ctx",
                     o->ctx, "seed", (json_int_t)o->seed);
}

static int open_writer(struct tune *t, struct error *err) {
    char model[SHA256_HEX], coded[SHA256_HEX], text[SHA256_HEX];
    struct sha256 sum;
    source_hash(t->model, model);
    source_hash(t->coded, coded);
    sha256_init(&sum);
    sha256_add(&sum, t->windows.tokens,
               (size_t)(t->windows.n_train + t->windows.n_held) * (size_t)t->o.ctx *
                   sizeof *t->windows.tokens);
    sha256_end(&sum, text);
    json_t *o = describe(t);
    json_t *all = json_pack("{s:o, s:s, s:s, s:s, s:s}", "tune", o, "model", model, "coded", coded,
                            "tokens", text, "version", GPTQT_VERSION);
    char *settings = all ? json_dumps(all, JSON_INDENT(1)) : NULL;
    json_decref(all);
    if (!settings) return error_set(err, -ENOMEM, "settings: out of memory");
    sha256_init(&sum);
    sha256_add(&sum, settings, strlen(settings));
    sha256_end(&sum, t->settings);
    struct checkpoint_writer_options options = {.settings = settings, .force = t->o.force};
    int r = checkpoint_writer_open(&t->writer, t->out, &options, err);
    free(settings);
    return r;
}

static int make_state_path(struct tune *t, struct error *err) {
    size_t n = strlen(t->out);
    while (n > 1 && t->out[n - 1] == '/') n--;
    t->state_path = malloc(n + 8);
    if (!t->state_path) return error_set(err, -ENOMEM, "tune: out of memory");
    memcpy(t->state_path, t->out, n);
    strcpy(t->state_path + n, ".tune");
    return 0;
}

static void text_progress(void *arg, int64_t done, int64_t total) {
    const struct tune *t = arg;
    if (t->events->text) t->events->text(t->events->arg, done, total);
}

static int open_windows(struct tune *t, struct error *err) {
    struct windows_options options = {.calibration = t->o.calibration,
                                      .ctx = t->o.ctx,
                                      .seed = t->o.seed,
                                      .n_threads = t->o.n_threads,
                                      .progress = text_progress,
                                      .progress_arg = t};
    if (!options.calibration) note(t, "no calibration text was given: the model writes its own");
    return windows_open(&t->windows, t->model, &options, err);
}

/* -- Models ---------------------------------------------------------------------------------- */

static int open_side(struct side *s, struct tune *t, struct source *src, size_t caches,
                     struct error *err) {
    int r = params_open(&s->params, src, err);
    if (r == 0) r = params_ends_read(&s->ends, s->params, err);
    if (r == 0)
        r = network_new(&s->net, source_config(src), &s->ends, t->n_seqs, t->o.ctx, t->o.n_threads,
                        caches, err);
    return r;
}

static int open_models(struct tune *t, struct error *err) {
    size_t states = (size_t)t->n_seqs * (size_t)t->o.ctx * (size_t)t->config->embed_dim;
    struct student_options options = {.groups_only = t->o.mode == TUNE_SCALES,
                                      .n_threads = t->o.n_threads};
    struct teacher_text text = {.tokens = t->windows.tokens,
                                .n_windows = t->windows.n_train + t->windows.n_held,
                                .ctx = t->o.ctx,
                                .width = t->config->embed_dim,
                                .n_layers = t->config->n_layers,
                                .hidden = t->config->hidden};
    int r = open_side(&t->original, t, t->model, 0, err);
    if (r == 0) r = open_side(&t->student_side, t, t->coded, cache_bytes, err);
    if (r == 0)
        r = student_new(&t->student, t->coded, t->student_side.params, &t->student_side.ends,
                        &options, err);
    if (r == 0)
        r = teacher_new(&t->teacher, t->original.net, t->original.params, t->n_seqs, &text, err);
    if (r == 0)
        r = loss_new(&t->loss, t->student_side.ends.head, t->original.ends.head, t->config->vocab,
                     t->config->embed_dim, t->o.n_threads, err);
    t->want = malloc(3 * states * sizeof *t->want);
    if (r == 0 && !t->want) r = error_set(err, -ENOMEM, "tune: out of memory");
    if (r < 0) return r;
    t->got = t->want + states;
    t->grad = t->got + states;
    return 0;
}

/* -- Steps ----------------------------------------------------------------------------------- */

/* Both models on windows that are given by number: the mean divergence, and its gradient at the
 * student's states when it is wanted. */
static int run_windows(struct tune *t, const int *windows, int n, bool with_grad, double *ret,
                       struct error *err) {
    size_t ctx = (size_t)t->o.ctx, each = ctx * (size_t)t->config->embed_dim;
    struct network_blocks blocks = student_blocks(t->student);
    int32_t *ids = malloc((size_t)n * ctx * sizeof *ids);
    int r = ids ? 0 : error_set(err, -ENOMEM, "tune: out of memory");
    for (int i = 0; r == 0 && i < n; i++) {
        memcpy(ids + (size_t)i * ctx, t->windows.tokens + (size_t)windows[i] * ctx,
               ctx * sizeof *ids);
        r = teacher_states(t->teacher, windows[i], t->want + (size_t)i * each, err);
    }
    if (r == 0) r = network_forward(t->student_side.net, &blocks, ids, n, t->o.ctx, t->got, err);
    if (r == 0)
        *ret = loss_divergence(t->loss, t->want, t->got, n * t->o.ctx, with_grad ? t->grad : NULL);
    free(ids);
    return r;
}

static int measure(struct tune *t, double *ret, struct error *err) {
    double sum = 0.0;
    for (int i = 0; i < t->windows.n_held; i += t->n_seqs) {
        int windows[AT_ONCE],
            n = t->windows.n_held - i < t->n_seqs ? t->windows.n_held - i : t->n_seqs;
        double part;
        for (int k = 0; k < n; k++) windows[k] = t->windows.n_train + i + k;
        int r = run_windows(t, windows, n, false, &part, err);
        if (r < 0) return r;
        sum += part * n;
    }
    *ret = sum / t->windows.n_held;
    return 0;
}

/* Warm-up, then half a cosine down to a twentieth. */
static double rate_at(const struct tune *t, int step) {
    double warm = t->o.steps < 4 * WARM_UP ? 0.25 * t->o.steps : WARM_UP;
    double rise = (step + 1) / (warm + 1.0), fall = cos(acos(-1.0) * step / t->o.steps);
    return t->o.rate * (rise < 1.0 ? rise : 1.0) * (0.05 + 0.95 * 0.5 * (1.0 + fall)) /
           (double)(1 << t->now.halvings);
}

/* Gradients of a step's windows, a few at a time. */
static int make_gradients(struct tune *t, double *ret_loss, struct error *err) {
    struct network_blocks blocks = student_blocks(t->student);
    float *dnorm_w, *dnorm_b;
    double sum = 0.0;
    int r = 0, total = t->windows_per_step;
    student_final_grads(t->student, &dnorm_w, &dnorm_b);
    for (int done = 0; r == 0 && done < total; done += t->n_seqs) {
        int windows[AT_ONCE], n = total - done < t->n_seqs ? total - done : t->n_seqs;
        double part = 0.0;
        for (int k = 0; k < n; k++)
            windows[k] = windows_at(&t->windows, (int64_t)t->now.step * total + done + k);
        r = run_windows(t, windows, n, true, &part, err);
        /* Gradients of the mean over n windows, whatever the sizes of the parts: Adam does not
         * see a common factor, but parts must weigh by their windows. */
        float share = (float)n / (float)total;
        size_t states = (size_t)n * (size_t)t->o.ctx * (size_t)t->config->embed_dim;
        for (size_t i = 0; n < total && i < states; i++) t->grad[i] *= share;
        sum += part * n / total;
        if (r == 0 && isfinite(part))
            r = network_backward(t->student_side.net, &blocks, t->grad, dnorm_w, dnorm_b, err);
    }
    *ret_loss = sum;
    return r;
}

/* Back to the best state with half the rate. */
static int back_off(struct tune *t, struct error *err) {
    char line[128];
    if (t->now.halvings == MAX_HALVINGS)
        return error_set(err, -EDOM, "tune: the loss is not finite after step %d, at any rate",
                         t->now.step);
    t->now.halvings++;
    t->now.adam_step = 0;
    student_back(t->student);
    snprintf(line, sizeof line, "step %d: the loss is not finite; back to step %d at half the rate",
             t->now.step + 1, t->now.best_step);
    note(t, line);
    return 0;
}

static int take_step(struct tune *t, double *ret_loss, struct error *err) {
    int r = make_gradients(t, ret_loss, err);
    if (r < 0) return r;
    if (!isfinite(*ret_loss)) {
        r = back_off(t, err);
    } else {
        struct adam_step step = {.rate = (float)rate_at(t, t->now.step),
                                 .step = ++t->now.adam_step,
                                 .n_threads = t->o.n_threads};
        student_move(t->student, &step);
    }
    t->now.step++;
    return r;
}

static bool is_measured(const struct tune *t, int step) {
    int every = t->o.steps / MEASURES > APART ? t->o.steps / MEASURES : APART;
    return step % every == 0 || step == t->o.steps;
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static int save(struct tune *t, struct error *err) {
    int r = tune_state_save(t->state_path, t->settings, &t->now, t->student, err);
    t->saved = seconds();
    return r;
}

static int look_at_held_out(struct tune *t, double *ret, struct error *err) {
    int r = measure(t, ret, err);
    if (r == 0 && isfinite(*ret) && *ret < t->now.best) {
        t->now.best = *ret;
        t->now.best_step = t->now.step;
        student_keep(t->student);
    }
    return r == 0 ? save(t, err) : r;
}

static void show(const struct tune *t, double loss, double held_out) {
    if (t->events->step) t->events->step(t->events->arg, t->now.step, t->o.steps, loss, held_out);
}

static int begin(struct tune *t, struct error *err) {
    /* The writer's lock keeps other runs to this path off. */
    atomic_file_sweep(t->state_path);
    if (tune_state_load(t->state_path, t->settings, &t->now, t->student)) {
        char line[96];
        snprintf(line, sizeof line, "going on after step %d of an earlier run", t->now.step);
        note(t, line);
        return 0;
    }
    int r = measure(t, &t->now.before, err);
    if (r < 0) return r;
    if (!isfinite(t->now.before))
        return error_set(err, -EDOM, "tune: the loss is not finite before the first step");
    t->now.best = t->now.before;
    show(t, t->now.before, t->now.before);
    return save(t, err);
}

static int do_steps(struct tune *t, struct error *err) {
    int r = begin(t, err), first = t->now.step;
    while (r == 0 && t->now.step < t->o.steps) {
        double loss, held_out = -1.0;
        if (t->o.stop_after > 0 && t->now.step - first >= t->o.stop_after) {
            r = save(t, err);
            return r < 0
                       ? r
                       : error_set(err, -ECANCELED, "stopped after step %d, as asked", t->now.step);
        }
        r = take_step(t, &loss, err);
        if (r == 0 && is_measured(t, t->now.step)) r = look_at_held_out(t, &held_out, err);
        /* When does not matter to the result: every step is one to go on from. */
        if (r == 0 && seconds() - t->saved > SAVE_SECONDS) r = save(t, err);
        if (r == 0) show(t, loss, held_out);
    }
    return r;
}

/* -- The result ------------------------------------------------------------------------------ */

static bool is_ours(void *arg, const char *name) { return student_has(arg, name); }

/* The coded model's own settings, and what was done here. */
static char *quantization_text(const struct tune *t) {
    const char *text;
    size_t n;
    json_t *config = NULL;
    if (source_file_text(t->coded, "config.json", &text, &n) == 0)
        config = json_loadb(text, n, 0, NULL);
    json_t *q = json_object_get(config, "quantization_config"), *o = describe(t);
    json_object_del(q, "pow2");  /* scales have moved */
    json_object_del(q, "codec"); /* and are stored plainly */
    json_object_set_new(o, "best_step", json_integer(t->now.best_step));
    json_object_set_new(o, "held_out_before", json_real(round(1e6 * t->now.before) / 1e6));
    json_object_set_new(o, "held_out_after", json_real(round(1e6 * t->now.best) / 1e6));
    char *made = json_is_object(q) && json_object_set(q, "tune", o) == 0
                     ? json_dumps(q, JSON_COMPACT)
                     : NULL;
    json_decref(o);
    json_decref(config);
    return made;
}

/* What lies beside coded matrices stays as it is, and so does a coded output matrix. */
static int carry_blocks(struct tune *t, struct error *err) {
    int r = 0;
    for (size_t i = 0; r == 0 && i < source_count(t->coded); i++) {
        const struct source_tensor *block = source_at(t->coded, i);
        if (block->kind != SOURCE_SIDE && block->kind != SOURCE_CODED) continue;
        if (checkpoint_writer_has(t->writer, block->name)) continue;
        struct safetensors_tensor out = {.name = block->name,
                                         .type = SAFETENSORS_U8,
                                         .n_dims = 1,
                                         .shape = {block->n_bytes},
                                         .data = block->stored,
                                         .n_bytes = block->n_bytes};
        r = checkpoint_writer_add(t->writer, &out, err);
    }
    return r;
}

static int write_result(struct tune *t, struct error *err) {
    const char *text;
    size_t n;
    char *quantization = quantization_text(t);
    int r = quantization ? 0 : error_set(err, -ENOMEM, "config: out of memory");
    if (r == 0) r = student_write(t->student, t->writer, err);
    if (r == 0) r = carry_tensors(t->writer, t->coded, is_ours, t->student, err);
    if (r == 0) r = carry_blocks(t, err);
    if (r == 0) r = texts_write(t->writer, t->coded, quantization, err);
    if (r == 0 && source_file_text(t->coded, "layer_errors.json", &text, &n) == 0)
        r = checkpoint_writer_add_file(t->writer, "layer_errors.json", text, n, err);
    free(quantization);
    if (r == 0) r = checkpoint_writer_finish(t->writer, err);
    if (r == 0) unlink(t->state_path);
    return r;
}

static void close_side(struct side *s) {
    network_free(s->net);
    params_ends_free(&s->ends);
    params_close(s->params);
}

static void close_all(struct tune *t) {
    checkpoint_writer_close(t->writer);
    loss_free(t->loss);
    teacher_free(t->teacher);
    student_free(t->student);
    close_side(&t->student_side);
    close_side(&t->original);
    free(t->want);
    windows_close(&t->windows);
    free(t->state_path);
}

int tune_run(struct tune_summary *ret, const char *out, struct source *model, struct source *coded,
             const struct tune_options *options, const struct tune_events *events,
             struct error *err) {
    struct tune t = {.out = out,
                     .model = model,
                     .coded = coded,
                     .config = source_config(coded),
                     .o = *options,
                     .events = events};
    int r = check_models(&t, err);
    if (r == 0) r = settle_options(&t, err);
    if (r == 0) r = make_state_path(&t, err);
    if (r == 0) r = open_windows(&t, err);
    if (r == 0) r = open_writer(&t, err);
    if (r == 0) r = open_models(&t, err);
    if (r == 0) r = do_steps(&t, err);
    if (r == 0) r = write_result(&t, err);
    if (r == 0)
        *ret = (struct tune_summary){.steps = t.o.steps,
                                     .windows = t.windows.n_train,
                                     .held_out_windows = t.windows.n_held,
                                     .ctx = t.o.ctx,
                                     .before = t.now.before,
                                     .after = t.now.best,
                                     .best_step = t.now.best_step};
    close_all(&t);
    return r;
}
