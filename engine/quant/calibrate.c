#include "engine/quant/calibrate.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/config.h"
#include "engine/quant/spill.h"
#include "engine/sampler.h"
#include "kernels/error.h"
#include "kernels/rounding.h"

struct calibrate {
    struct model *m;
    int n_windows, ctx, hidden;
    int batch_windows, chunk; /* windows of a batch, tokens of each at a time */
    int32_t *tokens;
    int32_t *positions, *seqs, *blocks; /* of a batch */
    struct spill states, reference;     /* (n_tokens, hidden); reference.x is NULL without one */
    struct moments *moments;
    float *output;     /* (batch_windows * chunk, hidden) of a run that only collects */
    bool in_reference; /* which stream the tap sees */
    int act_bits;
    float *rounded; /* (CALIBRATE_BATCH, the widest input), NULL unless inputs are rounded */
};

static int blocks_of(int ctx) { return (ctx + BACKEND_KV_BLOCK - 1) / BACKEND_KV_BLOCK; }

static int windows_at_once(int ctx) { return ctx < CALIBRATE_BATCH ? CALIBRATE_BATCH / ctx : 1; }

int calibrate_kv_blocks(int ctx) { return windows_at_once(ctx) * blocks_of(ctx); }

int calibrate_generate_blocks(int ctx) { return CALIBRATE_SEQUENCES * blocks_of(ctx); }

enum calibrate_input calibrate_input_of(enum model_role role) {
    static const enum calibrate_input inputs[ROLE_COUNT] = {
        [ROLE_Q] = INPUT_QKV,   [ROLE_K] = INPUT_QKV, [ROLE_V] = INPUT_QKV,    [ROLE_O] = INPUT_O,
        [ROLE_GATE] = INPUT_UP, [ROLE_UP] = INPUT_UP, [ROLE_DOWN] = INPUT_DOWN};
    return inputs[role];
}

static int make_states(struct spill *s, const struct calibrate *c,
                       const struct calibrate_options *o, struct error *err) {
    size_t n = (size_t)c->n_windows * (size_t)c->ctx * (size_t)c->hidden;
    return spill_open(s, n, o->memory, o->spill, err);
}

static int make_moments(struct calibrate *c, const struct calibrate_options *o, struct error *err) {
    struct moments_options options = {.hidden = c->hidden,
                                      .max_tokens = CALIBRATE_BATCH,
                                      .reference = o->reference,
                                      .tokens = o->tokens,
                                      .n_threads = o->n_threads};
    int widest = 0;
    for (int role = 0; role < ROLE_COUNT; role++) {
        int rows, cols;
        if (!model_linear_shape(c->m, (enum model_role)role, &rows, &cols)) continue;
        options.width[calibrate_input_of((enum model_role)role)] = cols;
        if (cols > widest) widest = cols;
    }
    c->act_bits = o->act_bits ? o->act_bits : 16;
    if (c->act_bits < 16) {
        c->rounded = malloc(CALIBRATE_BATCH * (size_t)widest * sizeof *c->rounded);
        if (!c->rounded) return error_set(err, -ENOMEM, "calibration: out of memory");
    }
    return moments_new(&c->moments, &options, err);
}

static int make_batch_room(struct calibrate *c, const int32_t *tokens, struct error *err) {
    size_t n = (size_t)c->batch_windows * (size_t)c->chunk;
    size_t all = (size_t)c->n_windows * (size_t)c->ctx;
    /* The reference has keys of its own. */
    size_t n_blocks = 2 * (size_t)calibrate_kv_blocks(c->ctx);
    c->tokens = malloc(all * sizeof *c->tokens);
    c->positions = malloc(n * sizeof *c->positions);
    c->seqs = malloc(n * sizeof *c->seqs);
    c->blocks = malloc(n_blocks * sizeof *c->blocks);
    c->output = malloc(n * (size_t)c->hidden * sizeof *c->output);
    if (!c->tokens || !c->positions || !c->seqs || !c->blocks || !c->output)
        return error_set(err, -ENOMEM, "calibration: out of memory");
    memcpy(c->tokens, tokens, all * sizeof *c->tokens);
    for (size_t i = 0; i < n_blocks; i++) c->blocks[i] = (int32_t)i;
    return 0;
}

/* A piece of some windows: the same positions of each. */
struct piece {
    int window, n_windows, start, n;
};

static void start_piece(struct calibrate *c, const struct piece *p, int32_t *tokens) {
    int first_block = c->in_reference ? calibrate_kv_blocks(c->ctx) : 0;
    for (int w = 0; w < p->n_windows; w++) {
        for (int i = 0; i < p->n; i++) {
            int at = w * p->n + i;
            tokens[at] =
                c->tokens[(size_t)(p->window + w) * (size_t)c->ctx + (size_t)(p->start + i)];
            c->positions[at] = p->start + i;
            c->seqs[at] = w;
        }
    }
    struct batch batch = {.n_tokens = p->n_windows * p->n,
                          .n_seqs = p->n_windows,
                          .tokens = tokens,
                          .positions = c->positions,
                          .seqs = c->seqs,
                          .blocks = c->blocks + first_block,
                          .max_blocks = blocks_of(c->ctx)};
    model_begin(c->m, &batch);
}

/* Whole windows lie side by side in the states; a part of one is contiguous as well. */
static float *state_at(const struct calibrate *c, const struct spill *s, const struct piece *p) {
    size_t token = (size_t)p->window * (size_t)c->ctx + (size_t)p->start;
    return s->x + token * (size_t)c->hidden;
}

struct pass {
    int layer; /* -1: the embedding */
    bool collect, advance;
    bool on_states, on_reference; /* which streams run */
};

static int run_piece(struct calibrate *c, const struct piece *p, const struct pass *pass,
                     bool is_reference, struct error *err) {
    int32_t tokens[CALIBRATE_BATCH];
    float *state = state_at(c, is_reference ? &c->reference : &c->states, p);
    bool advance = is_reference || pass->advance;
    float *output = advance ? state : c->output;
    c->in_reference = is_reference;
    start_piece(c, p, tokens);
    if (pass->layer < 0) {
        model_embed(c->m);
    } else {
        model_write_state(c->m, state);
        model_layer(c->m, pass->layer);
    }
    if (!advance && !pass->collect) return 0;
    int r = model_read_state(c->m, output, err);
    if (r == 0 && pass->collect && !is_reference) {
        /* Its piece has just gone through the block. */
        const float *other = c->reference.x ? state_at(c, &c->reference, p) : NULL;
        r = moments_end_batch(c->moments, output, other, err);
    }
    return r;
}

/* The reference's piece comes just before the same piece of the states. A window longer than a
 * batch goes through in chunks: its earlier keys are still there. */
static int run_pass(struct calibrate *c, const struct pass *pass, struct error *err) {
    int r = 0;
    for (int w = 0; r == 0 && w < c->n_windows; w += c->batch_windows) {
        struct piece p = {.window = w, .n_windows = c->n_windows - w};
        if (p.n_windows > c->batch_windows) p.n_windows = c->batch_windows;
        for (; r == 0 && p.start < c->ctx; p.start += c->chunk) {
            p.n = c->ctx - p.start < c->chunk ? c->ctx - p.start : c->chunk;
            if (pass->on_reference) r = run_piece(c, &p, pass, true, err);
            if (r == 0 && pass->on_states) r = run_piece(c, &p, pass, false, err);
        }
    }
    return r;
}

int calibrate_open(struct calibrate **ret, struct model *m, const int32_t *tokens, int n_windows,
                   int ctx, const struct calibrate_options *options, struct error *err) {
    struct calibrate *c = calloc(1, sizeof *c);
    if (!c) return error_set(err, -ENOMEM, "calibration: out of memory");
    c->m = m;
    c->n_windows = n_windows;
    c->ctx = ctx;
    c->hidden = model_get_config(m)->hidden;
    c->batch_windows = windows_at_once(ctx);
    c->chunk = ctx < CALIBRATE_BATCH ? ctx : CALIBRATE_BATCH;
    bool has_reference = options->reference != MOMENTS_ALONE;
    struct pass embed = {
        .layer = -1, .advance = true, .on_states = true, .on_reference = has_reference};
    int r = make_batch_room(c, tokens, err);
    if (r == 0) r = make_states(&c->states, c, options, err);
    if (r == 0 && has_reference) r = make_states(&c->reference, c, options, err);
    if (r == 0) r = make_moments(c, options, err);
    if (r == 0) r = run_pass(c, &embed, err);
    if (r < 0)
        calibrate_close(c);
    else
        *ret = c;
    return r;
}

void calibrate_close(struct calibrate *c) {
    if (!c) return;
    spill_close(&c->states);
    spill_close(&c->reference);
    moments_free(c->moments);
    free(c->tokens);
    free(c->positions);
    free(c->seqs);
    free(c->blocks);
    free(c->output);
    free(c->rounded);
    free(c);
}

static void show_moments(void *arg, int layer, enum model_role role, const float *x, int n,
                         int width) {
    struct calibrate *c = arg;
    (void)layer;
    /* The reference is the original, which rounds nothing. */
    if (c->rounded && !c->in_reference) {
        for (size_t t = 0, row = (size_t)width; t < (size_t)n; t++)
            rounding_row(c->rounded + t * row, x + t * row, width, c->act_bits);
        x = c->rounded;
    }
    moments_show(c->moments, calibrate_input_of(role), c->in_reference, x, n);
}

int calibrate_run(struct calibrate *c, int layer, bool collect, bool advance, struct error *err) {
    struct pass pass = {.layer = layer,
                        .collect = collect,
                        .advance = advance,
                        .on_states = true,
                        .on_reference = collect && c->reference.x};
    if (collect) {
        moments_clear(c->moments);
        model_set_tap(c->m, show_moments, c);
    }
    int r = run_pass(c, &pass, err);
    model_set_tap(c->m, NULL, NULL);
    if (r == 0 && collect) r = moments_finish(c->moments, err);
    return r < 0 ? error_prefix(err, r, "block %d", layer) : 0;
}

const float *calibrate_states(const struct calibrate *c) { return c->states.x; }

void calibrate_windows(const struct calibrate *c, int *ret_n_windows, int *ret_ctx) {
    *ret_n_windows = c->n_windows;
    *ret_ctx = c->ctx;
}

int calibrate_run_reference(struct calibrate *c, int layer, struct error *err) {
    struct pass pass = {.layer = layer, .on_reference = true};
    return c->reference.x ? run_pass(c, &pass, err) : 0;
}

double *calibrate_moments(struct calibrate *c, enum calibrate_input input, int *ret_n) {
    return moments_h(c->moments, input, ret_n);
}

const double *calibrate_cross(const struct calibrate *c, enum calibrate_input input) {
    return moments_cross(c->moments, input);
}

int calibrate_spread(int32_t *ret, int *n_windows, int ctx, const int32_t *tokens, size_t n_tokens,
                     struct error *err) {
    size_t width = (size_t)ctx, fit = n_tokens / width;
    if (fit == 0)
        return error_set(err, -EINVAL, "calibration text: %zu tokens, one window needs %d",
                         n_tokens, ctx);
    if ((size_t)*n_windows > fit) *n_windows = (int)fit;
    size_t spare = n_tokens - width, last = *n_windows > 1 ? (size_t)*n_windows - 1 : 1;
    for (size_t w = 0; w < (size_t)*n_windows; w++)
        memcpy(ret + w * width, tokens + spare * w / last, width * sizeof *ret);
    return 0;
}

/* Sequences that grow together, one token a step. */
struct writing {
    struct model *m;
    const struct calibrate_text *text;
    struct sampler samplers[CALIBRATE_SEQUENCES];
    struct sampler_work *work;
    float *logits; /* (CALIBRATE_SEQUENCES, vocab) */
    int32_t *blocks;
    int vocab;
};

static void start_writing(struct writing *w, int32_t *windows, int first, int n) {
    struct sampler_params params;
    sampler_defaults(&params);
    for (int s = 0; s < n; s++) {
        sampler_init(&w->samplers[s], &params, w->text->seed + (uint64_t)(first + s));
        windows[(size_t)s * (size_t)w->text->ctx] = w->text->start;
    }
}

static int write_token(struct writing *w, int32_t *windows, int n, int position,
                       struct error *err) {
    int32_t tokens[CALIBRATE_SEQUENCES], positions[CALIBRATE_SEQUENCES], seqs[CALIBRATE_SEQUENCES];
    size_t ctx = (size_t)w->text->ctx;
    for (int s = 0; s < n; s++) {
        tokens[s] = windows[(size_t)s * ctx + (size_t)position];
        positions[s] = position;
        seqs[s] = s;
    }
    struct batch batch = {.n_tokens = n,
                          .n_seqs = n,
                          .tokens = tokens,
                          .positions = positions,
                          .seqs = seqs,
                          .blocks = w->blocks,
                          .max_blocks = blocks_of(w->text->ctx)};
    model_forward(w->m, &batch);
    int r = model_logits(w->m, w->logits, seqs, n, err);
    for (int s = 0; s < n && r == 0; s++) {
        struct sampler_call call = {.logits = w->logits + (size_t)s * (size_t)w->vocab,
                                    .n_top = -1};
        struct sampler_result result;
        sampler_next(&w->samplers[s], w->work, &call, &result);
        windows[(size_t)s * ctx + (size_t)position + 1] = result.id;
    }
    return r;
}

static int write_windows(struct writing *w, int32_t *windows, int first, int n, struct error *err) {
    const struct calibrate_text *t = w->text;
    int r = 0;
    start_writing(w, windows, first, n);
    for (int position = 0; r == 0 && position + 1 < t->ctx; position++) {
        r = write_token(w, windows, n, position, err);
        int64_t before = (int64_t)first * t->ctx, total = (int64_t)t->n_windows * t->ctx;
        if (t->progress) t->progress(t->progress_arg, before + (int64_t)n * (position + 2), total);
    }
    return r;
}

int calibrate_generate(int32_t *ret, struct model *m, const struct calibrate_text *text,
                       struct error *err) {
    struct writing *w = calloc(1, sizeof *w);
    if (!w) return error_set(err, -ENOMEM, "calibration: out of memory");
    w->m = m;
    w->text = text;
    w->vocab = model_get_config(m)->vocab;
    size_t n_blocks = (size_t)calibrate_generate_blocks(text->ctx);
    w->work = sampler_work_new(w->vocab);
    w->logits = malloc(CALIBRATE_SEQUENCES * (size_t)w->vocab * sizeof *w->logits);
    w->blocks = malloc(n_blocks * sizeof *w->blocks);
    int r = 0;
    if (!w->work || !w->logits || !w->blocks)
        r = error_set(err, -ENOMEM, "calibration: out of memory");
    for (size_t i = 0; r == 0 && i < n_blocks; i++) w->blocks[i] = (int32_t)i;
    for (int first = 0; r == 0 && first < text->n_windows; first += CALIBRATE_SEQUENCES) {
        int n = text->n_windows - first;
        if (n > CALIBRATE_SEQUENCES) n = CALIBRATE_SEQUENCES;
        r = write_windows(w, ret + (size_t)first * (size_t)text->ctx, first, n, err);
    }
    sampler_work_free(w->work);
    free(w->logits);
    free(w->blocks);
    free(w);
    return r;
}
