/* The forward pass against logits, hidden states and greedy continuations that transformers made
 * (tests/fixtures/models, tolerances from the notes beside them), on the back end that the
 * environment's GPTQT_TEST_BACKEND names, on as many devices as GPTQT_TEST_DEVICES says, else on every
 * level of the CPU. */
#include "engine/model.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/config.h"
#include "engine/offline.h"
#include "engine/safetensors.h"
#include "engine/source.h"
#include "kernels/error.h"
#include "tests/support/in_short.h"

enum { MAX_TOKENS = 160, STEPS = 32 };

static const char *const names[] = {"llama-gqa", "opt-125m-like", "bloom",      "llama-mha",
                                    "llama3",    "llama-wide",    "llama-bias", "opt-350m-like"};
enum { N_NAMES = sizeof names / sizeof *names };

/* Those whose heads divide by 2, the first one's by 4. */
static const char *const shared[] = {"llama-mha", "opt-125m-like", "bloom"};

static const char *const levels[] = {"ref", "avx2", "avx512", "amx"};

static const char *backend_name(void) {
    const char *name = getenv("GPTQT_TEST_BACKEND");
    return name ? name : "cpu";
}

/* A GPU has no levels, and emulated it is slow: one model of each family. */
static bool is_gpu(void) { return strcmp(backend_name(), "cpu") != 0; }
static int n_levels(void) { return is_gpu() ? 1 : (int)(sizeof levels / sizeof *levels); }
/* How far logits, and sums of their logarithms of probabilities, may be off: products of a GPU take their
 * inputs as fp16. */
static double logit_tolerance(void) { return is_gpu() ? 3e-2 : 5e-4; }
static double state_tolerance(void) { return is_gpu() ? 2e-3 : 1e-3; }
static double log_prob_tolerance(void) { return is_gpu() ? 6e-2 : 2e-3; }
static int n_devices(void) {
    const char *n = getenv("GPTQT_TEST_DEVICES");
    return n ? atoi(n) : 1;
}
static int n_names(void) { return n_devices() > 2 ? 1 : is_gpu() ? 3 : N_NAMES; }
static const char *name_of(int i) { return n_devices() > 1 ? shared[i] : names[i]; }

struct fixture {
    struct offline o;
    struct safetensors golden;
    int vocab;
};

static void path_of(char *path, size_t size, const char *name, const char *file) {
    snprintf(path, size, "%s/models/%s%s", getenv("GPTQT_FIXTURES"), name, file);
}

/* False where the processor lacks the level. */
static bool open_kv(struct fixture *f, const char *name, const char *level, bool by_layer,
                    enum dtype kv_type) {
    char path[512];
    struct error err;
    struct source *src;
    path_of(path, sizeof path, name, "");
    cr_assert_eq(source_open(&src, path, &err), 0, "%s", err.text);
    struct offline_options options = {
        .backend = {.name = backend_name(),
                    .level = level,
                    .n_threads = 2,
                    .n_devices = n_devices()},
        .model = {.kv_type = kv_type,
                  .max_batch_tokens = MAX_TOKENS,
                  .max_logit_rows = 8,
                  .layers_on_demand = by_layer},
        .context = MAX_TOKENS,
        .sequences = 2,
    };
    int r = offline_open(&f->o, src, &options, &err);
    if (r == -ENOTSUP) return false;
    cr_assert_eq(r, 0, "%s: %s", name, err.text);
    f->vocab = model_get_config(f->o.model)->vocab;
    path_of(path, sizeof path, name, "/golden.safetensors");
    cr_assert_eq(safetensors_open(&f->golden, path, &err), 0, "%s", err.text);
    return true;
}

static bool open_fixture(struct fixture *f, const char *name, const char *level, bool by_layer) {
    return open_kv(f, name, level, by_layer, DTYPE_F32);
}

static void close_fixture(struct fixture *f) {
    offline_close(&f->o);
    safetensors_close(&f->golden);
}

static const void *golden(const struct fixture *f, const char *format, int i, size_t *ret_n) {
    char name[64];
    snprintf(name, sizeof name, format, i);
    const struct safetensors_tensor *t = safetensors_find(&f->golden, name);
    cr_assert_not_null(t, "%s", name);
    if (ret_n) *ret_n = (size_t)t->shape[0];
    return t->data;
}

/* Tokens [start, start + n) of a sequence whose KV blocks are 10*seq, 10*seq + 1, ... */
struct feed {
    int32_t tokens[MAX_TOKENS], positions[MAX_TOKENS], seqs[MAX_TOKENS];
    int32_t blocks[2 * MAX_TOKENS / BACKEND_KV_BLOCK];
    int n;
};

static void add(struct feed *f, int seq, const int32_t *tokens, int start, int n) {
    for (int i = 0; i < n; i++) {
        f->tokens[f->n] = tokens[start + i];
        f->positions[f->n] = start + i;
        f->seqs[f->n++] = seq;
    }
}

static void run(struct fixture *f, struct feed *feed) {
    for (int i = 0; i < 2 * MAX_TOKENS / BACKEND_KV_BLOCK; i++) feed->blocks[i] = i;
    struct batch batch = {.n_tokens = feed->n,
                          .n_seqs = 2,
                          .tokens = feed->tokens,
                          .positions = feed->positions,
                          .seqs = feed->seqs,
                          .blocks = feed->blocks,
                          .max_blocks = MAX_TOKENS / BACKEND_KV_BLOCK};
    model_forward(f->o.model, &batch);
}

static float *logits_of(struct fixture *f, int first, int n) {
    int32_t rows[MAX_TOKENS];
    struct error err;
    for (int i = 0; i < n; i++) rows[i] = first + i;
    float *logits = malloc((size_t)n * (size_t)f->vocab * sizeof *logits);
    cr_assert_not_null(logits);
    cr_assert_eq(model_logits(f->o.model, logits, rows, n, &err), 0, "%s", err.text);
    return logits;
}

static double max_difference(const float *a, const float *b, size_t n) {
    double most = 0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - (double)b[i]);
        if (!(d <= most)) most = d;
    }
    return most;
}

static int best(const float *logits, int n) {
    int at = 0;
    for (int i = 1; i < n; i++)
        if (logits[i] > logits[at]) at = i;
    return at;
}

static double log_prob(const float *logits, int n, int token) {
    double sum = 0, top = (double)logits[best(logits, n)];
    for (int i = 0; i < n; i++) sum += exp((double)logits[i] - top);
    return (double)logits[token] - top - log(sum);
}

static void check_prompts(struct fixture *f, const char *name, const char *level) {
    for (int p = 0; p < 4; p++) {
        size_t n;
        const int32_t *ids = golden(f, "prompt.%d.ids", p, &n);
        const float *want = golden(f, "prompt.%d.logits", p, NULL);
        struct feed feed = {.n = 0};
        add(&feed, 0, ids, 0, (int)n);
        run(f, &feed);
        float *got = logits_of(f, 0, (int)n);
        double d = max_difference(got, want, n * (size_t)f->vocab);
        cr_expect(d <= logit_tolerance(), "%s, %s, prompt %d: %g", name, level, p, d);
        const float *log_probs = n > 1 ? golden(f, "prompt.%d.logprobs", p, NULL) : NULL;
        double sum = 0, wanted = 0;
        for (size_t i = 0; i + 1 < n; i++) {
            sum += log_prob(got + i * (size_t)f->vocab, f->vocab, ids[i + 1]);
            wanted += (double)log_probs[i];
        }
        cr_expect(fabs(sum - wanted) <= log_prob_tolerance(), "%s: sum of logprobs %g", name,
                  sum - wanted);
        free(got);
    }
}

Test(model, logits_equal_those_of_transformers_on_every_level) {
    for (int i = 0; i < n_names(); i++)
        for (int l = 0; l < n_levels(); l++) {
            struct fixture f;
            if (!open_fixture(&f, name_of(i), levels[l], false)) continue;
            check_prompts(&f, name_of(i), levels[l]);
            close_fixture(&f);
        }
}

Test(model, greedy_continuations_with_the_kv_cache_equal_those_of_transformers) {
    for (int i = 0; i < n_names(); i++) {
        struct fixture f;
        cr_assert(open_fixture(&f, name_of(i), NULL, false));
        for (int p = 0; p < 2; p++) {
            size_t n;
            const int32_t *ids = golden(&f, "prompt.%d.ids", p + 1, &n);
            const int32_t *want = golden(&f, "greedy.%d.ids", p + 1, NULL);
            int32_t tokens[MAX_TOKENS];
            memcpy(tokens, ids, n * sizeof *ids);
            int done = 0;
            for (int step = 0; step < STEPS; step++) {
                struct feed feed = {.n = 0};
                add(&feed, 0, tokens, done, (int)n + step - done);
                run(&f, &feed);
                float *logits = logits_of(&f, feed.n - 1, 1);
                done = (int)n + step;
                tokens[done] = best(logits, f.vocab);
                free(logits);
                cr_assert_eq(tokens[done], want[step], "%s, run %d, step %d", name_of(i), p, step);
            }
        }
        close_fixture(&f);
    }
}

/* Rows in short, and columns of them, against the logits of the same tokens. */
static void check_short(struct fixture *f, const char *name) {
    enum { N = 4, COLUMNS = 7 };
    static const int32_t rows[N] = {3, 0, 2, 2};
    static const float heats[N] = {1, 0.5f, 3, 100};
    size_t n, vocab = (size_t)f->vocab, spans = (size_t)backend_spans(f->vocab);
    const int32_t *ids = golden(f, "prompt.%d.ids", 0, &n);
    struct feed feed = {.n = 0};
    add(&feed, 0, ids, 0, N);
    run(f, &feed);
    float *logits = logits_of(f, 0, N), some[COLUMNS];
    uint64_t ranks[N * BACKEND_TOP], want[BACKEND_TOP];
    uint64_t *sums = malloc((N + 1) * spans * sizeof *sums), *wanted = sums + N * spans;
    struct top_call call = {.n_rows = N, .temperatures = heats, .ranks = ranks, .sums = sums};
    struct error err;
    cr_assert_eq(model_top(f->o.model, &call, rows, &err), 0, "%s", err.text);
    for (size_t i = 0; i < N; i++) {
        const float *row = logits + (size_t)rows[i] * vocab;
        in_short(row, f->vocab, heats[i], want, wanted);
        cr_expect_arr_eq(ranks + i * BACKEND_TOP, want, sizeof want, "%s: %zu", name, i);
        cr_expect_lt(fabs((double)sums[i * spans] / (double)wanted[0] - 1), 1e-5);
        cr_assert_eq(model_columns(f->o.model, some, (int)i, (int)i * 11, COLUMNS, &err), 0);
        cr_expect_arr_eq(some, row + i * 11, sizeof some, "%s: %zu", name, i);
    }
    free(logits);
    free(sums);
}

Test(model, rows_in_short_are_those_of_the_logits) {
    for (int i = 0; i < n_names(); i++) {
        struct fixture f;
        cr_assert(open_fixture(&f, name_of(i), NULL, false));
        if (model_can_shorten(f.o.model)) check_short(&f, name_of(i));
        cr_expect_eq(model_can_shorten(f.o.model), strcmp(backend_name(), "cpu") != 0);
        close_fixture(&f);
    }
}

Test(model, block_by_block_gives_the_hidden_states_of_transformers) {
    for (int i = 0; i < n_names(); i++) {
        struct fixture f;
        struct error err;
        cr_assert(open_fixture(&f, name_of(i), NULL, true));
        const struct model_config *c = model_get_config(f.o.model);
        size_t n, width = (size_t)c->hidden;
        const int32_t *ids = golden(&f, "prompt.%d.ids", 2, &n);
        struct feed feed = {.n = 0};
        add(&feed, 0, ids, 0, (int)n);
        for (int b = 0; b < 2 * MAX_TOKENS / BACKEND_KV_BLOCK; b++) feed.blocks[b] = b;
        struct batch batch = {.n_tokens = (int)n,
                              .n_seqs = 1,
                              .tokens = feed.tokens,
                              .positions = feed.positions,
                              .seqs = feed.seqs,
                              .blocks = feed.blocks,
                              .max_blocks = MAX_TOKENS / BACKEND_KV_BLOCK};
        model_begin(f.o.model, &batch);
        model_embed(f.o.model);
        float *x = malloc(n * width * sizeof *x);
        for (int layer = 0; layer < c->n_layers; layer++) {
            cr_assert_eq(model_load_layer(f.o.model, layer, &err), 0, "%s", err.text);
            model_layer(f.o.model, layer);
            model_drop_layer(f.o.model, layer);
            cr_assert_eq(model_read_state(f.o.model, x, &err), 0);
            const float *want = golden(&f, "hidden.layer.%d", layer, NULL);
            double most = 1;
            for (size_t k = 0; k < n * width; k++) most = fmax(most, fabs((double)want[k]));
            double d = max_difference(x, want, n * width);
            cr_expect(d <= state_tolerance() * most, "%s, layer %d: %g of %g", name_of(i), layer, d,
                      most);
        }
        free(x);
        close_fixture(&f);
    }
}

/* The promise that a request's tokens do not depend on its company rests on this. */
Test(model, logits_do_not_depend_on_batch_or_chunks) {
    for (int i = 0; i < n_names(); i++)
        for (int l = 0; l < n_levels(); l++) {
            struct fixture f;
            if (!open_fixture(&f, name_of(i), levels[l], false)) continue;
            size_t n, m;
            const int32_t *ids = golden(&f, "prompt.%d.ids", 3, &n);
            const int32_t *other = golden(&f, "prompt.%d.ids", 2, &m);
            struct feed alone = {.n = 0};
            add(&alone, 0, ids, 0, (int)n);
            run(&f, &alone);
            float *want = logits_of(&f, (int)n - 1, 1);

            struct feed first = {.n = 0}, second = {.n = 0};
            add(&first, 1, other, 0, 5);
            add(&first, 0, ids, 0, 37);
            run(&f, &first);
            add(&second, 0, ids, 37, (int)n - 37);
            add(&second, 1, other, 5, (int)m - 5);
            run(&f, &second);
            float *got = logits_of(&f, (int)n - 37 - 1, 1);
            cr_expect_eq(memcmp(got, want, (size_t)f.vocab * sizeof *got), 0, "%s, %s", name_of(i),
                         levels[l]);
            free(want);
            free(got);
            close_fixture(&f);
        }
}

/* A byte an element and four a head and position, and log probabilities that hardly move. */
Test(model, int8_keys_and_values_take_less_room_and_say_the_same) {
    for (int i = 0; i < 3 && !is_gpu(); i++)
        for (int l = 0; l < n_levels(); l++) {
            struct fixture f;
            size_t n;
            if (!open_kv(&f, name_of(i), levels[l], false, DTYPE_I8)) continue;
            const struct model_config *c = model_get_config(f.o.model);
            size_t position = (size_t)c->n_layers * 2 * (size_t)c->n_kv_heads *
                              ((size_t)c->head_dim + sizeof(float));
            cr_expect_eq(model_kv_block_bytes(c, DTYPE_I8), position * BACKEND_KV_BLOCK);
            cr_expect_eq(model_kv_bytes(f.o.model) % (position * BACKEND_KV_BLOCK), 0);
            const int32_t *ids = golden(&f, "prompt.%d.ids", 3, &n);
            const float *want = golden(&f, "prompt.%d.logits", 3, NULL);
            struct feed feed = {.n = 0};
            add(&feed, 0, ids, 0, (int)n);
            run(&f, &feed);
            float *got = logits_of(&f, 0, (int)n);
            double d = 0, all = 0;
            for (size_t k = 0; k < n * (size_t)f.vocab; k++) {
                d += pow((double)got[k] - (double)want[k], 2);
                all += pow((double)want[k], 2);
            }
            double far = sqrt(d / all);
            cr_expect(far > 1e-6 && far < 0.04, "%s, %s: %g", name_of(i), levels[l], far);
            free(got);
            close_fixture(&f);
        }
}

Test(model, a_missing_or_misshapen_tensor_is_named) {
    struct error err;
    char config[512];
    path_of(config, sizeof config, "llama-mha", "/config.json");
    struct map text, weights;
    cr_assert_eq(map_open(&text, config, &err), 0);
    path_of(config, sizeof config, "llama-bias", "/model.safetensors");
    cr_assert_eq(map_open(&weights, config, &err), 0);
    /* llama-mha's config over llama-bias's weights: shapes and vocabulary differ. */
    struct source_file files[] = {{"config.json", text.bytes, text.size},
                                  {"model.safetensors", weights.bytes, weights.size}};
    struct source *src;
    int r = source_open_memory(&src, files, 2, &err);
    if (r == 0) {
        struct offline_options options = {
            .model = {.kv_type = DTYPE_F32, .max_batch_tokens = 8, .max_logit_rows = 1},
            .context = 16};
        struct offline o;
        r = offline_open(&o, src, &options, &err);
    }
    cr_expect_eq(r, -EBADMSG);
    cr_expect_not_null(strstr(err.text, "tensor 'model."), "%s", err.text);
    map_close(&text);
    map_close(&weights);
}

static void check_split_refused(const char *name, int devices, const char *says) {
    char path[512];
    struct error err;
    struct source *src;
    struct offline o;
    path_of(path, sizeof path, name, "");
    cr_assert_eq(source_open(&src, path, &err), 0, "%s", err.text);
    struct offline_options options = {
        .backend = {.name = "cuda-emu", .n_devices = devices},
        .model = {.kv_type = DTYPE_F32, .max_batch_tokens = 8, .max_logit_rows = 1},
        .context = 16};
    cr_expect_eq(offline_open(&o, src, &options, &err), -EINVAL);
    cr_expect_not_null(strstr(err.text, says), "%s", err.text);
}

/* Before any device is opened. */
Test(model, heads_that_do_not_divide_by_the_devices_are_named) {
    check_split_refused("llama-gqa", 2, "num_attention_heads, 9, does not divide by 2 devices");
    check_split_refused("llama-gqa", 9, "num_key_value_heads, 3, does not divide by 9 devices");
}
