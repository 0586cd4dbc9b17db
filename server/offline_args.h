/* offline_args.h - the flags that eval, bench and logits share: where and how a model runs.
 *
 * Owns      nothing.
 * Borrows   argv.
 * Thread    main.
 * Fails     the parser ends the program with status 2 and one line.
 * Cost      none.
 *
 * The parser's input is the struct offline_options that offline_open() takes. */
#ifndef SERVER_OFFLINE_ARGS_H
#define SERVER_OFFLINE_ARGS_H

#include <argp.h>

extern const struct argp offline_argp; /* input: struct offline_options */

#endif
