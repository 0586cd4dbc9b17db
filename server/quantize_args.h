/* quantize_args.h - the command line of gptqt-quantize.
 *
 * Owns      nothing.
 * Borrows   argv for as long as the result is used.
 * Thread    the main thread.
 * Fails     by ending the program with CLI_USAGE and a line that names the flag and its range.
 * Cost      none to speak of.
 *
 * Options that came from here have passed layer_check(), and no flag is without an effect. */
#ifndef SERVER_QUANTIZE_ARGS_H
#define SERVER_QUANTIZE_ARGS_H

#include <stdbool.h>

#include "engine/quant/quantize.h"
#include "server/quantize_idle.h"
#include "server/quantize_tune.h"

struct quantize_args {
    const char *model, *out;
    struct quantize_options o;
    struct quantize_tune tune;
    struct quantize_typed typed;
    int argc; /* the whole command line */
    char **argv;
    int effort;       /* enum effort, or -1: what its steps set was left alone */
    bool over_effort; /* they were read over those steps */
    bool json;
    bool merge;               /* join parts into out; there is no model then */
    const char *const *parts; /* (n_parts) */
    int n_parts;
};

void quantize_args_parse(struct quantize_args *ret, int argc, char **argv);

#endif
