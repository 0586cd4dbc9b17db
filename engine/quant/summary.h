/* summary.h - adds up what layer_errors.json says of a model's matrices.
 *
 * Owns      nothing.
 * Borrows   the JSON during the call.
 * Thread    any.
 * Fails     never; what is missing counts as 0.
 * Cost      a look-up for each matrix.
 *
 * Matrices are added role by role, and block by block within a role, so that the rounding of the
 * sums is the same for a model made at once and for one joined from parts. */
#ifndef ENGINE_QUANT_SUMMARY_H
#define ENGINE_QUANT_SUMMARY_H

#include <jansson.h>
#include <stdint.h>

#include "engine/model.h"

struct quantize_summary;

/* entry: {"decibels", "bits_per_weight", ...} of one matrix of s->n_layers blocks. */
void summary_add(struct quantize_summary *s, enum model_role role, int64_t n_weights,
                 const json_t *entry);
void summary_end(struct quantize_summary *s);

/* Puts "bits_per_weight" and "layer_errors" into a quantization_config. */
void summary_describe(json_t *config, const struct quantize_summary *s);

#endif
