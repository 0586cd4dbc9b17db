/* effort.h - says what a step of the ladder from fast to best sets.
 *
 * Owns      nothing.
 * Borrows   the options during the call.
 * Thread    any.
 * Fails     never.
 * Cost      none; what the steps cost is in README.md.
 *
 * A step sets how the codes are searched for, how much text is used and which matrices get more bits
 * than others, never how much is stored: equal bits, group and parameters give checkpoints of about
 * equal size on every step. */
#ifndef ENGINE_QUANT_EFFORT_H
#define ENGINE_QUANT_EFFORT_H

struct quantize_options;

enum effort { EFFORT_FAST, EFFORT_NORMAL, EFFORT_BEST };

/* "fast", "normal", "best"; NULL past the last. */
const char *effort_name(enum effort effort);

/* Method gptqt; explicit choices come after and win. asked: what those say on their own; where they
 * need the original's inputs (a part of the blocks, kept moments, ...) the step does with them. */
void effort_apply(enum effort effort, const struct quantize_options *asked,
                  struct quantize_options *options);

#endif
