/* eval_base.h - keeps a reference model's distributions over a text in a file, so that many models
 * can be compared with it without running it again (as llama-perplexity's --kl-divergence-base).
 *
 * Owns      its file until closed; what is not committed disappears.
 * Borrows   rows during a call.
 * Thread    one.
 * Fails     -EINVAL (another text, window or vocabulary; damaged), -ENOMEM, errno of the file.
 * Cost      2 bytes for each position and word: SmolLM2, 8 windows of 1024: 805 MB.
 *
 * A header, then for each position of each window in order vocab halves: the logit less the
 * position's largest. Half precision moves a mean divergence by some 1e-6; both ends round the
 * same way, since the reader takes the sum of the rounded ones. */
#ifndef ENGINE_EVAL_BASE_H
#define ENGINE_EVAL_BASE_H

#include <stdint.h>

#include "engine/atomic_file.h"
#include "engine/map.h"

struct error;

/* What must be equal for two runs to see the same positions. */
struct eval_base_key {
    int32_t vocab, ctx, chunks;
    const int32_t *tokens; /* (chunks * ctx) as the model sees them */
};

struct eval_base_writer {
    struct atomic_file file;
    uint16_t *row; /* (vocab) */
    int vocab;
};

int eval_base_create(struct eval_base_writer *ret, const char *path,
                     const struct eval_base_key *key, struct error *err);
/* logits: (vocab) of the next position; finite or not, they are kept as they round. */
int eval_base_add(struct eval_base_writer *w, const float *logits, struct error *err);
int eval_base_commit(struct eval_base_writer *w, struct error *err);
void eval_base_abandon(struct eval_base_writer *w); /* harmless after commit; zeroed is allowed */

struct eval_base {
    struct map map;
    int vocab;
};

int eval_base_open(struct eval_base *ret, const char *path, const struct eval_base_key *key,
                   struct error *err);
/* ret: (vocab) of a position, counted through all windows; it must be below chunks * ctx. */
void eval_base_row(const struct eval_base *b, int64_t position, float *ret);
void eval_base_close(struct eval_base *b); /* zeroed is allowed */

#endif
