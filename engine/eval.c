#include "engine/eval.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/config.h"
#include "engine/eval_base.h"
#include "engine/model.h"
#include "kernels/error.h"

struct eval {
    const struct eval_options *options;
    struct model *models[2]; /* the model, the reference or NULL */
    struct eval_base base;   /* of the reference, where options->base is set */
    struct eval_base_writer saved;
    int64_t n_rows; /* positions seen */
    int vocab;
    int first;        /* position whose successor is predicted first */
    float *logits[2]; /* (EVAL_LOGIT_ROWS, vocab) */
    int32_t *window;  /* (ctx) */
    int32_t *positions, *seqs, *blocks;
    double nll;
    int64_t tokens;
    float *kl; /* (chunks * ctx) */
    int64_t n_kl, agreed;
    int64_t hits; /* predicted tokens that were the likeliest */
};

struct row_facts {
    double log_sum; /* log of the sum of exp(logit) */
    int best;
};

static struct row_facts row_facts(const float *logits, int n) {
    int best = 0;
    for (int i = 1; i < n; i++)
        if (logits[i] > logits[best]) best = i;
    float top = logits[best];
    double sum = 0;
    for (int i = 0; i < n; i++) sum += (double)expf(logits[i] - top);
    return (struct row_facts){.log_sum = top + log(sum), .best = best};
}

static double divergence(const float *ref, double ref_log_sum, const float *got, double got_log_sum,
                         int n) {
    double kl = 0;
    for (int i = 0; i < n; i++) {
        double log_p = ref[i] - ref_log_sum;
        kl += (double)expf((float)log_p) * (log_p - (got[i] - got_log_sum));
    }
    return kl;
}

/* One position's logits from both models; next is the token that follows in the window. */
static int score(struct eval *e, int row, int position, struct error *err) {
    int ctx = e->options->ctx;
    const float *got = e->logits[0] + (size_t)row * (size_t)e->vocab;
    struct row_facts facts = row_facts(got, e->vocab);
    if (position >= e->first && position + 1 < ctx) {
        e->nll += facts.log_sum - (double)got[e->window[position + 1]];
        e->tokens++;
        e->hits += got[e->window[position + 1]] >= got[facts.best];
    }
    if (e->options->save_base) {
        int r = eval_base_add(&e->saved, got, err);
        if (r < 0) return r;
    }
    float *ref = e->logits[1] + (size_t)row * (size_t)e->vocab;
    if (e->options->base) eval_base_row(&e->base, e->n_rows, ref);
    e->n_rows++;
    if (!e->models[1] && !e->options->base) return 0;
    struct row_facts wanted = row_facts(ref, e->vocab);
    e->kl[e->n_kl++] = (float)divergence(ref, wanted.log_sum, got, facts.log_sum, e->vocab);
    e->agreed += wanted.best == facts.best;
    return 0;
}

static int score_rows(struct eval *e, int start, int n, struct error *err) {
    int32_t rows[EVAL_LOGIT_ROWS];
    for (int done = 0; done < n;) {
        int part = n - done < EVAL_LOGIT_ROWS ? n - done : EVAL_LOGIT_ROWS;
        for (int i = 0; i < part; i++) rows[i] = done + i;
        for (int k = 0; k < 2 && e->models[k]; k++) {
            int r = model_logits(e->models[k], e->logits[k], rows, part, err);
            if (r < 0) return r;
        }
        int r = 0;
        for (int i = 0; r == 0 && i < part; i++) r = score(e, i, start + done + i, err);
        if (r < 0) return r;
        done += part;
    }
    return 0;
}

static int run_window(struct eval *e, struct error *err) {
    int ctx = e->options->ctx;
    for (int start = 0; start < ctx;) {
        int n = ctx - start < EVAL_BATCH_TOKENS ? ctx - start : EVAL_BATCH_TOKENS;
        struct batch batch = {
            .n_tokens = n,
            .n_seqs = 1,
            .tokens = e->window + start,
            .positions = e->positions + start,
            .seqs = e->seqs,
            .blocks = e->blocks,
            .max_blocks = (ctx + BACKEND_KV_BLOCK - 1) / BACKEND_KV_BLOCK,
        };
        for (int k = 0; k < 2 && e->models[k]; k++) model_forward(e->models[k], &batch);
        int r = score_rows(e, start, n, err);
        if (r < 0) return r;
        start += n;
    }
    return 0;
}

static int compare_floats(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void finish(struct eval *e, struct eval_result *ret, int chunks) {
    *ret = (struct eval_result){.chunks = chunks, .tokens = e->tokens};
    ret->nll = e->nll / (double)e->tokens;
    ret->perplexity = exp(ret->nll);
    ret->positions = e->n_kl;
    if (!e->n_kl) return;
    double sum = 0;
    for (int64_t i = 0; i < e->n_kl; i++) sum += (double)e->kl[i];
    qsort(e->kl, (size_t)e->n_kl, sizeof *e->kl, compare_floats);
    ret->kl_mean = sum / (double)e->n_kl;
    ret->kl_p99 = (double)e->kl[(e->n_kl - 1) * 99 / 100];
    ret->top1_agreement = (double)e->agreed / (double)e->n_kl;
}

static void lay_window(const struct eval *e, const int32_t *tokens, int32_t *ret) {
    memcpy(ret, tokens, (size_t)e->options->ctx * sizeof *tokens);
    if (e->options->protocol == EVAL_LLAMA_CPP && e->options->bos >= 0) ret[0] = e->options->bos;
}

static int open_base(struct eval *e, const int32_t *tokens, int chunks, struct error *err) {
    const struct eval_options *o = e->options;
    if (!o->base && !o->save_base) return 0;
    size_t ctx = (size_t)o->ctx;
    int32_t *seen = malloc((size_t)chunks * ctx * sizeof *seen);
    if (!seen) return error_set(err, -ENOMEM, "eval: out of memory");
    for (size_t i = 0; i < (size_t)chunks; i++) lay_window(e, tokens + i * ctx, seen + i * ctx);
    struct eval_base_key key = {e->vocab, o->ctx, chunks, seen};
    int r = o->base ? eval_base_open(&e->base, o->base, &key, err) : 0;
    if (r == 0 && o->save_base) r = eval_base_create(&e->saved, o->save_base, &key, err);
    free(seen);
    return r;
}

static int allocate(struct eval *e, int chunks, struct error *err) {
    size_t ctx = (size_t)e->options->ctx;
    e->window = malloc(4 * ctx * sizeof *e->window);
    for (int k = 0; k < 2; k++)
        e->logits[k] = malloc(EVAL_LOGIT_ROWS * (size_t)e->vocab * sizeof(float));
    e->kl = malloc((size_t)chunks * ctx * sizeof *e->kl);
    if (!e->window || !e->logits[0] || !e->logits[1] || !e->kl)
        return error_set(err, -ENOMEM, "eval: out of memory");
    e->positions = e->window + ctx;
    e->seqs = e->positions + ctx;
    e->blocks = e->seqs + ctx;
    for (int i = 0; i < (int)ctx; i++) {
        e->positions[i] = e->blocks[i] = i;
        e->seqs[i] = 0;
    }
    return 0;
}

static void release(struct eval *e) {
    eval_base_close(&e->base);
    eval_base_abandon(&e->saved);
    free(e->window);
    free(e->logits[0]);
    free(e->logits[1]);
    free(e->kl);
}

static int check(struct model *m, struct model *reference, const int32_t *tokens, size_t n_tokens,
                 int chunks, const struct eval_options *o, struct error *err) {
    int vocab = model_get_config(m)->vocab;
    if (chunks < 1)
        return error_set(err, -EINVAL, "text: %zu tokens are fewer than one window of %d", n_tokens,
                         o->ctx);
    if (reference && model_get_config(reference)->vocab != vocab)
        return error_set(err, -EINVAL, "the reference has a vocabulary of %d, the model of %d",
                         model_get_config(reference)->vocab, vocab);
    for (size_t i = 0; i < n_tokens; i++)
        if (tokens[i] < 0 || tokens[i] >= vocab)
            return error_set(err, -EINVAL, "text: token id %d is outside the vocabulary of %d",
                             tokens[i], vocab);
    return 0;
}

int eval_run(struct eval_result *ret, struct model *m, struct model *reference,
             const int32_t *tokens, size_t n_tokens, const struct eval_options *options,
             struct error *err) {
    size_t ctx = (size_t)options->ctx, windows = n_tokens / ctx;
    int chunks =
        options->chunks && (size_t)options->chunks < windows ? options->chunks : (int)windows;
    int r = check(m, reference, tokens, n_tokens, chunks, options, err);
    if (r < 0) return r;
    struct eval e = {.options = options,
                     .models = {m, reference},
                     .vocab = model_get_config(m)->vocab,
                     .first = options->protocol == EVAL_LLAMA_CPP ? options->ctx / 2 : 0};
    r = allocate(&e, chunks, err);
    if (r == 0) r = open_base(&e, tokens, chunks, err);
    for (int i = 0; r == 0 && i < chunks; i++) {
        lay_window(&e, tokens + (size_t)i * ctx, e.window);
        r = run_window(&e, err);
        if (options->progress)
            options->progress(options->progress_arg, (int64_t)(i + 1) * (int64_t)ctx,
                              (int64_t)chunks * (int64_t)ctx);
    }
    if (r == 0 && options->save_base) r = eval_base_commit(&e.saved, err);
    if (r == 0) finish(&e, ret, chunks);
    release(&e);
    return r;
}

int eval_continuation(struct eval_continuation *ret, struct model *m, const int32_t *tokens,
                      size_t n_tokens, size_t n_context, struct error *err) {
    if (n_context < 1 || n_context > n_tokens)
        return error_set(err, -EINVAL, "a continuation needs at least one token before it");
    if (n_tokens > INT32_MAX) return error_set(err, -E2BIG, "too many tokens");
    struct eval_options options = {.ctx = (int)n_tokens, .bos = -1};
    int r = check(m, NULL, tokens, n_tokens, 1, &options, err);
    if (r < 0) return r;
    struct eval e = {.options = &options,
                     .models = {m, NULL},
                     .vocab = model_get_config(m)->vocab,
                     .first = (int)n_context - 1};
    r = allocate(&e, 1, err);
    if (r == 0) {
        memcpy(e.window, tokens, n_tokens * sizeof *tokens);
        r = run_window(&e, err);
    }
    if (r == 0)
        *ret = (struct eval_continuation){
            .log_likelihood = -e.nll, .tokens = e.tokens, .greedy = e.hits == e.tokens};
    release(&e);
    return r;
}
