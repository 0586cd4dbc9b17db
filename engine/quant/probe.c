#include "engine/quant/probe.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "engine/config.h"
#include "engine/quant/linalg.h"
#include "kernels/error.h"

/* Floats of logits kept: 64 MiB. */
static const size_t most_logits = (size_t)1 << 24;

struct probe {
    struct model *m;
    int n_threads, layer, n_layers, n_windows, ctx, n_tokens, hidden, vocab;
    int32_t *tokens, *positions, *seqs, *blocks, *rows;
    int n_rows;             /* positions whose logits are compared */
    float *x;               /* (n_tokens, hidden) what enters the present block */
    float *logits;          /* (n_rows, vocab) of the original */
    float *now;             /* (PROBE_LOGIT_ROWS, vocab) */
    double *h[INPUT_COUNT]; /* (width, width) */
    int width[INPUT_COUNT];
    int64_t summed[INPUT_COUNT];
    int failed;
};

static int blocks_of(int ctx) { return (ctx + BACKEND_KV_BLOCK - 1) / BACKEND_KV_BLOCK; }

int probe_kv_blocks(void) { return PROBE_WINDOWS * blocks_of(PROBE_CTX); }

int probe_tokens(void) { return PROBE_WINDOWS * PROBE_CTX; }

static void begin(struct probe *p) {
    struct batch batch = {.n_tokens = p->n_tokens,
                          .n_seqs = p->n_windows,
                          .tokens = p->tokens,
                          .positions = p->positions,
                          .seqs = p->seqs,
                          .blocks = p->blocks,
                          .max_blocks = blocks_of(p->ctx)};
    model_begin(p->m, &batch);
}

static int make_batch(struct probe *p, const int32_t *tokens, int n_windows, int ctx,
                      struct error *err) {
    size_t n = (size_t)p->n_tokens, n_blocks = (size_t)(p->n_windows * blocks_of(p->ctx));
    p->tokens = malloc(n * sizeof *p->tokens);
    p->positions = malloc(n * sizeof *p->positions);
    p->seqs = malloc(n * sizeof *p->seqs);
    p->rows = malloc(n * sizeof *p->rows);
    p->blocks = malloc(n_blocks * sizeof *p->blocks);
    if (!p->tokens || !p->positions || !p->seqs || !p->rows || !p->blocks)
        return error_set(err, -ENOMEM, "probe: out of memory");
    for (size_t i = 0; i < n_blocks; i++) p->blocks[i] = (int32_t)i;
    for (int i = 0; i < p->n_tokens; i++) {
        int window = i / p->ctx;
        size_t from = (size_t)(window * n_windows / p->n_windows) * (size_t)ctx;
        p->tokens[i] = tokens[from + (size_t)(i % p->ctx)];
        p->positions[i] = i % p->ctx;
        p->seqs[i] = window;
    }
    size_t most = most_logits / (size_t)p->vocab;
    p->n_rows = p->n_tokens;
    if ((size_t)p->n_rows > most) p->n_rows = most < 1 ? 1 : (int)most;
    for (int i = 0; i < p->n_rows; i++)
        p->rows[i] = (int32_t)((int64_t)i * p->n_tokens / p->n_rows);
    return 0;
}

static int make_room(struct probe *p, struct error *err) {
    size_t vocab = (size_t)p->vocab;
    p->x = malloc((size_t)p->n_tokens * (size_t)p->hidden * sizeof *p->x);
    p->logits = malloc((size_t)p->n_rows * vocab * sizeof *p->logits);
    p->now = malloc(PROBE_LOGIT_ROWS * vocab * sizeof *p->now);
    bool made = p->x && p->logits && p->now;
    for (int role = 0; role < ROLE_COUNT; role++) {
        int rows, cols, input = (int)calibrate_input_of((enum model_role)role);
        if (p->h[input] || !model_linear_shape(p->m, (enum model_role)role, &rows, &cols)) continue;
        p->width[input] = cols;
        p->h[input] = malloc((size_t)cols * (size_t)cols * sizeof *p->h[input]);
        made = made && p->h[input];
    }
    return made ? 0 : error_set(err, -ENOMEM, "probe: out of memory");
}

/* The blocks from the present one to the last, on the states before it. */
static void run_rest(struct probe *p) {
    begin(p);
    model_write_state(p->m, p->x);
    for (int layer = p->layer; layer < p->n_layers; layer++) model_layer(p->m, layer);
}

int probe_open(struct probe **ret, struct model *m, const int32_t *tokens, int n_windows, int ctx,
               int n_threads, bool compares, struct error *err) {
    struct probe *p = calloc(1, sizeof *p);
    if (!p) return error_set(err, -ENOMEM, "probe: out of memory");
    const struct model_config *c = model_get_config(m);
    p->m = m;
    p->n_threads = n_threads;
    p->n_layers = c->n_layers;
    p->hidden = c->hidden;
    p->vocab = c->vocab;
    p->n_windows = n_windows < PROBE_WINDOWS ? n_windows : PROBE_WINDOWS;
    p->ctx = ctx < PROBE_CTX ? ctx : PROBE_CTX;
    p->n_tokens = p->n_windows * p->ctx;
    int r = make_batch(p, tokens, n_windows, ctx, err);
    if (r == 0) r = make_room(p, err);
    if (r == 0) {
        begin(p);
        model_embed(m);
        r = model_read_state(m, p->x, err);
    }
    if (r == 0 && compares) {
        run_rest(p);
        r = model_logits(m, p->logits, p->rows, p->n_rows, err);
    }
    if (r < 0)
        probe_close(p);
    else
        *ret = p;
    return r;
}

void probe_close(struct probe *p) {
    if (!p) return;
    for (int i = 0; i < INPUT_COUNT; i++) free(p->h[i]);
    free(p->tokens);
    free(p->positions);
    free(p->seqs);
    free(p->rows);
    free(p->blocks);
    free(p->x);
    free(p->logits);
    free(p->now);
    free(p);
}

static void sum_moments(void *arg, int layer, enum model_role role, const float *x, int n,
                        int width) {
    struct probe *p = arg;
    enum calibrate_input input = calibrate_input_of(role);
    (void)layer;
    if (p->failed) return;
    p->failed = linalg_gram_add(p->h[input], x, (size_t)n, width, p->n_threads, NULL);
    p->summed[input] += n;
}

int probe_collect(struct probe *p, struct error *err) {
    p->failed = 0;
    for (int i = 0; i < INPUT_COUNT; i++) {
        p->summed[i] = 0;
        size_t n = (size_t)p->width[i];
        if (p->h[i]) memset(p->h[i], 0, n * n * sizeof *p->h[i]);
    }
    model_set_tap(p->m, sum_moments, p);
    begin(p);
    model_write_state(p->m, p->x);
    model_layer(p->m, p->layer);
    model_set_tap(p->m, NULL, NULL);
    if (p->failed) return error_set(err, p->failed, "moments of block %d: out of memory", p->layer);
    for (int i = 0; i < INPUT_COUNT; i++) {
        if (!p->h[i]) continue;
        if (p->summed[i] == 0)
            return error_set(err, -EIO, "block %d: the device gave no inputs", p->layer);
        linalg_symmetrize(p->h[i], p->width[i], 1.0 / (double)p->summed[i]);
    }
    return 0;
}

const double *probe_moments(const struct probe *p, enum calibrate_input input, int *ret_n) {
    *ret_n = p->width[input];
    return p->h[input];
}

int probe_advance(struct probe *p, struct error *err) {
    begin(p);
    model_write_state(p->m, p->x);
    model_layer(p->m, p->layer++);
    return model_read_state(p->m, p->x, err);
}

static double log_sum(const float *logits, int n) {
    float top = logits[0];
    double sum = 0.0;
    for (int i = 1; i < n; i++) top = logits[i] > top ? logits[i] : top;
    for (int i = 0; i < n; i++) sum += (double)expf(logits[i] - top);
    return (double)top + log(sum);
}

static double divergence(const float *was, const float *is, int n) {
    double was_sum = log_sum(was, n), is_sum = log_sum(is, n), kl = 0.0;
    for (int i = 0; i < n; i++) {
        double log_p = (double)was[i] - was_sum;
        kl += (double)expf((float)log_p) * (log_p - ((double)is[i] - is_sum));
    }
    return kl;
}

int probe_divergence(struct probe *p, double *ret, struct error *err) {
    double sum = 0.0;
    size_t vocab = (size_t)p->vocab;
    run_rest(p);
    for (int row = 0; row < p->n_rows; row += PROBE_LOGIT_ROWS) {
        int n = p->n_rows - row < PROBE_LOGIT_ROWS ? p->n_rows - row : PROBE_LOGIT_ROWS;
        int r = model_logits(p->m, p->now, p->rows + row, n, err);
        if (r < 0) return r;
        for (int i = 0; i < n; i++)
            sum += divergence(p->logits + (size_t)(row + i) * vocab, p->now + (size_t)i * vocab,
                              p->vocab);
    }
    /* Rounding can make the divergence of two nearly equal distributions negative. */
    *ret = fmax(0.0, sum / p->n_rows);
    return 0;
}
