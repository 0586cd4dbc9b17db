/* model_names.h - reads the list of names that the model is served under: "name,alias,alias".
 *
 * Owns      nothing.
 * Borrows   the list and the name during the call.
 * Thread    any; pure.
 * Fails     never; empty names are skipped.
 * Cost      O(list).
 *
 * The first name is the model's own: answers carry it, whichever alias was asked for. */
#ifndef SERVER_MODEL_NAMES_H
#define SERVER_MODEL_NAMES_H

#include <stdbool.h>
#include <stddef.h>

/* The next name: moves *list behind it and returns its start; NULL at the end. */
const char *model_names_next(const char **list, size_t *ret_n);

bool model_names_has(const char *list, const char *name);

#endif
