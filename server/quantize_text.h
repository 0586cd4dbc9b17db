/* quantize_text.h - the quantizer's flags for calibration: text, inputs and what they aim at.
 *
 * Owns      nothing.
 * Borrows   argv for as long as the options are used.
 * Thread    the main thread.
 * Fails     flags by ending the program with CLI_USAGE.
 * Cost      none of its own. */
#ifndef SERVER_QUANTIZE_TEXT_H
#define SERVER_QUANTIZE_TEXT_H

#include <argp.h>

/* A child of the program's parser; its input is a struct quantize_args. */
extern const struct argp quantize_text_argp;

#endif
