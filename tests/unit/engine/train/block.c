/* A block's forward against fp64 loops and against the engine's own on models made elsewhere; its
 * backward against central differences of the fp64 loops, every parameter of every family. */
#include "engine/train/block.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/offline.h"
#include "engine/source.h"
#include "engine/train/params.h"
#include "kernels/error.h"
#include "tests/unit/engine/train/reference.h"

enum { SEQS = 2, CTX = 5, WINDOW = 24 };

static struct block *new_block(const struct model_config *c, int n_seqs, int ctx, int n_threads) {
    struct block *b = NULL;
    struct error err;
    cr_assert_eq(block_new(&b, c, n_seqs, ctx, n_threads, &err), 0, "%s", err.text);
    return b;
}

static void *room(size_t n, size_t size) {
    void *p = calloc(n, size);
    cr_assert_not_null(p);
    return p;
}

/* Some function of position, exact in fp32. */
static float wave(int i, int seed) {
    return (float)round(64.0 * sin(i * 0.7 + seed + i * (double)i * 0.013)) / 64.0f;
}

struct run {
    struct reference *ref;
    float *x, *y, *dy, *dx, *grads;
    double *wide_x, *wide_y;
};

static struct run new_run(const struct model_config *c, int n_seqs, int ctx) {
    struct run r = {.ref = reference_new(c, n_seqs, ctx, 7)};
    size_t n = (size_t)r.ref->n_x;
    r.x = room(n, sizeof *r.x);
    r.y = room(n, sizeof *r.y);
    r.dy = room(n, sizeof *r.dy);
    r.dx = room(n, sizeof *r.dx);
    r.grads = room((size_t)r.ref->n_params, sizeof *r.grads);
    r.wide_x = room(n, sizeof *r.wide_x);
    r.wide_y = room(n, sizeof *r.wide_y);
    for (size_t i = 0; i < n; i++) {
        r.wide_x[i] = (double)(r.x[i] = wave((int)i, 1));
        r.dy[i] = wave((int)i, 2);
    }
    return r;
}

static void end_run(struct run *r) {
    reference_free(r->ref);
    void *all[] = {r->x, r->y, r->dy, r->dx, r->grads, r->wide_x, r->wide_y};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

static void backward(struct run *r, int n_threads) {
    struct block *b = new_block(&r->ref->config, r->ref->n_seqs, r->ref->ctx, n_threads);
    struct block_cache *cache;
    struct error err;
    struct block_weights w = reference_weights(r->ref);
    struct block_grads g = reference_grads(r->ref, r->grads);
    cr_assert_eq(block_cache_new(&cache, b, &err), 0);
    block_forward(b, &w, r->x, r->y, r->ref->n_seqs, r->ref->ctx, cache);
    /* What was run in between must not matter. */
    block_forward(b, &w, r->dy, r->dx, r->ref->n_seqs, r->ref->ctx, NULL);
    block_backward(b, &w, cache, r->dy, r->dx, &g);
    block_cache_free(cache);
    block_free(b);
}

Test(block, forward_is_what_the_definitions_say) {
    for (int i = 0; i < REFERENCE_FAMILIES; i++) {
        const char *name;
        struct model_config c = reference_family(i, &name);
        struct run r = new_run(&c, SEQS, CTX);
        struct block *b = new_block(&c, SEQS, CTX, 2);
        struct block_weights w = reference_weights(r.ref);
        block_forward(b, &w, r.x, r.y, SEQS, CTX, NULL);
        reference_forward(r.ref, r.wide_x, r.wide_y);
        for (int k = 0; k < r.ref->n_x; k++)
            cr_assert_float_eq(r.y[k], r.wide_y[k], 2e-5, "%s: element %d", name, k);
        /* In place, too. */
        block_forward(b, &w, r.x, r.x, SEQS, CTX, NULL);
        cr_assert_arr_eq(r.x, r.y, (size_t)r.ref->n_x * sizeof *r.x);
        block_free(b);
        end_run(&r);
    }
}

/* The loss whose gradient at y is dy. */
static double loss(struct run *r) {
    double sum = 0.0;
    reference_forward(r->ref, r->wide_x, r->wide_y);
    for (int i = 0; i < r->ref->n_x; i++) sum += r->wide_y[i] * (double)r->dy[i];
    return sum;
}

/* Central difference over one value: with steps of 1e-5 its error is some 1e-9. */
static double slope_at(struct run *r, double *value) {
    double kept = *value, step = 1e-5;
    *value = kept + step;
    double above = loss(r);
    *value = kept - step;
    double below = loss(r);
    *value = kept;
    return (above - below) / (2.0 * step);
}

static void check_slopes(struct run *r, double *values, const float *got, int n, const char *name,
                         const char *what) {
    for (int i = 0; i < n; i++) {
        double want = slope_at(r, &values[i]);
        cr_assert_lt(fabs((double)got[i] - want), 2e-5 * (1.0 + fabs(want)),
                     "%s: %s %d is %.8g, the difference says %.8g", name, what, i, (double)got[i],
                     want);
    }
}

Test(block, backward_is_the_slope_of_the_definitions) {
    for (int i = 0; i < REFERENCE_FAMILIES; i++) {
        const char *name;
        struct model_config c = reference_family(i, &name);
        struct run r = new_run(&c, SEQS, CTX);
        backward(&r, 2);
        check_slopes(&r, r.wide_x, r.dx, r.ref->n_x, name, "dx");
        check_slopes(&r, r.ref->params, r.grads, r.ref->n_params, name, "parameter");
        end_run(&r);
    }
}

struct seen {
    const struct reference *ref;
    const float *grads;
    int count[ROLE_COUNT];
};

/* The weights' gradient is the sum of dy x^T over tokens. */
static void see(void *arg, enum model_role role, const float *x, const float *dy, int n, int rows,
                int cols) {
    struct seen *s = arg;
    cr_assert_eq(n, SEQS * CTX);
    cr_assert_eq(rows, s->ref->rows[role]);
    cr_assert_eq(cols, s->ref->cols[role]);
    for (int r = 0; r < rows; r++) {
        for (int k = 0; k < cols; k++) {
            double sum = 0.0;
            for (int t = 0; t < n; t++) sum += (double)dy[t * rows + r] * (double)x[t * cols + k];
            double got = (double)s->grads[s->ref->linear[role] + r * cols + k];
            cr_assert_float_eq(got, sum, 1e-5 * (1.0 + fabs(sum)));
        }
    }
    s->count[role]++;
}

Test(block, shows_inputs_and_output_gradients) {
    for (int i = 0; i < REFERENCE_FAMILIES; i++) {
        const char *name;
        struct model_config c = reference_family(i, &name);
        struct run r = new_run(&c, SEQS, CTX);
        backward(&r, 1);
        struct block *b = new_block(&c, SEQS, CTX, 1);
        struct block_weights w = reference_weights(r.ref);
        struct block_cache *cache;
        struct error err;
        struct seen seen = {.ref = r.ref, .grads = r.grads};
        struct block_grads g = {.see = see, .arg = &seen};
        cr_assert_eq(block_cache_new(&cache, b, &err), 0);
        block_forward(b, &w, r.x, r.y, SEQS, CTX, cache);
        block_backward(b, &w, cache, r.dy, r.dy, &g);
        cr_assert_arr_eq(r.dy, r.dx, (size_t)r.ref->n_x * sizeof *r.dx, "%s: in place", name);
        for (int role = 0; role < ROLE_COUNT; role++)
            cr_assert_eq(seen.count[role], r.ref->linear[role] >= 0, "%s", name);
        block_cache_free(cache);
        block_free(b);
        end_run(&r);
    }
}

/* Large enough for several tiles of every kind, and strips of attention. */
static struct model_config wide_config(void) {
    const char *name;
    struct model_config c = reference_family(1, &name);
    c.hidden = c.embed_dim = 96;
    c.n_heads = 6;
    c.n_kv_heads = 2;
    c.head_dim = 16;
    c.intermediate = 300;
    c.max_positions = 200;
    return c;
}

Test(block, equals_itself_on_any_number_of_threads) {
    struct model_config c = wide_config();
    struct run one = new_run(&c, 3, 150), many = new_run(&c, 3, 150);
    backward(&one, 1);
    backward(&many, 5);
    cr_assert_arr_eq(one.y, many.y, (size_t)one.ref->n_x * sizeof *one.y);
    cr_assert_arr_eq(one.dx, many.dx, (size_t)one.ref->n_x * sizeof *one.dx);
    cr_assert_arr_eq(one.grads, many.grads, (size_t)one.ref->n_params * sizeof *one.grads);
    end_run(&one);
    end_run(&many);
}

/* A sequence does not see its neighbours: alone it gives the same. */
Test(block, sequences_are_apart) {
    struct model_config c = wide_config();
    struct run all = new_run(&c, 2, 130), alone = new_run(&c, 1, 130);
    int n = alone.ref->n_x;
    memcpy(alone.x, all.x + n, (size_t)n * sizeof *all.x);
    memcpy(alone.dy, all.dy + n, (size_t)n * sizeof *all.dy);
    backward(&all, 1);
    backward(&alone, 1);
    for (int i = 0; i < n; i++) {
        cr_assert_float_eq(all.y[n + i], alone.y[i], 1e-4f * (1.0f + fabsf(alone.y[i])));
        cr_assert_float_eq(all.dx[n + i], alone.dx[i], 1e-3f * (1.0f + fabsf(alone.dx[i])));
    }
    end_run(&all);
    end_run(&alone);
}

static void check_fixture(const char *name) {
    char path[512];
    struct error err;
    struct source *src;
    struct offline o;
    snprintf(path, sizeof path, "%s/models/%s", getenv("GPTQT_FIXTURES"), name);
    cr_assert_eq(source_open(&src, path, &err), 0, "%s", err.text);
    struct offline_options options = {
        .backend = {.name = "cpu", .level = "ref", .n_threads = 1},
        .model = {.kv_type = DTYPE_F32,
                  .max_batch_tokens = WINDOW,
                  .max_logit_rows = 1,
                  .layers_on_demand = true},
        .context = WINDOW,
        .sequences = 1,
    };
    cr_assert_eq(offline_open(&o, src, &options, &err), 0, "%s", err.text);
    const struct model_config *c = model_get_config(o.model);
    int32_t tokens[WINDOW], positions[WINDOW], seqs[WINDOW] = {0}, blocks[WINDOW];
    for (int i = 0; i < WINDOW; i++) {
        tokens[i] = (i * 37 + 11) % c->vocab;
        positions[i] = blocks[i] = i;
    }
    struct batch batch = {.n_tokens = WINDOW,
                          .n_seqs = 1,
                          .tokens = tokens,
                          .positions = positions,
                          .seqs = seqs,
                          .blocks = blocks,
                          .max_blocks = WINDOW / BACKEND_KV_BLOCK + 1};
    size_t n = WINDOW * (size_t)c->hidden;
    float *x = room(n, sizeof *x), *y = room(n, sizeof *y);
    struct block *b = new_block(c, 1, WINDOW, 1);
    struct params *params;
    cr_assert_eq(params_open(&params, src, &err), 0, "%s", err.text);
    model_begin(o.model, &batch);
    model_embed(o.model);
    for (int layer = 0; layer < c->n_layers; layer++) {
        struct params_block p;
        cr_assert_eq(params_block_read(&p, params, layer, &err), 0, "%s: %s", name, err.text);
        struct block_weights w = params_block_view(&p);
        cr_assert_eq(model_read_state(o.model, x, &err), 0);
        block_forward(b, &w, x, x, 1, WINDOW, NULL);
        cr_assert_eq(model_load_layer(o.model, layer, &err), 0, "%s", err.text);
        model_layer(o.model, layer);
        cr_assert_eq(model_read_state(o.model, y, &err), 0);
        double most = 0.0;
        for (size_t i = 0; i < n; i++) most = fmax(most, fabs((double)y[i]));
        for (size_t i = 0; i < n; i++)
            cr_assert_lt(fabs((double)x[i] - (double)y[i]), 1e-5 * most, "%s: block %d", name,
                         layer);
        model_drop_layer(o.model, layer);
        params_block_free(&p);
    }
    params_close(params);
    block_free(b);
    free(x);
    free(y);
    offline_close(&o);
}

Test(block, forward_is_the_engines) {
    static const char *const names[] = {"llama-gqa",  "opt-125m-like", "bloom",
                                        "llama-mha",  "llama3",        "llama-wide",
                                        "llama-bias", "opt-350m-like"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) check_fixture(names[i]);
}

Test(block, refuses_sizes_it_cannot_hold) {
    const char *name;
    struct model_config c = reference_family(0, &name);
    struct block *b = NULL;
    struct error err;
    cr_assert_eq(block_new(&b, &c, 1, c.max_positions + 1, 1, &err), -EINVAL);
    cr_assert_eq(block_new(&b, &c, 0, 4, 1, &err), -EINVAL);
    cr_assert_eq(block_new(&b, &c, 1 << 20, 4, 1, &err), -EINVAL);
    cr_assert_null(b);
}
