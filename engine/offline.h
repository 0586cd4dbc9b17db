/* offline.h - opens a model for tools that run it themselves: eval, bench, logits.
 *
 * Owns      the back end, the source, the tokenizer and the model, until offline_close().
 * Borrows   the options during offline_open().
 * Thread    one.
 * Fails     what its parts fail with.
 * Cost      loading the model.
 *
 * Tools measure, so keys and values are fp32 unless they say otherwise. */
#ifndef ENGINE_OFFLINE_H
#define ENGINE_OFFLINE_H

#include <stdbool.h>

#include "engine/model.h"

struct error;
struct source;
struct tokenizer;

struct offline_options {
    struct backend_options backend;
    struct model_options model; /* n_kv_blocks is computed */
    int context;                /* positions of a sequence; 0 = the model's */
    int sequences;              /* KV room for this many, at least 1 */
    bool tokenizer;             /* needed */
};

struct offline {
    struct backend *backend;
    struct source *source;
    struct tokenizer *tokenizer; /* NULL unless asked for */
    struct model *model;
    int context; /* in force */
};

/* Takes src, also on failure. */
int offline_open(struct offline *ret, struct source *src, const struct offline_options *options,
                 struct error *err);
void offline_close(struct offline *o); /* zeroed is allowed */

#endif
