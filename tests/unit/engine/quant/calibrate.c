#include "engine/quant/calibrate.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/config.h"
#include "engine/quant/linalg.h"
#include "engine/source.h"
#include "kernels/error.h"
#include "tests/support/scratch.h"
#include "tests/unit/engine/quant/support.h"

struct rig {
    struct source *src;
    struct backend *be;
    struct model *m;
    int vocab, hidden, n_layers, positions;
};

static void rig_open(struct rig *r, const char *name, int ctx, bool on_demand) {
    char path[SCRATCH_PATH];
    struct error err;
    struct backend_options backend = {.name = "cpu", .n_threads = 2};
    struct model_options options = {
        .kv_type = DTYPE_F32,
        .max_batch_tokens = on_demand ? CALIBRATE_BATCH : CALIBRATE_SEQUENCES,
        .max_logit_rows = CALIBRATE_SEQUENCES,
        .n_kv_blocks = on_demand ? 2 * calibrate_kv_blocks(ctx) : calibrate_generate_blocks(ctx),
        .layers_on_demand = on_demand};
    linalg_init();
    cr_assert_eq(source_open(&r->src, scratch_fixture(path, name), &err), 0, "%s", err.text);
    cr_assert_eq(backend_open(&r->be, &backend, &err), 0, "%s", err.text);
    cr_assert_eq(model_open(&r->m, r->be, r->src, &options, &err), 0, "%s", err.text);
    const struct model_config *c = model_get_config(r->m);
    r->vocab = c->vocab;
    r->hidden = c->hidden;
    r->n_layers = c->n_layers;
    r->positions = c->max_positions;
}

static void rig_close(struct rig *r) {
    model_close(r->m);
    backend_close(r->be);
    source_close(r->src);
}

static int32_t *random_tokens(const struct rig *r, size_t n) {
    uint64_t state = 77;
    int32_t *tokens = malloc(n * sizeof *tokens);
    cr_assert(tokens);
    for (size_t i = 0; i < n; i++)
        tokens[i] = (int32_t)(support_uniform(&state) * (double)r->vocab);
    return tokens;
}

/* Sums of the diagonal of one layer's inputs, by a tap of our own over a whole forward pass. */
struct diagonals {
    int layer;
    double *sum[INPUT_COUNT];
};

static void add_squares(void *arg, int layer, enum model_role role, const float *x, int n,
                        int width) {
    struct diagonals *d = arg;
    if (layer != d->layer) return;
    for (int t = 0; t < n; t++)
        for (int j = 0; j < width; j++)
            d->sum[calibrate_input_of(role)][j] +=
                (double)x[t * width + j] * (double)x[t * width + j];
}

static void forward_window(struct rig *r, const int32_t *tokens, int ctx, struct diagonals *d) {
    int32_t *positions = malloc((size_t)ctx * sizeof *positions);
    int32_t *seqs = calloc((size_t)ctx, sizeof *seqs), blocks[64];
    cr_assert(positions && seqs && ctx <= 64 * BACKEND_KV_BLOCK);
    for (int i = 0; i < 64; i++) blocks[i] = i;
    for (int i = 0; i < ctx; i++) positions[i] = i;
    struct batch batch = {.n_tokens = ctx,
                          .n_seqs = 1,
                          .tokens = tokens,
                          .positions = positions,
                          .seqs = seqs,
                          .blocks = blocks,
                          .max_blocks = 64};
    model_set_tap(r->m, add_squares, d);
    model_begin(r->m, &batch);
    model_embed(r->m);
    for (int layer = 0; layer <= d->layer; layer++) model_layer(r->m, layer);
    model_set_tap(r->m, NULL, NULL);
    free(positions);
    free(seqs);
}

static void check_moments(const char *name, int ctx, int n_windows, size_t memory) {
    struct rig r;
    struct calibrate *c;
    struct error err;
    struct calibrate_options options = {.n_threads = 2, .memory = memory};
    rig_open(&r, name, ctx, true);
    int32_t *tokens = random_tokens(&r, (size_t)(n_windows * ctx));
    cr_assert_eq(calibrate_open(&c, r.m, tokens, n_windows, ctx, &options, &err), 0, "%s",
                 err.text);
    struct diagonals d = {.layer = 1};
    for (int i = 0; i < INPUT_COUNT; i++) d.sum[i] = calloc(4096, sizeof *d.sum[i]);
    for (int layer = 0; layer < 2; layer++) {
        cr_assert_eq(model_load_layer(r.m, layer, &err), 0);
        cr_assert_eq(calibrate_run(c, layer, true, true, &err), 0, "%s", err.text);
    }
    for (int w = 0; w < n_windows; w++) forward_window(&r, tokens + w * ctx, ctx, &d);
    for (int i = 0; i < INPUT_COUNT; i++) {
        int n;
        const double *h = calibrate_moments(c, (enum calibrate_input)i, &n);
        for (int j = 0; j < n; j++) {
            double want = d.sum[i][j] / (double)(n_windows * ctx), got = h[j * n + j];
            cr_assert(fabs(got - want) <= 1e-4 * want + 1e-9, "%s input %d [%d]: %g not %g", name,
                      i, j, got, want);
            cr_assert_eq(h[j * n], h[j]);
        }
        free(d.sum[i]);
    }
    calibrate_close(c);
    free(tokens);
    rig_close(&r);
}

Test(calibrate, moments_are_those_of_a_whole_forward_pass) {
    /* Several windows a batch, the last batch not full. */
    check_moments("models/llama-gqa", 100, 23, SIZE_MAX);
    check_moments("models/opt-350m-like", 40, 3, SIZE_MAX);
    check_moments("models/bloom", 33, 5, SIZE_MAX);
}

Test(calibrate, states_in_a_file_are_the_same_states) {
    check_moments("models/llama-gqa", 50, 4, 0);
}

/* While nothing is coded both streams are the same, in windows of several batches as well; a
 * reference that was left behind is another. */
Test(calibrate, the_reference_goes_through_the_original_block) {
    struct rig r;
    struct calibrate *c;
    struct error err;
    struct calibrate_options options = {
        .n_threads = 2, .memory = SIZE_MAX, .reference = MOMENTS_INPUTS};
    int ctx = 60, n_windows = 30;
    rig_open(&r, "models/llama-gqa", ctx, true);
    int32_t *tokens = random_tokens(&r, (size_t)(n_windows * ctx));
    cr_assert_eq(calibrate_open(&c, r.m, tokens, n_windows, ctx, &options, &err), 0, "%s",
                 err.text);
    for (int layer = 0; layer < 3; layer++) {
        cr_assert_eq(model_load_layer(r.m, layer, &err), 0);
        if (layer == 1) {
            /* Both move on, by the two ways that a run has for it. */
            cr_assert_eq(calibrate_run_reference(c, layer, &err), 0, "%s", err.text);
            cr_assert_eq(calibrate_run(c, layer, false, true, &err), 0, "%s", err.text);
            continue;
        }
        cr_assert_eq(calibrate_run(c, layer, true, layer == 0, &err), 0, "%s", err.text);
        for (int i = 0; i < INPUT_COUNT; i++) {
            int n;
            const double *h = calibrate_moments(c, (enum calibrate_input)i, &n);
            const double *cross = calibrate_cross(c, (enum calibrate_input)i);
            for (int k = 0; k < n * n; k++)
                cr_assert(fabs(h[k] - cross[k]) <=
                              1e-5 * sqrt(h[k / n * n + k / n] * h[k % n * n + k % n]) + 1e-9,
                          "block %d, input %d: C is not H at %d", layer, i, k);
        }
    }
    /* The reference is behind block 2 now, the states before it. */
    cr_assert_eq(calibrate_run(c, 2, true, false, &err), 0, "%s", err.text);
    int n;
    const double *h = calibrate_moments(c, INPUT_QKV, &n);
    const double *cross = calibrate_cross(c, INPUT_QKV);
    cr_assert(fabs(h[0] - cross[0]) > 1e-3 * h[0]);
    calibrate_close(c);
    free(tokens);
    rig_close(&r);
}

Test(calibrate, spreads_windows_over_the_whole_text) {
    int32_t text[1000], windows[40];
    struct error err;
    for (int i = 0; i < 1000; i++) text[i] = i;
    int n = 4;
    cr_assert_eq(calibrate_spread(windows, &n, 10, text, 1000, &err), 0);
    cr_assert_eq(n, 4);
    cr_assert_eq(windows[0], 0);
    cr_assert_eq(windows[10], 330);
    cr_assert_eq(windows[39], 999);
    cr_assert_eq(calibrate_spread(windows, &n, 10, text, 25, &err), 0);
    cr_assert_eq(n, 2, "no overlap");
    n = 4;
    cr_assert_eq(calibrate_spread(windows, &n, 10, text, 9, &err), -EINVAL);
    n = 1;
    cr_assert_eq(calibrate_spread(windows, &n, 10, text, 1000, &err), 0);
    cr_assert_eq(windows[9], 9);
}

Test(calibrate, model_writes_the_same_text_from_the_same_seed) {
    enum { WINDOWS = 35, CTX = 24 }; /* more than one group of sequences */
    struct rig r;
    struct error err;
    rig_open(&r, "models/llama-gqa", CTX, false);
    int32_t a[WINDOWS * CTX], b[WINDOWS * CTX];
    struct calibrate_text text = {.n_windows = WINDOWS, .ctx = CTX, .start = 1, .seed = 4};
    cr_assert_eq(calibrate_generate(a, r.m, &text, &err), 0, "%s", err.text);
    cr_assert_eq(calibrate_generate(b, r.m, &text, &err), 0, "%s", err.text);
    cr_assert_eq(memcmp(a, b, sizeof a), 0);
    text.seed = 1000;
    cr_assert_eq(calibrate_generate(b, r.m, &text, &err), 0, "%s", err.text);
    cr_assert_neq(memcmp(a, b, sizeof a), 0);
    for (int i = 0; i < WINDOWS * CTX; i++) cr_assert(a[i] >= 0 && a[i] < r.vocab);
    for (int w = 0; w < WINDOWS; w++) cr_assert_eq(a[w * CTX], 1);
    cr_assert_neq(memcmp(a, a + CTX, CTX * sizeof *a), 0, "windows differ");
    rig_close(&r);
}
