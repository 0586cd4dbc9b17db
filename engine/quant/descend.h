/* descend.h - lowers a strip's loss by coordinate descent over its codes.
 *
 * Owns      nothing.
 * Borrows   the strip, whose codes it rewrites; levels and the block's parameters stand.
 * Thread    as strip.h.
 * Fails     never.
 * Cost      n^2 multiply-adds a row, as two column loops.
 *
 * In processing order every code moves to the level that is best while all others stand, so a sweep
 * raises no row's loss beyond rounding in fp32. */
#ifndef ENGINE_QUANT_DESCEND_H
#define ENGINE_QUANT_DESCEND_H

struct strip;

/* d = q - w. */
void descend_difference(struct strip *s);

/* One sweep, with rank, q and code set. d is q - w afterwards. */
void descend_codes(struct strip *s);

#endif
