/* quantize_block.h - the quantizer's flags for methods that look at whole blocks.
 *
 * Owns      nothing.
 * Borrows   argv during the parse.
 * Thread    the main thread.
 * Fails     flags by ending the program with CLI_USAGE.
 * Cost      none of its own. */
#ifndef SERVER_QUANTIZE_BLOCK_H
#define SERVER_QUANTIZE_BLOCK_H

#include <argp.h>

/* A child of the program's parser; its input is a struct quantize_args. */
extern const struct argp quantize_block_argp;

#endif
