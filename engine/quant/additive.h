/* additive.h - codes and free scales of a strip by turns, as additive quantization learns them.
 *
 * Owns      nothing beyond the call.
 * Borrows   the strip and its block, and rewrites both.
 * Thread    as strip.h.
 * Fails     -ENOMEM.
 * Cost      a round: planes * n^2 multiply-adds a row for the system, u^3 / 3 to solve it with
 *           u = groups * (planes + 1), and what the code search costs.
 *
 * AQLM (arXiv 2401.06118, section 3) writes a weight as a sum of entries of m codebooks and learns
 * codes (3.2, beam search) and codebooks (3.3) by turns under the layer's loss. With codebooks of
 * one bit, {-alpha_i, +alpha_i}, the sum is a binary code with free scales, and the codebooks of a
 * whole row have a closed form: one least-squares problem under H over all its groups at once. A
 * row keeps what is better as stored. */
#ifndef ENGINE_QUANT_ADDITIVE_H
#define ENGINE_QUANT_ADDITIVE_H

struct error;
struct strip;

/* The block is BCQ_FREE and codes are there. width: of the beam. */
int additive_strip(struct strip *s, int width, struct error *err);

#endif
