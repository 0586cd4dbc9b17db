/* layer.h - turns one weight matrix into a binary-coded block.
 *
 * Owns      struct layer_input and struct layer_result until their free functions.
 * Borrows   weights during the call, the input until the call returns.
 * Thread    any; work is spread over n_threads by blocks of rows.
 * Fails     -EINVAL (options), -EDOM (values that are not finite), -ERANGE (beyond fp16), -ENOMEM;
 *           the caller puts the tensor's name in front.
 * Cost      rows * cols^2 multiply-adds in fp32, twice with the loss; cols^3 in fp64 per input.
 *
 * Rows are independent given H, and blocks of rows are cut the same way whatever the number of
 * threads: equal input gives equal bytes. Every group's parameters are fixed, in their stored form,
 * before the column loop (groups are runs of columns in natural order whatever the processing
 * order), save the classic GPTQ baseline without act-order in the free form. */
#ifndef ENGINE_QUANT_LAYER_H
#define ENGINE_QUANT_LAYER_H

#include <stdbool.h>
#include <stddef.h>

#include "engine/quant/codes.h"
#include "kernels/outliers.h"
#include "kernels/rotation.h"
#include "kernels/weights.h"

struct error;
struct layer_input;

enum layer_method {
    LAYER_RTN,      /* uniform grid, nearest level */
    LAYER_GPTQ,     /* uniform grid, column loop */
    LAYER_BCQ,      /* alternating binary coding, nearest level */
    LAYER_GPTQ_BCQ, /* alternating binary coding, column loop */
    LAYER_GPTQT     /* codebook search, column loop */
};

/* How errors of columns count where a codebook or a grid is chosen. */
enum layer_weighting {
    LAYER_BY_DIAG, /* diagonal of H */
    LAYER_BY_NONE,
    LAYER_BY_METRIC /* 1 / U_jj^2: the diagonal less what later columns can make up for */
};

/* Between which rotations a matrix is stored, see incoherence.h. */
enum layer_incoherence { LAYER_NATURAL, LAYER_TURN_INPUT, LAYER_TURN_BOTH };

struct layer_options {
    enum layer_method method;
    enum bcq_kind kind;
    int bits;
    int group;      /* columns; 0 = a whole row */
    int scale_bits; /* compact kinds; else ignored */
    int bias_bits;
    int step_bits; /* of step one; 0 = codebook_step_bits() */
    int n_ranges;  /* range factors explored */
    bool asymmetric;
    enum layer_weighting weighting;
    bool act_order;
    bool group_order; /* with act_order: whole groups by falling energy, then their columns */
    bool min_mse;     /* uniform methods shrink the range to the least weighted error */
    bool bcq_bias;    /* alternating methods fit a bias as well */
    double damp;
    struct codes_options codes;
    bool pow2;   /* every stored parameter is a power of two; compact kind alone */
    int explore; /* variants of parameters judged by the loss they end with; 0 = none */
    int refine;  /* rounds of refit and coordinate descent after the loop */
    enum layer_incoherence incoherence;
    bool whole_outliers; /* columns as a whole, instead of single weights */
    double outliers;     /* per cent of the weights that stay fp16 beside the codes; 0 = none */
    int n_threads;
    /* What an error in each weight costs where a codebook is chosen, (rows, cols) of the matrix, in
     * place of the weighting; NULL: the weighting. Dead columns count as 0. */
    const float *row_weights;
    /* A matrix coded alike whose group parameters are taken over in place of a search's, for the
     * method gptqt; NULL: the search's. */
    const struct bcq_view *given;
};

void layer_defaults(struct layer_options *options);

/* -EINVAL names the option. */
int layer_check(const struct layer_options *options, struct error *err);

/* What the matrices that share an input have in common. Takes no ownership of h: (n, n) symmetric,
 * mean of x x^T; it is rotated, where that was asked for, and damped in place. */
int layer_input_new(struct layer_input **ret, double *h, int n, const struct layer_options *options,
                    struct error *err);
void layer_input_free(struct layer_input *in); /* NULL is allowed */

struct layer_result {
    void *block; /* n_bytes, 64-byte aligned */
    size_t n_bytes;
    struct bcq_view view;
    void *side; /* the block of the outliers, n_side bytes; NULL without */
    size_t n_side;
    struct outliers_view outliers;
    void *turns; /* the block of the rotations, n_turns bytes; NULL without */
    size_t n_turns;
    struct rotation_view rotation;
    double loss;     /* sum over rows of (q - w) H (q - w)^T, H damped */
    double energy;   /* sum over rows of w H w^T */
    double decibels; /* 10 log10(loss / energy), at least -200; 0 when energy is 0 */
};

/* Of all that is stored for the matrix. */
double layer_bits_per_weight(const struct layer_result *result);

/* w: (rows, n of the input). options are those of the input. */
int layer_quantize(struct layer_result *ret, const struct layer_input *in, const float *w, int rows,
                   const struct layer_options *options, struct error *err);
void layer_result_free(struct layer_result *result); /* zeroed is allowed */

/* The whole matrix, outliers included; points into result. */
struct weight_view layer_view(const struct layer_result *result);

#endif
