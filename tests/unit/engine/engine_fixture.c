/* The engine on real models, against what transformers made (tests/fixtures/models) and against
 * the offline path that `gptqt eval` and `gptqt logits` take. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/config.h"
#include "engine/engine.h"
#include "engine/offline.h"
#include "engine/safetensors.h"
#include "engine/source.h"
#include "kernels/error.h"
#include "tests/support/desk.h"

enum { PROMPTS = 4, MOST = 128, STEPS = 32 };

static const char *const names[] = {"llama-gqa", "llama3", "opt-350m-like", "bloom"};
enum { N_NAMES = sizeof names / sizeof *names };

static struct source *open_model(const char *name, const char *file, char *path, size_t size) {
    struct error err;
    struct source *src = NULL;
    snprintf(path, size, "%s/models/%s%s", getenv("GPTQT_FIXTURES"), name, file);
    if (!*file) cr_assert_eq(source_open(&src, path, &err), 0, "%s", err.text);
    return src;
}

static void open_golden(struct safetensors *golden, const char *name) {
    char path[512];
    struct error err;
    open_model(name, "/golden.safetensors", path, sizeof path);
    cr_assert_eq(safetensors_open(golden, path, &err), 0, "%s", err.text);
}

static const void *find(const struct safetensors *golden, const char *format, int i, int *ret_n) {
    char name[64];
    snprintf(name, sizeof name, format, i);
    const struct safetensors_tensor *t = safetensors_find(golden, name);
    cr_assert_not_null(t, "%s", name);
    if (ret_n) *ret_n = (int)t->shape[0];
    return t->data;
}

static void open_desk(struct desk *d, const char *name, int step_tokens, int draft_tokens) {
    char path[512];
    struct engine_options options = desk_options();
    options.n_threads = 2;
    options.step_tokens = step_tokens;
    options.draft_tokens = draft_tokens;
    options.kv = ENGINE_KV_F32;
    desk_open_source(d, &options, open_model(name, "", path, sizeof path));
}

/* -- Scores ---------------------------------------------------------------------------------- */

/* As eval does it: one batch, log-sum-exp in double. */
static void score_offline(const char *name, const int32_t *ids, int n, double *logprobs) {
    char path[512];
    struct offline o;
    struct error err;
    struct offline_options options = {
        .backend = {.name = "cpu", .n_threads = 2},
        .model = {.kv_type = DTYPE_F32, .max_batch_tokens = MOST, .max_logit_rows = 8},
        .context = MOST};
    struct source *src = open_model(name, "", path, sizeof path);
    cr_assert_eq(offline_open(&o, src, &options, &err), 0, "%s", err.text);
    int32_t positions[MOST], seqs[MOST] = {0}, vocab = model_get_config(o.model)->vocab;
    for (int i = 0; i < MOST; i++) positions[i] = i;
    struct batch batch = {.n_tokens = n,
                          .n_seqs = 1,
                          .tokens = ids,
                          .positions = positions,
                          .seqs = seqs,
                          .blocks = positions,
                          .max_blocks = MOST / BACKEND_KV_BLOCK};
    float *logits = malloc((size_t)n * (size_t)vocab * sizeof *logits);
    model_forward(o.model, &batch);
    cr_assert_eq(model_logits(o.model, logits, positions, n, &err), 0);
    for (int i = 0; i + 1 < n; i++) {
        const float *row = logits + (size_t)i * (size_t)vocab;
        double top = (double)row[0], sum = 0;
        for (int k = 1; k < vocab; k++) top = fmax(top, (double)row[k]);
        for (int k = 0; k < vocab; k++) sum += exp((double)row[k] - top);
        logprobs[i + 1] = (double)row[ids[i + 1]] - top - log(sum);
    }
    free(logits);
    offline_close(&o);
}

Test(engine_fixture, prompt_scores_are_those_of_eval_and_of_transformers) {
    static const int step_tokens[] = {5, 17, 200};
    for (int i = 0; i < N_NAMES; i++) {
        struct safetensors golden;
        open_golden(&golden, names[i]);
        for (int s = 0; s < 3; s++) {
            struct desk d;
            open_desk(&d, names[i], step_tokens[s], 0);
            for (int p = 0; p < PROMPTS; p++) {
                int n;
                const int32_t *ids = find(&golden, "prompt.%d.ids", p, &n);
                struct engine_request *request = desk_ids(ids, n, p % 2 ? 5 : -1);
                request->n_prompt_logprobs = 3;
                desk_submit(&d, request);
            }
            desk_wait_all(&d);
            for (int p = 0; p < PROMPTS; p++) {
                int n;
                double offline[MOST];
                const int32_t *ids = find(&golden, "prompt.%d.ids", p, &n);
                const float *wanted = n > 1 ? find(&golden, "prompt.%d.logprobs", p, NULL) : NULL;
                const struct desk_record *r = &d.records[p];
                cr_assert_eq(r->n_prompt_tokens, n, "%s, prompt %d", names[i], p);
                score_offline(names[i], ids, n, offline);
                cr_expect(isnan(r->prompt[0].logprob));
                for (int k = 1; k < n; k++) {
                    double got = (double)r->prompt[k].logprob;
                    cr_expect(fabs(got - offline[k]) <= 1e-5, "%s: %g, eval %g", names[i], got,
                              offline[k]);
                    cr_expect(fabs(got - (double)wanted[k - 1]) <= 1e-3, "%s: %g, golden %g",
                              names[i], got, (double)wanted[k - 1]);
                }
            }
            desk_close_source(&d);
        }
        safetensors_close(&golden);
    }
}

/* -- Vectors --------------------------------------------------------------------------------- */

Test(engine_fixture, vectors_are_the_hidden_states_of_transformers) {
    static const int step_tokens[] = {4, 11, 200};
    for (int i = 0; i < N_NAMES; i++) {
        struct safetensors golden;
        open_golden(&golden, names[i]);
        int n;
        const int32_t *ids = find(&golden, "prompt.%d.ids", 2, &n);
        const float *states = find(&golden, "hidden.head_in", 0, NULL);
        float *first = NULL;
        for (int s = 0; s < 3; s++) {
            struct desk d;
            open_desk(&d, names[i], step_tokens[s], 0);
            for (int k = 0; k < 2; k++) {
                struct engine_request *request = desk_ids(ids, n, 0);
                request->task = ENGINE_EMBED;
                request->pooling = k ? POOLING_MEAN : POOLING_LAST;
                desk_submit(&d, request);
            }
            desk_wait_all(&d);
            int width = d.records[0].n_vector;
            cr_assert_gt(width, 0);
            for (int k = 0; k < width; k++) {
                double mean = 0, last = (double)states[(n - 1) * width + k];
                for (int p = 0; p < n; p++) mean += (double)states[p * width + k];
                cr_expect(fabs((double)d.records[0].vector[k] - last) <=
                          1e-3 * fmax(1, fabs(last)));
                cr_expect(fabs((double)d.records[1].vector[k] - mean / n) <= 1e-3);
            }
            size_t bytes = (size_t)width * sizeof *first;
            if (!first) first = memcpy(malloc(bytes), d.records[1].vector, bytes);
            cr_expect_eq(memcmp(first, d.records[1].vector, bytes), 0, "%s, chunks", names[i]);
            desk_close_source(&d);
        }
        free(first);
        safetensors_close(&golden);
    }
}

/* -- Speculation ----------------------------------------------------------------------------- */

Test(engine_fixture, speculation_gives_the_tokens_of_plain_decoding) {
    for (int i = 0; i < N_NAMES; i++) {
        struct safetensors golden;
        struct desk d[2];
        struct engine_stats stats;
        open_golden(&golden, names[i]);
        for (int k = 0; k < 2; k++) {
            open_desk(&d[k], names[i], 64, k ? 6 : 0);
            for (int r = 0; r < 8; r++) {
                int n;
                const int32_t *ids = find(&golden, "prompt.%d.ids", r % 4, &n);
                struct engine_request *request = desk_ids(ids, n, r < 4 ? STEPS : 100);
                request->sampling.temperature = r < 4 ? 0 : 0.3f;
                request->ignore_eos = true;
                request->seed = (uint64_t)r;
                request->n_logprobs = 1;
                desk_submit(&d[k], request);
            }
            desk_wait_all(&d[k]);
        }
        for (int r = 0; r < 8; r++) {
            const struct desk_record *x = &d[0].records[r], *y = &d[1].records[r];
            size_t n = (size_t)x->n_tokens;
            cr_assert_eq(y->n_tokens, x->n_tokens);
            cr_expect_eq(memcmp(x->tokens, y->tokens, n * sizeof *x->tokens), 0);
            cr_expect_eq(memcmp(x->logprobs, y->logprobs, n * sizeof *x->logprobs), 0,
                         "%s: not the same arithmetic", names[i]);
        }
        for (int p = 1; p <= 2; p++)
            cr_expect_eq(memcmp(d[1].records[p].tokens, find(&golden, "greedy.%d.ids", p, NULL),
                                STEPS * sizeof(int32_t)),
                         0, "%s", names[i]);
        engine_get_stats(d[1].engine, &stats);
        cr_expect_gt(stats.draft_accepted, 0, "%s", names[i]);
        desk_close_source(&d[0]);
        desk_close_source(&d[1]);
        safetensors_close(&golden);
    }
}
