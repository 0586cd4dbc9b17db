/* quantize_tune.h - the tuning part of gptqt-quantize: its flags, its run, what it shows.
 *
 * Owns      nothing.
 * Borrows   argv for as long as the options are used.
 * Thread    the main thread.
 * Fails     flags by ending the program with CLI_USAGE; the run with what engine/train/tune.h says.
 * Cost      none of its own. */
#ifndef SERVER_QUANTIZE_TUNE_H
#define SERVER_QUANTIZE_TUNE_H

#include <argp.h>
#include <stdbool.h>

#include "engine/train/tune.h"

struct quantize_args;

struct quantize_tune {
    struct tune_options o;
    bool block;       /* --tune block: before this, on its own or not */
    const char *from; /* the checkpoint to tune; NULL: one that is made first */
};

/* A child of the program's parser; its input is a struct quantize_args. */
extern const struct argp quantize_tune_argp;

/* args->tune.o.mode is not TUNE_NONE. make() quantizes args->model to
 * args->out, and is called for OUT.untuned unless the same command line has been through with that;
 * OUT.untuned is removed in the end. */
int quantize_tune_run(const struct quantize_args *args,
                      int (*make)(const struct quantize_args *args, struct error *err),
                      struct error *err);

#endif
