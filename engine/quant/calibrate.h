/* calibrate.h - runs calibration text through a model, one block at a time.
 *
 * Owns      the hidden states of all tokens and the second moments, until calibrate_close().
 * Borrows   the model until calibrate_close(); its tap is set during calibrate_run().
 * Thread    the model's; moments are summed by n_threads.
 * Fails     -ENOMEM, errno of the spill file, a lost device.
 * Cost      a run is one forward pass through one block; collecting adds n^2 / 2 per token and
 *           input.
 *
 * Between runs the states are what enters the next block. They stay in memory up to a limit, beyond
 * that in an unlinked file. Sums are cut by batches of fixed size, so equal states give equal
 * moments on a machine, whatever the number of threads. */
#ifndef ENGINE_QUANT_CALIBRATE_H
#define ENGINE_QUANT_CALIBRATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/model.h"
#include "engine/quant/moments.h"

struct calibrate;
struct error;

enum { CALIBRATE_BATCH = 1024, CALIBRATE_SEQUENCES = 32 };

struct calibrate_options {
    int n_threads;
    enum moments_reference reference; /* whether states of the original model go along */
    enum moments_tokens tokens;
    size_t memory; /* bytes of states to keep in memory at most */
    int act_bits;  /* moments of inputs rounded so (kernels/rounding.h); 0 and 16: as they are */
    const char *spill; /* folder for a file beyond that; NULL = $TMPDIR, else /tmp */
};

/* KV blocks that the model needs for windows of ctx tokens, twice as many with a reference; its
 * batches must hold CALIBRATE_BATCH tokens. */
int calibrate_kv_blocks(int ctx);

/* Embeds tokens: (n_windows, ctx), which are in the vocabulary; copied. */
int calibrate_open(struct calibrate **ret, struct model *m, const int32_t *tokens, int n_windows,
                   int ctx, const struct calibrate_options *options, struct error *err);
void calibrate_close(struct calibrate *c); /* NULL is allowed */

/* Runs every window through a loaded block. collect: sums the moments of its inputs anew.
 * advance: the states become the block's output. With a reference, collecting also runs it through
 * the block, which is still the original, and moves it on. */
int calibrate_run(struct calibrate *c, int layer, bool collect, bool advance, struct error *err);

/* (n_windows, ctx, hidden) what enters the next block; valid until the next run. */
const float *calibrate_states(const struct calibrate *c);
void calibrate_windows(const struct calibrate *c, int *ret_n_windows, int *ret_ctx);
/* Moves the reference on alone, through the original block; nothing without one. */
int calibrate_run_reference(struct calibrate *c, int layer, struct error *err);

enum calibrate_input calibrate_input_of(enum model_role role);

/* Of the last run that collected; see moments_h() and moments_cross(). */
double *calibrate_moments(struct calibrate *c, enum calibrate_input input, int *ret_n);
const double *calibrate_cross(const struct calibrate *c, enum calibrate_input input);

/* Windows evenly spread over a text's tokens. Writes *n_windows * ctx tokens; *n_windows falls
 * when the text is too short for windows without overlap. -EINVAL below one window. */
int calibrate_spread(int32_t *ret, int *n_windows, int ctx, const int32_t *tokens, size_t n_tokens,
                     struct error *err);

/* Text by the model itself: windows sampled at temperature 1 from the token `start`. The model is
 * wholly loaded, with batches and logit rows of CALIBRATE_SEQUENCES and
 * calibrate_generate_blocks(ctx) KV blocks. progress may be NULL. */
struct calibrate_text {
    int n_windows, ctx;
    int32_t start;
    uint64_t seed;
    void (*progress)(void *arg, int64_t done, int64_t total);
    void *progress_arg;
};
int calibrate_generate_blocks(int ctx);
int calibrate_generate(int32_t *ret, struct model *m, const struct calibrate_text *text,
                       struct error *err);

#endif
