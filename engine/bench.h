/* bench.h - measures how fast a model runs, against a plain read of as many bytes.
 *
 * Owns      nothing beyond the call.
 * Borrows   the model during the call.
 * Thread    the model's; the read pass starts threads of its own.
 * Fails     -ENOMEM, a lost device.
 * Cost      prompt + gen tokens, and as many read passes as there are decode steps sampled.
 *
 * Decode steps and read passes alternate, so that a noisy neighbour hits both; figures are
 * medians. A read pass sums the bytes that a decode step has to read, spread over memory that
 * no cache holds. It also drives a small model out of the caches, so that a step right after
 * one is slower than in a row of steps; without read passes steps follow each other as in
 * service. */
#ifndef ENGINE_BENCH_H
#define ENGINE_BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/profile.h"

struct error;
struct model;

struct bench_options {
    int prompt, gen;         /* tokens of each sequence */
    int batch;               /* sequences */
    int n_threads;           /* of the read pass */
    bool no_read;            /* no read passes */
    size_t weight_bytes;     /* a decode step reads these */
    double (*now)(void);     /* seconds */
    struct backend *profile; /* the model's: its operations are timed. NULL: they are not */
};

struct bench_result {
    double prefill_rate; /* prompt tokens per second, all sequences */
    double decode_rate;  /* generated tokens per second, all sequences, of the median step */
    /* The same over the sum of all steps, disturbed ones too: what programs that time a whole
     * run tell. */
    double decode_mean_rate;
    double first_token;    /* seconds from the prompt to one sequence's first token */
    double weight_rate;    /* bytes of weights per second while decoding */
    double read_rate;      /* bytes per second of the read pass; 0 without */
    double limit_fraction; /* weight_rate / read_rate; 0 without read passes */
    uint64_t logits_hash;  /* FNV-1a over the last step's logits */
    /* With options.profile: seconds of a decode step and of the kinds of operations in it, means; and
     * of choosing a token afterwards. */
    double step;
    struct profile profile;
    double greedy, drawn; /* temperature 0; temperature 1, top_k 50, top_p 0.9 */
};

/* The model needs a batch of at least batch tokens, KV room for batch sequences of prompt + gen
 * positions, and batch logit rows. */
int bench_run(struct bench_result *ret, struct model *m, int max_batch_tokens,
              const struct bench_options *options, struct error *err);

#endif
