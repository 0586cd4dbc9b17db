/* rescale.h - fits a row's two super-scales to its codes under H.
 *
 * Owns      nothing.
 * Borrows   the strip and its block, and rewrites both.
 * Thread    as strip.h.
 * Fails     -ENOMEM.
 * Cost      about four column loops.
 *
 * With every code fixed a row is s0 * a + s1 * b, which leaves a system of two unknowns. A row's
 * step is only taken when it lowers the loss after rounding to fp16. */
#ifndef ENGINE_QUANT_RESCALE_H
#define ENGINE_QUANT_RESCALE_H

struct error;
struct strip;

/* Compact kinds; a free block has no super-scales and stays. */
int rescale_strip(struct strip *s, struct error *err);

#endif
