/* cli.h - reads flag values and ends a command the same way everywhere.
 *
 * Owns      nothing.
 * Borrows   strings during the call.
 * Thread    main.
 * Fails     the parsers with -EINVAL; the text names the flag, the value and the range.
 * Cost      none to speak of.
 *
 * Wrong usage prints one line and gives status 2, a failure one line and status 1. */
#ifndef SERVER_CLI_H
#define SERVER_CLI_H

#include <stdint.h>

#include "kernels/weights.h"

struct argp_state;
struct error;

enum { CLI_FAILED = 1, CLI_USAGE = 2, CLI_LOST = 3 /* what the model ran on */ };

int cli_int(int *ret, const char *flag, const char *text, int lo, int hi, struct error *err);
int cli_int64(int64_t *ret, const char *flag, const char *text, int64_t lo, int64_t hi,
              struct error *err);
int cli_seed(uint64_t *ret, const char *flag, const char *text, struct error *err);
int cli_float(float *ret, const char *flag, const char *text, float lo, float hi,
              struct error *err);

/* Index of text in a list of names that ends where name_of() gives NULL. */
int cli_choice(const char *flag, const char *text, const char *(*name_of)(int), int *ret,
               struct error *err);

/* "f16", "f32" or "int8": the type of stored keys and values. */
int cli_kv(enum dtype *ret, const char *text, struct error *err);
/* 16, 8 or 4. */
int cli_act_bits(int *ret, const char *text, struct error *err);

/* Ends an argp parser that took an option with r: positive where the key is not its own, negative
 * with err. */
int cli_parsed(int r, struct argp_state *state, const struct error *err);

/* A positional MODEL and no other, for a command's argp parser. Returns 0. */
int cli_model(const char **model, const char *value, struct argp_state *state);

/* "command: text" on stderr; returns status. */
int cli_end(int status, const char *command, const struct error *err);

/* Seconds of CLOCK_MONOTONIC. */
double cli_now(void);

#endif
