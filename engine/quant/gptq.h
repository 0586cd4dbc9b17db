/* gptq.h - rounds weights column by column and feeds each error forward ("step one").
 *
 * Owns      struct gptq_factor until gptq_factor_free().
 * Borrows   weights and levels during the call.
 * Thread    any; a factor is read-only once made, so rows may run in parallel.
 * Fails     gptq_factor_new(): -ENOMEM, -EDOM (not positive definite with any damping).
 * Cost      factor n^3 in fp64; a row n^2 / 2 multiply-adds.
 *
 * With inverse(H) = U^T U in processing order, column k is rounded to q_k where the weights stand
 * after the feedback of columns j < k: w_k - sum_j d_j U_jk / U_jj, d_j = what was rounded away.
 * Then sum_k d_k^2 / U_kk^2 = (q - w) H (q - w)^T, exactly: the loss costs nothing. */
#ifndef ENGINE_QUANT_GPTQ_H
#define ENGINE_QUANT_GPTQ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;

enum { GPTQ_LANES = 64 }; /* rows that one call of gptq_loop() carries side by side */

struct gptq_factor {
    int n;
    double damping; /* what was added to the diagonal */
    int *perm;      /* (n) natural column that is processed k-th */
    int *place;     /* (n) the inverse: when a natural column is processed */
    bool *dead;     /* (n) natural column that no input ever used */
    double *diag;   /* (n) damped diagonal of H, natural order */
    double *pivot;  /* (n) 1 / U_kk^2, processing order: what an error there costs in the end */
    double *u;      /* (n, n) upper triangular, processing order; NULL after shrinking */
    float *v;       /* (n, n) v[k][j] = U_jk / U_jj for j < k */
};

struct gptq_options {
    double damp;    /* share of the mean diagonal, 0.01 */
    bool act_order; /* process columns by falling diagonal; ties in natural order */
    int group;      /* with act_order, not 0: whole groups of natural columns by their sums */
    int n_threads;
};

/* h: (n, n) symmetric, natural order; dead columns get 1 on the diagonal and the damping is
 * added, in place: what h holds afterwards is the H of the loss. When the factor fails, damping
 * grows tenfold, five times at most. */
int gptq_factor_new(struct gptq_factor **ret, double *h, int n, const struct gptq_options *options,
                    struct error *err);
void gptq_factor_free(struct gptq_factor *f); /* NULL is allowed */

/* Frees u, which only gptq_uniform() needs. */
void gptq_factor_shrink(struct gptq_factor *f);

/* Sorted levels of every group for GPTQ_LANES rows. */
struct gptq_levels {
    int n_levels;         /* at least 1 */
    const int *group_of;  /* (n) group of the k-th processed column */
    const float *values;  /* (n_groups, n_levels, GPTQ_LANES) rising along n_levels */
    const uint8_t *exact; /* (n, GPTQ_LANES) not 0: stays unrounded, ranked by what is next to it;
                             NULL: all are rounded */
};

/* Index of the level next to x in every lane; at a tie the lower one. */
void gptq_nearest(const float *levels, int n_levels, const float x[GPTQ_LANES], float q[GPTQ_LANES],
                  uint8_t rank[GPTQ_LANES]);

/* q = x in the lanes that are to stay exact. */
void gptq_keep_exact(const uint8_t *exact, const float x[GPTQ_LANES], float q[GPTQ_LANES]);

/* w, d, q, rank: (n, GPTQ_LANES) in processing order; d is scratch. loss: (GPTQ_LANES) or NULL. */
void gptq_loop(const struct gptq_factor *f, const struct gptq_levels *levels, const float *w,
               float *d, float *q, uint8_t *rank, double *loss);

/* The classic form in fp64: uniform grids of bits, laid over the weights as they stand when the
 * loop reaches a group's first column. Groups are runs of `group` columns in processing order. */
struct gptq_uniform {
    int bits;
    int group;       /* columns in a group; n = one grid for the row, of the original weights */
    bool min_mse;    /* grid_min_mse() instead of grid_minmax() */
    const double *h; /* (n) weights of min_mse in processing order, or NULL */
    bool round_f16;  /* grid_round_f16() before use */
};

/* w: (rows, n) natural order; dead columns count as 0. codes: (rows, n) natural order. scales,
 * zeros: (rows, ceil(n / group)), loss: (rows). */
int gptq_uniform(const struct gptq_factor *f, const struct gptq_uniform *options, const double *w,
                 int rows, uint8_t *codes, double *scales, double *zeros, double *loss,
                 struct error *err);

#endif
