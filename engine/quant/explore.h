/* explore.h - tries several sets of group parameters for a strip by the loss that each ends with.
 *
 * Owns      nothing.
 * Borrows   the strip and its block, and rewrites both.
 * Thread    as strip.h.
 * Fails     -ENOMEM, and what lay() fails with.
 * Cost      about four column loops per variant.
 *
 * A codebook is chosen by diag(H), which knows nothing of the column loop's feedback: weights that
 * have taken over the errors of others spread wider. Here every variant goes through the loop and
 * one sweep of coordinate descent, and each row keeps what gave it the least true loss. */
#ifndef ENGINE_QUANT_EXPLORE_H
#define ENGINE_QUANT_EXPLORE_H

struct error;
struct strip;

/* Writes variant number v of the parameters of all rows of the strip into its block. */
typedef int explore_lay(void *arg, int v, struct error *err);

/* n is at least 1. Ends with the best parameters in the block, and codes and q of the strip made
 * with them; at a tie the lower variant. */
int explore_strip(struct strip *s, int n, explore_lay *lay, void *arg, struct error *err);

#endif
