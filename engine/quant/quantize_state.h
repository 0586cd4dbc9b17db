/* quantize_state.h - what the files that carry out quantize_run() share; no one else includes it.
 *
 * Owns      struct quantize: everything but the source, the options and the events.
 * Borrows   those during the run.
 * Thread    that of quantize_run().
 * Fails     as quantize_run() does.
 * Cost      see quantize.h.
 *
 * quantize_settings.c settles and describes the options, quantize_blocks.c makes or restores the
 * blocks, quantize_moments.c keeps their second moments for other runs, quantize_result.c writes
 * what stands in the checkpoint beside them. */
#ifndef ENGINE_QUANT_QUANTIZE_STATE_H
#define ENGINE_QUANT_QUANTIZE_STATE_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/quant/quantize.h"
#include "engine/quant/shard.h"
#include "engine/sha256.h"

struct backend;
struct blockwise;
struct calibrate;
struct checkpoint_writer;
struct error;
struct model;
struct model_config;
struct source;

enum { QUANTIZE_NAME_SIZE = 192 }; /* of a tensor's name */

struct quantize {
    struct source *src;
    const struct model_config *config;
    struct quantize_options o; /* with every default put in */
    const struct quantize_events *events;
    struct backend *backend;
    struct model *model;
    struct checkpoint_writer *writer;
    struct calibrate *calibrate;
    int32_t *tokens;             /* (windows, ctx) */
    float *w;                    /* the largest matrix */
    struct blockwise *blockwise; /* NULL: no method looks at whole blocks */
    struct layer_result coded[ROLE_COUNT];
    json_t *errors; /* matrix name -> {decibels, loss, energy, bits_per_weight} */
    struct shard shard;
    char moments_key[SHA256_HEX];
    bool has_moments; /* an earlier run has kept those of all blocks that this one makes */
    int *bits;        /* (n_layers, ROLE_COUNT) of each matrix; NULL: layer.bits */
};

void quantize_note(const struct quantize *q, const char *text);
/* Blocks done, with fractions. */
void quantize_progress(const struct quantize *q, double done);

/* Puts the defaults in and refuses what cannot be. */
int quantize_settle(struct quantize *q, struct error *err);
/* The settings that a reader may want to know; all that decide about the codes. NULL: no memory. */
json_t *quantize_describe(const struct quantize *q);
void quantize_tokens_hash(const struct quantize *q, char hex[SHA256_HEX]);

/* Second moments that an earlier run has kept, or that later ones shall find. */
int quantize_find_moments(struct quantize *q, struct error *err);
int quantize_load_moments(struct quantize *q, int layer, struct error *err);
int quantize_keep_moments(struct quantize *q, int layer, struct error *err);

/* Makes the blocks, or restores those that an earlier run has made. */
int quantize_blocks(struct quantize *q, struct error *err);
/* A number that is kept of a matrix; 0 when there is none. */
double quantize_error_value(const struct quantize *q, const char *name, const char *key);

/* Tensors whose place the coded matrices take, that nothing reads or that another part has. arg:
 * the run. */
bool quantize_leaves_out(void *arg, const char *name);
void quantize_summarize(const struct quantize *q, struct quantize_summary *s);
/* Says what a codec has saved. */
void quantize_note_saved(const struct quantize *q, const struct quantize_summary *s);
/* config.json and the other texts. */
int quantize_write_texts(struct quantize *q, const struct quantize_summary *s, struct error *err);

#endif
