/* output.h - codes the output matrix as whole numbers on a scale for each 32 inputs.
 *
 * Owns      nothing.
 * Borrows   the writer and the source during the call.
 * Thread    one; rows are spread over n_threads.
 * Fails     -EBADMSG (there is no such tensor), -ERANGE (a scale beyond fp16), -ENOMEM, what the
 *           writer fails with; the tensor is named.
 * Cost      the matrix's codes in memory, 44 tries of a scale for each 32 weights.
 *
 * NAME.weight becomes NAME.bcq of kind BCQ_WHOLE. A matrix that is the embedding as well serves
 * both uses in this form. Each group takes the scale of the least squared error among a few that
 * put its largest weight, on either side of zero, near the ends of the range; no text decides. */
#ifndef ENGINE_QUANT_OUTPUT_H
#define ENGINE_QUANT_OUTPUT_H

#include "kernels/weights.h"

struct checkpoint_writer;
struct error;
struct source;

struct output_result {
    int rows, cols;
    double bits_per_weight; /* everything included */
    double decibels;        /* squared error of the weights relative to their squares */
};

/* What --output-bits may be: 8, 6, 4, and 16 for a matrix that stays as it is. */
int output_check(int bits, struct error *err);

/* name: without ".weight". One that the writer has is kept: *ret is then the same. */
int output_write(struct output_result *ret, struct checkpoint_writer *w, const struct source *src,
                 const char *name, int bits, int n_threads, struct error *err);

/* Codes of n <= BCQ_WHOLE_GROUP weights, and their scale; the squared error that is left. */
double output_group(uint8_t *codes, float *scale, const float *w, int n, int bits);

#endif
