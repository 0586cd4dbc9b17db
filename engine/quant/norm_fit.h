/* norm_fit.h - fits a norm's scale and offset so that its output is what it was before coding.
 *
 * Owns      its sums until norm_fit_free().
 * Borrows   rows during the call.
 * Thread    one.
 * Fails     norm_fit_new() with -ENOMEM.
 * Cost      a few operations a value.
 *
 * The closed form of Norm Tweaking (arXiv 2309.02784), which moves the norms' parameters only so
 * that every channel's distribution is the original model's: per channel, the norm's output on the
 * coded model's states is put on that on the original's by a factor (into the norm's weight) and
 * an offset (into its bias, where there is one). Sums are fp64, in the order of the calls. */
#ifndef ENGINE_QUANT_NORM_FIT_H
#define ENGINE_QUANT_NORM_FIT_H

#include <stdbool.h>

struct error;
struct norm_fit;

enum norm_fit_form {
    NORM_FIT_MOMENTS, /* equal mean and standard deviation; without a bias: equal mean square */
    NORM_FIT_SQUARES  /* the least squared distance, token by token */
};

int norm_fit_new(struct norm_fit **ret, int width, struct error *err);
void norm_fit_free(struct norm_fit *f); /* NULL is allowed */
void norm_fit_reset(struct norm_fit *f);

/* What the norm gives now, and what it should give: both (n_rows, width). */
void norm_fit_add(struct norm_fit *f, const float *now, const float *wanted, int n_rows);

/* factor, offset: (width); offset is 0 throughout when the norm has no bias. Channels without
 * spread keep factor 1; factors stay within 1/2 and 2, beyond which the states are not alike. */
void norm_fit_solve(const struct norm_fit *f, enum norm_fit_form form, bool has_bias, float *factor,
                    float *offset);

#endif
