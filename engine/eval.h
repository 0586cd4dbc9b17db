/* eval.h - measures how well a model predicts a text, and how far it is from a reference.
 *
 * Owns      nothing beyond the call.
 * Borrows   models, tokens and the progress argument during the call.
 * Thread    the models' (both on one thread).
 * Fails     -EINVAL (fewer tokens than one window, vocabularies or base differ), -ENOMEM, a lost
 *           device, the base's file.
 * Cost      one forward pass over chunks * ctx tokens per model; a base (eval_base.h) spares the
 *           reference's.
 *
 * EVAL_GPTQ (the GPTQ papers): windows of ctx tokens without overlap, every token but the first
 * of a window is predicted. EVAL_LLAMA_CPP (llama-perplexity): the second half of each window is
 * predicted, and where the tokenizer adds a BOS token it replaces each window's first one.
 * Divergences are KL(reference || model) in nats over every position of the same windows. */
#ifndef ENGINE_EVAL_H
#define ENGINE_EVAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;
struct model;

enum eval_protocol { EVAL_GPTQ, EVAL_LLAMA_CPP };

struct eval_options {
    enum eval_protocol protocol;
    int ctx;
    int chunks;            /* windows at most; 0 = all */
    int32_t bos;           /* -1 = none; EVAL_LLAMA_CPP only */
    const char *save_base; /* the model's distributions go there */
    const char *base;      /* in place of a reference */
    void (*progress)(void *arg, int64_t done, int64_t total); /* tokens; may be NULL */
    void *progress_arg;
};

struct eval_result {
    int chunks;
    int64_t tokens;    /* predicted */
    double nll;        /* mean, nats per token */
    double perplexity; /* exp(nll) */
    int64_t positions; /* compared with the reference; 0 without one */
    double kl_mean, kl_p99, top1_agreement;
};

enum { EVAL_BATCH_TOKENS = 512, EVAL_LOGIT_ROWS = 32 };

/* Both models need EVAL_BATCH_TOKENS, EVAL_LOGIT_ROWS and KV blocks for ctx tokens, numbered
 * from 0. reference may be NULL. */
int eval_run(struct eval_result *ret, struct model *m, struct model *reference,
             const int32_t *tokens, size_t n_tokens, const struct eval_options *options,
             struct error *err);

struct eval_continuation {
    double log_likelihood; /* nats, of all its tokens together */
    int64_t tokens;
    bool greedy; /* each of them was the likeliest */
};

/* How likely the tokens from n_context on are after those before; n_context is at least 1. The
 * model needs what eval_run() says, for n_tokens. */
int eval_continuation(struct eval_continuation *ret, struct model *m, const int32_t *tokens,
                      size_t n_tokens, size_t n_context, struct error *err);

#endif
