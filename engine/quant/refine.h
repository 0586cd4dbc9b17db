/* refine.h - lowers a strip's loss after the column loop, inside the stored format.
 *
 * Owns      nothing.
 * Borrows   the strip and its block, and rewrites both.
 * Thread    as strip.h.
 * Fails     -ENOMEM.
 * Cost      a round is about five column loops, the first seven.
 *
 * A round fits every group's parameters to the codes under H, group after group, then moves every
 * code to the level that is best while all others stand (coordinate descent). A step is only taken
 * when it lowers the loss as stored, so no round raises it. The first round also runs the column
 * loop again on the fitted levels and keeps the better result row by row. */
#ifndef ENGINE_QUANT_REFINE_H
#define ENGINE_QUANT_REFINE_H

#include <stdint.h>

struct error;
struct strip;

/* shapes: (n_shapes, bits), the table that a BCQ_COMPACT_GROUP block may choose from. Row scales
 * and, in a BCQ_COMPACT block, shapes stay. */
int refine_strip(struct strip *s, const uint8_t *shapes, int n_shapes, int rounds,
                 struct error *err);

#endif
