/* attention.h - causal attention over whole sequences and its gradient, with RoPE or ALiBi.
 *
 * Owns      tables and work room until attention_free().
 * Borrows   its arguments during the call.
 * Thread    one at a time; work is spread over n_threads.
 * Fails     attention_new() with -ENOMEM.
 * Cost      forward 2, backward 5 products of (ctx, ctx / 2, head_dim) a head and sequence.
 *
 * Probabilities are never kept: forward leaves the logarithm of each row's sum, from which backward
 * makes them again for a strip of queries at a time (Dao et al. 2022, section 3.1). A piece of work
 * is one key-value head of one sequence, so its gradients are summed in one order. */
#ifndef ENGINE_TRAIN_ATTENTION_H
#define ENGINE_TRAIN_ATTENTION_H

struct attention;
struct error;
struct model_config;

int attention_new(struct attention **ret, const struct model_config *config, int n_seqs, int ctx,
                  int n_threads, struct error *err);
void attention_free(struct attention *a); /* NULL is allowed */

/* Turns q (n, n_heads * head_dim) and k (n, n_kv_heads * head_dim) by their positions, or back; does
 * nothing where positions are not rotary. */
void attention_rotate(const struct attention *a, float *q, float *k, int n_seqs, int ctx, int back);

/* out: as q; v: as k; lse: (n, n_heads). */
void attention_forward(const struct attention *a, const float *q, const float *k, const float *v,
                       int n_seqs, int ctx, float *out, float *lse);

/* dq, dk, dv: of the turned q and k. */
struct attention_kept {
    const float *q, *k, *v, *out, *lse;
};
void attention_backward(const struct attention *a, const struct attention_kept *kept,
                        const float *dout, int n_seqs, int ctx, float *dq, float *dk, float *dv);

#endif
