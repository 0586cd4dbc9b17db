/* positions.h - the constants by which attention knows positions: RoPE frequencies, ALiBi slopes.
 *
 * Owns      nothing.
 * Borrows   its arguments during the call.
 * Thread    any.
 * Fails     never.
 * Cost      a power for each number. */
#ifndef ENGINE_POSITIONS_H
#define ENGINE_POSITIONS_H

struct model_config;

/* inv_freq: (head_dim / 2) radians per position, the config's scaling applied. */
void positions_rope(double *inv_freq, const struct model_config *config);

/* slopes: (n_heads). */
void positions_alibi(float *slopes, int n_heads);

#endif
