/* sampling_args.h - the flags that `run` and `chat` share.
 *
 * Owns      nothing.
 * Borrows   argv.
 * Thread    main.
 * Fails     the parser ends the program with status 2 and one line; sampling_request() as stated.
 * Cost      none.
 *
 * What a user leaves open is the model's generation_config.json, or the API's defaults. */
#ifndef SERVER_SAMPLING_ARGS_H
#define SERVER_SAMPLING_ARGS_H

#include <argp.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/engine.h"

struct error;

struct sampling_args {
    struct engine_options engine;
    int max_tokens; /* 0 = to the end of the context */
    uint64_t seed;
    bool seed_given;
    struct sampler_params params;
    unsigned given; /* bits of params that a flag set */
};

extern const struct argp sampling_argp; /* input: struct sampling_args */

/* Defaults for one sequence. */
void sampling_args_init(struct sampling_args *args);

/* A request with everything but its prompt. -EINVAL names the parameter. */
int sampling_request(struct engine_request **ret, const struct sampling_args *args,
                     const struct engine *engine, struct error *err);

#endif
