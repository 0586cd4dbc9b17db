/* lines.h - reads JSON values, one a line.
 *
 * Owns      each value during its callback.
 * Borrows   the file until it returns.
 * Thread    one.
 * Fails     -EINVAL for a line that is no JSON (its number is named), and what the callback gives.
 * Cost      one parse per line.
 *
 * Output is flushed after each line, so that a program on a pipe may wait for its answer. */
#ifndef SERVER_LINES_H
#define SERVER_LINES_H

#include <jansson.h>
#include <stdio.h>

struct error;

int lines_each(FILE *in, int (*each)(void *arg, json_t *value, struct error *err), void *arg,
               struct error *err);

#endif
