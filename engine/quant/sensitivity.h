/* sensitivity.h - finds out how many bits each matrix of a model deserves ("mixed precision").
 *
 * Owns      nothing beyond the call.
 * Borrows   everything given during the call.
 * Thread    one; work inside is spread over layer.n_threads.
 * Fails     -EINVAL (a budget out of reach: the range is named), -ENOMEM, errors of source and
 *           writer.
 * Cost      by gradient: two forward passes and one backward over 4096 tokens, and for every unit and
 *           each of four widths the cheap quantization of some rows.
 *           By KL: the cheap quantization of all of them, and for each a forward pass over
 *           PROBE_WINDOWS windows from the unit's block on, with all blocks in memory.
 *           By loss: the quantizations alone.
 *
 * arXiv 2112.11438, section 4 (KL form): a unit's sensitivity at m bits is the divergence of the
 * model's output from the original's when it alone is coded so; by gradient it is that divergence to
 * second order (sensitivity_gradient.c), which costs little and agrees within a factor that is much
 * the same for all units (README.md, Mixed bits). The cheap quantization is codebook and column loop
 * on the moments of the same windows. What is found is kept in the partial checkpoint unit by unit,
 * in sensitivities.json, where the next run finds it; it stays in the checkpoint, for people. */
#ifndef ENGINE_QUANT_SENSITIVITY_H
#define ENGINE_QUANT_SENSITIVITY_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/model.h"
#include "engine/quant/layer.h"

struct checkpoint_writer;
struct error;
struct source;

enum sensitivity_by { SENSITIVITY_GRADIENT, SENSITIVITY_KL, SENSITIVITY_LOSS };
enum sensitivity_per {
    SENSITIVITY_MATRIX,
    SENSITIVITY_INPUT /* the matrices of a block that read one input share their bits */
};

struct sensitivity_options {
    double budget; /* bits per weight of the coded matrices, everything included; 0 = off */
    bool as_bits;  /* the budget is what layer.bits in every matrix would take */
    enum sensitivity_by by;
    enum sensitivity_per per;
};

/* "gradient", "kl", "loss"; "matrix", "input"; NULL past the last. */
const char *sensitivity_by_name(enum sensitivity_by by);
const char *sensitivity_per_name(enum sensitivity_per per);

bool sensitivity_wanted(const struct sensitivity_options *o);

/* Whether the other options suit every number of bits. */
int sensitivity_check(const struct sensitivity_options *o, const struct layer_options *layer,
                      struct error *err);

struct sensitivity_job {
    struct backend *backend;
    struct source *source;
    struct checkpoint_writer *writer;
    const struct sensitivity_options *options;
    const struct layer_options *layer; /* bits are of no account but for as_bits */
    const int32_t *tokens;             /* (n_windows, ctx) */
    int n_windows, ctx;
    void (*progress)(void *arg, double done, double total); /* blocks */
    void *arg;
};

/* bits: (n_layers, ROLE_COUNT), 0 where there is no such matrix. */
int sensitivity_find(int *bits, const struct sensitivity_job *job, struct error *err);

#endif
